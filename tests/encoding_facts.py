"""What an encoding says, as values that compare: shared by the tests of plans that other tools wrote."""

from __future__ import annotations

from collections.abc import Iterable

from hwq.encodings import Encoding


def facts(found: Iterable[Encoding]) -> dict[str, tuple[object, ...]]:
    """What must survive: kind, type, the bits of every scale, every zero point."""
    return {
        one.tensor: (one.weight, one.dtype, one.scale.shape, one.scale.astype("<f4").tobytes(), one.zero_point.tobytes(), one.block)
        for one in found
    }  # fmt: skip
