# Programs: steps marshalled once, then run over the caller's buffers without touching Python. Included by _kernels.pyx.
#
# A place is (base, offset in bytes), or an array that stays where it is: base 0, and the program keeps it alive.

cdef class Program:
    """A flat array of hwq_step with what the steps point to. Filled by its methods, one a step; then it is only read."""

    cdef hwq_step *steps
    cdef readonly int64_t count
    cdef int64_t capacity
    cdef list kept

    def __cinit__(self, int64_t capacity):
        self.steps = <hwq_step *>calloc(max(capacity, 1), sizeof(hwq_step))
        if self.steps is NULL:
            raise MemoryError
        self.capacity, self.kept = capacity, []

    def __dealloc__(self):
        free(self.steps)

    def workspace(self):
        """Bytes that each thread needs, at least 64."""
        return max(64, hwq_program_workspace(self.steps, self.count))

    cdef hwq_step *new(self, int op, a, b, out) except NULL:
        if self.count == self.capacity:
            raise ValueError("the program is full")
        cdef hwq_step *s = &self.steps[self.count]
        memset(s, 0, sizeof(hwq_step))
        s.op = op
        self.put(&s.a, a)
        self.put(&s.b, b)
        self.put(&s.out, out)
        return s

    cdef int put(self, hwq_place *place, given) except -1:
        if given is None:
            return 0
        if isinstance(given, tuple):
            place.base, place.offset = given
        else:
            place.base, place.offset = 0, <intptr_t>self.fixed(given, 0)
        return 0

    cdef const void *fixed(self, array, int64_t need) except? NULL:
        """A buffer that lives as long as the program."""
        cdef _Views v = _Views()
        cdef const void *data = v.read(array, need)
        self.kept.append(v)
        return data

    cdef int finish(self, hwq_step *s, Epilogue epilogue, int64_t columns) except -1:
        epilogue.check(columns)
        s.epilogue = epilogue.c
        self.kept.append(epilogue)
        return 0

    def gemm(self, a, bint is_signed, int64_t rows, int a_zero_point, Packed weights not None, bias, Epilogue epilogue, residual, out):
        cdef hwq_step *s = self.new(HWQ_STEP_GEMM_S8S8 if is_signed else HWQ_STEP_GEMM_U8S8, a, residual, out)
        cdef int64_t n = weights.c.n
        self.finish(s, epilogue, n)
        s.epilogue.residual_stride = n
        s.fields.gemm.m, s.fields.gemm.a_stride, s.fields.gemm.out_stride = rows, weights.c.k, n
        s.fields.gemm.a_zero_point, s.fields.gemm.weights = a_zero_point, &weights.c
        s.fields.gemm.strips = (n + HWQ_STRIP - 1) // HWQ_STRIP
        s.fields.gemm.bias = <const int32_t *>self.fixed(bias, n * 4)
        self.kept.append(weights)
        self.count += 1

    def cast(self, x, int kind, bint to_float, int64_t n, out):
        cdef hwq_step *s = self.new(HWQ_STEP_CAST, x, None, out)
        s.fields.cast.type, s.fields.cast.to_float, s.fields.cast.n = kind, to_float, n
        self.count += 1

    def products(self, a, bint is_signed, int a_zero_point, b, int b_type, zero_points, int64_t batch, int64_t m, int64_t k, int64_t n,
                 int64_t a_step, int64_t b_step, bint transposed, bias, Epilogue epilogue, out):
        """Products of activations: each b, k x n or (transposed) n x k bytes, is packed as it comes."""
        cdef hwq_step *s = self.new(HWQ_STEP_PRODUCTS, a, b, out)
        cdef hwq_step_products *p = &s.fields.products
        self.finish(s, epilogue, n)
        p.batch, p.m, p.k, p.n, p.a_step, p.b_step = batch, m, k, n, a_step, b_step
        p.b_k_stride, p.b_n_stride = 1 if transposed else n, k if transposed else 1
        p.a_signed, p.b_type, p.a_zero_point = is_signed, b_type, a_zero_point
        p.b_zero_points = <const int32_t *>self.fixed(zero_points, n * 4)
        p.bias = <const int32_t *>self.fixed(bias, n * 4)
        self.count += 1

    def gemm_f32(self, a, int64_t rows, int64_t k, int64_t n, weights, bias, out):
        cdef hwq_step *s = self.new(HWQ_STEP_GEMM_F32, a, None, out)
        s.fields.gemm_f32.m, s.fields.gemm_f32.k, s.fields.gemm_f32.n = rows, k, n
        s.fields.gemm_f32.a_stride, s.fields.gemm_f32.out_stride = k, n
        s.fields.gemm_f32.weights = <const float *>self.fixed(weights, hwq_packed_f32_floats(k, n) * 4)
        s.fields.gemm_f32.bias = <const float *>self.fixed(bias, n * 4)
        self.count += 1

    def conv(self, geometry, int64_t batch, int64_t channels, int64_t out_channels, int64_t groups, int layout, int a_type, int a_zero_point, x,
             Packed weights, taps, weights_f32, bias, Epilogue epilogue, residual, out):
        """As the function `conv`, over the whole output."""
        cdef hwq_step *s = self.new(HWQ_STEP_CONV, x, residual, out)
        cdef hwq_conv *c = &s.fields.conv
        cdef int64_t k, n = out_channels // groups
        _fill(&c.window, geometry)
        k = c.window.kernel[0] * c.window.kernel[1] * c.window.kernel[2]
        c.batch, c.channels, c.out_channels, c.groups, c.layout = batch, channels, out_channels, groups, layout
        c.a_type, c.a_zero_point, c.depthwise = a_type, a_zero_point, taps is not None
        if taps is not None and not (groups == channels and (a_type != HWQ_F32 or out_channels == channels)):
            raise ValueError("depthwise weights take one channel a group")
        if a_type == HWQ_F32:
            if taps is not None:
                c.weights_f32 = <const float *>self.fixed(taps, k * out_channels * 4)
            else:
                c.weights_f32 = <const float *>self.fixed(weights_f32, groups * hwq_packed_f32_floats(k * (channels // groups), n) * 4)
            c.bias_f32 = <const float *>self.fixed(bias, out_channels * 4)
        else:
            self.finish(s, epilogue, out_channels)
            if taps is not None:
                c.taps_s16 = <const int16_t *>self.fixed(taps, k * out_channels * 2)
            else:
                if weights is None or weights.c.k != k * (channels // groups) or weights.c.n != n or weights.c.groups != groups:
                    raise ValueError("the packed weights have another shape")
                c.weights = &weights.c
                weights.prepare(c)
                self.kept.append(weights)
            c.bias = <const int32_t *>self.fixed(bias, out_channels * 4)
        self.count += 1

    def chain(self, geometry, int64_t batch, int64_t channels, int64_t out_channels, int64_t groups, int order, bint depthwise, float lo, float hi, x, weights,
              bias, out):
        """As the function `conv_chain`, over the whole output."""
        cdef hwq_step *s = self.new(HWQ_STEP_CONV, x, None, out)
        cdef int64_t held = _chain(&s.fields.conv, geometry, batch, channels, out_channels, groups, order, depthwise, lo, hi)
        s.fields.conv.weights_f32 = <const float *>self.fixed(weights, held * 4)
        s.fields.conv.bias_f32 = <const float *>self.fixed(bias, out_channels * 4)
        self.count += 1

    def sums(self, int formula, int point_type, acc, int64_t rows, int64_t columns, int64_t each, scale, point, sums, factors, bias, float lo, float hi, out):
        """As the function `scale_sums`."""
        cdef hwq_step *s = self.new(HWQ_STEP_SUMS, acc, None, out)
        cdef hwq_row_scales *r = &s.fields.sums
        self.put(&s.scale, scale)
        self.put(&s.zero_point, point)
        r.formula, r.point_type = formula, point_type
        r.rows, r.columns, r.each, r.lo, r.hi = rows, columns, each, lo, hi
        r.sums = <const int32_t *>self.fixed(sums, columns * 4)
        r.factors, r.bias = <const float *>self.fixed(factors, columns * 4), <const float *>self.fixed(bias, columns * 4)
        self.count += 1

    def pool(self, geometry, pad_end, int64_t batch, int64_t channels, int layout, int kind_of_data, int kind, bint count_padding, int lo, int hi,
             x, out):
        cdef hwq_step *s = self.new(HWQ_STEP_POOL, x, None, out)
        cdef hwq_pool *p = &s.fields.pool
        cdef int d
        _fill(&p.window, geometry)
        for d in range(3):
            p.pad_end[d] = pad_end[d]
        p.batch, p.channels, p.layout, p.type, p.kind, p.count_padding, p.lo, p.hi = batch, channels, layout, kind_of_data, kind, count_padding, lo, hi
        self.count += 1

    def binary(self, Binary op, int64_t n, a, int64_t a_step, b, int64_t b_step, out):
        cdef hwq_step *s = self.new(HWQ_STEP_BINARY, a, b, out)
        s.fields.binary.op, s.fields.binary.n, s.fields.binary.a_step, s.fields.binary.b_step = &op.c, n, a_step, b_step
        self.kept.append(op)
        self.count += 1

    def scale(self, bint to_float, int formula, int64_t outer, int64_t channels, int64_t inner, x, scales, zero_points, int lo, int hi, int kind, out):
        """Quantize to `kind`, or dequantize from it."""
        cdef hwq_step *s = self.new(HWQ_STEP_DEQUANTIZE if to_float else HWQ_STEP_QUANTIZE, x, None, out)
        s.fields.scale.formula, s.fields.scale.type, s.fields.scale.lo, s.fields.scale.hi = formula, kind, lo, hi
        s.fields.scale.outer, s.fields.scale.channels, s.fields.scale.inner = outer, channels, inner
        s.fields.scale.scales = <const float *>self.fixed(scales, channels * 4)
        s.fields.scale.zero_points = <const int32_t *>self.fixed(zero_points, channels * 4)
        self.count += 1

    def lut(self, x, bint is_signed, table, int64_t n, out):
        cdef hwq_step *s = self.new(HWQ_STEP_LUT, x, None, out)
        s.fields.lut.n, s.fields.lut.flip = n, 0x80 if is_signed else 0
        s.fields.lut.table = <const uint8_t *>self.fixed(table, 256)
        self.count += 1

    def transpose(self, x, int64_t element, int64_t outer, int64_t rows, int64_t columns, out):
        cdef hwq_step *s = self.new(HWQ_STEP_TRANSPOSE, x, None, out)
        s.fields.move.element, s.fields.move.outer, s.fields.move.rows, s.fields.move.columns = element, outer, rows, columns
        s.fields.move.from_stride = s.fields.move.to_stride = element * rows * columns
        self.count += 1

    def copy(self, x, int64_t runs, int64_t bytes, int64_t from_stride, int64_t to_stride, out):
        cdef hwq_step *s = self.new(HWQ_STEP_COPY, x, None, out)
        s.fields.move.element, s.fields.move.outer, s.fields.move.rows, s.fields.move.columns = 1, runs, 1, bytes
        s.fields.move.from_stride, s.fields.move.to_stride = from_stride, to_stride
        self.count += 1

    def map(self, int formula, int64_t n, a, b, out):
        cdef hwq_step *s = self.new(HWQ_STEP_MAP, a, b, out)
        s.fields.map.formula, s.fields.map.n = formula, n
        self.count += 1

    def dynamic(self, x, int formula, int64_t rows, int64_t columns, out, scale, zero_point):
        cdef hwq_step *s = self.new(HWQ_STEP_DYNAMIC, x, None, out)
        self.put(&s.scale, scale)
        self.put(&s.zero_point, zero_point)
        s.fields.dynamic.formula, s.fields.dynamic.rows, s.fields.dynamic.columns = formula, rows, columns
        self.count += 1

    def scaled(self, scale, zero_point, bint by_image):
        """The step before takes its activations' zero point and, with float factors, their scale from these places; a convolution perhaps one an image."""
        cdef hwq_step *s = &self.steps[self.count - 1]
        if self.count == 0 or s.epilogue.kind not in (HWQ_KIND_S32, HWQ_KIND_F32):
            raise ValueError("this step has no float factors")
        if by_image and s.op != HWQ_STEP_CONV:
            raise ValueError("only images have ranges of their own here")
        s.run_time = 2 if by_image else 1
        self.put(&s.scale, scale)
        self.put(&s.zero_point, zero_point)

    def gemm_scaled(self, a, int kind, int64_t rows, int a_zero_point, weights, rows_of, zero_points, int64_t out_stride, Epilogue epilogue, out):
        """Rows of `kind` by PackedS4 or (floats) PackedS8; `rows_of`: None, or (geometry, images, channels, first, depth, block, width, kind, zero point,
        centered, each) of the image that they are gathered from."""
        cdef bint is_s4 = isinstance(weights, PackedS4)
        cdef hwq_step *s = self.new(HWQ_STEP_GEMM_S4 if is_s4 else HWQ_STEP_GEMM_F32S8, a, None, out)
        cdef hwq_step_scaled *g = &s.fields.scaled
        cdef hwq_step_rows *r = &g.rows
        cdef int64_t n, k, gathered
        if is_s4:
            g.s4.weights = &(<PackedS4>weights).c
            n, k = g.s4.weights.n, g.s4.weights.k
            g.s4.m, g.s4.a_stride, g.s4.out_stride, g.s4.a_type, g.s4.a_zero_point = rows, k, out_stride, kind, a_zero_point
            g.s4.strips = (n + HWQ_STRIP - 1) // HWQ_STRIP
            if g.s4.weights.scales is NULL:
                raise ValueError("the weights have no scales")
        else:
            g.s8.weights = &(<PackedS8?>weights).c
            n, k = g.s8.weights.n, g.s8.weights.k
            g.s8.m, g.s8.a_stride, g.s8.out_stride, g.s8.strips = rows, k, out_stride, (n + HWQ_STRIP - 1) // HWQ_STRIP
            if kind != HWQ_F32:
                raise ValueError("these weights take floats")
        self.finish(s, epilogue, n)
        self.put(&s.zero_point, zero_points)
        if rows_of is not None:
            g.gathers = 1
            _fill(&r.window, rows_of[0])
            (r.images, r.channels, r.first, r.depth, r.block, r.width, r.type, r.zero_point, r.centered, r.each) = rows_of[1:]
            gathered = r.window.kernel[0] * r.window.kernel[1] * r.window.kernel[2] * ((r.depth + r.block - 1) // r.block) * r.width
            if gathered != k or r.images * r.window.out[0] * r.window.out[1] * r.window.out[2] != rows or (HWQ_F32 if r.centered else r.type) != kind:
                raise ValueError("the rows do not fit the weights")
        self.kept.append(weights)
        self.count += 1

    def split(self, x, int kind, int64_t n, high, low):
        cdef hwq_step *s = self.new(HWQ_STEP_SPLIT, x, low, high)
        s.fields.split.n, s.fields.split.type = n, kind
        self.count += 1

    def join(self, high, low, int64_t rows, int64_t columns, bias, factors, offsets, Epilogue epilogue, out):
        """Requantized by the epilogue, or without one floats."""
        cdef hwq_step *s = self.new(HWQ_STEP_JOIN, high, low, out)
        cdef hwq_step_join *j = &s.fields.join
        if epilogue is not None:
            self.finish(s, epilogue, columns)
        elif factors is None:
            raise ValueError("floats need factors")
        j.rows, j.columns, j.bias = rows, columns, <const int64_t *>self.fixed(bias, columns * 8)
        j.factors, j.offsets = <const double *>self.fixed(factors, columns * 8), <const float *>self.fixed(offsets, columns * 4)
        self.count += 1

    def layer_norm(self, x, int kind, int64_t rows, int64_t columns, weights, bias, int multiplier, int shift, int64_t epsilon, int out_kind, int lo, int hi, out):
        """As the function `layer_norm_s16` with an exact variance, of stored values."""
        cdef hwq_step *s = self.new(HWQ_STEP_LAYER_NORM, x, None, out)
        cdef hwq_step_norm *n = &s.fields.norm
        n.rows, n.type, n.out_type, n.lo, n.hi = rows, kind, out_kind, lo, hi
        n.norm.formula, n.norm.columns, n.norm.multiplier, n.norm.shift, n.norm.epsilon, n.norm.variance_limit = 1, columns, multiplier, shift, epsilon, 1
        n.norm.weights, n.norm.bias = <const int16_t *>self.fixed(weights, columns * 2), <const int32_t *>self.fixed(bias, columns * 4)
        self.count += 1

    def phases(self, x, int64_t images, given, made, stride, int64_t groups, int64_t bytes, out):
        cdef hwq_step *s = self.new(HWQ_STEP_PHASES, x, None, out)
        cdef hwq_step_phases *h = &s.fields.phases
        cdef int d
        h.images, h.groups, h.bytes = images, groups, bytes
        for d in range(3):
            h.c_in[d], h.out[d], h.stride[d] = given[d], made[d], stride[d]
            if h.stride[d] < 1 or h.out[d] > h.c_in[d] * h.stride[d]:
                raise ValueError("the phases do not fill the result")
        self.count += 1

    def mean(self, x, int kind, int zero_point, int64_t outer, int64_t count, int64_t inner, Epilogue epilogue, out):
        cdef hwq_step *s = self.new(HWQ_STEP_MEAN, x, None, out)
        self.finish(s, epilogue, inner)
        s.fields.mean.outer, s.fields.mean.count, s.fields.mean.inner = outer, count, inner
        s.fields.mean.type, s.fields.mean.zero_point = kind, zero_point
        self.count += 1

    def softmax(self, x, Softmax op not None, int64_t rows, int64_t columns, out):
        cdef hwq_step *s = self.new(HWQ_STEP_SOFTMAX, x, None, out)
        s.fields.softmax.op, s.fields.softmax.rows, s.fields.softmax.columns = &op.c, rows, columns
        self.kept.append(op)
        self.count += 1


cdef int64_t _forks = 0  # that this process came from since the module was loaded


def forked():
    """To be called in a forked child: the threads of every crew stayed with the parent."""
    global _forks
    _forks += 1


cdef class Crew:
    """hwq_crew: threads of the caller's that sit in `serve` until `stop`. In a forked child there are none: a run is its caller's alone."""

    cdef hwq_crew c
    cdef bint is_open
    cdef int64_t forks

    def __cinit__(self, int threads):
        memset(&self.c, 0, sizeof(hwq_crew))
        self.forks = _forks
        if hwq_crew_open(&self.c, threads):
            raise MemoryError
        self.is_open = True

    def __dealloc__(self):  # every thread in `serve` holds a reference, so none is left
        if self.is_open and self.forks == _forks:
            hwq_crew_close(&self.c)

    def serve(self, int thread):
        with nogil:
            hwq_crew_serve(&self.c, thread)

    def stop(self):
        if self.forks == _forks:
            hwq_crew_stop(&self.c)


cdef class Run:
    """One caller's memory for a program: an arena as base 1, a workspace a thread, and buffers that change from call to call.

    `needs` has one entry for each of those: its bytes, negative where it is written. They are bases 2, 3, ...
    """

    cdef Program program
    cdef Crew crew
    cdef _Views memory
    cdef char *workspaces
    cdef int64_t workspace_bytes
    cdef void **bases
    cdef Py_buffer *views
    cdef int64_t *needs
    cdef Py_ssize_t count

    def __cinit__(self, Program program, Crew crew, arena, workspaces, int64_t workspace_bytes, needs):
        self.program, self.crew, self.memory, self.count = program, crew, _Views(), len(needs)
        self.workspace_bytes = workspace_bytes
        self.workspaces = <char *>self.memory.write(workspaces, workspace_bytes * (1 if crew is None else crew.c.threads))
        self.bases = <void **>calloc(self.count + 2, sizeof(void *))
        self.views = <Py_buffer *>calloc(self.count + 1, sizeof(Py_buffer))
        self.needs = <int64_t *>calloc(self.count + 1, sizeof(int64_t))
        if self.bases is NULL or self.views is NULL or self.needs is NULL:
            raise MemoryError
        self.bases[1] = self.memory.write(arena, 0)
        cdef Py_ssize_t i
        for i in range(self.count):
            self.needs[i] = needs[i]

    def __dealloc__(self):
        free(self.bases)
        free(self.views)
        free(self.needs)

    def run(self, tuple arrays, int64_t first, int64_t last):
        """Steps [first, last), over arrays in the order of `needs`; true, and nothing done, where a written one meets another. Not re-entrant."""
        cdef Py_ssize_t i, j, opened = 0
        cdef int64_t need
        cdef hwq_barrier *none = NULL
        cdef bint alone
        if len(arrays) != self.count or first < 0 or last > self.program.count:
            raise ValueError("steps or arrays do not fit the program")
        try:
            for i in range(self.count):
                need = self.needs[i]
                PyObject_GetBuffer(arrays[i], &self.views[i], PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if need < 0 else 0))
                opened += 1
                if self.views[i].len < (need if need >= 0 else -need):
                    raise ValueError("a buffer is too small")
                self.bases[2 + i] = self.views[i].buf
                for j in range(i):
                    if (self.needs[j] < 0 or need < 0) and self.meet(i, j):
                        return True
            alone = self.crew is None or self.crew.forks != _forks
            with nogil:
                if alone:
                    hwq_program_run(self.program.steps + first, last - first, self.bases, self.workspaces, 0, 1, none)
                else:
                    hwq_crew_run(&self.crew.c, self.program.steps + first, last - first, self.bases, self.workspaces, self.workspace_bytes)
        finally:
            for i in range(opened):
                PyBuffer_Release(&self.views[i])
        return False

    cdef bint meet(self, Py_ssize_t i, Py_ssize_t j) noexcept:
        cdef uintptr_t a = <uintptr_t>self.views[i].buf, b = <uintptr_t>self.views[j].buf
        return a < b + <uintptr_t>self.views[j].len and b < a + <uintptr_t>self.views[i].len
