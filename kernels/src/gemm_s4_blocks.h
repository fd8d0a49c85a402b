/* Driver of the integer products with weights u of at most 4 bits; included once by each path, which defines VECTOR, FLOATS and
 * their operations, LANES, ROWS, SIGNED_A, and block_product: acc[r][v] = sum of a * u over one block.
 *
 * a is read in one signedness, the other's top bit flipped and its zero point moved by 128; all sums are modulo 2^32:
 *   sum (a - za)(u - zu) = sum a*u - zu * sum(a) - za * sum(u - zu), every sum over the block's k.
 * Rows are copied once, padded, with their sums per block. Nibbles become bytes in registers, once for ROWS rows. */

enum { PER_STRIP = HWQ_STRIP / LANES };

static inline __attribute__((always_inline)) VECTOR load(const void *p)
{
    VECTOR v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline __attribute__((always_inline)) VECTOR quad_at(const uint8_t *a)
{
    int32_t four;
    memcpy(&four, a, 4);
    return SET1(four);
}

BLOCK_PRODUCT

/* One row copied, k padded to whole pairs of quads; its sums per block. */
static void copy_row(const uint8_t *a, int64_t k, int64_t block, uint8_t flip, uint8_t *to, int32_t *sums)
{
    for (int64_t first = 0; first < k; first += block) {
        const int64_t last = first + block < k ? first + block : k;
        int32_t sum = 0; /* at most 255 * block */
        for (int64_t i = first; i < last; i++) {
            to[i] = a[i] ^ flip;
            sum += SIGNED_A ? (int8_t)to[i] : to[i];
        }
        *sums++ = sum;
    }
    for (int64_t i = k; i % 8; i++) to[i] = 0;
}

typedef union {
    int32_t integers[ROWS * HWQ_STRIP];
    float floats[ROWS * HWQ_STRIP];
} tile_out;

static inline __attribute__((always_inline)) void tile(const int rows, const hwq_packed_s4 *w, int64_t strip, int64_t blocks, int32_t zero_point,
                                                       const uint8_t *a, int64_t a_stride, const int32_t *sums, int64_t sums_stride, tile_out *out)
{
    const uint8_t *b = w->nibbles + strip * ((w->k + 7) / 8) * 64;
    FLOATS y[ROWS][PER_STRIP];
    VECTOR acc[ROWS][PER_STRIP];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < PER_STRIP; v++) y[r][v] = ZERO_FLOATS, acc[r][v] = SET1(0);
    for (int64_t g = 0; g < blocks; g++) {
        const int64_t left = w->k - g * w->block, pairs = ((left < w->block ? left : w->block) + 7) / 8;
        block_product(rows, pairs, a, a_stride, b, acc);
        a += pairs * 8, b += pairs * 64;
        for (int v = 0; v < PER_STRIP; v++) {
            const int64_t at = (strip * blocks + g) * HWQ_STRIP + v * LANES;
            const VECTOR z = load(w->zero_points + at), term = MULLO(SET1(zero_point), load(w->sums + at));
            for (int r = 0; r < rows; r++) {
                acc[r][v] = SUB(SUB(acc[r][v], term), MULLO(z, SET1(sums[r * sums_stride + g])));
                if (w->scales) y[r][v] = FMA(TO_FLOATS(acc[r][v]), LOAD_FLOATS(w->scales + at), y[r][v]);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < PER_STRIP; v++)
            if (w->scales) memcpy(out->floats + r * HWQ_STRIP + v * LANES, &y[r][v], sizeof(FLOATS));
            else memcpy(out->integers + r * HWQ_STRIP + v * LANES, &acc[r][v], sizeof(VECTOR));
}

static void multiply(const hwq_gemm_s4_args *args)
{
    const hwq_packed_s4 *w = args->weights;
    const int64_t k = w->k, n = w->n, blocks = hwq_s4_blocks(w), row_bytes = hwq_s4_row(k, w->block), line = hwq_gemm_line(k);
    const int64_t begin = args->first_strip * HWQ_STRIP, wanted = begin + args->strips * HWQ_STRIP, end = wanted < n ? wanted : n;
    const int64_t out_size = hwq_type_size(args->epilogue->out_type), most = hwq_gemm_block_rows(row_bytes, ROWS);
    const int flipped = (args->a_type == HWQ_S8) != SIGNED_A;
    const int32_t zero_point = args->a_zero_point + (flipped ? (SIGNED_A ? -128 : 128) : 0);
    uint8_t *copies = (uint8_t *)args->workspace + HWQ_GEMM_FIXED;
    tile_out *done = args->workspace;
    for (int64_t top = 0; top < args->m; top += most) {
        const int64_t rows = args->m - top < most ? args->m - top : most;
        for (int64_t r = 0; r < rows; r++)
            copy_row((const uint8_t *)args->a + (top + r) * args->a_stride, k, w->block, flipped ? 0x80 : 0, copies + r * row_bytes,
                     (int32_t *)(copies + r * row_bytes + line));
        for (int64_t column = begin; column < end; column += HWQ_STRIP) {
            const int64_t width = end - column < HWQ_STRIP ? end - column : HWQ_STRIP;
            for (int64_t r = 0, taken; r < rows; r += taken) {
                const uint8_t *a = copies + r * row_bytes;
                const int32_t *sums = (const int32_t *)(a + line);
                taken = rows - r >= ROWS ? ROWS : rows - r >= 4 ? 4 : 1;
                if (taken == ROWS) tile(ROWS, w, column / HWQ_STRIP, blocks, zero_point, a, row_bytes, sums, row_bytes / 4, done);
                else if (taken == 4) tile(4, w, column / HWQ_STRIP, blocks, zero_point, a, row_bytes, sums, row_bytes / 4, done);
                else tile(1, w, column / HWQ_STRIP, blocks, zero_point, a, row_bytes, sums, row_bytes / 4, done);
                char *out = (char *)args->out + ((top + r) * args->out_stride + column) * out_size;
                if (w->scales) {
                    hwq_finish_floats(args->epilogue, taken, width, column, done->floats, HWQ_STRIP, out, args->out_stride);
                    continue;
                }
                if (args->bias)
                    for (int64_t i = 0; i < taken * HWQ_STRIP; i++)
                        if (i % HWQ_STRIP < width)
                            done->integers[i] = hwq_wrap_add(done->integers[i], args->bias[column + i % HWQ_STRIP]);
                const hwq_epilogue e = hwq_epilogue_at(args->epilogue, top + r, column);
                hwq_requantize(&e, taken, width, column, done->integers, HWQ_S32, HWQ_STRIP, out, args->out_stride);
            }
        }
    }
}
