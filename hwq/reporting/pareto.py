"""Time against energy of a sweep's configurations, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from hwq.reporting.drawing import Drawing, canvas, legend, role, series, ticks_si

__all__ = ["front"]

# Configurations with a tooltip: more would make the file heavy.
MAX_DOTS = 400


def front(
    sample: Mapping[str, NDArray[Any]], best: Mapping[str, NDArray[Any]], model: str, configurations: int
) -> Drawing:
    """A cloud of configurations coloured by dataflow, and the front as a line of dots.

    Parameters
    ----------
    sample, best : mapping of column to array
        As `hwq.simulators.sweeping.Summary` has them: some configurations, and the front, quickest first.
    model : str
    configurations : int
        How many there were.
    """
    words = list(dict.fromkeys(sample["dataflow"].tolist()))
    colours = {word: series(at) for at, word in enumerate(words)}
    with canvas("pareto", 640, 420) as page:
        axes = page.axes[0]
        axes.set(xscale="log", yscale="log")
        for word in words:
            chosen = sample["dataflow"] == word
            axes.plot(sample["seconds"][chosen], sample["picojoules"][chosen] * 1e-12, ".", markersize=2.5,
                      color=colours[word], alpha=0.5)  # fmt: skip
        axes.plot(best["seconds"], best["picojoules"] * 1e-12, drawstyle="steps-post", color=role("ink"), linewidth=1)
        step = max(1, len(best["rows"]) // MAX_DOTS)
        for at in range(0, len(best["rows"]), step):
            (dot,) = axes.plot([best["seconds"][at]], [best["picojoules"][at] * 1e-12], "o", markersize=5,
                               color=colours.get(str(best["dataflow"][at]), role("accent")))  # fmt: skip
            page.tell(dot, f"{best['rows'][at]} x {best['cols'][at]} {best['dataflow'][at]}, "
                           f"{best['sram_bytes'][at] / 1024:g} KiB, {best['dram_bytes_per_second'][at] / 1e9:g} GB/s: "
                           f"{best['seconds'][at] * 1e3:.4g} ms, {best['picojoules'][at] / 1e9:.4g} mJ")  # fmt: skip
        ticks_si(axes.xaxis, "s")
        ticks_si(axes.yaxis, "J")
        axes.set_xlabel("time of one run")
        axes.set_ylabel("energy of one run, typical DRAM")
        legend(page, colours)
        return page.finish(
            f"{model}: {configurations:,} systolic machines",
            "Each point is a machine; the line joins those that no other beats in both time and energy.",
            f"{len(best['rows'])} of {configurations} configurations are on the front.",
        )
