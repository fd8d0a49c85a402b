/* Exact integer Winograd F(2x2, 3x3): what packing and the paths' kernels share.
 *
 * A tile of 2 x 2 outputs needs 4 x 4 inputs d. With B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],
 * 2G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2], A^T = [1 1 1 0; 0 1 -1 -1]:
 *     4 Y = A^T [ sum over channels of (2G g (2G)^T) * (B^T d B) ] A
 * takes 16 products for 4 outputs of 9 products each: 2.25 times fewer. All entries are integers, so nothing is rounded.
 * Bounds, with d and g the operands less their zero points, |d| <= 255 and |g| <= 255:
 *     |V| = |B^T d B| <= 4 * 255 = 1020,  |U| = |2G g (2G)^T| <= 9 * 255 = 2295: int16.
 * Sums over channels are modulo 2^32, and so is 4 Y; it is the true 4 Y, and its quarter is Y, where 255 * sum |g| < 2^29. Packing
 * checks that of every output column, and refuses otherwise. Bias and epilogue follow modulo 2^32, as everywhere. */
#ifndef HWQ_WINOGRAD_H
#define HWQ_WINOGRAD_H
#include "conv.h"

/* Positions of a tile; channels padded to; the four outputs of a tile. */
enum { HWQ_WINOGRAD_POSITIONS = 16, HWQ_WINOGRAD_CHANNELS = 16, HWQ_WINOGRAD_OUTPUTS = 4 };

/* Tiles that are transformed at once: as many as keep V (32 bytes per tile and channel) in half of a 512 KiB second-level cache. */
static inline int64_t hwq_winograd_depth(int64_t depth)
{
    return (depth + HWQ_WINOGRAD_CHANNELS - 1) / HWQ_WINOGRAD_CHANNELS * HWQ_WINOGRAD_CHANNELS;
}
static inline int64_t hwq_winograd_tiles(int64_t depth)
{
    const int64_t fit = (256 * 1024) / (32 * hwq_winograd_depth(depth)) / 4 * 4;
    return fit < 16 ? 16 : fit > 32 ? 32 : fit;
}

/* Elements between two positions of V (int16) and of a strip's M (int32): one cache line more than the rows, so that the 16
 * lines which a transform touches together do not fall into one set of the cache. */
static inline int64_t hwq_winograd_v_step(int64_t depth) { return hwq_winograd_tiles(depth) * hwq_winograd_depth(depth) + 32; }
static inline int64_t hwq_winograd_m_step(int64_t depth) { return hwq_winograd_tiles(depth) * HWQ_STRIP + 16; }

/* Has the convolution the shape of F(2x2, 3x3), and enough channels to repay the transforms? */
int hwq_winograd_fits(const hwq_conv *conv);
int64_t hwq_winograd_workspace(const hwq_conv *conv);

#endif
