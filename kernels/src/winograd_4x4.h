/* Exact integer Winograd F(4x4, 3x3): a convolution of stride 1 in a quarter of the products. The weights are transformed in the call.
 *
 * One dimension, Lavin and Gray's matrices (arXiv 1509.09308) with the points 0, 1, -1, infinity, 2, -2 in this order, rows of G scaled to integers
 * and, for two shared rows, by 6 more:
 *     V = | 4  0 -5  0  1  0 |      U = | 6  0  0 |      s = M1 + M2, t = M1 - M2, p = M4 + M5, q = M4 - M5:
 *         | 0  4  4 -1 -1  0 |          | 1  1  1 |      24 Y0 = M0 + 4 s + p
 *         | 0 -4  4  1 -1  0 |          | 1 -1  1 |      12 Y1 = 2 t + q
 *         | 0  4  0 -5  0  1 | d        | 0  0  6 | g     6 Y2 = s + p
 *         | 0 -2 -1  2  1  0 |          | 1  2  4 |       6 Y3 = t + 2 q + M3
 *         | 0  2 -1 -2  1  0 |          | 1 -2  4 |
 * Where 1 or 2 outputs are left at an axis' end, F(2, 3) takes them with the first four of those points, so by the same U:
 *     V = (d0 - d2, d1 + d2, d2 - d1, d3 - d1),  6 Y0 = M0 + 3 s,  6 Y1 = 3 t + M3.
 * A tile is 4 x 4, 4 x 2, 2 x 4 or 2 x 2 outputs: 36, 24, 24 or 16 positions of a product over the channels.
 *
 * Bounds. Inputs are taken less 128 where they are unsigned, |d| <= 128: a row of V's matrix sums to 10 at most in size, so |V| <= 100 * 128 = 12800.
 * |g| = |w - zw| <= 255: |U| <= 49 * 255 = 12495. Both are int16. All that follows is modulo 2^32: the sums M, and the outputs, which come as
 * 9 * 2^e * Y with e from 2 to 6. Times the inverse of 9 modulo 2^32 that is 2^e * Y, which is the true 2^e * Y, so that an arithmetic shift gives Y,
 * where |Y| < 2^25. As |Y| <= 128 * sum |w - zw|, it is where no column's sum |w - zw| exceeds 2^18 - 1, which packing tells (hwq_packed.weight_sum).
 * The zero point's part, bias and epilogue follow modulo 2^32, as everywhere. */
#ifndef HWQ_WINOGRAD_4X4_H
#define HWQ_WINOGRAD_4X4_H
#include "conv.h"

enum {
    WINOGRAD_LONG = 4, WINOGRAD_SHORT = 2, WINOGRAD_SIDE = 6, WINOGRAD_POSITIONS = 36, /* position: 6 * row + column, in the order of the points */
    WINOGRAD_COLUMNS = 2 * HWQ_STRIP,
    WINOGRAD_CHANNELS = 32, WINOGRAD_V_STEP = WINOGRAD_POSITIONS * WINOGRAD_CHANNELS, /* V lies by tiles, 32 channels (a cache line), positions, channels */
    WINOGRAD_TILES = 64, /* of a block at most */
    WINOGRAD_GROUP = 16, /* tiles whose M is finished together */
    WINOGRAD_M_STEP = WINOGRAD_GROUP * WINOGRAD_COLUMNS + 16 /* int32 of M from position to position: a cache line off the powers of two, which would share a set */
};

/* Steps in elements, spaces in bytes. A step from position to position is a cache line off the powers of two, which would share a set. */
typedef struct {
    int64_t depth, n, padded;               /* of a group of channels; padded to whole vectors */
    int64_t down, across, tiles;            /* tiles of an image's sides; of a block */
    int64_t taken, chunks;                  /* channels of a chunk, whose U of 32 columns stays in the second-level cache; chunks */
    int64_t v_tile, u_step;                 /* elements from tile to tile of V, from position to position of U */
    int64_t v_bytes, u_bytes, m_bytes;      /* of a block; of a chunk and 32 columns; of a group of tiles */
    int64_t u_kept, m_kept;                 /* how many: all of U where it is small; M of all groups where there are several chunks */
} hwq_winograd_plan;

/* A tile of the block: its image and that one's number, its first output and its extent. */
typedef struct {
    const uint8_t *image;
    int64_t number, y, x;
    int rows, columns;
} hwq_winograd_tile;

/* Can this convolution run so? Then the plan is filled in. */
int hwq_winograd_4x4_fits(const hwq_conv *conv, hwq_winograd_plan *plan);
int64_t hwq_winograd_4x4_bytes(const hwq_winograd_plan *plan);
/* And is that cheaper than what the path has else? `bytes`: than tiles of byte products (conv_avx512vnni.c), whole and on the output positions [first, last); or, on AVX2,
 * than F(2x2, 3x3), for which weights are then not made, so whole is enough. */
int hwq_winograd_4x4_pays(const hwq_conv *conv, int bytes, hwq_winograd_plan *plan);
int hwq_winograd_4x4_pays_whole(const hwq_conv *conv, int bytes);
int64_t hwq_winograd_4x4_workspace(const hwq_conv *conv); /* 0 where it pays on neither path */
/* Tiles in lines of `across`: the first of the line that computes an output position. */
int64_t hwq_winograd_4x4_line(const hwq_conv *conv, const hwq_winograd_plan *plan, int64_t position);
/* Tiles [first, first + count) in an order that lets the tiles which have a position follow each other: short and long (rows and columns), long and
 * long, long and short, short and short. Returns where each form ends. */
void hwq_winograd_4x4_sort(const hwq_conv *conv, const hwq_winograd_plan *plan, int64_t first, int64_t count, hwq_winograd_tile *tiles, int64_t ends[4]);

void hwq_conv_winograd_4x4__avx2(const hwq_conv *conv, const hwq_winograd_plan *plan);
void hwq_conv_winograd_4x4__avx512vnni(const hwq_conv *conv, const hwq_winograd_plan *plan);

#endif
