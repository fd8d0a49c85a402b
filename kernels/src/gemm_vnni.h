/* Exact int8 GEMM on vpdpbusd: four products of u8 x s8 join one int32 lane without any saturation on the way.
 * Included once by each path, which defines the vector: VECTOR, BYTES (its size), DOT_BY_INTRINSICS, ROWS and WIDE below, and the suffix.
 *
 * The instruction wants u8 x s8. Weights are stored as s8 already; a is read as u8, s8 ones with the top bit flipped, and its
 * zero point moved by 128. So with all sums modulo 2^32, whatever the signedness,
 *   sum (a - za)(w - zw) = sum a*w - za * colsum(w) - zw * rowsum(a) + K * za * zw.
 * Bounds: one step adds at most 4 * 255 * 128 < 2^17 in size; the int32 lane wraps modulo 2^32 like ref's.
 *
 * Tile: ROWS x 2 vectors of accumulators (24 of 32 registers, or 12 of 16), so that one load of weights serves ROWS steps and
 * a broadcast of a serves two. Few rows take tiles of more columns; they read each weight once, one long row strip after strip (gemm.h), and where weights take more than CACHED
 * bytes, so that they come from behind the second cache, ask for it AHEAD bytes before: on Zen 5 256 bytes are 1.06 to 1.16 times as fast as 1024,
 * from memory and from the third cache; on a Cascade Lake Xeon 1024 were 6 to 27 percent faster than none (where weights are near, none is 9 better). a is copied only where its bits must change, its k is no multiple of 4, or row sums are needed; the
 * copy's rows lie an odd number of cache lines apart. */

enum { LANES = BYTES / 4, PER_STRIP = HWQ_STRIP / LANES, AHEAD = 256, CACHED = 1 << 19 };

typedef struct {
    int32_t block[BLOCK];
    int32_t terms[WIDE * LANES + HWQ_STRIP], zero_points[WIDE * LANES + HWQ_STRIP];
    int32_t sums[HWQ_GEMM_ROWS];
    int64_t strips;
    _Alignas(64) uint8_t rows[];
} scratch;
_Static_assert(sizeof(scratch) <= HWQ_GEMM_FIXED, "the workspace holds it");

#include "dot_vnni.h"

static inline __attribute__((always_inline)) VECTOR load(const void *p)
{
    VECTOR v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Row sum of u8, where it is wanted; the copy's tail is 0. */
static inline __attribute__((always_inline)) int32_t copy_row(const uint8_t *a, int64_t k, uint8_t flip, const int with_sum, uint8_t *to)
{
    uint32_t sum = 0;
    const VECTOR ones = SET1(0x01010101), flips = SET1((int32_t)(flip * 0x01010101u));
    VECTOR sums = SET1(0);
    int64_t i = 0;
    for (; i + BYTES <= k; i += BYTES) {
        const VECTOR v = XOR(load(a + i), flips);
        memcpy(to + i, &v, sizeof v);
        if (with_sum) sums = DOT(sums, v, ones);
    }
    for (; i < k; i++) sum += to[i] = a[i] ^ flip;
    for (; i % HWQ_QUAD; i++) to[i] = 0;
    int32_t lanes[LANES];
    memcpy(lanes, &sums, sizeof lanes);
    for (int j = 0; j < LANES; j++) sum += (uint32_t)lanes[j];
    return (int32_t)sum;
}

static void copy_rows(const uint8_t *a, int64_t a_stride, int64_t rows, int64_t k, uint8_t flip, int with_sums, scratch *s)
{
    const int64_t line = hwq_gemm_line(k);
    if (with_sums)
        for (int64_t r = 0; r < rows; r++) s->sums[r] = copy_row(a + r * a_stride, k, flip, 1, s->rows + r * line);
    else
        for (int64_t r = 0; r < rows; r++) copy_row(a + r * a_stride, k, flip, 0, s->rows + r * line);
}

static inline __attribute__((always_inline)) int32_t quad_of(const uint8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return four;
}

/* rows x vectors accumulators into s->block, whose rows lie vectors * LANES apart. */
static inline __attribute__((always_inline)) void tile(const int rows, const int vectors, int64_t quads, const uint8_t *a, int64_t a_stride,
                                                       const int8_t *b, int64_t strip_bytes, const int32_t *sums, const int with_points, scratch *s)
{
    VECTOR acc[ROWS > 4 ? ROWS : 4][WIDE];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) {
        const VECTOR term = load(s->terms + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) acc[r][v] = with_points ? SUB(term, MULLO(load(s->zero_points + v * LANES), SET1(sums[r]))) : term;
    }
    const uint8_t *groups[(ROWS > 4 ? ROWS : 4) / 3 + 1]; /* a pointer serves three rows: plain, + stride, + 2 strides */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r += 3) groups[r / 3] = a + r * a_stride;
    const int distant = strip_bytes * s->strips > CACHED;
    for (int64_t q = 0; q < quads; q++) {
        VECTOR w[WIDE];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            if (vectors == WIDE && v % PER_STRIP == 0 && distant) __builtin_prefetch(b + 64 * q + v / PER_STRIP * strip_bytes + AHEAD);
            w[v] = load(b + 64 * q + v / PER_STRIP * strip_bytes + v % PER_STRIP * BYTES);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const VECTOR x = SET1(quad_of(groups[r / 3] + r % 3 * a_stride));
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) acc[r][v] = DOT(acc[r][v], x, w[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r += 3) groups[r / 3] += 4;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) memcpy(s->block + (r * vectors + v) * LANES, &acc[r][v], sizeof(VECTOR));
}

