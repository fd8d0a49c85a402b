/* The mean of an image: exact integer sums of its channels, then the epilogue. Plain C. */
#include "hwq/program.h"

#include "epilogue.h"

int64_t hwq_mean_workspace(const hwq_mean *mean) { return mean->inner * 4; }

/* acc = sum of (x - zero_point) modulo 2^32: |x - zero_point| <= 255, exact for 2^23 positions. */
void hwq_mean_run(const hwq_mean *mean, const hwq_epilogue *epilogue, const void *x, void *out, void *workspace)
{
    uint32_t *acc = workspace;
    const int64_t inner = mean->inner, size = hwq_type_size(epilogue->out_type);
    const uint8_t *from = x;
    const uint8_t flip = mean->type == HWQ_S8 ? 0x80 : 0; /* s8 is read as u8 - 128 */
    const uint32_t shift = (uint32_t)mean->count * (uint32_t)(mean->zero_point + flip);
    for (int64_t o = 0; o < mean->outer; o++) {
        if (inner == 1) {
            uint32_t sum = 0;
            for (int64_t j = 0; j < mean->count; j++) sum += from[j] ^ flip;
            acc[0] = sum - shift;
        } else {
            for (int64_t i = 0; i < inner; i++) acc[i] = 0u - shift;
            for (int64_t j = 0; j < mean->count; j++)
                for (int64_t i = 0; i < inner; i++) acc[i] += from[j * inner + i] ^ flip;
        }
        hwq_requantize(epilogue, 1, inner, 0, acc, HWQ_S32, inner, (char *)out + o * inner * size, inner);
        from += mean->count * inner;
    }
}
