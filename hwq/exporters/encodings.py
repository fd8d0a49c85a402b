"""Encodings for other tools: AIMET's JSON in three versions, and TensorRT's calibration cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwq.elements import BITS
from hwq.encodings import Encoding
from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike, write_atomically
from hwq.names import display_name

__all__ = ["FORMATS", "write"]

# Names of `hwq.export` and of `hwq plan export --format`.
FORMATS = ("aimet", "aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0", "tensorrt")
# What a reader of the cache expects of the header; the number is a TensorRT version, 10.0.0 here.
HEADER = "TRT-100000-EntropyCalibration2"


def write(found: Iterable[Encoding], path: PathLike, format: str, *, overwrite: bool = False) -> None:
    """Write encodings, whole or not at all. ``aimet`` is version 1.0.0, or 2.0.0 where there are blocks.

    Raises
    ------
    Error
        The format cannot say a type, a zero point or a granularity, or the file exists.
    """
    every = list(found)
    if not every:
        raise Error("the plan gives no scale", remedy="export a quantized model, or a plan with scales in its rules")
    below = next((one for one in every if (one.scale < 0.0).any()), None)
    if below is not None:
        raise Error("AIMET's encodings have scales above 0", where=f"tensor {display_name(below.tensor)}",
                    why="weights of this tensor have scales below 0", remedy="export a QDQ model")  # fmt: skip
    if format == "aimet":
        format = "aimet-2.0.0" if any(one.block for one in every) else "aimet-1.0.0"
    if format == "tensorrt":
        text = _cache(every)
    else:
        version = format.removeprefix("aimet-")
        document: dict[str, Any] = {"version": version, "producer": {"package": "hwq", "version": _version()}}
        if version == "2.0.0":
            document["encodings"] = [_merged(one) for one in every]
        else:
            kinds = {"activation_encodings": False, "param_encodings": True}
            for key, weight in kinds.items():
                group = [one for one in every if one.weight == weight]
                document[key] = (
                    {one.tensor: _legacy(one) for one in group}
                    if version == "0.6.1"
                    else [_listed(one) for one in group]
                )
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with write_atomically(path, overwrite=overwrite, mode="w") as stream:
        stream.write(text)


def _version() -> str:
    from hwq import __version__

    return __version__


def _offsets(one: Encoding) -> Any:
    """Offsets in the unsigned type: what AIMET adds to ``x / scale``, negated."""
    shift = 0 if one.dtype.startswith("u") else 1 << (BITS[one.dtype] - 1)
    return -(one.zero_point.reshape(-1) + shift)


def _signed_is_symmetric(one: Encoding) -> bool:
    """AIMET has one word for both: a signed type is called symmetric, an unsigned one not."""
    return not one.dtype.startswith("u")


def _doubles(one: Encoding) -> list[float]:
    return [float(value) for value in one.scale.reshape(-1).astype(np.float64)]


def _require_plain(one: Encoding, version: str) -> None:
    if one.block:
        raise NotSupportedYet(
            f"blocks in AIMET encodings {version}",
            where=f"tensor {display_name(one.tensor)}",
            remedy="use aimet-2.0.0",
        )


def _legacy(one: Encoding) -> list[dict[str, Any]]:
    _require_plain(one, "0.6.1")
    bits = BITS[one.dtype]
    return [
        {"bitwidth": bits, "dtype": "int", "is_symmetric": str(_signed_is_symmetric(one)), "scale": scale, "offset": int(offset),
         "min": scale * int(offset), "max": scale * (int(offset) + 2**bits - 1)}
        for scale, offset in zip(_doubles(one), _offsets(one), strict=True)
    ]  # fmt: skip


def _listed(one: Encoding) -> dict[str, Any]:
    _require_plain(one, "1.0.0")
    return {
        "name": one.tensor, "dtype": "INT", "bw": BITS[one.dtype], "is_sym": _signed_is_symmetric(one),
        "enc_type": "PER_CHANNEL" if one.scale.ndim else "PER_TENSOR", "scale": _doubles(one),
        "offset": [int(value) for value in _offsets(one)],
    }  # fmt: skip


def _merged(one: Encoding) -> dict[str, Any]:
    one = _one_a_kernel(one)
    made: dict[str, Any] = {
        "name": one.tensor,
        "output_dtype": one.dtype,
        "y_scale": one.scale.astype(np.float64).tolist(),
    }
    if one.zero_point.any():
        made["y_zero_point"] = one.zero_point.tolist()
    if one.scale.ndim:
        if one.axis is None or (one.block and one.scale.ndim < 2):
            raise Error(
                "version 2.0.0 says along which axis the scales stand, and a plan alone does not know it",
                where=f"tensor {display_name(one.tensor)}",
                remedy="export the quantized model: hwq export MODEL --format aimet-2.0.0; or use aimet-1.0.0",
            )
        made["axis"] = one.axis
    if one.block:
        made["block_size"] = one.block
    return made


def _one_a_kernel(one: Encoding) -> Encoding:
    """Blocks of a convolution as AIMET has them: one scale for all positions of the kernel, where they are equal."""
    if not one.block or one.scale.ndim < 3:
        return one
    first = (slice(None), slice(None), *[slice(1)] * (one.scale.ndim - 2))
    scale, zero_point = one.scale[first], one.zero_point[first]
    if (one.scale == scale).all() and (one.zero_point == zero_point).all():
        return replace(one, scale=scale, zero_point=zero_point)
    return one


def _cache(every: Sequence[Encoding]) -> str:
    lines = [HEADER]
    for one in every:
        if one.weight:
            continue  # TensorRT quantizes weights by itself
        where = f"tensor {display_name(one.tensor)}"
        if one.dtype != "int8" or one.zero_point.any() or one.scale.ndim:
            raise Error("a calibration cache has int8 scales without zero points only", where=where,
                        remedy="plan symmetric int8 activations: dialect tensorrt")  # fmt: skip
        if "\n" in one.tensor or "\r" in one.tensor:
            raise Error("a calibration cache cannot hold this name", where=where)
        lines.append(f"{one.tensor}: {int(one.scale.view(np.uint32)):x}")
    if len(lines) == 1:
        raise Error("the plan gives no activation a scale", remedy="a calibration cache holds activations only")
    return "\n".join(lines) + "\n"
