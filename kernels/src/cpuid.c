/* A lesser CPU: CPUID answers this process as if AVX-512, VNNI, AVX-VNNI and AMX were missing.
 *
 * Libraries ask CPUID what they may use, and most cannot be told otherwise. Linux lets a thread make the instruction fault
 * where the processor (or its hypervisor) can (arch_prctl(2), ARCH_SET_CPUID); the fault arrives as SIGSEGV, the handler
 * asks the real CPU and clears bits. Elsewhere every CPUID in the code of the process is replaced by an instruction that faults
 * alike (cpuid_sites.c), in libraries that come later as soon as they are mapped and before they run: there the dynamic linker
 * calls an empty function for debuggers (link.h: r_brk), which faults too. Threads and forked children inherit either, a new
 * program does not. What was loaded before has already asked. XCR0 still says that the operating system saves wide registers:
 * libraries must ask CPUID as well, and do. */
#if defined(__linux__) && defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define _GNU_SOURCE /* names of the saved registers */
#include "cpuid_sites.h"
#include "hwq/kernels.h"

#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#ifdef CPUID_REPLACEABLE
#include <link.h>
#endif

/* Of asm/prctl.h. */
enum { SET_CPUID = 0x1012 };
#define BIT(n) (1u << (n))

/* Intel SDM 2A, CPUID, leaf 7: bits of subleaf 0 and 1. */
static const uint32_t LEAF7_EBX = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31); /* AVX-512 F DQ IFMA PF ER CD BW VL */
static const uint32_t LEAF7_ECX = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14); /* AVX-512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
static const uint32_t LEAF7_EDX = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25); /* 4VNNIW 4FMAPS VP2INTERSECT, AMX-BF16, FP16, AMX-TILE AMX-INT8 */
static const uint32_t LEAF7_1_EAX = BIT(4) | BIT(5) | BIT(21) | BIT(23); /* AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA */
static const uint32_t LEAF7_1_EDX = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19); /* AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */

/* Of the whole process, like the handler that it belongs to; written once, before the handler can run. */
static struct sigaction before;
static int faulting; /* the processor's own, not the replaced instructions' */

/* A system call without errno: the handler must leave everything as it was. */
static long set_cpuid(long answers)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_arch_prctl), "D"((long)SET_CPUID), "S"(answers) : "rcx", "r11", "memory");
    return result;
}

/* CPUID of leaf a and subleaf c: the only one that answers while all others fault. */
__attribute__((noinline)) static void ask(uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d)
{
    if (faulting) set_cpuid(1);
    __asm__ volatile(".globl hwq_cpuid_real\n.hidden hwq_cpuid_real\nhwq_cpuid_real: cpuid" : "+a"(*a), "=b"(*b), "+c"(*c), "=d"(*d));
    if (faulting) set_cpuid(0);
}

#ifdef CPUID_REPLACEABLE
/* What the dynamic linker's empty function does from now on. */
static void on_objects(void)
{
    if (_r_debug.r_state == RT_CONSISTENT) hwq_cpuid_replace();
}

static int replace(void)
{
    if (!_r_debug.r_brk || hwq_code_write((const uint8_t *)_r_debug.r_brk, HALT)) return -1;
    hwq_cpuid_replace();
    return 0;
}
#else
static int replace(void) { return -1; }
#endif

/* A fault that is not ours goes to whoever had the signal. By default the process dies of it: the instruction runs again
 * after the return; a signal that another process sent is sent again. */
static void pass_on(int signal_number, siginfo_t *info, void *context)
{
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(signal_number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(signal_number);
    else if (before.sa_handler == SIG_DFL || info->si_code > 0) {
        signal(signal_number, SIG_DFL);
        if (info->si_code <= 0) raise(signal_number);
    }
}

/* The signal is blocked meanwhile, so a fault in here ends the process, as it should. */
static void on_fault(int signal_number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *instruction = (const uint8_t *)(uintptr_t)registers[REG_RIP];
#ifdef CPUID_REPLACEABLE
    if (info->si_code == SI_KERNEL && (uintptr_t)instruction == _r_debug.r_brk && *instruction == HALT) {
        registers[REG_RIP] = (greg_t)(uintptr_t)on_objects; /* which returns to the dynamic linker */
        return;
    }
#endif
    /* CPUID faults as a protection fault, whose code is the kernel's; then the instruction has been read and can be again. */
    if (info->si_code != SI_KERNEL || (instruction[0] != CPUID_FIRST && instruction[0] != HALT) || instruction[1] != CPUID_SECOND) {
        pass_on(signal_number, info, context);
        return;
    }
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX], a = leaf, b, c = subleaf, d;
    ask(&a, &b, &c, &d);
    if (leaf == 7 && subleaf == 0) b &= ~LEAF7_EBX, c &= ~LEAF7_ECX, d &= ~LEAF7_EDX;
    if (leaf == 7 && subleaf == 1) a &= ~LEAF7_1_EAX, d &= ~LEAF7_1_EDX;
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static int is_ours(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == on_fault;
}

int hwq_cpuid_masked(void)
{
    struct sigaction found;
    if (sigaction(SIGSEGV, 0, &found)) return -1;
    if (is_ours(&found)) return 1;
#ifdef CPUID_REPLACEABLE
    if (_r_debug.r_brk) return 0;
#endif
    return set_cpuid(1) ? -1 : 0; /* it answers already: this asks whether it could be stopped */
}

int hwq_cpuid_mask(void)
{
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK}, found;
    ours.sa_sigaction = on_fault;
    if (sigaction(SIGSEGV, 0, &found)) return -1;
    if (is_ours(&found)) return 0;
    before = found;
    if (sigaction(SIGSEGV, &ours, 0)) return -1;
    faulting = set_cpuid(0) == 0;
    if (faulting || replace() == 0) return 0;
    sigaction(SIGSEGV, &before, 0);
    return -1;
}
#else
#include "hwq/kernels.h"

int hwq_cpuid_mask(void) { return -1; }
int hwq_cpuid_masked(void) { return -1; }
#endif