/* One row x vectors, strip after strip: 8 chains, since one would wait for itself. */
static inline __attribute__((always_inline)) void one_row(const int vectors, int64_t quads, const uint8_t *a, const int8_t *b, int32_t sum, const int with_points,
                                                          scratch *s)
{
    enum { CHAINS = 8, TOGETHER = CHAINS / PER_STRIP /* quads */ };
    for (int v = 0; v < vectors; v += PER_STRIP) {
        VECTOR acc[CHAINS];
        const uint8_t *x = a;
        int64_t q = 0;
        for (int i = 0; i < CHAINS; i++) acc[i] = SET1(0);
        for (; q + TOGETHER <= quads; q += TOGETHER, x += HWQ_QUAD * TOGETHER, b += CHAINS * BYTES)
#pragma GCC unroll 8
            for (int i = 0; i < CHAINS; i++) {
                if (i % PER_STRIP == 0) __builtin_prefetch(b + i * BYTES + HWQ_GEMM_FAR);
                acc[i] = DOT(acc[i], SET1(quad_of(x + i / PER_STRIP * HWQ_QUAD)), load(b + i * BYTES));
            }
        for (; q < quads; q++, x += HWQ_QUAD, b += PER_STRIP * BYTES)
            for (int i = 0; i < PER_STRIP; i++) acc[i] = DOT(acc[i], SET1(quad_of(x)), load(b + i * BYTES));
        for (int i = 0; i < PER_STRIP; i++) {
            VECTOR all = load(s->terms + (v + i) * LANES);
            if (with_points) all = SUB(all, MULLO(load(s->zero_points + (v + i) * LANES), SET1(sum)));
            for (int j = i; j < CHAINS; j += PER_STRIP) all = ADD(all, acc[j]);
            memcpy(s->block + (v + i) * LANES, &all, sizeof all);
        }
    }
}

/* The constant term of `count` columns from `column` on, and their zero points; 0 beyond `end`. */
static void column_terms(const hwq_gemm_args *args, int64_t column, int64_t end, int64_t count, int32_t zero_point, scratch *s)
{
    const hwq_packed *w = args->weights;
    const int64_t base = args->group * w->n, width = end - column < count ? end - column : count;
    const uint32_t za = (uint32_t)zero_point;
    memset(s->terms, 0, (size_t)count * 4);
    memset(s->zero_points, 0, (size_t)count * 4);
    for (int64_t j = 0; j < width; j++) {
        const int64_t i = base + column + j;
        const uint32_t zw = w->zero_points ? (uint32_t)w->zero_points[i] : 0;
        s->terms[j] = (int32_t)((args->bias ? (uint32_t)args->bias[i] : 0) - za * (uint32_t)w->column_sums[i] + (uint32_t)w->k * za * zw);
        s->zero_points[j] = (int32_t)zw;
    }
}

