# Doors to what works row by row: int16 products, halves, dynamic quantization, softmax, layer normalization. Included by
# _kernels.pyx.


cdef class Softmax:
    """A prepared hwq_softmax; `table` has 256 floats or is None."""

    cdef hwq_softmax c
    cdef _Views views

    def __init__(self, int formula, int kind, int out_kind, double scale, double beta, table, double inverse, int zero_point):
        cdef _Views v = _Views()
        memset(&self.c, 0, sizeof(hwq_softmax))
        self.views = v
        self.c.formula, self.c.type, self.c.out_type, self.c.zero_point = formula, kind, out_kind, zero_point
        self.c.table = <const float *>v.read(table, 256 * 4)
        cdef uint64_t state = hwq_state_enter()
        self.c.scale, self.c.beta, self.c.inverse = <float>scale, <float>beta, <float>inverse
        hwq_softmax_prepare(&self.c)
        hwq_state_leave(state)

    def run(self, int64_t first_row, int64_t rows, int64_t columns, x, out):
        cdef _Views v = _Views()
        cdef int64_t size = columns * _size(self.c.type), out_size = columns * _size(self.c.out_type), end = first_row + rows
        cdef const uint8_t *px = <const uint8_t *>v.read(x, end * size) + first_row * size
        cdef uint8_t *po = <uint8_t *>v.write(out, end * out_size) + first_row * out_size
        cdef uint64_t state
        with nogil:
            state = hwq_state_enter()
            hwq_softmax_run(&self.c, rows, columns, px, po)
            hwq_state_leave(state)


def gemm_s16(a, int64_t first_row, int64_t rows, int a_zero_point, Packed weights not None, bias, bint wide, Epilogue epilogue, residual, out):
    """Rows [first_row, first_row + rows) of dense row-major int16 a; wide: 64-bit accumulators reach the epilogue."""
    cdef _Views v = _Views()
    cdef int64_t k = weights.c.k, n = weights.c.n, end = first_row + rows
    cdef hwq_gemm_s16_args args
    cdef hwq_epilogue e = epilogue.c
    epilogue.check(n)
    memset(&args, 0, sizeof(args))
    args.m, args.a_stride, args.a_zero_point = rows, k, a_zero_point
    args.a = <const int16_t *>v.read(a, end * k * 2) + first_row * k
    args.weights, args.strips, args.acc_type = &weights.c, (n + HWQ_STRIP - 1) // HWQ_STRIP, HWQ_S64 if wide else HWQ_S32
    args.bias = <const int64_t *>v.read(bias, n * 8)
    args.out = <uint8_t *>v.write(out, end * n * _size(e.out_type)) + first_row * n * _size(e.out_type)
    args.out_stride = n
    if e.residual_op is not NULL:
        e.residual = <const uint8_t *>v.read(residual, end * n * _size(e.residual_op.b_type)) + first_row * n * _size(e.residual_op.b_type)
        e.residual_stride = n
    args.epilogue = &e
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_s16s8(&args)
        hwq_state_leave(state)


def gemm_half(int kind, a, int64_t first_row, int64_t rows, int64_t k, int64_t n, weights, bias, out):
    cdef _Views v = _Views()
    cdef hwq_gemm_half_args args
    cdef int64_t end = first_row + rows
    args.type, args.m, args.k, args.n, args.a_stride, args.out_stride = kind, rows, k, n, k, n
    args.a = <const uint16_t *>v.read(a, end * k * 2) + first_row * k
    args.weights = <const float *>v.read(weights, hwq_packed_f32_floats(k, n) * 4)
    args.bias = <const float *>v.read(bias, n * 4)
    args.out = <uint16_t *>v.write(out, end * n * 2) + first_row * n
    cdef void *memory = malloc(<size_t>hwq_gemm_half_workspace(k, n) + 64)
    if memory is NULL:
        raise MemoryError
    args.workspace = <float *>_align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_half(&args)
        hwq_state_leave(state)
        free(memory)


def widen(int kind, int64_t n, x, out):
    cdef _Views v = _Views()
    cdef const uint16_t *px = <const uint16_t *>v.read(x, n * 2)
    cdef float *po = <float *>v.write(out, n * 4)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_widen(kind, n, px, po)
        hwq_state_leave(state)


