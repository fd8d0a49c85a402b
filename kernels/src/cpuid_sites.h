/* The one instruction that a masked process may still ask the real CPU with, and the replacing of all others. Internal. */
#ifndef HWQ_CPUID_SITES_H
#define HWQ_CPUID_SITES_H
#include <stdint.h> /* says on which C library this is */

/* HLT in place of CPUID's first byte: no program may execute it, so it faults as a CPUID does that must not answer. */
enum { CPUID_FIRST = 0x0F, CPUID_SECOND = 0xA2, HALT = 0xF4 };

/* glibc's dynamic linker stops where a debugger would, once new objects are mapped. */
#if defined(__GLIBC__) && defined(__linux__) && defined(__x86_64__)
#define CPUID_REPLACEABLE 1

extern const uint8_t hwq_cpuid_real[]; /* the instruction of our own handler: it stays */

/* In every object of the process that is new since the last call, HLT for the first byte of each CPUID. */
void hwq_cpuid_replace(void);
/* A byte of code; 0, or -1 where the kernel forbids to write there. */
int hwq_code_write(const uint8_t *place, uint8_t value);
#endif
#endif
