/* DOT(acc, a_u8, w_s8): vpdpbusd. gcc 12 copies the accumulator before and after the intrinsic, which costs half the speed; the
 * emulating build of the C tests has the intrinsic and is tested equal. */
#if defined(__GNUC__) && !HWQ_EMULATE && !defined(HWQ_NO_ASM)
static inline __attribute__((always_inline)) VECTOR DOT(VECTOR acc, VECTOR a_u8, VECTOR w_s8)
{
    __asm__(DOT_PREFIX "vpdpbusd %[w], %[a], %[c]" : [c] "+v"(acc) : [a] "v"(a_u8), [w] "v"(w_s8));
    return acc;
}
#else
#define DOT DOT_BY_INTRINSICS
#endif
