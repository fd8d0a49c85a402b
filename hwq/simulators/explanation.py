"""Why two estimates differ: ranked causes with seconds, bytes and energy, the rule that made each, and a remedy.

Layers are matched by name; a layer that only one estimate has is a cause of its own (a fusion that the other builder did
not make, a reformat). For matched layers each term that changed is one cause. Energy is told by component in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwq.names import display_name
from hwq.simulators.results import Estimate, LayerEstimate

__all__ = ["Cause", "Explanation", "explain"]

# What a term of an estimate is, and what shortens it.
RULES: Mapping[str, tuple[str, str]] = {
    "compute": ("MACs at the rate of the layer's precision", "fewer bits where the machine multiplies them faster"),
    "fill": ("the first sum reaches the array's edge", "larger batches, so that the array is filled less often"),
    "drain": ("the last column leaves the array", "larger batches, so that the array is emptied less often"),
    "load": ("weights shift into the array", "larger batches: one load serves more rows"),
    "stall": ("the array waits for memory", "fewer weight bits, larger batches, or more bandwidth"),
    "dma": ("the array waits for the host link", "narrower inputs and outputs, or fewer layers on the host"),
    "vector": ("scalar work on results, pools, elementwise layers", "layers that fuse into a product's epilogue"),
    "cache": ("the core waits for its cache", "smaller tiles or narrower operands"),
    "l2": ("operands between L2 and the multiprocessors", "larger tiles: larger batches or channels"),
    "dram": ("operands between DRAM and chip", "fewer bits, or layers that fuse"),
    "launch": ("one kernel is started", "fewer kernels: fusion"),
    "reformat": ("a tensor changes its layout or type", "the same precision on both sides"),
    "host": ("the host runs the operator", "an operator that the machine has"),
}


@dataclass(frozen=True)
class Cause:
    """One reason why `b` differs from `a`.

    Attributes
    ----------
    subject : str
        Layer, or component of energy.
    what : str
        Term, or "only in a" / "only in b", or "energy".
    seconds, picojoules : float
        What `b` takes more than `a` (negative: saves).
    bytes : int
        Off-chip bytes that `b` moves more than `a` in that layer or component.
    rule, remedy : str
    """

    subject: str
    what: str
    seconds: float = 0.0
    picojoules: float = 0.0
    bytes: int = 0
    rule: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "subject": display_name(self.subject), "what": self.what, "seconds": self.seconds, "picojoules": self.picojoules,
            "bytes": self.bytes, "rule": self.rule, "remedy": self.remedy,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Explanation:
    """The difference of two estimates: `times` and `energies` hold causes, largest first."""

    a: Estimate = field(repr=False)
    b: Estimate = field(repr=False)
    times: tuple[Cause, ...]
    energies: tuple[Cause, ...]

    @property
    def seconds(self) -> float:
        """What `b` takes more than `a`; the causes in `times` add up to it."""
        return self.b.seconds - self.a.seconds

    @property
    def picojoules(self) -> float:
        """What `b` needs more than `a`; the causes in `energies` add up to it."""
        return self.b.picojoules - self.a.picojoules

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "a": self.a.to_dict(layers=False),
            "b": self.b.to_dict(layers=False),
            "seconds": self.seconds,
            "picojoules": self.picojoules,
            "off_chip_bytes": self.b.off_chip_bytes - self.a.off_chip_bytes,
            "times": [cause.to_dict() for cause in self.times],
            "energies": [cause.to_dict() for cause in self.energies],
        }

    def __str__(self) -> str:
        lines = [f"b takes {self.seconds * 1e3:+.4g} ms and {self.picojoules * 1e-9:+.4g} mJ against a"]
        for cause in self.times[:5]:
            name = display_name(cause.subject)
            lines.append(
                f"  {cause.seconds * 1e3:+.4g} ms  {name}: {cause.what} ({cause.rule}); {cause.bytes:+,} B off chip"
            )
        for cause in self.energies[:5]:
            lines.append(f"  {cause.picojoules * 1e-9:+.4g} mJ  {cause.subject}: {cause.rule}")
        return "\n".join(lines)


def explain(a: Estimate, b: Estimate) -> Explanation:
    """Ranked causes of the difference between two estimates.

    Parameters
    ----------
    a, b : Estimate
        Of one model under two plans or batches, or on two machines.

    Returns
    -------
    Explanation
        Times by layer and term, energies by component; each list adds up to the whole difference.
    """
    left, right = _by_name(a), _by_name(b)
    times: list[Cause] = []
    for name in dict.fromkeys([*left, *right]):
        times += _layer(name, left.get(name, ()), right.get(name, ()))
    times.sort(key=lambda cause: -abs(cause.seconds))
    return Explanation(a, b, tuple(times), _energies(a, b))


def _by_name(found: Estimate) -> dict[str, tuple[LayerEstimate, ...]]:
    table: dict[str, tuple[LayerEstimate, ...]] = {}
    for layer in found.layers:
        table[layer.name] = (*table.get(layer.name, ()), layer)
    return table


def _off_chip(layers: tuple[LayerEstimate, ...]) -> int:
    return sum(
        sum(parts.values())
        for layer in layers
        for memory, parts in layer.traffic.items()
        if memory in {"dram", "flash"}
    )


def _layer(name: str, a: tuple[LayerEstimate, ...], b: tuple[LayerEstimate, ...]) -> list[Cause]:
    moved = _off_chip(b) - _off_chip(a)
    if not a or not b:
        side, only, sign = ("a", a, -1.0) if a else ("b", b, 1.0)
        seconds = sign * sum(layer.seconds for layer in only)
        rule = f"{only[0].op} is a kernel of its own only in {side}"
        remedy = "a precision or an order of operators that lets it fuse" if side == "b" else ""
        return (
            [Cause(name, f"only in {side}", seconds, bytes=moved, rule=rule, remedy=remedy)] if seconds or moved else []
        )
    causes = []
    for term in dict.fromkeys([key for layer in (*a, *b) for key in layer.terms]):
        seconds = sum(layer.terms.get(term, 0.0) for layer in b) - sum(layer.terms.get(term, 0.0) for layer in a)
        if seconds:
            rule, remedy = RULES.get(term, (term, ""))
            widths = {layer.precision for layer in a}, {layer.precision for layer in b}
            change = (
                ""
                if widths[0] == widths[1]
                else f"; {'/'.join(sorted(widths[0]))} became {'/'.join(sorted(widths[1]))}"
            )
            causes.append(
                Cause(name, term, seconds, bytes=moved, rule=rule + change, remedy=remedy if seconds > 0 else "")
            )
    return causes


def _energies(a: Estimate, b: Estimate) -> tuple[Cause, ...]:
    causes = []
    for component in dict.fromkeys([*a.energy, *b.energy]):
        picojoules = b.energy.get(component, 0.0) - a.energy.get(component, 0.0)
        before, after = (sum(one.traffic.get(component, {}).values()) for one in (a, b))
        if component in a.traffic or component in b.traffic:
            rule = f"{before:,} B became {after:,} B through {component}"
        elif component == "mac":
            rule = f"{a.macs:,} MACs became {b.macs:,}, at the energy of each layer's operand widths"
        elif component == "static":
            rule = f"static power for {a.seconds * 1e3:.4g} ms became {b.seconds * 1e3:.4g} ms"
        else:
            rule = "operands and sums that move between cells" if component == "array" else "scalar operations"
        if picojoules:
            causes.append(Cause(component, "energy", picojoules=picojoules, bytes=after - before, rule=rule))
    return tuple(sorted(causes, key=lambda cause: -abs(cause.picojoules)))
