# cython: language_level=3, freethreading_compatible=False
"""The door to simulators/: marshalling only. Statuses come back as ValueError, OverflowError and MemoryError."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t


cdef extern from "hwq/simulators.h" nogil:
    ctypedef enum hwq_sim_status:
        HWQ_SIM_MORE
        HWQ_SIM_OK
        HWQ_SIM_BAD_ARGUMENT
        HWQ_SIM_TOO_LARGE
        HWQ_SIM_NO_MEMORY
    ctypedef enum hwq_dataflow:
        HWQ_WS
        HWQ_OS
        HWQ_IS
    ctypedef struct hwq_scalesim_layer:
        int64_t ifmap_h, ifmap_w, filter_h, filter_w, channels, filters, stride_h, stride_w
    ctypedef struct hwq_scalesim_machine:
        int64_t rows, cols
        hwq_dataflow dataflow
        int64_t ifmap_words, filter_words, ofmap_words
        int user
        int64_t ifmap_bandwidth, filter_bandwidth, ofmap_bandwidth
    ctypedef struct hwq_scalesim_port:
        int64_t sram_start, sram_stop, sram_words, dram_start, dram_stop, dram_words
    ctypedef struct hwq_scalesim_report:
        int64_t total_cycles, stall_cycles, macs
        double mapping_efficiency, compute_utilization
        hwq_scalesim_port ifmap, filter, ofmap
    ctypedef struct hwq_scalesim:
        pass
    hwq_sim_status hwq_scalesim_open(const hwq_scalesim_layer *, const hwq_scalesim_machine *, int64_t,
                                     hwq_scalesim **)
    int64_t hwq_scalesim_words(const hwq_scalesim *)
    hwq_sim_status hwq_scalesim_advance(hwq_scalesim *, int64_t)
    int64_t hwq_scalesim_done(const hwq_scalesim *)
    void hwq_scalesim_read(const hwq_scalesim *, hwq_scalesim_report *)
    void hwq_scalesim_close(hwq_scalesim *)
    ctypedef enum hwq_overlap:
        HWQ_OVERLAP_NONE
        HWQ_OVERLAP_STATIONARY
        HWQ_OVERLAP_FOLDS
    ctypedef enum hwq_sim_type:
        HWQ_SIM_U8
        HWQ_SIM_S8
        HWQ_SIM_S16
    ctypedef struct hwq_systolic_array:
        int64_t rows, cols
        hwq_dataflow dataflow
        hwq_overlap overlap
        int pack, reference
    ctypedef struct hwq_systolic_gemm:
        int64_t m, k, n
        const void *a
        const void *b
        hwq_sim_type a_type, b_type
        int64_t a_stride_m, a_stride_k, b_stride_k, b_stride_n
        int32_t *out
    ctypedef struct hwq_systolic_counts:
        int64_t folds, cycles, load, fill, stream, drain, macs, a_reads, b_reads, sum_reads, sum_writes
    ctypedef struct hwq_systolic:
        pass
    hwq_sim_status hwq_systolic_open(const hwq_systolic_array *, const hwq_systolic_gemm *, int64_t *, int64_t *,
                                     int64_t, int64_t, int64_t, hwq_systolic **)
    int64_t hwq_systolic_cycles(const hwq_systolic *)
    hwq_sim_status hwq_systolic_advance(hwq_systolic *, int64_t)
    void hwq_systolic_read(const hwq_systolic *, hwq_systolic_counts *)
    void hwq_systolic_close(hwq_systolic *)
    ctypedef struct hwq_tiling_gemm:
        int64_t m, k, n, a_bytes, b_bytes, out_bytes, sum_bytes
        int a_stays, b_stays, out_stays
    ctypedef struct hwq_tiling:
        int64_t tm, tk, tn, order, a_passes, b_passes, sum_passes, a_moved, b_moved, out_moved, sum_moved
    hwq_sim_status hwq_tiling_search(const hwq_tiling_gemm *, int64_t, int64_t, hwq_tiling *)


DATAFLOWS = {"ws": HWQ_WS, "os": HWQ_OS, "is": HWQ_IS}
OVERLAPS = {"none": HWQ_OVERLAP_NONE, "stationary": HWQ_OVERLAP_STATIONARY, "folds": HWQ_OVERLAP_FOLDS}


cdef int raise_status(hwq_sim_status status) except -1:
    if status == HWQ_SIM_BAD_ARGUMENT:
        raise ValueError("an argument is outside the engine's contract")
    if status == HWQ_SIM_TOO_LARGE:
        raise OverflowError("the problem exceeds the memory bound or 62-bit counts")
    if status == HWQ_SIM_NO_MEMORY:
        raise MemoryError("the system refused memory within the bound")
    return 0


cdef class ScaleSim:
    """One layer under SCALE-Sim's memory model, run in steps so that the caller can report progress or stop."""

    cdef hwq_scalesim *sim
    cdef readonly bint finished

    def __cinit__(self, layer, str dataflow, shape, sram_words, bandwidths, int64_t max_bytes):
        cdef hwq_scalesim_layer l
        cdef hwq_scalesim_machine m
        (l.ifmap_h, l.ifmap_w, l.filter_h, l.filter_w, l.channels, l.filters, l.stride_h, l.stride_w) = layer
        m.rows, m.cols = shape
        m.dataflow = DATAFLOWS[dataflow]
        m.ifmap_words, m.filter_words, m.ofmap_words = sram_words
        m.user = bandwidths is not None
        m.ifmap_bandwidth, m.filter_bandwidth, m.ofmap_bandwidth = bandwidths or (0, 0, 0)
        cdef hwq_sim_status status
        with nogil:
            status = hwq_scalesim_open(&l, &m, max_bytes, &self.sim)
        raise_status(status)
        self.finished = False

    def __dealloc__(self):
        hwq_scalesim_close(self.sim)

    @property
    def words(self):
        return hwq_scalesim_words(self.sim)

    @property
    def cycles_done(self):
        return hwq_scalesim_done(self.sim)

    def advance(self, int64_t budget):
        """Work through about `budget` words; True once the layer is done."""
        cdef hwq_sim_status status
        if self.finished:
            return True
        with nogil:
            status = hwq_scalesim_advance(self.sim, budget)
        raise_status(status)
        self.finished = status == HWQ_SIM_OK
        return self.finished

    def read(self):
        """(total, stall, macs, mapping, utilization, ifmap, filter, ofmap); a port is six stamps and counts."""
        cdef hwq_scalesim_report r
        if not self.finished:
            raise ValueError("the layer is not done")
        hwq_scalesim_read(self.sim, &r)
        return (
            r.total_cycles, r.stall_cycles, r.macs, r.mapping_efficiency, r.compute_utilization,
            (r.ifmap.sram_start, r.ifmap.sram_stop, r.ifmap.sram_words,
             r.ifmap.dram_start, r.ifmap.dram_stop, r.ifmap.dram_words),
            (r.filter.sram_start, r.filter.sram_stop, r.filter.sram_words,
             r.filter.dram_start, r.filter.dram_stop, r.filter.dram_words),
            (r.ofmap.sram_start, r.ofmap.sram_stop, r.ofmap.sram_words,
             r.ofmap.dram_start, r.ofmap.dram_stop, r.ofmap.dram_words),
        )


