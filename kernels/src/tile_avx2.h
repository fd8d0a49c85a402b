/* Tiles of int16 products on AVX2: 3 rows x 32 columns, 12 accumulators, four registers for everything else; or 2 x 32. What GEMM and the
 * convolutions share. Include inside an AVX2 region, after <immintrin.h> and <string.h>.
 *
 * The weights of a quad of k stay in memory, 256 bytes: four registers of one pair each column, then four of the other pair. As
 * operands of the additions they take no instruction of their own. Where two threads share a core, and on Intel's cores of four
 * instructions a cycle, it is those that are the limit, not the multipliers: 3 rows x (16 + 2 broadcasts) + 2 for the loop, 56 of them for
 * 384 MACs, 86 percent of the bare 48; 4 rows x 16 columns with the weights in registers: 46 for 256, 70 percent. Loads: 24 + 6 in 16
 * cycles of Intel's three vector ports, in 12 to 15 of Zen 3's four (llvm-mca 14: 15.8 cycles, 16.6 for as much of the 4 x 16 tile).
 * Four vector pipes and two loads of 32 bytes a cycle, AMD's since Zen 2, make loads the limit: 30 of them for 48 operations, 15 cycles for 12.
 * 2 rows x 32 columns take 16 for 32, 8 cycles for 8: in the first cache 97 percent of the register-only loop, 3 x 32 takes 80, 4 x 16 with its
 * weights in registers 92 (Zen 5). On three ports with four instructions a cycle the pair would take 41 of them for 256 MACs, a tenth more than 3 x 32. */
#ifndef HWQ_TILE_AVX2_H
#define HWQ_TILE_AVX2_H

enum { TILE_ROWS = 3, TILE_COLUMNS = 2 * HWQ_STRIP, TILE_VECTORS = 4, TILE_QUAD = HWQ_QUAD * TILE_COLUMNS /* elements of a quad of k */ };

/* One row: the pairs x0, x1 of `x`, `quad` the weights. Winograd's form adds sum (x0 + first)(x1 + second) to the accumulators, the plain one
 * sum x0 * second + x1 * first. The intrinsics say what it does; the assembly, tested equal, keeps gcc 12 from loading the weights once for all rows and spilling. */
static inline __attribute__((always_inline)) void row_by_intrinsics(const int vectors, const int plain, const int16_t *x, const int16_t *quad, __m256i *acc_s32x8)
{
    int32_t pairs[2];
    memcpy(pairs, x, 8);
    const __m256i x0 = _mm256_set1_epi32(pairs[0]), x1 = _mm256_set1_epi32(pairs[1]);
    for (int v = 0; v < vectors; v++) {
        const __m256i first = _mm256_loadu_si256((const __m256i *)(quad + 16 * v)), second = _mm256_loadu_si256((const __m256i *)(quad + 64 + 16 * v));
        if (plain) acc_s32x8[v] = _mm256_add_epi32(_mm256_add_epi32(acc_s32x8[v], _mm256_madd_epi16(x0, second)), _mm256_madd_epi16(x1, first));
        else acc_s32x8[v] = _mm256_add_epi32(acc_s32x8[v], _mm256_madd_epi16(_mm256_add_epi16(x0, first), _mm256_add_epi16(x1, second)));
    }
}

#if defined(__GNUC__) && defined(__x86_64__) && !defined(HWQ_NO_ASM)
/* Offsets from the quad's middle fit a byte. s, t: temporaries, which may be x0, x1 for the last vector. Longer prefixes keep the instructions of 32
 * bytes to 6, the line of Intel's cache of decoded ones (1 percent). */
#define TILE_LONG "%{vex3%} "
#define TILE_WINOGRAD(first, second, s, t, acc)                                                                               \
    "vpaddw " first "(%[w]), %[x0], %[" s "]\n\tvpaddw " second "(%[w]), %[x1], %[" t "]\n\t"                                 \
    TILE_LONG "vpmaddwd %[" s "], %[" t "], %[" t "]\n\t" TILE_LONG "vpaddd %[" t "], %[" acc "], %[" acc "]\n\t"
