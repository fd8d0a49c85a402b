/* Float a with scaled integer weights, the columns in lanes; included once by each path and width of the weights, which define
 * VECTOR, FLOATS and their operations, LANES, CHAINS (vectors in flight), the types PACKED and ARGS, STORED (the packed bytes),
 * DEPTH (k in a line of 64 bytes), TOGETHER (vectors that walk one line
 * of a) and element(v, i, zero_point): the i-th k of every lane, as float.
 * SHIFT, unless 0: symmetric weights may come 2^SHIFT too great, and a 2^-SHIFT as great. Both are exact where no a that is not 0 lies
 * below 2^(SHIFT - 126), the least normal float being 2^-126, and then the products are the same real numbers, rounded once.
 * Every column is one chain of fused multiply-adds in increasing k, as the contract says; 8 chains in flight hide their latency.
 * Weights are unpacked once for up to 4 rows. */

/* What is known of the weights: nothing; their zero points are the middle; and they may come shifted. */
enum { ANY, SYMMETRIC, SHIFTED };
enum { PER_STRIP = HWQ_STRIP / LANES, STRIPS = CHAINS / PER_STRIP };

/* rows x strips * 16 columns, rows * strips * PER_STRIP = CHAINS or fewer. */
static inline __attribute__((always_inline)) void tile(const int rows, const int strips, const int weights, const PACKED *w, int64_t strip,
                                                       int64_t blocks, const float *a, int64_t a_stride, float *out)
{
    const int64_t line = (w->k + DEPTH - 1) / DEPTH * 64;
    const int vectors = strips * PER_STRIP;
    FLOATS y[4][CHAINS], chain[4][CHAINS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) y[r][v] = ZERO_FLOATS;
    const uint8_t *b = (const uint8_t *)w->STORED + strip * line;
    for (int64_t g = 0; g < blocks; g++) {
        const int64_t left = w->k - g * w->block, count = left < w->block ? left : w->block;
        VECTOR z[CHAINS];
        for (int v = 0; v < vectors; v++) z[v] = load(w->zero_points + ((strip + v / PER_STRIP) * blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) chain[r][v] = ZERO_FLOATS;
        int64_t i = 0;
        for (; i + DEPTH <= count; i += DEPTH, a += DEPTH, b += 64) {
#pragma GCC unroll 8
            for (int first = 0; first < vectors; first += TOGETHER) {
                VECTOR x[TOGETHER];
                for (int v = 0; v < TOGETHER && first + v < vectors; v++)
                    x[v] = prepare(load(b + (first + v) / PER_STRIP * line + (first + v) % PER_STRIP * LANES * 4), weights);
#pragma GCC unroll 8
                for (int j = 0; j < DEPTH; j++)
                    for (int v = 0; v < TOGETHER && first + v < vectors; v++) {
                        const FLOATS u = element(x[v], j, z[first + v], weights);
                        for (int r = 0; r < rows; r++) chain[r][first + v] = FMA(SET1_FLOAT(a[r * a_stride + j]), u, chain[r][first + v]);
                    }
            }
        }
        if (i < count) { /* the last of k: fewer than DEPTH */
            for (int v = 0; v < vectors; v++) {
                VECTOR x = load(b + v / PER_STRIP * line + v % PER_STRIP * LANES * 4);
                x = prepare(x, weights);
                for (int j = 0; j < DEPTH; j++) {
                    if (j >= count - i) break;
                    const FLOATS u = element(x, j, z[v], weights);
                    for (int r = 0; r < rows; r++) chain[r][v] = FMA(SET1_FLOAT(a[r * a_stride + j]), u, chain[r][v]);
                }
            }
            a += count - i, b += 64;
        }
        for (int v = 0; v < vectors; v++) {
            const FLOATS scale = LOAD_FLOATS(w->scales + ((strip + v / PER_STRIP) * blocks + g) * HWQ_STRIP + v % PER_STRIP * LANES);
            for (int r = 0; r < rows; r++) y[r][v] = FMA(chain[r][v], scale, y[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) memcpy(out + r * vectors * LANES + v * LANES, &y[r][v], sizeof(FLOATS));
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

static void multiply(const ARGS *args)
{
    const PACKED *w = args->weights;
    const int64_t blocks = (w->k > 0 ? (w->k + w->block - 1) / w->block : 0), last_strip = (w->n + HWQ_STRIP - 1) / HWQ_STRIP, out_size = hwq_type_size(args->epilogue->out_type);
    const int64_t end = args->first_strip + args->strips < last_strip ? args->first_strip + args->strips : last_strip;
    float *done = args->workspace, *shifted = (float *)((char *)args->workspace + HWQ_GEMM_FIXED);
    for (int64_t r = 0, rows; r < args->m; r += rows) {
        rows = args->m - r >= 4 ? 4 : 1;
        const float *a = (const float *)args->a + r * args->a_stride;
        int64_t a_stride = args->a_stride;
        int weights = w->symmetric ? SYMMETRIC : ANY;
        if (SHIFT && w->symmetric && shift_rows(a, a_stride, rows, w->k, shifted)) a = shifted, a_stride = w->k, weights = SHIFTED;
        for (int64_t strip = args->first_strip, strips; strip < end; strip += strips) {
            const int most = rows == 4 ? STRIPS / 4 > 0 ? STRIPS / 4 : 1 : STRIPS;
            strips = end - strip >= most ? most : 1;
#define TILE(rows, strips)                                                                                                    \
    (weights == SHIFTED ? tile(rows, strips, SHIFT ? SHIFTED : SYMMETRIC, w, strip, blocks, a, a_stride, done)                \
     : weights          ? tile(rows, strips, SYMMETRIC, w, strip, blocks, a, a_stride, done)                                  \
                        : tile(rows, strips, ANY, w, strip, blocks, a, a_stride, done))
            if (rows == 4 && strips > 1) TILE(4, (STRIPS / 4 > 0 ? STRIPS / 4 : 1));
            else if (rows == 4) TILE(4, 1);
            else if (strips > 1) TILE(1, STRIPS);
            else TILE(1, 1);
            const int64_t column = strip * HWQ_STRIP, wide = strips * HWQ_STRIP, width = w->n - column < wide ? w->n - column : wide;
            hwq_finish_floats(args->epilogue, rows, width, column, done, wide, (char *)args->out + (r * args->out_stride + column) * out_size,
                              args->out_stride);
        }
    }
}
