DATAFLOWS: dict[str, int]

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