#define TILE_PLAIN(first, second, s, t, acc)                                                                                  \
    "vpmaddwd " second "(%[w]), %[x0], %[" s "]\n\tvpmaddwd " first "(%[w]), %[x1], %[" t "]\n\t"                             \
    "vpaddd %[" s "], %[" acc "], %[" acc "]\n\t" TILE_LONG "vpaddd %[" t "], %[" acc "], %[" acc "]\n\t"
#define TILE_BROADCAST "vpbroadcastd %[p], %[x0]\n\tvpbroadcastd %[q], %[x1]\n\t"
typedef int32_t __attribute__((may_alias, aligned(2))) tile_pair;
typedef int64_t __attribute__((may_alias, aligned(2))) tile_quad;
#define TILE_INPUTS [p] "m"(*(const tile_pair *)x), [q] "m"(*(const tile_pair *)(x + 2)), [w] "r"(quad + 64), "m"(*(const int16_t(*)[TILE_QUAD])quad)
#define TILE_FOUR(FORM)                                                                                                       \
    __asm__(TILE_BROADCAST FORM("-128", "0", "s", "t", "c0") FORM("-96", "32", "s", "t", "c1") FORM("-64", "64", "s", "t", "c2")     \
            FORM("-32", "96", "x0", "x1", "c3")                                                                               \
            : [c0] "+x"(acc_s32x8[0]), [c1] "+x"(acc_s32x8[1]), [c2] "+x"(acc_s32x8[2]), [c3] "+x"(acc_s32x8[3]), [x0] "=&x"(x0), \
              [x1] "=&x"(x1), [s] "=&x"(s), [t] "=&x"(t) : TILE_INPUTS)
#define TILE_TWO(FORM)                                                                                                        \
    __asm__(TILE_BROADCAST FORM("-128", "0", "s", "t", "c0") FORM("-96", "32", "x0", "x1", "c1")                              \
            : [c0] "+x"(acc_s32x8[0]), [c1] "+x"(acc_s32x8[1]), [x0] "=&x"(x0), [x1] "=&x"(x1), [s] "=&x"(s), [t] "=&x"(t) : TILE_INPUTS)
static inline __attribute__((always_inline)) void tile_row(const int vectors, const int plain, const int16_t *x, const int16_t *quad, __m256i *acc_s32x8)
{
    __m256i x0, x1, s, t;
    if (vectors == 4 && plain) TILE_FOUR(TILE_PLAIN);
    else if (vectors == 4) TILE_FOUR(TILE_WINOGRAD);
    else if (plain) TILE_TWO(TILE_PLAIN);
    else TILE_TWO(TILE_WINOGRAD);
}

/* Two rows x 32 columns by Winograd's form. Of two vectors of weights one is loaded for both rows, the other is an operand: 16 loads for 32 operations. */
#define TILE_PAIR(first, second, c, d)                                                                                        \
    "vmovdqu " first "(%[w]), %[u]\n\tvpaddw %[u], %[x0], %[s]\n\tvpaddw " second "(%[w]), %[x1], %[t]\n\t"                  \
    "vpaddw %[u], %[y0], %[u]\n\tvpaddw " second "(%[w]), %[y1], %[v]\n\tvpmaddwd %[s], %[t], %[s]\n\t"                     \
    "vpmaddwd %[u], %[v], %[u]\n\tvpaddd %[s], %[" c "], %[" c "]\n\tvpaddd %[u], %[" d "], %[" d "]\n\t"
