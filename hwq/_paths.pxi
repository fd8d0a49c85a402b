# Paths, what the CPU shows, and the floating-point state. Included by _kernels.pyx.


def paths():
    return tuple(hwq_path_name(i).decode() for i in range(hwq_path_count()))


def available(int path):
    return bool(hwq_path_available(path))


def chosen():
    return hwq_path_chosen()


def choose(int path):
    return hwq_path_choose(path) == 0


def ops():
    return tuple(hwq_op_name(i).decode() for i in range(hwq_op_count()))


def present(int op, int path):
    return bool(hwq_op_present(op, path))


def mask_cpuid():
    """Hide AVX-512, VNNI, AVX-VNNI and AMX from what is loaded later; False where this CPU cannot."""
    return hwq_cpuid_mask() == 0


def cpuid_masked():
    """Whether they are hidden; None where this CPU cannot."""
    cdef int found = hwq_cpuid_masked()
    return None if found < 0 else found == 1


def float_state():
    """The calling thread's MXCSR or FPCR."""
    return hwq_state_read()


def enter_float_state():
    """Set the state that the kernels assume; returns the former one for `set_float_state`."""
    return hwq_state_enter()


def set_float_state(uint64_t state):
    hwq_state_write(state)
