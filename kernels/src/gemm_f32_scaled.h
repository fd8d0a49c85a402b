/* Float a with scaled integer weights, the columns in lanes; included once by each path and width of the weights, which define
 * VECTOR, FLOATS and their operations, LANES, ONE_STRIPS and FOUR_STRIPS (that a tile of one row and of four walks side by side),
 * TOGETHER (vectors unpacked at a time), BLOCKS (of one strip that one row runs side by side, where there are LEAST_BLOCKS), MANY_FROM, MANY_ROWS and MANY_STRIPS, the types PACKED and ARGS, STORED (the packed bytes), DEPTH (k in a line of 64 bytes),
 * prepare(v, half, weights) and element(v, i, zero_point, weights): the i-th k of every lane, as float.
 * SHIFT, unless 0: symmetric weights may come 2^SHIFT too great, and a 2^-SHIFT as great. Both are exact where no a that is not 0 lies
 * below 2^(SHIFT - 126), the least normal float being 2^-126, and then the products are the same real numbers, rounded once.
 * Every column is one chain of fused multiply-adds in increasing k, as the contract says; several chains in flight hide their latency.
 * Fewer than MANY_FROM rows: weights are unpacked in registers, once for up to 4 rows. More: PART of k of some strips become floats in the
 * first-level cache, once for all rows that are held, and tiles of MANY_ROWS x MANY_STRIPS strips multiply them as any floats. */

enum { PER_STRIP = HWQ_STRIP / LANES, MOST_VECTORS = (ONE_STRIPS > FOUR_STRIPS ? ONE_STRIPS : FOUR_STRIPS) * PER_STRIP /* as many as BLOCKS have, at least */ };
enum { PART = 64 /* of k */, HELD = 90 /* rows */, MANY_COLUMNS = MANY_STRIPS * PER_STRIP /* vectors */ };

typedef struct {
    float weights[PART * MANY_STRIPS * HWQ_STRIP];                              /* [k][column] */
    float chains[HELD * MANY_STRIPS * HWQ_STRIP], sums[HELD * MANY_STRIPS * HWQ_STRIP]; /* [row][column] */
} panel;
_Static_assert(sizeof(panel) <= HWQ_F32S8_WORKSPACE && (int)HWQ_F32S8_WORKSPACE <= (int)HWQ_GEMM_FIXED, "the workspace holds it");

/* A line of k, or the `rest` of it that there is: 4 at a time, `together` vectors after another. Strips lie `line` bytes apart; so may blocks of one
 * strip, whose a then lies `a_apart` further on. */
static inline __attribute__((always_inline)) void line_of_k(const int rows, const int vectors, const int together, const int weights, const int whole, int64_t rest,
                                                            const uint8_t *b, int64_t line, const int32_t *points, int64_t points_apart, const float *a, int64_t a_stride, int64_t a_apart,
                                                            FLOATS chain[4][MOST_VECTORS])
{
#pragma GCC unroll 2
    for (int half = 0; half < DEPTH / 4; half++)
#pragma GCC unroll 8
        for (int first = 0; first < vectors; first += together) {
            VECTOR x[MOST_VECTORS];
#pragma GCC unroll 8
            for (int v = first; v < first + together; v++) x[v] = prepare(load(b + v / PER_STRIP * line + v % PER_STRIP * LANES * 4), half, weights);
#pragma GCC unroll 4
            for (int j = 4 * half; j < 4 * half + 4; j++) {
                if (!whole && j >= rest) break;
#pragma GCC unroll 8
                for (int v = first; v < first + together; v++) {
                    const VECTOR z = weights == ANY ? load(points + v / PER_STRIP * points_apart + v % PER_STRIP * LANES) : x[v]; /* or nothing that is read */
                    const FLOATS u = element(x[v], j, z, weights);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) chain[r][v] = FMA(SET1_FLOAT(a[r * a_stride + v / PER_STRIP * a_apart + j]), u, chain[r][v]);
                }
            }
        }
}