static inline __attribute__((always_inline)) void tile_pair_of_rows(const int16_t *x, const int16_t *y, const int16_t *quad, __m256i acc_s32x8[][TILE_VECTORS])
{
    __m256i x0, x1, y0, y1, s, t, u, v;
    __asm__("vpbroadcastd (%[x]), %[x0]\n\tvpbroadcastd 4(%[x]), %[x1]\n\tvpbroadcastd (%[y]), %[y0]\n\tvpbroadcastd 4(%[y]), %[y1]\n\t"
            TILE_PAIR("-128", "0", "c0", "d0") TILE_PAIR("-96", "32", "c1", "d1") TILE_PAIR("-64", "64", "c2", "d2") TILE_PAIR("-32", "96", "c3", "d3")
            : [c0] "+x"(acc_s32x8[0][0]), [c1] "+x"(acc_s32x8[0][1]), [c2] "+x"(acc_s32x8[0][2]), [c3] "+x"(acc_s32x8[0][3]),
              [d0] "+x"(acc_s32x8[1][0]), [d1] "+x"(acc_s32x8[1][1]), [d2] "+x"(acc_s32x8[1][2]), [d3] "+x"(acc_s32x8[1][3]),
              [x0] "=&x"(x0), [x1] "=&x"(x1), [y0] "=&x"(y0), [y1] "=&x"(y1), [s] "=&x"(s), [t] "=&x"(t), [u] "=&x"(u), [v] "=&x"(v)
            : [x] "r"(x), [y] "r"(y), [w] "r"(quad + 64), "m"(*(const tile_quad *)x), "m"(*(const tile_quad *)y), "m"(*(const int16_t(*)[TILE_QUAD])quad));
}
#else
#define tile_row row_by_intrinsics
static inline __attribute__((always_inline)) void tile_pair_of_rows(const int16_t *x, const int16_t *y, const int16_t *quad, __m256i acc_s32x8[][TILE_VECTORS])
{
    tile_row(TILE_VECTORS, 0, x, quad, acc_s32x8[0]);
    tile_row(TILE_VECTORS, 0, y, quad, acc_s32x8[1]);
}
#endif

/* The way out in registers where it is R4 to bytes, the common case. */
typedef struct {
    float scales[TILE_COLUMNS];
    __m256 hi;               /* less the zero point */
    __m256i lo, zero_point;  /* bytes; int16 */
    int fast, is_unsigned;
    int64_t width, stride;
} finish;

static finish finish_of(const hwq_epilogue *e, int64_t stride)
{
    return (finish){.stride = stride, .lo = _mm256_set1_epi8((char)e->lo), .hi = _mm256_set1_ps((float)(e->hi - e->zero_point)),
                    .zero_point = _mm256_set1_epi16((short)e->zero_point), .is_unsigned = e->out_type == HWQ_U8,
                    .fast = e->kind == HWQ_KIND_REQUANT && e->rounding == HWQ_ROUND_FP32 && e->out_type <= HWQ_S8 && !e->float_bias && !e->lut};
}

/* `width` columns from the epilogue's `column` on. */
static void finish_columns(finish *f, const hwq_epilogue *e, int64_t column, int64_t width)
{
    f->width = width;
    for (int64_t j = 0; f->fast && j < width; j++) f->scales[j] = e->scales_f32[e->channel_step ? column + j : 0];
}

/* R4 of 16 columns to int16, with the zero point. Only the upper clamp is needed here: minps leaves NaN, which like all that is below
 * int32 becomes INT32_MIN, and packing saturates that down to the lower clamp's side. */
static inline __attribute__((always_inline)) __m256i round16(const finish *f, const float *scales, const __m256i acc[2])
{
    const __m256 first = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[0]), _mm256_loadu_ps(scales));
    const __m256 second = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[1]), _mm256_loadu_ps(scales + 8));
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_min_ps(f->hi, first)), _mm256_cvtps_epi32(_mm256_min_ps(f->hi, second)));
    return _mm256_adds_epi16(words, f->zero_point);
}

/* One row of 16 or 32 columns. */
static inline __attribute__((always_inline)) void finish_row(const int vectors, const finish *f, const __m256i *acc, char *out)
{
    const __m256i a = round16(f, f->scales, acc), b = vectors == 4 ? round16(f, f->scales + 16, acc + 2) : a;
    const __m256i bytes = f->is_unsigned ? _mm256_max_epu8(_mm256_packus_epi16(a, b), f->lo) : _mm256_max_epi8(_mm256_packs_epi16(a, b), f->lo);
    const __m256i line = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); /* two vectors: their 16 columns first */
    if (vectors == 4 && f->width == TILE_COLUMNS) _mm256_storeu_si256((__m256i *)out, line);
    else if (vectors == 2 && f->width == HWQ_STRIP) _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(line));
    else {
        char space[TILE_COLUMNS];
        _mm256_storeu_si256((__m256i *)space, line);
        memcpy(out, space, (size_t)f->width);
    }
}

#endif
