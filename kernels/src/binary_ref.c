/* Add, subtract and multiply of quantized tensors, each in the arithmetic of the runtime that its formula names. */
#include "binary.h"
#include "isa.h"

/* TFLite scales both inputs by 2^left before the sum: 20 bits for 8-bit tensors, 15 for 16-bit ones. */
static void prepare_tflite_sum(hwq_binary *b)
{
    const float larger = b->a_scale > b->b_scale ? b->a_scale : b->b_scale;
    const double twice = 2.0 * larger;
    b->left = b->out_type == HWQ_S16 ? 15 : 20;
    hwq_quantize_multiplier(b->a_scale / twice, &b->a_multiplier, &b->a_shift);
    hwq_quantize_multiplier(b->b_scale / twice, &b->b_multiplier, &b->b_shift);
    hwq_quantize_multiplier(twice / (double)((float)(1 << b->left) * b->scale), &b->multiplier, &b->shift);
    if (b->formula == HWQ_BINARY_TFLITE_SUB) b->b_multiplier = -b->b_multiplier;
}

/* XNNPACK takes ratios in [2^-10, 2^8): the larger multiplier has 21 bits, so 255 * 2^21 * 2 + 2^29 fits int32. */
static int prepare_xnn_sum(hwq_binary *b)
{
    const float ra = b->a_scale / b->scale, rb = b->b_scale / b->scale, larger = ra > rb ? ra : rb;
    if (!(ra >= 0x1p-10f && ra < 0x1p8f && rb >= 0x1p-10f && rb < 0x1p8f)) return -1;
    b->shift = 20 - ilogbf(larger);
    b->a_multiplier = (int32_t)rintf(ldexpf(ra, b->shift));
    b->b_multiplier = (int32_t)rintf(ldexpf(rb, b->shift));
    if (b->formula == HWQ_BINARY_XNN_SUB) b->b_multiplier = -b->b_multiplier;
    return 0;
}

int hwq_binary_prepare(hwq_binary *b)
{
    if (!(b->a_scale > 0 && b->b_scale > 0 && b->scale > 0)) return -1;
    if (!(isfinite(b->a_scale) && isfinite(b->b_scale) && isfinite(b->scale))) return -1;
    switch (b->formula) {
    case HWQ_BINARY_ORT_ADD:
        b->a_factor = b->a_scale / b->scale;
        b->b_factor = b->b_scale / b->scale;
        b->a_offset = (float)b->zero_point - fmaf(b->a_factor, (float)b->a_zero_point, b->b_factor * (float)b->b_zero_point);
        break;
    case HWQ_BINARY_TORCH_ADD:
        b->a_offset = (float)-b->a_zero_point * b->a_scale;
        b->b_offset = (float)-b->b_zero_point * b->b_scale;
        b->factor = 1.0f / b->scale;
        break;
    case HWQ_BINARY_TFLITE_ADD: case HWQ_BINARY_TFLITE_SUB: prepare_tflite_sum(b); break;
    case HWQ_BINARY_XNN_ADD: case HWQ_BINARY_XNN_SUB: return prepare_xnn_sum(b);
    default: /* every product */
        b->factor = b->a_scale * b->b_scale / b->scale;
        hwq_quantize_multiplier(b->factor, &b->multiplier, &b->shift);
    }
    /* R1 shifts by at most 31 either way. */
    return b->shift > 31 || b->a_shift > 31 || b->b_shift > 31 ? -1 : 0;
}

void hwq_binary_run__ref(const hwq_binary *p, int64_t n, const void *a, int64_t a_step, const void *b, int64_t b_step, void *out)
{
    combine_all(p, n, a, a_step, b, b_step, out);
}
