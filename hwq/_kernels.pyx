# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Marshalling between Python buffers and kernels/: sizes checked, GIL released, floating-point state set and restored."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, intptr_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

TYPES = {"uint8": HWQ_U8, "int8": HWQ_S8, "uint16": HWQ_U16, "int16": HWQ_S16, "int32": HWQ_S32, "int64": HWQ_S64, "float32": HWQ_F32}
STRIP = HWQ_STRIP
F16, BF16 = HWQ_F16, HWQ_BF16


cdef int64_t _size(int32_t kind) noexcept nogil:
    return 1 if kind <= HWQ_S8 else 2 if kind <= HWQ_S16 else 8 if kind == HWQ_S64 else 4


cdef class _Views:
    """Buffers held open for the length of a call, or of an object."""

    cdef Py_buffer views[12]
    cdef int count

    cdef void *open(self, object array, int64_t need, int flags) except? NULL:
        if self.count == 12:
            raise RuntimeError("too many buffers")
        PyObject_GetBuffer(array, &self.views[self.count], flags)
        self.count += 1
        if self.views[self.count - 1].len < need:
            raise ValueError(f"a buffer of {self.views[self.count - 1].len} bytes stands where {need} are needed")
        return self.views[self.count - 1].buf

    cdef const void *read(self, object array, int64_t need) except? NULL:
        return NULL if array is None else self.open(array, need, PyBUF_C_CONTIGUOUS)

    cdef void *write(self, object array, int64_t need) except? NULL:
        return NULL if array is None else self.open(array, need, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])


cdef class Binary:
    """A prepared elementwise operator."""

    cdef hwq_binary c

    def __init__(self, int formula, int a_type, int b_type, int out_type, a, b, out, int lo, int hi):
        memset(&self.c, 0, sizeof(hwq_binary))
        self.c.formula, self.c.a_type, self.c.b_type, self.c.out_type = formula, a_type, b_type, out_type
        cdef double a_scale = a[0], b_scale = b[0], scale = out[0]
        self.c.a_zero_point, self.c.b_zero_point, self.c.zero_point = a[1], b[1], out[1]
        self.c.lo, self.c.hi = lo, hi
        cdef uint64_t state = hwq_state_enter()
        self.c.a_scale, self.c.b_scale, self.c.scale = <float>a_scale, <float>b_scale, <float>scale
        cdef int bad = hwq_binary_prepare(&self.c)
        hwq_state_leave(state)
        if bad:
            raise ValueError("the formula cannot represent these scales")

    def run(self, int64_t n, a, int64_t a_step, b, int64_t b_step, out):
        cdef _Views v = _Views()
        cdef const void *pa = v.read(a, (n if a_step else min(n, 1)) * _size(self.c.a_type))
        cdef const void *pb = v.read(b, (n if b_step else min(n, 1)) * _size(self.c.b_type))
        cdef void *po = v.write(out, n * _size(self.c.out_type))
        cdef uint64_t state
        with nogil:
            state = hwq_state_enter()
            hwq_binary_run(&self.c, n, pa, a_step, pb, b_step, po)
            hwq_state_leave(state)


