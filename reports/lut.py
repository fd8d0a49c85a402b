"""Do lookups of bit planes beat multiplying, for weights of 1 to 3 bits?

`kernels.gemm_planes` looks sums of four activations up (16-bit tables in two halves, VPSHUFB) and is exact. Beside it the
multiplying kernel on AVX2 and on this CPU's best path, with the same weights as int8, packed once: all make the int32 sums of
uint8 activations, compared in every row; one thread, the best of several runs. Tables are built for each row of activations,
inside the time.

Run: python reports/lut.py   (needs AVX2)
"""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path

import numpy as np

from hwq import kernels
from hwq.files import write_atomically

FOLDER = Path(__file__).with_suffix("")
SHAPES = ((1, 256, 256), (1, 1024, 1024), (1, 4096, 4096), (4, 1024, 1024), (16, 1024, 1024), (64, 1024, 1024))
HEADER = [
    "M",
    "N",
    "K",
    "bits",
    "lookups us",
    "multiply avx2 us",
    "multiply best us",
    "best path",
    "lookups / avx2",
    "lookups / best",
]


def best(call, macs):
    """Seconds of the fastest of several runs, each of some milliseconds."""
    count = max(1, int(2e7 / macs))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(count):
            call()
        times.append((time.perf_counter() - start) / count)
    return min(times)


def main():
    own, random, rows = kernels.isa(), np.random.default_rng(0), []
    if "avx2" not in kernels.available_isas():
        print("needs AVX2")
        return
    for m, n, k in SHAPES:
        a = random.integers(0, 256, (m, k), dtype=np.uint8)
        for bits in (1, 2, 3):
            w = random.integers(0, 1 << bits, (k, n)).astype(np.int8)
            planes, made, out = (
                kernels.pack_planes(w, bits, signed=False),
                np.empty((m, n), np.int32),
                np.empty((m, n), np.int32),
            )
            times = [best(lambda planes=planes, a=a, made=made: kernels.gemm_planes(a, planes, out=made), m * n * k)]
            for path in ("avx2", own):
                kernels.use_isa(path)
                packed = kernels.pack(w)
                times.append(best(lambda packed=packed, a=a, out=out: kernels.gemm(a, packed, out=out), m * n * k))
            kernels.use_isa(own)
            if not np.array_equal(made, out):
                sys.exit(f"the sums differ at {m} {n} {k} {bits}")
            rows.append([m, n, k, bits, *(f"{1e6 * one:.1f}" for one in times), own,
                         f"{times[1] / times[0]:.2f}", f"{times[2] / times[0]:.2f}"])  # fmt: skip
            print(*rows[-1], flush=True)
    FOLDER.mkdir(exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    with write_atomically(FOLDER / "lut.csv", overwrite=True, mode="w") as stream:
        stream.write(text.getvalue())
    wins = [[row for row in rows if float(row[column]) > 1] for column in (8, 9)]

    def listed(found, column):
        return (
            "; ".join(f"M {row[0]}, N {row[1]}, K {row[2]}, {row[3]} bits ({row[column]} times)" for row in found)
            or "nowhere"
        )

    lines = ["# Lookups of bit planes", "", __doc__.split("\n\n")[1].replace("\n", " "), "",
             "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER), *("| " + " | ".join(map(str, row)) + " |" for row in rows), "",
             "The last two columns say how many times the lookups are as fast as multiplying.", "",
             f"Lookups win against AVX2: {listed(wins[0], 8)}.", "", f"Lookups win against this CPU's best path ({own}): {listed(wins[1], 9)}.", ""]  # fmt: skip
    with write_atomically(FOLDER / "index.md", overwrite=True, mode="w") as stream:
        stream.write("\n".join(lines))


if __name__ == "__main__":
    main()
