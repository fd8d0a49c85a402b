/* Shared by the convolution drivers: see conv_layout.c. */
#ifndef HWQ_CONV_H
#define HWQ_CONV_H
#include "hwq/kernels.h"

/* Output positions that a GEMM takes at once; accumulators that a depthwise driver finishes at once (or one position). */
enum { HWQ_CONV_ROWS = 64, HWQ_DEPTHWISE_BLOCK = 4096 };

/* Bytes per element, channels per group, products per output; then the parts of the workspace in bytes, in this order: the
 * image turned channel-last, the gathered rows (depthwise: accumulators), the finished tile, the GEMM's own. */
typedef struct {
    int64_t element, out_element, depth, k, image, rows, tile, gemm;
} hwq_conv_shape;
hwq_conv_shape hwq_conv_measure(const hwq_conv *conv);

/* to[column][row] = from[row][column]; strides and sizes in elements of 1, 2 or 4 bytes. */
void hwq_transpose(int64_t element, int64_t rows, int64_t columns, const char *from, int64_t from_stride, char *to, int64_t to_stride);
/* out = residual_op(out, residual) on output positions [first, last) of one image. */
void hwq_conv_residual(const hwq_conv *conv, int64_t image, int64_t first, int64_t last);

/* Every image that has output positions [first, last): turned channel-last into the workspace's first bytes if it is not, driven through its positions
 * [begin, end) by the driver's `plan`, then the residual. */
typedef void hwq_image_fn(const void *plan, const uint8_t *image, int64_t number, int64_t begin, int64_t end);
void hwq_conv_images(const hwq_conv *conv, hwq_image_fn *drive, const void *plan);

/* One image of a channel-first convolution, channel-last; and the whole: each image turned, run by `run`, turned back, then the residual. So only ref knows
 * channel-first images; depthwise ones have drivers of their own. */
hwq_conv hwq_conv_channels_last(const hwq_conv *conv);
void hwq_conv_turned(const hwq_conv *conv, void (*run)(const hwq_conv *));

/* Workspace of the convolution straight from the image (conv_avx512vnni.c); 0 where it does not apply. */
int64_t hwq_conv_direct_workspace(const hwq_conv *conv);
int64_t hwq_conv_inner_workspace(const hwq_conv *conv); /* likewise, conv_avx2.c */

/* Depthwise with several outputs a channel (depthwise_repeat.c). */
int64_t hwq_depthwise_repeat_workspace(const hwq_conv *conv);
void hwq_depthwise_repeat(const hwq_conv *conv);

static inline int64_t hwq_align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
static inline int64_t hwq_depthwise_rows(int64_t channels) { return channels < HWQ_DEPTHWISE_BLOCK ? HWQ_DEPTHWISE_BLOCK / channels : 1; }

#endif
