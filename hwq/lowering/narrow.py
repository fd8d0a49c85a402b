"""Weights of fewer than eight bits are multiplied as the eight-bit integers that they are: the dialect `hwq`'s own rule.

No runtime on x86-64 fuses such a DequantizeLinear into an integer kernel; onnxruntime dequantizes and multiplies floats.
The values, scales and zero points stay, so the sums of products are those of the stored integers, exactly.
"""

from __future__ import annotations

import dataclasses

from hwq.lowering.pairs import is_dequantize
from hwq.lowering.rewriting import Draft

__all__ = ["widen_weights"]

CARRIERS = {"int2": "int8", "int4": "int8", "uint2": "uint8", "uint4": "uint8"}


def widen_weights(draft: Draft) -> bool:
    """Give constants behind a DequantizeLinear the eight-bit type that carries them; groups along K stay as they are."""
    changed = False
    for _, node in draft:
        if not is_dequantize(node) or node.attributes.get("block_size"):
            continue
        for name in (node.inputs[0], *node.inputs[2:3]):
            tensor = draft.tensors.get(name)
            if tensor is None or tensor.dtype not in CARRIERS or draft.constant(name) is None:
                continue
            wide = CARRIERS[tensor.dtype]
            scheme = tensor.quantization and dataclasses.replace(tensor.quantization, dtype=wide, storage="plain")
            draft.tensors[name] = dataclasses.replace(tensor, dtype=wide, quantization=scheme)
            changed = True
    return changed