cdef const void *operand(object array, hwq_sim_type *kind, int64_t *row_step, int64_t *col_step) except NULL:
    """Address, type and element strides of a non-empty matrix; the caller keeps it alive."""
    cdef const uint8_t[:, :] unsigned
    cdef const int8_t[:, :] signed
    cdef const int16_t[:, :] wide
    if array.dtype.char == "B":
        unsigned = array
        kind[0] = HWQ_SIM_U8
        row_step[0] = unsigned.strides[0]
        col_step[0] = unsigned.strides[1]
        return &unsigned[0, 0]
    if array.dtype.char == "b":
        signed = array
        kind[0] = HWQ_SIM_S8
        row_step[0] = signed.strides[0]
        col_step[0] = signed.strides[1]
        return &signed[0, 0]
    wide = array
    kind[0] = HWQ_SIM_S16
    if wide.strides[0] % 2 or wide.strides[1] % 2:
        raise ValueError("strides of int16 operands must be whole elements")
    row_step[0] = wide.strides[0] // 2
    col_step[0] = wide.strides[1] // 2
    return &wide[0, 0]


cdef class Systolic:
    """One GEMM on a stepped array; `out` is written while it runs and valid once it has finished."""

    cdef hwq_systolic *run
    cdef tuple held
    cdef readonly bint finished

    def __cinit__(self, shape, str dataflow, str overlap, int pack, bint reference, a, b, int32_t[:, ::1] out,
                  int64_t[:, ::1] occupancy, int64_t[:, ::1] timeline, int64_t bin_cycles, int64_t max_bytes):
        cdef hwq_systolic_array x
        cdef hwq_systolic_gemm g
        cdef hwq_sim_status status
        x.rows, x.cols = shape
        x.dataflow = DATAFLOWS[dataflow]
        x.overlap = OVERLAPS[overlap]
        x.pack = pack
        x.reference = reference
        g.m, g.k = a.shape
        g.n = b.shape[1]
        if b.shape[0] != g.k or out.shape[0] != g.m or out.shape[1] != g.n or 0 in (g.m, g.k, g.n):
            raise ValueError("the shapes do not make a product")
        if occupancy is not None and (occupancy.shape[0] != x.rows or occupancy.shape[1] != x.cols):
            raise ValueError("occupancy has the shape of the array")
        if timeline is not None and timeline.shape[0] != x.rows:
            raise ValueError("timeline has a line for each row of the array")
        g.a = operand(a, &g.a_type, &g.a_stride_m, &g.a_stride_k)
        g.b = operand(b, &g.b_type, &g.b_stride_k, &g.b_stride_n)
        g.out = &out[0, 0]
        cdef int64_t *busy = NULL if occupancy is None else &occupancy[0, 0]
        cdef int64_t *line = NULL if timeline is None else &timeline[0, 0]
        cdef int64_t bins = 0 if timeline is None else timeline.shape[1]
        self.held = (a, b, out, occupancy, timeline)
        with nogil:
            status = hwq_systolic_open(&x, &g, busy, line, bins, bin_cycles, max_bytes, &self.run)
        raise_status(status)
        self.finished = False

    def __dealloc__(self):
        hwq_systolic_close(self.run)

    @property
    def cycles(self):
        return hwq_systolic_cycles(self.run)

    def advance(self, int64_t cycles):
        """Step about `cycles` further; True once the last sum has left."""
        cdef hwq_sim_status status
        if self.finished:
            return True
        with nogil:
            status = hwq_systolic_advance(self.run, cycles)
        raise_status(status)
        self.finished = status == HWQ_SIM_OK
        return self.finished

    def read(self):
        """The counts, by name."""
        cdef hwq_systolic_counts c
        if not self.finished:
            raise ValueError("the run is not done")
        hwq_systolic_read(self.run, &c)
        return {
            "folds": c.folds, "cycles": c.cycles, "load": c.load, "fill": c.fill, "stream": c.stream,
            "drain": c.drain, "macs": c.macs, "a_reads": c.a_reads, "b_reads": c.b_reads,
            "sum_reads": c.sum_reads, "sum_writes": c.sum_writes,
        }


