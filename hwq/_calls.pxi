# Calls that passed every check before. Included by _kernels.pyx.
#
# A call is remembered by what its checks read: type, dtype and shape of each array and the other arguments, all immutable; never by an array.
# What an array may change under the same form is read anew on the buffers that stay open while the call runs: that out is no part of an input, and that
# the bias keeps the accumulator inside int32.


cdef struct _Form:
    int dimensions
    Py_ssize_t shape[8]


cdef bint _same(object a, object b):
    """Equal as arguments; of exact types, since 1, True and 1.0 pass different checks. Lists stand for tuples."""
    cdef Py_ssize_t i
    if a is b:
        return True
    if type(a) is int or type(a) is str:
        return type(b) is type(a) and a == b
    if type(a) is not tuple or type(b) is not tuple and type(b) is not list or len(a) != len(b):
        return False
    for i in range(len(a)):
        if type(a[i]) is not int or type(b[i]) is not int or a[i] != b[i]:
            return False
    return True


cdef object _frozen(object term):
    """A term as it may be remembered. TypeError for what could change."""
    if term is None or type(term) in (bool, int, str):
        return term
    if type(term) in (list, tuple) and all(type(part) is int for part in term):
        return tuple(term)
    raise TypeError


cdef bint _overlap(const Py_buffer *a, const Py_buffer *b) noexcept:
    cdef uintptr_t first = <uintptr_t>a.buf, second = <uintptr_t>b.buf
    return first < second + <uintptr_t>b.len and second < first + <uintptr_t>a.len and a.len and b.len


cdef class _Call:
    cdef tuple types, dtypes, terms
    cdef _Form forms[4]
    cdef object epilogue, run
    cdef int64_t spare

    cdef bint takes(self, _Views v, int i, object array):
        """Open the i-th operand; has it the remembered form?"""
        cdef const Py_buffer *view
        cdef const _Form *form = &self.forms[i]
        if type(array) is not self.types[i]:
            return False
        if array is None:
            return True
        if array.dtype is not self.dtypes[i]:
            return False
        try:
            v.open(array, 0, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if i == 3 else 0))
        except (ValueError, BufferError):  # not dense, or read-only: the checks say which
            return False
        view = &v.views[v.count - 1]
        return view.ndim == form.dimensions and memcmp(view.shape, form.shape, view.ndim * sizeof(Py_ssize_t)) == 0


cdef class Calls:
    """The last call of an object that passed its checks, so that one alike need not pass them again."""

    cdef _Call last

    def again(self, a, bias, residual, out, epilogue, tuple terms):
        """The result of a call like the remembered one; None, and nothing done, where it is not alike."""
        cdef _Call call = self.last  # never changed once it is here: another thread only puts another in its place
        cdef _Views v = _Views()
        cdef Py_ssize_t i
        cdef int inputs
        cdef const int32_t *bias_s32
        cdef int32_t bits = 0
        if call is None or epilogue is not call.epilogue or len(terms) != len(call.terms):
            return None
        for i in range(len(terms)):
            if not _same(call.terms[i], terms[i]):
                return None
        if not (call.takes(v, 0, a) and call.takes(v, 1, residual)):
            return None
        inputs = v.count
        if not (call.takes(v, 2, bias) and call.takes(v, 3, out)):
            return None
        if out is not None:
            for i in range(v.count - 1):
                if _overlap(&v.views[i], &v.views[v.count - 1]):
                    return None
        if bias is not None and call.spare < <int64_t>1 << 32:
            bias_s32 = <const int32_t *>v.views[inputs].buf
            for i in range(v.views[inputs].len // 4):
                bits |= bias_s32[i] ^ (bias_s32[i] >> 31)
            if bits + <int64_t>1 >= call.spare:  # |bias| <= bits + 1
                return None
        return call.run(a, bias, residual, out)

    def remember(self, a, bias, residual, out, epilogue, tuple terms, int64_t spare, run):
        """Keep a call that passed its checks with these operands, if nothing in it can change.

        spare: sizes of an int32 bias below it keep the accumulator inside int32; any does from 2^32 on.
        """
        cdef _Call call = _Call()
        cdef tuple arrays = (a, residual, bias, out)
        cdef _Views v = _Views()
        cdef const Py_buffer *view
        cdef int i
        try:
            call.terms = tuple([_frozen(term) for term in terms])
            for i in range(4):
                if arrays[i] is not None:
                    v.open(arrays[i], 0, PyBUF_C_CONTIGUOUS)
                    view = &v.views[v.count - 1]
                    if view.ndim > 8:
                        return
                    call.forms[i].dimensions = view.ndim
                    memcpy(call.forms[i].shape, view.shape, view.ndim * sizeof(Py_ssize_t))
        except (TypeError, ValueError, BufferError):
            return
        call.types = tuple([type(array) for array in arrays])
        call.dtypes = tuple([getattr(array, "dtype", None) for array in arrays])
        call.epilogue, call.spare, call.run = epilogue, spare, run
        self.last = call
