# One element at a time: quantization, tables, nibbles. Included by _kernels.pyx.


def quantize(int formula, int64_t outer, int64_t channels, int64_t inner, x, scales, zero_points, int lo, int hi, out, int out_type):
    cdef _Views v = _Views()
    cdef int64_t n = outer * channels * inner
    cdef const float *px = <const float *>v.read(x, n * 4)
    cdef const float *ps = <const float *>v.read(scales, channels * 4)
    cdef const int32_t *pz = <const int32_t *>v.read(zero_points, channels * 4)
    cdef void *po = v.write(out, n * _size(out_type))
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_quantize(formula, outer, channels, inner, px, ps, pz, lo, hi, po, out_type)
        hwq_state_leave(state)


def dequantize(int64_t outer, int64_t channels, int64_t inner, q, int kind, scales, zero_points, out):
    cdef _Views v = _Views()
    cdef int64_t n = outer * channels * inner
    cdef const void *pq = v.read(q, n * _size(kind))
    cdef const float *ps = <const float *>v.read(scales, channels * 4)
    cdef const int32_t *pz = <const int32_t *>v.read(zero_points, channels * 4)
    cdef float *po = <float *>v.write(out, n * 4)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_dequantize(outer, channels, inner, pq, kind, ps, pz, po)
        hwq_state_leave(state)


def fake_quantize(int64_t n, x, float scale, int32_t zero_point, int32_t lo, int32_t hi, out):
    cdef _Views v = _Views()
    cdef const float *px = <const float *>v.read(x, n * 4)
    cdef float *po = <float *>v.write(out, n * 4)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_fake_quantize(n, px, scale, zero_point, lo, hi, po)
        hwq_state_leave(state)


def lut(x, bint is_signed, table, out, int64_t n):
    cdef _Views v = _Views()
    cdef const uint8_t *px = <const uint8_t *>v.read(x, n)
    cdef const uint8_t *pt = <const uint8_t *>v.read(table, 256)
    cdef uint8_t *po = <uint8_t *>v.write(out, n)
    with nogil:
        hwq_lut(n, px, 0x80 if is_signed else 0, pt, po)


def pack_int4(x, out, int64_t n):
    cdef _Views v = _Views()
    cdef const int8_t *px = <const int8_t *>v.read(x, n)
    cdef uint8_t *po = <uint8_t *>v.write(out, (n + 1) // 2)
    with nogil:
        hwq_pack_int4(n, px, po)


def unpack_int4(packed, bint is_signed, out, int64_t n):
    cdef _Views v = _Views()
    cdef const uint8_t *pp = <const uint8_t *>v.read(packed, (n + 1) // 2)
    cdef int8_t *po = <int8_t *>v.write(out, n)
    with nogil:
        hwq_unpack_int4(n, pp, is_signed, po)


def quantize_multiplier(double real):
    cdef int32_t multiplier = 0, shift = 0
    cdef uint64_t state = hwq_state_enter()
    hwq_quantize_multiplier(real, &multiplier, &shift)
    hwq_state_leave(state)
    return multiplier, shift
