"""Tensor: a value of the graph, and how it is stored where it is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwq.elements import BITS
from hwq.errors import Error

__all__ = ["Array", "Dim", "Quantization", "Shape", "Tensor"]

Array = NDArray[Any]
Dim = int | str  # a str is a symbol that stays open until shapes are bound, such as the batch "N"
Shape = tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class Quantization:
    """How stored integers stand for real numbers: ``real = (stored - zero_point) * scale``.

    Parameters
    ----------
    dtype : str
        Stored type, a key of `BITS`.
    scale : float32 array, str or None
        Shape () per tensor, (C,) per channel along `axis`, or the tensor's rank when `block` is set. The *name of a
        tensor* when computed at run time. None: planned but unset (cost only; execution refuses).
        Its bits are the source's and are never recomputed.
    zero_point : integer array, str or None
        Same shape as `scale`. None with a scale given means 0.
    axis : int, optional
        The channel axis, or with `block` the axis that is cut into blocks.
    block : int, optional
        Elements per block along `axis`.
    storage : {"plain", "packed"}
        Whether the source file packs several elements into a byte.
    """

    dtype: str
    scale: Array | str | None = None
    zero_point: Array | str | None = None
    axis: int | None = None
    block: int | None = None
    storage: Literal["plain", "packed"] = "plain"

    @property
    def bits(self) -> int:
        """Bits of one stored element."""
        return BITS[self.dtype]

    @property
    def granularity(self) -> Literal["tensor", "channel", "group"]:
        """One scale for the tensor, one a channel, or one a group of `block` elements."""
        if self.block is not None:
            return "group"
        return "tensor" if self.axis is None else "channel"

    @property
    def dynamic(self) -> bool:
        """Whether the scale is computed at run time."""
        return isinstance(self.scale, str)

    @property
    def known(self) -> bool:
        """Whether the scale's values are known now."""
        return isinstance(self.scale, np.ndarray)

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return self.zero_point is None or (isinstance(self.zero_point, np.ndarray) and not np.any(self.zero_point))

    def scales(self) -> NDArray[np.float32]:
        """The scale as a float32 array.

        Raises
        ------
        Error
            The scale is unset or computed at run time.
        """
        if not isinstance(self.scale, np.ndarray):
            raise Error(
                "this quantization has no scale yet" if self.scale is None else "this scale is computed at run time",
                why="the graph was planned for cost only" if self.scale is None else None,
                remedy="quantize with a Calibration" if self.scale is None else None,
            )
        return np.asarray(self.scale, dtype=np.float32)

    def zero_points(self) -> NDArray[np.int32]:
        """The zero point as an int32 array of the scale's shape."""
        scale = self.scales()
        if self.zero_point is None:
            return np.zeros(scale.shape, np.int32)
        return np.broadcast_to(np.asarray(self.zero_point).astype(np.int32), scale.shape)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph: an input, a constant or a node's output.

    `data` is the constant's value, held in `carrier(dtype)`, or None. `known_shape` tells whether the shape was stated
    or inferred at all (an unknown rank has ``shape=()`` and ``known_shape=False``).
    """

    name: str
    dtype: str = "float32"
    shape: Shape = ()
    data: Array | None = None
    quantization: Quantization | None = None
    known_shape: bool = True

    def __post_init__(self) -> None:
        if self.data is not None and self.data.flags.writeable:
            frozen = self.data.view()
            frozen.flags.writeable = False
            object.__setattr__(self, "data", frozen)

    @property
    def constant(self) -> bool:
        """Whether the value is known before the model runs."""
        return self.data is not None

    @property
    def concrete(self) -> bool:
        """Whether every dimension is a number."""
        return self.known_shape and all(isinstance(dim, int) for dim in self.shape)

    @property
    def bits(self) -> int:
        """Bits of one stored element."""
        return self.quantization.bits if self.quantization else BITS[self.dtype]

    @property
    def elements(self) -> int:
        """Number of elements.

        Raises
        ------
        Error
            A dimension is still a symbol.
        """
        if not self.concrete:
            raise Error(
                f"the shape {list(self.shape)} still has open dimensions",
                where=f"tensor {self.name}",
                remedy="bind the inputs' open dimensions: --shape INPUT=1,3,224,224, or hwq.load(..., shapes={input: shape}), or batch=",
            )
        count = 1
        for dim in self.shape:
            count *= int(dim)
        return count

    @property
    def bytes(self) -> int:
        """Bytes in a runtime's memory, sub-byte elements packed, rounded up."""
        return (self.elements * self.bits + 7) // 8
