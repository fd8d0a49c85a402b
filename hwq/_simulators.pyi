from typing import Any

import numpy as np
from numpy.typing import NDArray

DATAFLOWS: dict[str, int]
OVERLAPS: dict[str, int]

_Port = tuple[int, int, int, int, int, int]

class ScaleSim:
    finished: bool
    def __init__(
        self,
        layer: tuple[int, int, int, int, int, int, int, int],
        dataflow: str,
        shape: tuple[int, int],
        sram_words: tuple[int, int, int],
        bandwidths: tuple[int, int, int] | None,
        max_bytes: int,
    ) -> None: ...
    @property
    def words(self) -> int: ...
    @property
    def cycles_done(self) -> int: ...
    def advance(self, budget: int) -> bool: ...
    def read(self) -> tuple[int, int, int, float, float, _Port, _Port, _Port]: ...

class Systolic:
    finished: bool
    def __init__(
        self,
        shape: tuple[int, int],
        dataflow: str,
        overlap: str,
        pack: int,
        reference: bool,
        a: NDArray[Any],
        b: NDArray[Any],
        out: NDArray[np.int32],
        occupancy: NDArray[np.int64] | None,
        timeline: NDArray[np.int64] | None,
        bin_cycles: int,
        max_bytes: int,
    ) -> None: ...
    @property
    def cycles(self) -> int: ...
    def advance(self, cycles: int) -> bool: ...
    def read(self) -> dict[str, int]: ...

def search_tiling(
    shape: tuple[int, int, int],
    sizes: tuple[int, int, int, int],
    stays: tuple[bool, bool, bool],
    capacity: int,
    burst: int,
) -> tuple[int, int, int, int, int, int, int, int]: ...
def count_passes(products: NDArray[np.int64], passes: NDArray[np.int64]) -> None: ...