/* rows x strips * 16 columns. */
static inline __attribute__((always_inline)) void tile(const int rows, const int strips, const int weights, const PACKED *w, int64_t strip,
                                                       int64_t blocks, const float *a, int64_t a_stride, float *out)
{
    const int64_t line = (w->k + DEPTH - 1) / DEPTH * 64;
    const int vectors = strips * PER_STRIP, together = vectors < TOGETHER ? vectors : TOGETHER;
    FLOATS y[4][MOST_VECTORS], chain[4][MOST_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) y[r][v] = ZERO_FLOATS;
    const uint8_t *b = (const uint8_t *)w->STORED + strip * line;
    for (int64_t g = 0; g < blocks; g++) {
        int64_t rest = w->k - g * w->block < w->block ? w->k - g * w->block : w->block;
        const int32_t *points = w->zero_points + (strip * blocks + g) * HWQ_STRIP;
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) chain[r][v] = ZERO_FLOATS;
        for (; rest >= DEPTH; rest -= DEPTH, a += DEPTH, b += 64) {
#pragma GCC unroll 4
            for (int s = 0; s < strips; s++) __builtin_prefetch((const char *)b + s * line + HWQ_S4_AHEAD);
            line_of_k(rows, vectors, together, weights, 1, DEPTH, b, line, points, blocks * HWQ_STRIP, a, a_stride, 0, chain);
        }
        if (rest) {
            line_of_k(rows, vectors, together, weights, 0, rest, b, line, points, blocks * HWQ_STRIP, a, a_stride, 0, chain);
            a += rest, b += 64;
        }
        for (int v = 0; v < vectors; v++) {
            const float *at = w->scales + ((strip + v / PER_STRIP) * blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES;
            if (v % PER_STRIP == 0) __builtin_prefetch((const char *)at + HWQ_S4_AHEAD / 2);
            const FLOATS scale = LOAD_FLOATS(at);
            for (int r = 0; r < rows; r++) y[r][v] = FMA(chain[r][v], scale, y[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) memcpy(out + r * vectors * LANES + v * LANES, &y[r][v], sizeof(FLOATS));
}

/* `count` k of each of some blocks of one row and one strip; of one alone also what is no whole line. */
static inline __attribute__((always_inline)) void some_blocks(const int together, const int weights, const int64_t block, int64_t g, int64_t count, const float *a,
                                                              const uint8_t *b, const int32_t *zero_points, const float *scales, FLOATS y[PER_STRIP])
{
    const int64_t apart = block / DEPTH * 64;
    FLOATS chain[4][MOST_VECTORS];
    a += g * block, b += g * apart, zero_points += g * HWQ_STRIP, scales += g * HWQ_STRIP;
    for (int v = 0; v < together * PER_STRIP; v++) chain[0][v] = ZERO_FLOATS;
    for (; count >= DEPTH; count -= DEPTH, a += DEPTH, b += 64) {
        for (int f = 0; f < together; f++) __builtin_prefetch((const char *)b + f * apart + HWQ_GEMM_FAR);
        line_of_k(1, together * PER_STRIP, PER_STRIP, weights, 1, DEPTH, b, apart, zero_points, HWQ_STRIP, a, 0, block, chain);
    }
    if (together == 1 && count) line_of_k(1, PER_STRIP, PER_STRIP, weights, 0, count, b, 0, zero_points, 0, a, 0, 0, chain);
    for (int v = 0; v < together * PER_STRIP; v++) {
        if (v % PER_STRIP == 0) __builtin_prefetch((const char *)(scales + v * LANES) + HWQ_GEMM_FAR / 4);
        y[v % PER_STRIP] = FMA(chain[0][v], LOAD_FLOATS(scales + v * LANES), y[v % PER_STRIP]);
    }
}

/* One row x one strip, BLOCKS blocks at a time: their chains begin at 0 each, so that they may run side by side. */
static inline __attribute__((always_inline)) void one_strip(const int weights, const PACKED *w, int64_t strip, int64_t blocks, const float *a, float *out)
{
    const uint8_t *b = (const uint8_t *)w->STORED + strip * ((w->k + DEPTH - 1) / DEPTH * 64);
    const int32_t *zero_points = w->zero_points + strip * blocks * HWQ_STRIP;
    const float *scales = w->scales + strip * blocks * HWQ_STRIP;
    FLOATS y[PER_STRIP];
    for (int v = 0; v < PER_STRIP; v++) y[v] = ZERO_FLOATS;
    int64_t g = 0;
    for (const int64_t whole = w->k / w->block; g + BLOCKS <= whole; g += BLOCKS) some_blocks(BLOCKS, weights, w->block, g, w->block, a, b, zero_points, scales, y);
    for (; g < blocks; g++) some_blocks(1, weights, w->block, g, w->k - g * w->block < w->block ? w->k - g * w->block : w->block, a, b, zero_points, scales, y);
    memcpy(out, y, sizeof y);
}

/* Rows of a by 2^-SHIFT, k apart; 0 where one of them would not stay exact. */
static int shift_rows(const float *a, int64_t a_stride, int64_t rows, int64_t k, float *to)
{
    int small = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < k; i++) {
            const float v = a[r * a_stride + i], size = v < 0 ? -v : v;
            small |= size < 0x1p-126f * (float)(1 << SHIFT) && v != 0;
            to[r * k + i] = v * (1.0f / (float)(1 << SHIFT));
        }
    return !small;
}

/* `count` k from k0 on, within block g, of some strips, as floats. */
static inline __attribute__((always_inline)) void fill(const int weights, const PACKED *w, int64_t strip, int64_t strips, int64_t blocks, int64_t g,
                                                       int64_t k0, int64_t count, float *to)
{
    const int64_t line = (w->k + DEPTH - 1) / DEPTH * 64, wide = strips * HWQ_STRIP;
    for (int64_t v = 0; v < strips * PER_STRIP; v++) {
        const int64_t s = strip + v / PER_STRIP, lane = v % PER_STRIP * LANES;
        const VECTOR z = load(w->zero_points + (s * blocks + g) * HWQ_STRIP + lane);
        const uint8_t *b = (const uint8_t *)w->STORED + s * line + k0 / DEPTH * 64 + lane * 4;
        float *out = to + v * LANES;
        for (int64_t i = 0; i < count; i += DEPTH, b += 64) {
            #pragma GCC unroll 2
            for (int half = 0; half < DEPTH / 4; half++) {
                const VECTOR x = prepare(load(b), half, weights);
#pragma GCC unroll 4
                for (int j = 4 * half; j < 4 * half + 4; j++, out += wide) {
                    const FLOATS u = element(x, j, z, weights);
                    memcpy(out, &u, sizeof u);
                }
            }
        }
    }
}

/* rows x strips * 16 chains over `count` k of a panel; `starts`: from 0. With scales the block ends, and its chains join the sums. */
static inline __attribute__((always_inline)) void many_tile(const int rows, const int strips, int64_t count, const float *a, int64_t a_stride, const float *w,
                                                            const int starts, float *chains, const float *scales, int64_t scales_step, float *sums)
{
    const int vectors = strips * PER_STRIP;
    FLOATS chain[MANY_ROWS][MANY_COLUMNS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) chain[r][v] = starts ? ZERO_FLOATS : LOAD_FLOATS(chains + (r * vectors + v) * LANES);
    for (int64_t i = 0; i < count; i++, w += strips * HWQ_STRIP) {
        FLOATS u[MANY_COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) u[v] = LOAD_FLOATS(w + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const FLOATS x = SET1_FLOAT(a[r * a_stride + i]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) chain[r][v] = FMA(x, u[v], chain[r][v]);
        }
    }
    if (!scales) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) memcpy(chains + (r * vectors + v) * LANES, &chain[r][v], sizeof(FLOATS));
        return;
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const FLOATS scale = LOAD_FLOATS(scales + v / PER_STRIP * scales_step + v % PER_STRIP * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float *at = sums + (r * vectors + v) * LANES;
            const FLOATS y = FMA(chain[r][v], scale, LOAD_FLOATS(at));
            memcpy(at, &y, sizeof y);
        }
    }
}

