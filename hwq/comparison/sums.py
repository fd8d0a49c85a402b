"""Sums over a stream of batches: of one layer, and of the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.comparison.records import Comparison, LayerComparison
from hwq.comparison.statistics import decibels, distributions, mcnemar, without_masks
from hwq.costly import range_cost
from hwq.errors import Error
from hwq.graph import Array, Node, Quantization
from hwq.statistics import Statistics, observe

__all__ = ["LayerSums", "ModelSums", "RangeSums"]


class RangeSums:
    """The histogram of a value that is stored in 8 bits or fewer with one scale: what its range costs."""

    def __init__(self, quantization: Quantization | None):
        one = quantization is not None and quantization.known and quantization.bits <= 8 and quantization.axis is None
        self.quantization = quantization if one else None
        self.seen: Statistics | None = None

    def add(self, real: Array) -> None:
        if self.quantization is None or not real.size or real.dtype.kind != "f":
            return
        try:
            seen = observe(real)
        except FloatingPointError:
            self.quantization = None
        else:
            self.seen = seen if self.seen is None else self.seen.merge(seen)

    def cost(self) -> tuple[float, float] | None:
        """See `hwq.costly.range_cost`; None where nothing finite was seen."""
        return None if self.quantization is None or self.seen is None else range_cost(self.seen, self.quantization)


class LayerSums:
    """Sums of one layer, grown batch by batch, in float64."""

    def __init__(
        self,
        node: Node,
        tensor: str,
        stored: str,
        dtype: str,
        quantization: Quantization | None,
        channels: int | None = None,
    ):
        self.channels = channels
        self.node, self.tensor, self.stored, self.dtype, self.quantization = node, tensor, stored, dtype, quantization
        self.elements = self.differing = self.clipped = self.vanished = 0
        self.minima: NDArray[np.float64] | None = None
        self.maxima: NDArray[np.float64] | None = None
        self.signal = self.noise = self.product = self.power = 0.0
        self.max_lsb = 0
        self.first: tuple[int, ...] | None = None
        self.range = RangeSums(quantization)

    def add(self, real: Array, stored: Array, first_sample: int) -> None:
        if real.shape != stored.shape:
            raise Error(
                f"the float value has shape {list(real.shape)}, the quantized one {list(stored.shape)}",
                where=f"tensor {self.tensor}",
            )
        if self.quantization is None:
            value, differing = stored, real != stored
        else:
            value, differing = self._distances(real, stored)
        reference, found = without_masks(real.astype(np.float64), value.astype(np.float64))
        self.elements += real.size
        self.signal += float(np.sum(reference * reference))
        self.noise += float(np.sum((reference - found) ** 2))
        self.product += float(np.sum(reference * found))
        self.power += float(np.sum(found * found))
        self.range.add(real)
        self._range(real)
        count = int(np.count_nonzero(differing))
        if count and self.first is None:
            place = np.unravel_index(int(np.argmax(differing)), real.shape)
            self.first = (first_sample + int(place[0]), *(int(one) for one in place[1:])) if place else ()
        self.differing += count

    def _range(self, real: Array) -> None:
        """Grow the range of each channel."""
        if self.channels is None or self.channels >= real.ndim or not real.size:
            return
        others = tuple(axis for axis in range(real.ndim) if axis != self.channels)
        low, high = real.min(axis=others).astype(np.float64), real.max(axis=others).astype(np.float64)
        self.minima = low if self.minima is None else np.minimum(self.minima, low)
        self.maxima = high if self.maxima is None else np.maximum(self.maxima, high)

    def _distances(self, real: Array, stored: Array) -> tuple[Array, Array]:
        quantization = self.quantization
        assert quantization is not None
        scale, zero, axis = quantization.scales(), quantization.zero_points(), quantization.axis
        expected = kernels.quantize(np.ascontiguousarray(real), scale, zero, quantization.dtype, axis=axis)
        distance = np.abs(stored.astype(np.int64) - expected.astype(np.int64))
        self.max_lsb = max(self.max_lsb, int(distance.max(initial=0)))
        value = kernels.dequantize(stored, scale, zero, axis=axis)
        limits = np.iinfo(stored.dtype)
        shape = [1] * real.ndim
        if axis is not None:
            shape[axis] = -1
        step, offset = (scale.astype(np.float64).reshape(shape), zero.reshape(shape)) if real.ndim else (scale, zero)
        steps = real / step + offset
        cut = (steps < limits.min - 0.5) | (steps > limits.max + 0.5)
        self.clipped += int(np.count_nonzero(cut))
        # |x / s| of at most half a step rounds to zero, ties to even included.
        self.vanished += int(np.count_nonzero((real != 0) & (np.abs(steps - offset) <= 0.5) & ~cut))
        return value, distance != 0

    def result(self) -> LayerComparison:
        sqnr = decibels(self.signal, self.noise)
        cost = self.range.cost()
        norm = math.sqrt(self.signal) * math.sqrt(self.power)
        return LayerComparison(
            name=self.node.name,
            op=self.node.op,
            tensor=self.tensor,
            stored=self.stored,
            dtype=self.dtype,
            elements=self.elements,
            sqnr_db=sqnr,
            cosine=self.product / norm if norm else 1.0 if self.signal == self.power else 0.0,
            max_lsb=None if self.quantization is None else self.max_lsb,
            differing=self.differing,
            first_differing=self.first,
            saturation=self.clipped / self.elements if self.elements else 0.0,
            underflow=self.vanished / self.elements if self.elements else 0.0,
            channel_minima=() if self.minima is None else tuple(self.minima.tolist()),
            channel_maxima=() if self.maxima is None else tuple(self.maxima.tolist()),
            channel_bits=self._bits(),
            range_db=None if cost is None else cost[0],
            range_share=None if cost is None else cost[1],
        )

    def _bits(self) -> tuple[float, ...]:
        if self.quantization is None or self.minima is None or self.maxima is None:
            return ()
        peaks = np.maximum(np.abs(self.minima), np.abs(self.maxima)) / self.quantization.scales().astype(np.float64)
        return tuple(np.log2(np.maximum(peaks, 1.0)).tolist())


class ModelSums:
    """Counts of the whole model, grown batch by batch."""

    def __init__(self, labels: NDArray[np.int64] | None):
        self.labels = labels
        self.samples = self.positions = self.agreeing = 0
        self.divergence = self.signal = self.noise = 0.0
        self.right_float = self.right = self.gained = self.lost = 0

    def add(self, real: Array, found: Array, samples: int) -> None:
        # One number for the whole batch is an output of one element.
        real, found = (one.reshape(1) if not one.ndim else one for one in (real, found))
        if real.shape != found.shape:
            raise Error(
                f"the first outputs have shapes {list(real.shape)} and {list(found.shape)}", why="they must be equal"
            )
        left, right = real.astype(np.float64), found.astype(np.float64)
        best, chosen = left.argmax(axis=-1), right.argmax(axis=-1)
        p, q = distributions(left, right)
        left, right = without_masks(left, right)
        self.positions += best.size
        self.agreeing += int(np.count_nonzero(best == chosen))
        self.signal += float(np.sum(left * left))
        self.noise += float(np.sum((left - right) ** 2))
        self.divergence += float(np.sum(p * (np.log(p) - np.log(q))))
        if self.labels is not None:
            wanted = self.labels[self.samples : self.samples + samples]
            if best.shape != wanted.shape:
                raise Error(f"labels do not fit outputs of shape {list(real.shape)}", where="labels",
                            why="one label a sample is needed, and the classes last in the first output")  # fmt: skip
            good, now = best == wanted, chosen == wanted
            self.right_float += int(good.sum())
            self.right += int(now.sum())
            self.gained += int((now & ~good).sum())
            self.lost += int((good & ~now).sum())
        self.samples += samples

    def result(self, model: str, layers: tuple[LayerComparison, ...], hashes: Mapping[str, str]) -> Comparison:
        known = self.labels is not None and self.samples > 0
        return Comparison(
            model=model,
            samples=self.samples,
            layers=layers,
            agreement=self.agreeing / self.positions if self.positions else 1.0,
            kl=self.divergence / self.positions if self.positions else 0.0,
            accuracy_float=self.right_float / self.samples if known else None,
            accuracy=self.right / self.samples if known else None,
            gained=self.gained if known else None,
            lost=self.lost if known else None,
            mcnemar_p=mcnemar(self.gained, self.lost) if known else None,
            hashes=hashes,
            sqnr_db=decibels(self.signal, self.noise),
        )