def narrow(int kind, int64_t n, x, out):
    cdef _Views v = _Views()
    cdef const float *px = <const float *>v.read(x, n * 4)
    cdef uint16_t *po = <uint16_t *>v.write(out, n * 2)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_narrow(kind, n, px, po)
        hwq_state_leave(state)


def dynamic_quantize(int formula, int64_t first_row, int64_t rows, int64_t columns, x, out, scales, zero_points):
    cdef _Views v = _Views()
    cdef int64_t end = first_row + rows
    cdef const float *px = <const float *>v.read(x, end * columns * 4) + first_row * columns
    cdef uint8_t *po = <uint8_t *>v.write(out, end * columns) + first_row * columns
    cdef float *ps = <float *>v.write(scales, end * 4) + first_row
    cdef int32_t *pz = <int32_t *>v.write(zero_points, end * 4) + first_row
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_dynamic_quantize(formula, rows, columns, px, po, ps, pz)
        hwq_state_leave(state)


def ranges(int64_t outer, int64_t channels, int64_t inner, x, minima, maxima, totals):
    cdef _Views v = _Views()
    cdef const float *px = <const float *>v.read(x, outer * channels * inner * 4)
    cdef float *low = <float *>v.write(minima, channels * 4)
    cdef float *high = <float *>v.write(maxima, channels * 4)
    cdef double *sums = <double *>v.write(totals, channels * 8)
    cdef uint64_t state
    cdef int32_t finite
    with nogil:
        state = hwq_state_enter()
        finite = hwq_ranges(outer, channels, inner, px, low, high, sums)
        hwq_state_leave(state)
    return bool(finite)


def histogram(int64_t n, x, double inverse, int64_t half, counts, squares):
    cdef _Views v = _Views()
    cdef const float *px = <const float *>v.read(x, n * 4)
    cdef int64_t *pc = <int64_t *>v.write(counts, 4 * half * 8)
    cdef double *ps = <double *>v.write(squares, 4 * 8)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_histogram(n, px, inverse, half, pc, ps)
        hwq_state_leave(state)


def gemm_planes(a, int64_t first_row, int64_t rows, int64_t k, int64_t n, int32_t bits, planes, out, scratch):
    cdef _Views v = _Views()
    cdef hwq_gemm_planes_args args
    cdef int64_t end = first_row + rows, pairs = (k + 7) // 8
    args.m, args.n, args.k, args.bits, args.a_stride, args.out_stride = rows, n, k, bits, k, n
    args.a = <const uint8_t *>v.read(a, end * k) + first_row * k
    args.planes = <const uint8_t *>v.read(planes, (n + 31) // 32 * pairs * 32 * bits)
    args.out = <int32_t *>v.write(out, end * n * 4) + first_row * n
    args.scratch = <uint8_t *>v.write(scratch, pairs * 64)
    with nogil:
        hwq_gemm_planes(&args)


def lut_s16(x, table, out, int64_t n, int shift):
    cdef _Views v = _Views()
    cdef const int16_t *px = <const int16_t *>v.read(x, n * 2)
    cdef const int16_t *pt = <const int16_t *>v.read(table, ((65536 >> shift) + 1) * 2)
    cdef int16_t *po = <int16_t *>v.write(out, n * 2)
    with nogil:
        hwq_lut_s16(n, shift, px, pt, po)


def layer_norm_s16(int64_t first_row, int64_t rows, int64_t columns, x, weights, bias, int multiplier, int shift, int formula, int variance_limit, int64_t epsilon, out):
    cdef _Views v = _Views()
    cdef hwq_layer_norm p
    cdef int64_t end = first_row + rows
    p.columns, p.multiplier, p.shift, p.variance_limit = columns, multiplier, shift, variance_limit
    p.formula, p.epsilon = formula, epsilon
    p.weights = <const int16_t *>v.read(weights, columns * 2)
    p.bias = <const int32_t *>v.read(bias, columns * 4)
    cdef const int16_t *px = <const int16_t *>v.read(x, end * columns * 2) + first_row * columns
    cdef int16_t *po = <int16_t *>v.write(out, end * columns * 2) + first_row * columns
    with nogil:
        hwq_layer_norm_s16(&p, rows, px, po)
