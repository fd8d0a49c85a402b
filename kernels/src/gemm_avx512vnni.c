/* int8 GEMM on 512-bit vpdpbusd: 64 MACs an instruction, a vector is one strip; requantization in the same registers. Many rows run by the
 * tiles that the convolutions have, in chunks of k (tile_avx512vnni.h); four or fewer by gemm_vnni.h, which reads every weight once.
 *
 *   sum (a - za)(w - zw) = sum a*w - za * colsum(w) - zw * rowsum(a) + K * za * zw     (gemm_vnni.h: bounds, signedness, when a is copied)
 *
 * Measured on a Cascade Lake Xeon, one thread, gcc 12, R4 to bytes through Python, another thread on the same core: 1.04 to 1.19 times as fast as
 * tiles of 12 rows with all of k at once and accumulators that leave through memory. On Zen 5, called from C, 0.91 (256^3) to 0.97 (K = 1024, one
 * strip pair) of the register-only loop; chunks of 192 quads 1.02 times as fast as 128 where they save one. */
#include "epilogue.h"
#include "gemm.h"
#include "isa.h"

#if HWQ_X86
#include <immintrin.h>
#include <string.h>

HWQ_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

#define VECTOR __m512i
#define SET1 _mm512_set1_epi32
#define XOR _mm512_xor_si512
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define MULLO _mm512_mullo_epi32
#define DOT_BY_INTRINSICS _mm512_dpbusd_epi32
#define DOT_PREFIX ""
#define FINISH hwq_requantize__avx512vnni
enum { BYTES = 64, ROWS = 4, WIDE = 4, FEW = 4, BLOCK = HWQ_GEMM_ROWS * 2 * HWQ_STRIP, CHUNK = 192 /* quads, at most: 24 KB of weights */ };
#include "gemm_vnni.h"
#include "tile_avx512vnni.h"

/* As multiply, with the tiles of many rows. */
static void multiply_many(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n, strip_bytes = k4 * HWQ_STRIP;
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type), line = hwq_gemm_line(k), block = hwq_gemm_block_rows(line, TILE_MOST);
    const int64_t quads = k4 / HWQ_QUAD, chunks = quads > CHUNK ? (quads + CHUNK - 1) / CHUNK : 1, chunk = (quads + chunks - 1) / chunks;
    const int with_points = w->zero_points != NULL, copied = flip || k != k4 || with_points;
    scratch *s = args->workspace;
    finish f = finish_of(args->epilogue, args->out_stride);

    for (int64_t top = 0; top < args->m; top += block) {
        const int64_t rows = args->m - top < block ? args->m - top : block, tiles = (rows + TILE_MOST - 1) / TILE_MOST, each = (rows + tiles - 1) / tiles;
        const uint8_t *a = (const uint8_t *)args->a + top * args->a_stride;
        int64_t a_stride = args->a_stride;
        if (copied) {
            copy_rows(a, a_stride, rows, k, flip, with_points, s);
            a = s->rows, a_stride = line;
        }
        for (int64_t column = begin; column < end; column += TILE_COLUMNS) {
            const int64_t width = end - column < TILE_COLUMNS ? end - column : TILE_COLUMNS;
            part g = {.count = 1, .weights = packed + column / HWQ_STRIP * strip_bytes, .strip_bytes = strip_bytes, .terms = s->terms, .step = a_stride,
                      .vectors = width > HWQ_STRIP ? 2 : 1, .first = !with_points};
            char *out = (char *)args->out + (top * args->out_stride + column) * out_size;
            column_terms(args, column, end, TILE_COLUMNS, zero_point, s);
            finish_columns(&f, args->epilogue, base + column, width);
            for (int64_t r = 0; with_points && r < rows; r++)
                for (int v = 0; v < g.vectors; v++) {
                    const __m512i points = _mm512_mullo_epi32(load(s->zero_points + v * LANES), _mm512_set1_epi32(s->sums[r]));
                    _mm512_storeu_si512(s->block + (r * g.vectors + v) * LANES, _mm512_sub_epi32(load(s->terms + v * LANES), points));
                }
            int last = 0;
            for (int64_t q = 0; !last; q += chunk, g.first = 0) { /* once, where there is no k */
                const piece whole = {q * HWQ_QUAD, quads - q < chunk ? quads - q : chunk};
                g.pieces = &whole, g.last = last = q + whole.quads == quads;
                const int64_t next = last ? 2 * strip_bytes - q * HWQ_STRIP * HWQ_QUAD : whole.quads * HWQ_STRIP * HWQ_QUAD;
                for (int64_t r = 0, count; r < rows; r += count) {
                    reach(&g, r / each, tiles, next);
                    count = rows - r < each ? rows - r : each;
                    const int64_t half = (count + 1) / 2;
                    const uint8_t *x = a + r * a_stride;
                    char *to = out + r * args->out_stride * out_size;
                    hwq_epilogue epilogue;
                    if (!f.fast) epilogue = hwq_epilogue_at(args->epilogue, top + r, column), f.epilogue = &epilogue;
                    some_positions(half, count - half, &g, (const uint8_t *const[]){x, x + half * a_stride}, s->block + r * g.vectors * LANES, &f,
                                   (char *const[]){to, to + half * args->out_stride * out_size});
                }
                g.weights += whole.quads * HWQ_STRIP * HWQ_QUAD;
            }
        }
    }
}

void hwq_gemm_u8s8__avx512vnni(const hwq_gemm_args *args)
{
    if (args->m > FEW) multiply_many(args, 0, args->a_zero_point);
    else multiply(args, 0, args->a_zero_point);
}

void hwq_gemm_s8s8__avx512vnni(const hwq_gemm_args *args)
{
    if (args->m > FEW) multiply_many(args, 0x80, args->a_zero_point + 128);
    else multiply(args, 0x80, args->a_zero_point + 128);
}

HWQ_TARGET_END
#endif