cdef class Epilogue:
    """hwq_epilogue with the arrays that it points to. `columns` is the length of every per-column array."""

    cdef hwq_epilogue c
    cdef _Views views
    cdef Binary residual
    cdef readonly int64_t columns

    def __init__(self, int kind, int rounding, int out_type, int64_t columns, bint per_column, scales_f32, scales_f64, multipliers, shifts,
                 float_bias, int zero_point, int lo, int hi, lut, Binary residual):
        cdef _Views v = _Views()
        cdef int64_t n = columns if per_column else 1
        memset(&self.c, 0, sizeof(hwq_epilogue))
        self.views, self.residual, self.columns = v, residual, columns if per_column or float_bias is not None else -1
        self.c.kind, self.c.rounding, self.c.out_type, self.c.channel_step = kind, rounding, out_type, per_column
        self.c.scales_f32 = <const float *>v.read(scales_f32, n * 4)
        self.c.scales_f64 = <const double *>v.read(scales_f64, n * 8)
        self.c.multipliers = <const int32_t *>v.read(multipliers, n * 4)
        self.c.shifts = <const int32_t *>v.read(shifts, n * 4)
        self.c.float_bias = <const float *>v.read(float_bias, columns * 4)
        self.c.zero_point, self.c.lo, self.c.hi = zero_point, lo, hi
        self.c.lut = <const uint8_t *>v.read(lut, 256)
        self.c.residual_op = NULL if residual is None else &residual.c

    cdef int check(self, int64_t columns) except -1:
        if self.columns >= 0 and self.columns != columns:
            raise ValueError(f"the epilogue has {self.columns} columns, the weights {columns}")
        return 0

    def run(self, acc, int acc_type, int64_t rows, int64_t columns, residual, out):
        cdef _Views v = _Views()
        cdef hwq_epilogue e = self.c
        self.check(columns)
        cdef const void *pa = v.read(acc, rows * columns * _size(acc_type))
        cdef void *po = v.write(out, rows * columns * _size(e.out_type))
        if e.residual_op is not NULL:
            e.residual, e.residual_stride = v.read(residual, rows * columns * _size(e.residual_op.b_type)), columns
        cdef uint64_t state
        with nogil:
            state = hwq_state_enter()
            hwq_requantize(&e, rows, columns, 0, pa, acc_type, columns, po, columns)
            hwq_state_leave(state)


cdef class Packed:
    """hwq_packed with the arrays that it points to, and its 3 x 3 weights once more, transformed by the first convolution to want them."""

    cdef hwq_packed c
    cdef _Views views
    cdef void *transformed
    cdef bint refused

    def __init__(self, int64_t k, int64_t n, int64_t groups, quads, zero_points, column_sums, column_products, int64_t weight_sum):
        cdef _Views v = _Views()
        self.views = v
        self.c.k, self.c.n, self.c.groups, self.c.weight_sum = k, n, groups, weight_sum
        self.c.quads = <const int8_t *>v.read(quads, groups * hwq_packed_bytes(k, n))
        self.c.zero_points = <const int32_t *>v.read(zero_points, groups * n * 4)
        self.c.column_sums = <const int32_t *>v.read(column_sums, groups * n * 4)
        self.c.column_products = <const int32_t *>v.read(column_products, groups * n * 4)

    def __dealloc__(self):
        free(self.transformed)

    cdef int prepare(self, const hwq_conv *c) except -1:
        """Transform the weights if this convolution takes Winograd's form; with the GIL held, so once."""
        if self.refused or self.c.winograd is not NULL or not hwq_conv_takes_winograd(c):
            return 0
        cdef int64_t depth = c.channels // c.groups, words = hwq_winograd_words(depth, self.c.n), terms = hwq_winograd_terms(self.c.n), group
        self.transformed = malloc(<size_t>(self.c.groups * (words * 2 + terms * 4)) + 64)
        if self.transformed is NULL:
            raise MemoryError
        cdef int16_t *first = <int16_t *>_align(self.transformed)
        cdef int32_t *second = <int32_t *>(first + self.c.groups * words)
        for group in range(self.c.groups):
            self.refused = self.refused or hwq_winograd_pack(&self.c, depth, group, first + group * words, second + group * terms) != 0
        if self.refused:
            free(self.transformed)
            self.transformed = NULL
        else:
            self.c.winograd_terms = second
            self.c.winograd = first
        return 0