/* All k of some strips into p->sums. */
static inline __attribute__((always_inline)) void many_rows(const ARGS *args, int64_t rows, const int strips, int64_t strip, const float *a, panel *p)
{
    const PACKED *w = args->weights;
    const int64_t blocks = w->k > 0 ? (w->k + w->block - 1) / w->block : 0, wide = strips * HWQ_STRIP;
    memset(p->sums, 0, (size_t)(rows * wide) * sizeof(float));
    for (int64_t g = 0; g < blocks; g++) {
        const int64_t begin = g * w->block, end = begin + w->block < w->k ? begin + w->block : w->k;
        for (int64_t k0 = begin, count; k0 < end; k0 += count) {
            count = end - k0 < PART ? end - k0 : PART;
            if (w->symmetric) fill(SYMMETRIC, w, strip, strips, blocks, g, k0, count, p->weights);
            else fill(ANY, w, strip, strips, blocks, g, k0, count, p->weights);
            const float *scales = k0 + count == end ? w->scales + (strip * blocks + g) * HWQ_STRIP : NULL;
            int64_t r = 0;
#define TILES(size)                                                                                                           \
    for (; r + size <= rows; r += size)                                                                                       \
        many_tile(size, strips, count, a + r * args->a_stride + k0, args->a_stride, p->weights, k0 == begin, p->chains + r * wide, scales,  \
                  blocks * HWQ_STRIP, p->sums + r * wide)
            TILES(MANY_ROWS);
            TILES(4);
            TILES(2);
            TILES(1);
#undef TILES
        }
    }
}

