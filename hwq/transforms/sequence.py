"""The transforms of a plan in their order: equalize, smooth, clip, awq. Biases and rounding come after them.

Each is a pure function from graph to graph. What one changes is measured again before the next reads it: the calibration of
the float model holds for the values that no factor touched.
"""

from __future__ import annotations

import itertools

from hwq.batches import Batches
from hwq.calibration import Calibration, calibrate, fingerprint
from hwq.dialect import Dialect
from hwq.errors import Error
from hwq.graph import Graph
from hwq.names import display_name
from hwq.placement import place
from hwq.plan import Plan
from hwq.scales import Scales
from hwq.transforms.awq import scale_weights
from hwq.transforms.channels import RESCALED
from hwq.transforms.clipping import clip
from hwq.transforms.equalization import equalize
from hwq.transforms.smoothing import smooth

__all__ = ["ORDER", "Sequence"]

ORDER = ("equalize", "smooth", "clip", "awq")


class Sequence:
    """Runs a plan's transforms.

    Parameters
    ----------
    graph : Graph
        Float, constants folded.
    plan, dialect : Plan, Dialect
    cal : Calibration or None
        Of the float model.
    batches : batches or None
        Samples that can be read more than once.
    """

    def __init__(self, graph: Graph, plan: Plan, dialect: Dialect, cal: Calibration | None, batches: Batches | None):
        self.graph, self.plan, self.dialect, self.cal, self.batches = graph, plan, dialect, cal, batches
        self.stale: set[str] = set()

    def run(self) -> tuple[Graph, Calibration | None]:
        """The transformed graph, and a calibration that fits it.

        Raises
        ------
        Error
            A transform does not apply, or what it changed must be measured and there are no samples.
        """
        asked = self.plan.transforms
        if asked.equalize:
            self._change(equalize(self.graph, self.cal))
        if asked.smooth is not None:
            constants = place(self.graph, self.plan, self.dialect).constants
            alone = {name for (name, slot), one in constants.items() if slot == 1 and one.axis is not None}
            self._change(smooth(self.graph, self._measured("smooth"), asked.smooth, alone))
        if asked.clip is not None:
            clipped = clip(self.graph, self._measured("clip"), asked.clip)
            self.stale |= set(clipped.tensors) - set(self.graph.tensors)
            # Behind a clamp everything may change.
            self.stale |= _behind(clipped, self.stale)
            self.graph = clipped
        if asked.awq:
            self._awq()
        return self.graph, self._final()

    def _change(self, graph: Graph) -> None:
        self.stale |= set(graph.source.get(RESCALED, ()))
        self.graph = graph

    def _awq(self) -> None:
        placement = place(self.graph, self.plan, self.dialect)
        if self.batches is not None:
            self.cal, self.stale = calibrate(self.graph, self.batches, moments=True), set()
        elif self.stale or self.cal is None:
            raise self._unmeasured("awq", sorted(self.stale))
        assert self.cal is not None
        scales = Scales(self.graph, self.plan, self.dialect, placement, self.cal)
        self._change(scale_weights(self.graph, scales, self.cal.moments))

    def _measured(self, key: str) -> Calibration:
        if self.cal is None and self.batches is None:
            raise self._unmeasured(key, [])
        if self.stale or self.cal is None:
            if self.batches is None:
                raise self._unmeasured(key, sorted(self.stale))
            self._measure()
        assert self.cal is not None
        return self.cal

    def _measure(self) -> None:
        assert self.batches is not None
        moments = self.cal is not None and bool(self.cal.moments)
        wanted = None if self.cal is None or moments else frozenset(self.stale)
        fresh = calibrate(self.graph, self.batches, moments, only=wanted)
        held = {} if self.cal is None else {n: s for n, s in self.cal.tensors.items() if n in self.graph.tensors}
        self.cal = Calibration(
            fingerprint(self.graph), fresh.samples, {**held, **fresh.tensors}, fresh.moments, fresh.skipped
        )
        self.stale = set()

    def _final(self) -> Calibration | None:
        """The calibration of the transformed graph; measured only if something static rests on a changed value."""
        if not self.stale:
            return self.cal
        if self.batches is not None:
            self._measure()
            return self.cal
        points = place(self.graph, self.plan, self.dialect).points
        resting = [name for name in self.stale if name in points and points[name].scale is None]
        if resting:
            raise self._unmeasured("transforms", sorted(resting))
        return self.cal

    def _unmeasured(self, key: str, names: list[str]) -> Error:
        shown = ", ".join(display_name(name) for name in itertools.islice(names, 4))
        return Error(
            "a transform changes what activations hold, and there are no samples to measure them again"
            if names
            else "this transform needs to know what activations hold, and there is neither calibration nor data",
            where=f"key {key if key == 'transforms' else f'transforms.{key}'}" + (f", tensor {shown}" if shown else ""),
            remedy="pass batches= to quantize (--data on the command line)",
        )


def _behind(graph: Graph, names: set[str]) -> set[str]:
    found = set(names)
    for node in graph.nodes:
        if found.intersection(node.inputs):
            found.update(name for name in node.outputs if name)
    return found
