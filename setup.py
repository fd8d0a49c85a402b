"""Two C houses, one door each: kernels/ behind hwq._kernels, simulators/ behind hwq._simulators."""

import os
import sys
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# No -march: ISA code opts in by function-level target regions. No contraction: a fused multiply-add is written, never implied.
FLAGS = (
    []
    if sys.platform == "win32"
    else ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
)
LIMITED_API = 0x030B0000  # Python 3.11: first stable ABI with typed memoryviews


def door(house: str) -> Extension:
    return Extension(
        f"hwq._{house}",
        [f"hwq/_{house}.pyx", *sorted(glob(f"{house}/src/*.c"))],
        include_dirs=[f"{house}/include", f"{house}/src"],
        depends=sorted(glob(f"{house}/include/hwq/*.h") + glob(f"{house}/src/*.h")),
        define_macros=[("Py_LIMITED_API", hex(LIMITED_API)), ("CYTHON_LIMITED_API", "1")],
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )


houses = [house for house in ("kernels", "simulators") if Path(f"hwq/_{house}.pyx").exists()]
if os.environ.get("HWQ_COMPILE") == "no":  # `make dev` installs what hwq needs, then compiles once, in place
    houses = []
setup(
    ext_modules=cythonize([door(house) for house in houses], compiler_directives={"language_level": 3}),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