/* HELD rows at a time, strips after strips. */
static void multiply_many(const ARGS *args)
{
    const PACKED *w = args->weights;
    const int64_t last_strip = (w->n + HWQ_STRIP - 1) / HWQ_STRIP, end = args->first_strip + args->strips < last_strip ? args->first_strip + args->strips : last_strip;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type);
    panel *p = args->workspace;
    for (int64_t top = 0; top < args->m; top += HELD) {
        const int64_t rows = args->m - top < HELD ? args->m - top : HELD;
        const float *a = (const float *)args->a + top * args->a_stride;
        for (int64_t strip = args->first_strip, strips; strip < end; strip += strips) {
            strips = end - strip >= MANY_STRIPS ? MANY_STRIPS : 1;
            if (strips == MANY_STRIPS) many_rows(args, rows, MANY_STRIPS, strip, a, p);
            else many_rows(args, rows, 1, strip, a, p);
            const int64_t column = strip * HWQ_STRIP, wide = strips * HWQ_STRIP, width = w->n - column < wide ? w->n - column : wide;
            hwq_finish_floats(args->epilogue, rows, width, column, p->sums, wide, (char *)args->out + (top * args->out_stride + column) * out_size,
                              args->out_stride);
        }
    }
}

static void multiply(const ARGS *args)
{
    if (args->m >= MANY_FROM) {
        multiply_many(args);
        return;
    }
    const PACKED *w = args->weights;
    const int64_t blocks = (w->k > 0 ? (w->k + w->block - 1) / w->block : 0), last_strip = (w->n + HWQ_STRIP - 1) / HWQ_STRIP, out_size = hwq_type_size(args->epilogue->out_type);
    const int64_t end = args->first_strip + args->strips < last_strip ? args->first_strip + args->strips : last_strip;
    float *done = args->workspace, *shifted = (float *)((char *)args->workspace + HWQ_GEMM_FIXED);
    for (int64_t r = 0, rows; r < args->m; r += rows) {
        rows = MANY_FROM > 4 && args->m - r >= 4 ? 4 : 1;
        const float *a = (const float *)args->a + r * args->a_stride;
        int64_t a_stride = args->a_stride;
        int weights = w->symmetric ? SYMMETRIC : ANY;
        if (SHIFT && w->symmetric && shift_rows(a, a_stride, rows, w->k, shifted)) a = shifted, a_stride = w->k, weights = SHIFTED;
        for (int64_t strip = args->first_strip, strips; strip < end; strip += strips) {
            const int most = rows == 4 ? FOUR_STRIPS : ONE_STRIPS;
            strips = end - strip >= most ? most : rows == 1 && end - strip >= REST_STRIPS ? REST_STRIPS : 1;
#define TILE(rows, strips)                                                                                                    \
    (weights == SHIFTED ? tile(rows, strips, SHIFT ? SHIFTED : SYMMETRIC, w, strip, blocks, a, a_stride, done)                \
     : weights          ? tile(rows, strips, SYMMETRIC, w, strip, blocks, a, a_stride, done)                                  \
                        : tile(rows, strips, ANY, w, strip, blocks, a, a_stride, done))
            if (rows == 1 && blocks >= LEAST_BLOCKS && w->block % DEPTH == 0)
                for (int64_t s = 0; s < strips; s++) {
                    float *to = done + s * HWQ_STRIP;
                    if (weights == SHIFTED) one_strip(SHIFT ? SHIFTED : SYMMETRIC, w, strip + s, blocks, a, to);
                    else if (weights) one_strip(SYMMETRIC, w, strip + s, blocks, a, to);
                    else one_strip(ANY, w, strip + s, blocks, a, to);
                }
            else if (rows == 4 && strips > 1) TILE(4, FOUR_STRIPS);
            else if (rows == 4) TILE(4, 1);
            else if (strips == ONE_STRIPS) TILE(1, ONE_STRIPS);
            else if (strips == REST_STRIPS) TILE(1, REST_STRIPS);
            else TILE(1, 1);
#undef TILE
            const int64_t column = strip * HWQ_STRIP, wide = strips * HWQ_STRIP, width = w->n - column < wide ? w->n - column : wide;
            hwq_finish_floats(args->epilogue, rows, width, column, done, wide, (char *)args->out + (r * args->out_stride + column) * out_size,
                              args->out_stride);
        }
    }
}
