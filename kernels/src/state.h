/* The floating-point state that every kernel assumes: nearest even, subnormals kept, no traps. Whoever enters the kernels
 * from a thread it does not own calls enter, and leave with what enter returned; the caller's flags come back unchanged. */
#ifndef HWQ_STATE_H
#define HWQ_STATE_H
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64) || defined(__SSE2__)
#include <xmmintrin.h>
static inline uint64_t hwq_state_read(void) { return _mm_getcsr(); }
static inline void hwq_state_write(uint64_t state) { _mm_setcsr((unsigned)state); }
#define HWQ_STATE_DEFAULT 0x1F80u /* MXCSR: all exceptions masked, round to nearest, FTZ and DAZ off */
#elif defined(__aarch64__)
static inline uint64_t hwq_state_read(void)
{
    uint64_t state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    return state;
}
static inline void hwq_state_write(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state) : "memory"); }
#define HWQ_STATE_DEFAULT 0u /* FPCR: round to nearest, FZ off, default-NaN off, traps off */
#else
static inline uint64_t hwq_state_read(void) { return 0; }
static inline void hwq_state_write(uint64_t state) { (void)state; }
#define HWQ_STATE_DEFAULT 0u
#endif

static inline uint64_t hwq_state_enter(void)
{
    uint64_t state = hwq_state_read();
    hwq_state_write(HWQ_STATE_DEFAULT);
    return state;
}
static inline void hwq_state_leave(uint64_t state) { hwq_state_write(state); }

#endif