#define TILE(rows, vectors)                                                                                                   \
    do {                                                                                                                      \
        if (rows == 1 && vectors == WIDE && quads >= HWQ_GEMM_LONG / HWQ_QUAD) one_row(WIDE, quads, a, b, sums[0], with_points, s); \
        else if (with_points) tile(rows, vectors, quads, a, a_stride, b, strip_bytes, sums, 1, s);                                 \
        else tile(rows, vectors, quads, a, a_stride, b, strip_bytes, sums, 0, s);                                             \
        return rows;                                                                                                          \
    } while (0)

/* One tile of at most `rows` rows; how many it took. */
static int64_t some_rows(int64_t rows, int vectors, int64_t quads, const uint8_t *a, int64_t a_stride, const int8_t *b, int64_t strip_bytes,
                         const int32_t *sums, int with_points, scratch *s)
{
    if (vectors == WIDE) {
        if (rows >= 4) TILE(4, WIDE);
        if (rows >= 3) TILE(3, WIDE);
        if (rows >= 2) TILE(2, WIDE);
        TILE(1, WIDE);
    }
    if (vectors == 2) {
        if (rows >= ROWS) TILE(ROWS, 2);
        if (rows >= ROWS / 2) TILE(ROWS / 2, 2);
        if (rows >= 2) TILE(2, 2);
        TILE(1, 2);
    }
    if (rows >= ROWS) TILE(ROWS, 1);
    if (rows >= 4) TILE(4, 1);
    TILE(1, 1);
}

static void multiply(const hwq_gemm_args *args, uint8_t flip, int32_t zero_point)
{
    const hwq_packed *w = args->weights;
    const int64_t k = w->k, n = w->n, k4 = (k + 3) / 4 * 4, base = args->group * n, strip_bytes = k4 * HWQ_STRIP;
    const int8_t *packed = w->quads + args->group * hwq_packed_bytes(k, n);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type), line = hwq_gemm_line(k), block = hwq_gemm_block_rows(line, ROWS);
    const int with_points = w->zero_points != NULL, copied = flip || k != k4 || with_points;
    scratch *s = args->workspace;
    s->strips = args->strips;

    for (int64_t top = 0; top < args->m; top += block) {
        const int64_t rows = args->m - top < block ? args->m - top : block;
        const uint8_t *a = (const uint8_t *)args->a + top * args->a_stride;
        int64_t a_stride = args->a_stride;
        if (copied) {
            copy_rows(a, a_stride, rows, k, flip, with_points, s);
            a = s->rows, a_stride = line;
        }
        for (int64_t column = begin; column < end;) {
            const int64_t left = (end - column + LANES - 1) / LANES;
            const int vectors = rows <= 4 && left >= WIDE ? WIDE : left >= 2 ? 2 : 1;
            const int64_t width = end - column < vectors * LANES ? end - column : vectors * LANES;
            const int8_t *b = packed + column / HWQ_STRIP * strip_bytes + column % HWQ_STRIP * HWQ_QUAD;
            column_terms(args, column, end, vectors * LANES, zero_point, s);
            for (int64_t r = 0; r < rows;) {
                const int64_t taken = some_rows(rows - r, vectors, k4 / 4, a + r * a_stride, a_stride, b, strip_bytes, s->sums + r, with_points, s);
                const hwq_epilogue epilogue = hwq_epilogue_at(args->epilogue, top + r, column);
                FINISH(&epilogue, taken, width, base + column, s->block, HWQ_S32, vectors * LANES,
                       (char *)args->out + ((top + r) * args->out_stride + column) * out_size, args->out_stride);
                r += taken;
            }
            column += vectors * LANES;
        }
    }
}