def search_tiling(shape, sizes, stays, int64_t capacity, int64_t burst):
    """(tm, tk, tn, order, a_moved, b_moved, out_moved, sum_moved) of the tiling that moves the fewest bytes."""
    cdef hwq_tiling_gemm g
    cdef hwq_tiling t
    cdef hwq_sim_status status
    g.m, g.k, g.n = shape
    g.a_bytes, g.b_bytes, g.out_bytes, g.sum_bytes = sizes
    g.a_stays, g.b_stays, g.out_stays = stays
    with nogil:
        status = hwq_tiling_search(&g, capacity, burst, &t)
    raise_status(status)
    return (t.tm, t.tk, t.tn, t.order, t.a_moved, t.b_moved, t.out_moved, t.sum_moved)


def count_passes(int64_t[:, ::1] products, int64_t[:, ::1] passes):
    """For each row (m, k, n, bytes of a, b, out, sum, stays of a, b, out, capacity, burst): passes of a, b and sums.

    A row that no tiling fits gets 0.
    """
    cdef hwq_tiling_gemm g
    cdef hwq_tiling t
    cdef hwq_sim_status status
    cdef Py_ssize_t at
    if products.shape[1] != 12 or passes.shape[1] != 3 or products.shape[0] != passes.shape[0]:
        raise ValueError("12 columns in, 3 out, as many rows")
    for at in range(products.shape[0]):
        g.m, g.k, g.n = products[at, 0], products[at, 1], products[at, 2]
        g.a_bytes, g.b_bytes, g.out_bytes, g.sum_bytes = products[at, 3], products[at, 4], products[at, 5], products[at, 6]
        g.a_stays, g.b_stays, g.out_stays = products[at, 7] != 0, products[at, 8] != 0, products[at, 9] != 0
        with nogil:
            status = hwq_tiling_search(&g, products[at, 10], products[at, 11], &t)
        if status == HWQ_SIM_TOO_LARGE:
            passes[at, 0] = passes[at, 1] = passes[at, 2] = 0
            continue
        raise_status(status)
        passes[at, 0], passes[at, 1], passes[at, 2] = t.a_passes, t.b_passes, t.sum_passes
