# cython: language_level=3, freethreading_compatible=False
"""The door to simulators/: marshalling only. Statuses come back as ValueError, OverflowError and MemoryError."""

from libc.stdint cimport int64_t


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


DATAFLOWS = {"ws": HWQ_WS, "os": HWQ_OS, "is": HWQ_IS}


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
