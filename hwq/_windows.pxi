# Windows: convolution and pooling. Included by _kernels.pyx.


cdef int _fill(hwq_window *w, geometry) except -1:
    sizes, kernel, stride, dilation, pad, out = geometry
    cdef int d
    for d in range(3):
        w.in_[d], w.kernel[d], w.stride[d] = sizes[d], kernel[d], stride[d]
        w.dilation[d], w.pad[d], w.out[d] = dilation[d], pad[d], out[d]
    return 0


def conv(geometry, int64_t batch, int64_t channels, int64_t out_channels, int64_t groups, int layout, int a_type, int a_zero_point, x,
         Packed weights, taps, weights_f32, bias, Epilogue epilogue, residual, out, int64_t first, int64_t last):
    """One of four: integer or float32 (by a_type), depthwise (taps given, or groups == channels with float taps) or any groups."""
    cdef _Views v = _Views()
    cdef hwq_conv c
    cdef hwq_epilogue e
    cdef int64_t out_size = 4, total, inputs, n = out_channels // groups, k
    cdef bint depthwise = taps is not None
    memset(&c, 0, sizeof(c))
    _fill(&c.window, geometry)
    inputs = c.window.in_[0] * c.window.in_[1] * c.window.in_[2]
    total = batch * c.window.out[0] * c.window.out[1] * c.window.out[2]
    k = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2]
    if depthwise and not (groups == channels and (a_type != HWQ_F32 or out_channels == channels)):
        raise ValueError("depthwise weights take one channel a group")
    if first < 0 or last > total:
        raise ValueError("positions outside the output")
    c.batch, c.channels, c.out_channels, c.groups, c.layout = batch, channels, out_channels, groups, layout
    c.a_type, c.a_zero_point, c.depthwise, c.first, c.last = a_type, a_zero_point, depthwise, first, last
    c.x = v.read(x, batch * inputs * channels * _size(a_type))
    if a_type == HWQ_F32:
        if depthwise:
            c.weights_f32 = <const float *>v.read(taps, k * out_channels * 4)
        else:
            c.weights_f32 = <const float *>v.read(weights_f32, groups * hwq_packed_f32_floats(k * (channels // groups), n) * 4)
        c.bias_f32 = <const float *>v.read(bias, out_channels * 4)
    else:
        epilogue.check(out_channels)
        e = epilogue.c
        out_size = _size(e.out_type)
        if depthwise:
            c.taps_s16 = <const int16_t *>v.read(taps, k * out_channels * 2)
        else:
            if weights is None or weights.c.k != k * (channels // groups) or weights.c.n != n or weights.c.groups != groups:
                raise ValueError("the packed weights have another shape")
            c.weights = &weights.c
            weights.prepare(&c)
        c.bias = <const int32_t *>v.read(bias, out_channels * 4)
        if e.residual_op is not NULL:
            e.residual = v.read(residual, total * out_channels * _size(e.residual_op.b_type))
        c.epilogue = &e
    c.out = v.write(out, total * out_channels * out_size)
    cdef void *memory = malloc(<size_t>hwq_conv_workspace(&c) + 64)
    if memory is NULL:
        raise MemoryError
    c.workspace = _align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        if a_type == HWQ_F32:
            if depthwise:
                hwq_depthwise_f32(&c)
            else:
                hwq_conv_f32(&c)
        elif depthwise:
            hwq_depthwise_s32(&c)
        else:
            hwq_conv_s32(&c)
        hwq_state_leave(state)
        free(memory)


def pool(geometry, pad_end, int64_t batch, int64_t channels, int layout, int kind_of_data, int kind, bint count_padding, int lo, int hi, x, out):
    cdef _Views v = _Views()
    cdef hwq_pool p
    cdef int d
    memset(&p, 0, sizeof(p))
    _fill(&p.window, geometry)
    for d in range(3):
        p.pad_end[d] = pad_end[d]
    p.batch, p.channels, p.layout, p.type, p.kind, p.count_padding, p.lo, p.hi = batch, channels, layout, kind_of_data, kind, count_padding, lo, hi
    p.x = v.read(x, batch * channels * p.window.in_[0] * p.window.in_[1] * p.window.in_[2] * _size(kind_of_data))
    p.out = v.write(out, batch * channels * p.window.out[0] * p.window.out[1] * p.window.out[2] * _size(kind_of_data))
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_pool_run(&p)
        hwq_state_leave(state)


cdef int64_t _chain(hwq_conv *c, geometry, int64_t batch, int64_t channels, int64_t out_channels, int64_t groups, int order, bint depthwise, float lo, float hi) except -1:
    """A chain's fields; returns the floats of its weights."""
    cdef int64_t taps
    _fill(&c.window, geometry)
    taps = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2]
    c.batch, c.channels, c.out_channels, c.groups, c.layout = batch, channels, out_channels, groups, HWQ_NHWC
    c.a_type, c.depthwise, c.order, c.lo_f32, c.hi_f32 = HWQ_F32, depthwise, order, lo, hi
    if depthwise:
        if not groups == channels == out_channels:
            raise ValueError("depthwise weights take one channel a group")
        return taps * channels
    return groups * (-(-(out_channels // groups) // HWQ_CHAIN_STRIP) * HWQ_CHAIN_STRIP) * taps * (channels // groups)


def conv_chain(geometry, int64_t batch, int64_t channels, int64_t out_channels, int64_t groups, int order, bint depthwise, float lo, float hi, x, weights, bias,
               out, int64_t first, int64_t last):
    """Float32 in the order of one chain, channels last."""
    cdef _Views v = _Views()
    cdef hwq_conv c
    cdef int64_t held, outputs
    memset(&c, 0, sizeof(c))
    held = _chain(&c, geometry, batch, channels, out_channels, groups, order, depthwise, lo, hi)
    outputs = batch * c.window.out[0] * c.window.out[1] * c.window.out[2]
    if first < 0 or last > outputs:
        raise ValueError("positions outside the output")
    c.first, c.last = first, last
    c.x = v.read(x, batch * c.window.in_[0] * c.window.in_[1] * c.window.in_[2] * channels * 4)
    c.weights_f32, c.bias_f32 = <const float *>v.read(weights, held * 4), <const float *>v.read(bias, out_channels * 4)
    c.out = v.write(out, outputs * out_channels * 4)
    cdef void *memory = malloc(<size_t>hwq_conv_workspace(&c) + 64)
    if memory is NULL:
        raise MemoryError
    c.workspace = _align(memory)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        if depthwise:
            hwq_depthwise_chain(&c)
        else:
            hwq_conv_chain(&c)
        hwq_state_leave(state)
        free(memory)


def scale_sums(int formula, int point_type, int64_t rows, int64_t columns, int64_t each, acc, scales, points, sums, factors, bias, float lo, float hi, out):
    cdef _Views v = _Views()
    cdef hwq_row_scales s
    cdef int64_t count = (rows + each - 1) // each
    s.formula, s.point_type = formula, point_type
    s.rows, s.columns, s.each, s.lo, s.hi = rows, columns, each, lo, hi
    s.sums, s.factors = <const int32_t *>v.read(sums, columns * 4), <const float *>v.read(factors, columns * 4)
    s.bias = <const float *>v.read(bias, columns * 4)
    cdef const void *given = v.read(acc, rows * columns * 4)
    cdef const float *by = <const float *>v.read(scales, count * 4)
    cdef const void *z = v.read(points, count)
    cdef float *made = <float *>v.write(out, rows * columns * 4)
    cdef uint64_t state
    with nogil:
        state = hwq_state_enter()
        hwq_scale_sums(&s, given, by, z, made)
        hwq_state_leave(state)
