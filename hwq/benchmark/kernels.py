"""Our kernels beside every other runtime's: every case of `hwq bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hwq.benchmark import convolutions, products
from hwq.benchmark.rounds import Row, measure

__all__ = ["CASES", "compare"]

# Seconds of each contender in a case; a contender needs five samples at least, however long one takes.
SECONDS, QUICK_SECONDS = 0.4, 0.08
# Multiply-accumulates of the greatest case that is quick.
QUICK_MACS = 70e6

CASES = (*products.CASES, *convolutions.CASES)


def compare(
    only: str | None = None, *, quick: bool = False, progress: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Measure the cases whose name contains `only`; peers that are not installed are left out.

    Parameters
    ----------
    only : str, optional
    quick : bool
        A fifth of the time, and small shapes only.
    progress : callable, optional
        Told the name of each case.
    """
    for case in CASES:
        if (only and only not in case.name) or (quick and case.macs > QUICK_MACS):
            continue
        if progress is not None:
            progress(case.name)
        yield from measure(case.name, case.macs, case.contenders(), QUICK_SECONDS if quick else SECONDS)
