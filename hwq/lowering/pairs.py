"""Reading QuantizeLinear and DequantizeLinear nodes of a draft."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwq.graph import Array, Node, Quantization, Tensor
from hwq.lowering.rewriting import Draft

__all__ = [
    "EIGHT_BIT",
    "RANGES",
    "Affine",
    "affine",
    "explicit",
    "fits_seven_bits",
    "is_dequantize",
    "is_quantize",
    "made_by_dequantize",
    "same_pair",
]

EIGHT_BIT = frozenset({"int8", "uint8"})
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


@dataclass(frozen=True)
class Affine:
    """The constants of one Q or DQ node.

    Attributes
    ----------
    dtype : str
        Stored type.
    scale : float32 array
        As the graph has it: () or (1,) per tensor, (C,) per channel, more with blocks.
    zero_point : integer array or None
        None where the node has no such input (0 is meant).
    axis, block : int or None
    fixed_scale, fixed_point : bool
        Whether no caller may give other values (`Draft.constant`).
    """

    dtype: str
    scale: Array
    zero_point: Array | None
    axis: int | None = None
    block: int | None = None
    fixed_scale: bool = True
    fixed_point: bool = True

    @property
    def fixed(self) -> bool:
        """Whether no caller may give another scale or zero point."""
        return self.fixed_scale and self.fixed_point

    @property
    def scalar(self) -> bool:
        """Whether one scale serves the tensor."""
        return (
            self.scale.size == 1
            and self.scale.ndim <= 1
            and self.block is None
            and (self.zero_point is None or (self.zero_point.size == 1 and self.zero_point.ndim <= 1))
        )

    @property
    def offset(self) -> int:
        """The zero point of a scalar pair."""
        return 0 if self.zero_point is None else int(self.zero_point.reshape(-1)[0])

    def quantization(self) -> Quantization:
        """As tensors carry it; the scale's bits are kept."""
        if self.scalar:
            zero = None if self.zero_point is None else self.zero_point.reshape(())
            return Quantization(self.dtype, self.scale.reshape(()), zero)
        return Quantization(self.dtype, self.scale, self.zero_point, axis=self.axis, block=self.block)


def is_quantize(node: Node) -> bool:
    """Whether the node is a QuantizeLinear."""
    return node.op == "QuantizeLinear"


def is_dequantize(node: Node) -> bool:
    """Whether the node is a DequantizeLinear."""
    return node.op == "DequantizeLinear"


def affine(draft: Draft, node: Node) -> Affine | None:
    """The parameters of a Q or DQ node; None where scale or zero point is computed, or no float32."""
    scale = draft.known(node.inputs[1])
    if scale is None or scale.dtype != np.float32:
        return None
    zero_point: Array | None = None
    if len(node.inputs) > 2 and node.inputs[2]:
        zero_point = draft.known(node.inputs[2])
        if zero_point is None:
            return None
    stored = draft.tensors[node.outputs[0] if is_quantize(node) else node.inputs[0]]
    block = int(node.attributes.get("block_size", 0) or 0)
    axis: int | None = None
    if scale.size != 1 or scale.ndim > 1 or block:
        axis = int(node.attributes.get("axis", 1))
        rank = len(stored.shape)
        if axis < 0 and stored.known_shape:
            axis += rank
    fixed = [draft.constant(value) is not None for value in node.inputs[1:3] if value]
    return Affine(stored.dtype, scale, zero_point, axis, block or None, fixed[0], fixed[-1] or len(fixed) == 1)


def explicit(node: Node) -> bool:
    """Whether the node has its zero point as an input of its own."""
    return len(node.inputs) == 3 and bool(node.inputs[2])


def same_pair(draft: Draft, quantize: Node, dequantize: Node) -> bool:
    """Whether a Q and a DQ are inverse: constant, per tensor, with equal scales and explicit, equal zero points."""
    if not explicit(quantize) or not explicit(dequantize):
        return False
    one, other = affine(draft, quantize), affine(draft, dequantize)
    if one is None or other is None or not one.scalar or not other.scalar or not (one.fixed and other.fixed):
        return False
    return (
        one.dtype == other.dtype
        and one.offset == other.offset
        and bool(one.scale.reshape(()) == other.scale.reshape(()))
    )


def made_by_dequantize(draft: Draft, value: str) -> tuple[float, Node] | None:
    """The DQ that makes a value, or None."""
    found = draft.maker(value) if value else None
    return found if found is not None and is_dequantize(found[1]) else None


def fits_seven_bits(tensor: Tensor) -> bool:
    """Whether every weight lies in [-64, 64]: onnxruntime leaves such int8 constants as they are."""
    data = tensor.data
    return data is not None and (data.size == 0 or (int(data.min()) >= -64 and int(data.max()) <= 64))