cdef class PackedS4:
    """hwq_packed_s4 with the arrays that it points to; scales, zero points and sums are strips x blocks x 16."""

    cdef hwq_packed_s4 c
    cdef _Views views

    def __init__(self, weights, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, int64_t block, scales, zero_points, nibbles, sums):
        cdef _Views v = _Views()
        if block < 32 or block % 32:
            raise ValueError("a block is a multiple of 32")
        cdef int64_t columns = (n + HWQ_STRIP - 1) // HWQ_STRIP * HWQ_STRIP * ((k + block - 1) // block) * 4
        cdef const uint8_t *pw = <const uint8_t *>v.read(weights, (k - 1) * k_stride + (n - 1) * n_stride + 1 if k and n else 0)
        cdef uint8_t *pn = <uint8_t *>v.write(nibbles, hwq_packed_s4_bytes(k, n))
        cdef int32_t *ps = <int32_t *>v.write(sums, columns)
        self.c.k, self.c.n, self.c.block, self.c.nibbles, self.c.sums = k, n, block, pn, ps
        self.c.scales = <const float *>v.read(scales, columns)
        self.c.zero_points = <const int32_t *>v.read(zero_points, columns)
        self.views = v
        with nogil:
            hwq_pack_s4(pw, k, n, k_stride, n_stride, block, self.c.zero_points, pn, ps)
        self.c.symmetric = hwq_symmetric(n, (k + block - 1) // block, self.c.zero_points, 8)


cdef class PackedS8:
    """hwq_packed_s8 with the arrays that it points to; scales and zero points are strips x blocks x 16."""

    cdef hwq_packed_s8 c
    cdef _Views views

    def __init__(self, int64_t k, int64_t n, int64_t block, quads, scales, zero_points):
        cdef _Views v = _Views()
        if block < 4 or block % 4:
            raise ValueError("a block is a multiple of 4")
        cdef int64_t columns = (n + HWQ_STRIP - 1) // HWQ_STRIP * HWQ_STRIP * ((k + block - 1) // block) * 4
        self.c.k, self.c.n, self.c.block = k, n, block
        self.c.quads = <const int8_t *>v.read(quads, hwq_packed_bytes(k, n))
        self.c.scales = <const float *>v.read(scales, columns)
        self.c.zero_points = <const int32_t *>v.read(zero_points, columns)
        self.c.symmetric = hwq_symmetric(n, (k + block - 1) // block, self.c.zero_points, 0)
        self.views = v


cdef void *_align(void *p) noexcept nogil:
    return <void *>((<uintptr_t>p + 63) & ~<uintptr_t>63)


def packed_bytes(int64_t k, int64_t n):
    return hwq_packed_bytes(k, n)


def packed_f32_floats(int64_t k, int64_t n):
    return hwq_packed_f32_floats(k, n)


def pack(weights, int kind, int64_t offset, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, int64_t group, zero_points, quads,
         stored, sums, products, positive, negative):
    """Pack group `group`, whose first weight is element `offset`; per-column arrays hold all groups."""
    cdef _Views v = _Views()
    cdef int64_t bytes = hwq_packed_bytes(k, n), at = group * n, last = at + n
    cdef int64_t need = offset + (k - 1) * k_stride + (n - 1) * n_stride + 1 if k and n else 0
    cdef const uint8_t *pw = <const uint8_t *>v.read(weights, need)
    cdef const int32_t *pz = <const int32_t *>v.read(zero_points, last * 4)
    cdef int8_t *pq = <int8_t *>v.write(quads, (group + 1) * bytes)
    cdef int32_t *pst = <int32_t *>v.write(stored, last * 4)
    cdef int32_t *ps = <int32_t *>v.write(sums, last * 4)
    cdef int32_t *pp = <int32_t *>v.write(products, last * 4)
    cdef int64_t *pos = <int64_t *>v.write(positive, last * 8)
    cdef int64_t *neg = <int64_t *>v.write(negative, last * 8)
    if pz is not NULL:
        pz += at
    with nogil:
        hwq_pack(pw + offset, kind, k, n, k_stride, n_stride, pz, pq + group * bytes, pst + at, ps + at,
                 pp + at, pos + at, neg + at)


def pack_f32(weights, int64_t offset, int64_t k, int64_t n, int64_t k_stride, int64_t n_stride, int64_t group, packed):
    cdef _Views v = _Views()
    cdef int64_t floats = hwq_packed_f32_floats(k, n)
    cdef int64_t need = offset + (k - 1) * k_stride + (n - 1) * n_stride + 1 if k and n else 0
    cdef const float *pw = <const float *>v.read(weights, need * 4)
    cdef float *pp = <float *>v.write(packed, (group + 1) * floats * 4)
    with nogil:
        hwq_pack_f32(pw + offset, k, n, k_stride, n_stride, pp + group * floats)


def enter_state():
    """Set the default floating-point state in this thread; returns the one before, for `leave_state`."""
    return hwq_state_enter()


def leave_state(uint64_t state):
    hwq_state_leave(state)


def gemm(a, bint is_signed, bint saturating, int64_t first_row, int64_t rows, int a_zero_point, Packed weights not None, int64_t first_strip, int64_t strips, bias,
         Epilogue epilogue, residual, out):
    """Rows [first_row, first_row + rows) and columns of the strips, of dense row-major a, residual and out."""
    cdef _Views v = _Views()
    cdef int64_t k = weights.c.k, n = weights.c.n, end = first_row + rows
    cdef hwq_gemm_args args
    cdef hwq_epilogue e = epilogue.c
    epilogue.check(n)
    args.m, args.a_stride, args.a_zero_point = rows, k, a_zero_point
    args.a = <const uint8_t *>v.read(a, end * k) + first_row * k
    args.weights, args.group, args.first_strip, args.strips = &weights.c, 0, first_strip, strips
    args.bias = <const int32_t *>v.read(bias, n * 4)
    args.out = <uint8_t *>v.write(out, end * n * _size(e.out_type)) + first_row * n * _size(e.out_type)
    args.out_stride = n
    if e.residual_op is not NULL:
        e.residual = <const uint8_t *>v.read(residual, end * n * _size(e.residual_op.b_type)) + first_row * n * _size(e.residual_op.b_type)
        e.residual_stride = n
    args.epilogue = &e
    cdef void *memory = malloc(<size_t>hwq_gemm_workspace(k) + 64)
    if memory is NULL:
        raise MemoryError
    args.workspace = _align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        if saturating:
            hwq_gemm_saturating(&args)
        elif is_signed:
            hwq_gemm_s8s8(&args)
        else:
            hwq_gemm_u8s8(&args)
        hwq_state_leave(state)
        free(memory)


def packed_s4_bytes(int64_t k, int64_t n):
    return hwq_packed_s4_bytes(k, n)


def gemm_s4(a, int a_type, int64_t first_row, int64_t rows, int a_zero_point, PackedS4 weights not None, int64_t first_strip, int64_t strips, bias,
            Epilogue epilogue, residual, out):
    """As `gemm`, with weights of at most 4 bits; a may be float32."""
    cdef _Views v = _Views()
    cdef int64_t k = weights.c.k, n = weights.c.n, end = first_row + rows
    cdef hwq_gemm_s4_args args
    cdef hwq_epilogue e = epilogue.c
    epilogue.check(n)
    args.m, args.a_stride, args.a_zero_point, args.a_type = rows, k, a_zero_point, a_type
    args.a = <const uint8_t *>v.read(a, end * k * _size(a_type)) + first_row * k * _size(a_type)
    args.weights, args.first_strip, args.strips = &weights.c, first_strip, strips
    args.bias = <const int32_t *>v.read(bias, n * 4)
    args.out = <uint8_t *>v.write(out, end * n * _size(e.out_type)) + first_row * n * _size(e.out_type)
    args.out_stride = n
    if e.residual_op is not NULL:
        e.residual = <const uint8_t *>v.read(residual, end * n * _size(e.residual_op.b_type)) + first_row * n * _size(e.residual_op.b_type)
        e.residual_stride = n
    args.epilogue = &e
    cdef void *memory = malloc(<size_t>hwq_gemm_s4_workspace(k, weights.c.block) + 64)
    if memory is NULL:
        raise MemoryError
    args.workspace = _align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        if a_type == HWQ_F32:
            hwq_gemm_f32s4(&args)
        else:
            hwq_gemm_s4(&args)
        hwq_state_leave(state)
        free(memory)


def gemm_f32s8(a, int64_t first_row, int64_t rows, PackedS8 weights not None, int64_t first_strip, int64_t strips, Epilogue epilogue, out):
    """As `gemm`, of float32 and scaled weights of 5 to 8 bits."""
    cdef _Views v = _Views()
    cdef int64_t k = weights.c.k, n = weights.c.n, end = first_row + rows
    cdef hwq_gemm_f32s8_args args
    cdef hwq_epilogue e = epilogue.c
    epilogue.check(n)
    args.m, args.a_stride = rows, k
    args.a = <const float *>v.read(a, end * k * 4) + first_row * k
    args.weights, args.first_strip, args.strips = &weights.c, first_strip, strips
    args.out = <uint8_t *>v.write(out, end * n * _size(e.out_type)) + first_row * n * _size(e.out_type)
    args.out_stride = n
    args.epilogue = &e
    cdef void *memory = malloc(HWQ_F32S8_WORKSPACE + 64)
    if memory is NULL:
        raise MemoryError
    args.workspace = _align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_f32s8(&args)
        hwq_state_leave(state)
        free(memory)


def ceiling(scheme, int64_t rounds):
    """Run a scheme's register-only loop; the MACs it stands for, 0 where the CPU lacks it."""
    cdef bytes name = scheme.encode()
    cdef const char *text = name
    cdef int64_t macs
    with nogil:
        macs = hwq_ceiling(text, rounds)
    return macs


def gemm_f32(a, int64_t first_row, int64_t rows, int64_t k, int64_t n, weights, bias, out):
    cdef _Views v = _Views()
    cdef hwq_gemm_f32_args args
    cdef int64_t end = first_row + rows
    args.m, args.k, args.n, args.a_stride, args.out_stride = rows, k, n, k, n
    args.a = <const float *>v.read(a, end * k * 4) + first_row * k
    args.weights = <const float *>v.read(weights, hwq_packed_f32_floats(k, n) * 4)
    args.bias = <const float *>v.read(bias, n * 4)
    args.out = <float *>v.write(out, end * n * 4) + first_row * n
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_f32(&args)
        hwq_state_leave(state)


def gemm_sequential(a, int64_t first_row, int64_t rows, int64_t k, int64_t n, int64_t block, b, bint accumulate, out):
    cdef _Views v = _Views()
    cdef hwq_gemm_sequential_args args
    cdef int64_t end = first_row + rows
    args.m, args.k, args.n, args.block, args.accumulate = rows, k, n, block, accumulate
    args.a_stride, args.b_stride, args.out_stride = k, n, n
    args.a = <const float *>v.read(a, end * k * 4) + first_row * k
    args.b = <const float *>v.read(b, k * n * 4)
    args.out = <float *>v.write(out, end * n * 4) + first_row * n
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_sequential(&args)
        hwq_state_leave(state)


def gemm_f64(a, bint columns, int64_t m, int64_t first, int64_t rows, int64_t k, int64_t n, b, bint accumulate, out):
    """Rows `first` to `first + rows` of m; `a` is m x k, or k x m where it holds columns."""
    cdef _Views v = _Views()
    cdef hwq_gemm_f64_args args
    if first < 0 or rows < 0 or first + rows > m:
        raise ValueError("rows beyond the matrix")
    args.m, args.k, args.n, args.accumulate = rows, k, n, accumulate
    args.a_row, args.a_step = 1 if columns else k, m if columns else 1
    args.b_stride, args.out_stride = n, n
    args.a = <const double *>v.read(a, m * k * 8) + first * args.a_row
    args.b = <const double *>v.read(b, k * n * 8)
    args.out = <double *>v.write(out, m * n * 8) + first * n
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_gemm_f64(&args)
        hwq_state_leave(state)


def sum_f32(int64_t outer, int64_t k, int64_t inner, x, out):
    cdef _Views v = _Views()
    cdef const float *px = <const float *>v.read(x, outer * k * inner * 4)
    cdef float *po = <float *>v.write(out, outer * inner * 4)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_sum_f32(outer, k, inner, px, po)
        hwq_state_leave(state)


include "_calls.pxi"
include "_windows.pxi"
include "_elementwise.pxi"
include "_paths.pxi"
include "_rows.pxi"
include "_program.pxi"
