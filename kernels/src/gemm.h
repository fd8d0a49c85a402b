/* Sizes that the GEMM drivers and hwq_gemm_workspace agree on. */
#ifndef HWQ_GEMM_H
#define HWQ_GEMM_H
#include "hwq/kernels.h"

/* Rows of a that are prepared at once at most; bytes that their copies take at most (half of a second-level cache of 1 MB; weights
 * that come from behind it pass once for all of them: 200 x 4096 x 4096 runs 1.17 times as fast as with half of that, 1.05 on AVX2, Zen 5); bytes of
 * everything else in the workspace. */
enum { HWQ_GEMM_ROWS = 240, HWQ_GEMM_A_BYTES = 1 << 19, HWQ_GEMM_FIXED = 1 << 16 };

/* One row of HWQ_GEMM_LONG k or more reads strip after strip from end to end and asks for weights HWQ_GEMM_FAR bytes ahead: a single line of
 * addresses, which memory and the third cache deliver fastest, and no page is entered unasked. 4096 x 4096, Zen 5, one thread: as fast as reading
 * alone, at 70 to 100 GB/s; 4 strips side by side, asked for 256 bytes ahead, 0.75 to 0.9 of it; 2 and 16 KB ahead 0.9 to 1; from the second
 * cache no difference. Shorter strips do not repay the sums of a strip's 8 chains. */
enum { HWQ_GEMM_LONG = 512, HWQ_GEMM_FAR = 8192 };

/* Bytes from one copied row of u8 to the next: whole cache lines, an odd number of them, so that rows share no cache set. */
static inline int64_t hwq_gemm_line(int64_t k) { return ((k + 63) / 64 | 1) * 64; }

/* Rows prepared at once, where one takes `bytes`: whole panels, and at least one. */
static inline int64_t hwq_gemm_block_rows(int64_t bytes, int64_t panel)
{
    const int64_t most = HWQ_GEMM_ROWS / panel * panel, rows = bytes > 0 ? HWQ_GEMM_A_BYTES / bytes / panel * panel : most;
    return rows > most ? most : rows < panel ? panel : rows;
}

#endif
