/* DOT(acc, a_u8, w_s8): vpdpbusd; or, where DOT_INSTRUCTION says vpdpwssd, of pairs of int16. gcc 12 copies the accumulator before and after the intrinsic, which costs half the speed; the
 * emulating build of the C tests has the intrinsic and is tested equal. */
#ifndef DOT_INSTRUCTION
#define DOT_INSTRUCTION "vpdpbusd"
#endif
#if defined(__GNUC__) && !HWQ_EMULATE && !defined(HWQ_NO_ASM)
static inline __attribute__((always_inline)) VECTOR DOT(VECTOR acc, VECTOR a, VECTOR w)
{
    __asm__(DOT_PREFIX DOT_INSTRUCTION " %[w], %[a], %[c]" : [c] "+v"(acc) : [a] "v"(a), [w] "v"(w));
    return acc;
}
#else
#define DOT DOT_BY_INTRINSICS
#endif
