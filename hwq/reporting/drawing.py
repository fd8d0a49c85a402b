"""From a matplotlib figure to inline SVG that follows the page: its colours, its font, its dark mode.

Figures are drawn in marker colours, one for each role of the page's palette; the finished SVG gets CSS variables in
their place. Text stays text, so a reader can select, search and enlarge it. No id, colour or name of one figure
reaches another, and nothing points outside the page.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from hwq.names import display_name, plot_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "SERIES",
    "Canvas",
    "Dot",
    "Drawing",
    "canvas",
    "labels",
    "legend",
    "role",
    "series",
    "si",
    "standalone",
    "ticks_si",
]

# Roles of the page's palette (report.css gives each a light and a dark value) and the marker colour that stands for
# them while matplotlib draws. The markers are arbitrary, different from each other, and never reach a reader.
_ROLES = ("ink", "muted", "grid", "paper", "accent", "warn", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7")
_MARKERS = {name: f"#01{index:02x}fe" for index, name in enumerate(_ROLES)}
_VARIABLES = {marker: f"var(--{name})" for name, marker in _MARKERS.items()}
SERIES = 8

# One viewBox unit is one CSS pixel at natural size; matplotlib's SVG has 72 units to its inch.
_UNITS_PER_INCH = 72
_FONT_UNITS = 11.0
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile("|".join(_VARIABLES))
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?")
_FONT = re.compile(r"font: ([^;']*?)([\d.]+px)[^;]*")
# Hundredths of a pixel are finer than any screen; more digits would only make the page heavier.
_DECIMALS = re.compile(r"(-?\d+\.\d{3,})")


def role(name: str) -> str:
    """The marker colour of a role of the palette."""
    return _MARKERS[name]


def series(index: int) -> str:
    """The marker colour of a data series; after the last it starts again."""
    return _MARKERS[f"s{index % SERIES}"]


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes
    ----------
    identifier : str
        Unique on the page; every id inside starts with it.
    title : str
        Heading, plain text.
    caption : str
        How to read it, one sentence.
    description : str
        What a reader who cannot see it should know.
    svg : str
        An ``<svg>`` element without namespace declarations or outside references.
    width : float
        Natural width in CSS pixels.
    """

    identifier: str
    title: str
    caption: str
    description: str
    svg: str
    width: float


@dataclass(frozen=True)
class Dot:
    """A point of a figure; `shape` is ``circle`` or ``triangle`` (pointing right)."""

    axes: Axes
    x: float
    y: float
    radius: float
    colour: str
    text: str
    shape: str = "circle"


@dataclass
class Canvas:
    """A figure under construction: `axes` to draw on, `tell` to give a drawn thing a tooltip, `dots` for points.

    matplotlib would make an artist and a dozen elements of every point with a tooltip of its own; a dot is one element.
    """

    identifier: str
    figure: Figure
    axes: list[Axes]
    width: float
    tooltips: dict[str, str] = field(default_factory=dict)
    dots: list[Dot] = field(default_factory=list)

    def tell(self, artist: Any, text: str) -> None:
        """Show `text` while the pointer is on `artist`."""
        key = f"t{len(self.tooltips)}"
        artist.set_gid(key)
        self.tooltips[key] = display_name(text, limit=300)

    def finish(self, title: str, caption: str, description: str) -> Drawing:
        """Draw and return the figure.

        Raises
        ------
        ValueError
            An axis has no label: every axis names its quantity and unit.
        """
        for axes in self.axes:
            for axis, side in ((axes.xaxis, "labelbottom"), (axes.yaxis, "labelleft")):
                # Upper panels of a shared axis carry no tick labels; the lowest one names the quantity for all.
                general = self.figure.get_supxlabel() if axis is axes.xaxis else self.figure.get_supylabel()
                if axis.get_tick_params().get(side, True) and not (axis.get_label_text() or general):
                    raise ValueError(f"figure {self.identifier}: an axis has no label")
        stream = io.StringIO()
        with _style(self.identifier):
            # The solver runs here, once: savefig would draw the whole figure a second time just to call it.
            engine = self.figure.get_layout_engine()
            if engine is not None:
                engine.execute(self.figure)
            self.figure.set_layout_engine(None)
            self.figure.savefig(
                stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
            )
        root = _themed(stream.getvalue(), self.identifier, self.tooltips, f"{title}. {description}", self.width)
        root.extend(self._point(dot) for dot in self.dots)
        svg = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
        return Drawing(self.identifier, title, caption, description, svg, self.width)

    def _point(self, dot: Dot) -> ElementTree.Element:
        left, up = dot.axes.transData.transform((dot.x, dot.y))
        x, y, size = left, self.figure.bbox.height - up, dot.radius
        style = f"fill: {_VARIABLES[dot.colour]}; fill-opacity: 0.7; stroke: var(--paper); stroke-width: 0.6"
        if dot.shape == "circle":
            point = ElementTree.Element(
                "circle", {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": f"{size:.2f}", "style": style}
            )
        else:
            path = f"M {x - size:.2f} {y - size:.2f} L {x + size:.2f} {y:.2f} L {x - size:.2f} {y + size:.2f} z"
            point = ElementTree.Element("path", {"d": path, "style": style})
        ElementTree.SubElement(point, "title").text = display_name(dot.text, limit=300)
        return point


def standalone(drawing: Drawing) -> str:
    """An SVG file of a figure, in the light colours of the page.

    Viewers of SVG files know no CSS variables, so the palette of report.css is written into it.
    """
    sheet = (resources.files("hwq.reporting") / "report.css").read_text("utf-8")
    light: dict[str, str] = {}
    for name, value in re.findall(r"--(\w+): (#[0-9a-f]{6});", sheet):
        light.setdefault(name, value)  # the dark values come later
    svg = re.sub(r"var\(--(\w+)\)", lambda found: light[found[1]], drawing.svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="DejaVu Sans, sans-serif"'
    return svg.replace("<svg", head, 1) + "\n"


@contextlib.contextmanager
def canvas(
    identifier: str, width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> Iterator[Canvas]:
    """Open a canvas of `width` x `height` CSS pixels with a grid of axes.

    The user's matplotlib settings neither reach the figure nor are changed by it.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _style(identifier):
        figure = Figure(
            figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), dpi=_UNITS_PER_INCH, layout="constrained"
        )
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **grid)
        yield Canvas(identifier, figure, list(axes.flat), width)


@contextlib.contextmanager
def _style(identifier: str) -> Iterator[None]:
    import matplotlib

    settings: dict[str, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "toolbar", "interactive", "datapath", "savefig.directory"))
    }
    ink, muted = role("ink"), role("muted")
    chosen: Any = settings | {
        "svg.fonttype": "none",
        "svg.hashsalt": identifier,
        "font.size": _FONT_UNITS,
        "font.family": ["DejaVu Sans"],
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.dpi": _UNITS_PER_INCH,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": muted,
        "axes.titlecolor": ink,
        "axes.titlesize": _FONT_UNITS,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": _FONT_UNITS - 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": role("grid"),
        "grid.linewidth": 0.7,
        "axes.unicode_minus": True,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "xtick.labelsize": _FONT_UNITS - 1,
        "ytick.labelsize": _FONT_UNITS - 1,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
        "patch.linewidth": 0,
        "legend.frameon": False,
        "legend.fontsize": _FONT_UNITS - 1,
        "legend.handlelength": 1.1,
        "legend.handleheight": 0.9,
        "legend.columnspacing": 1.2,
        "legend.borderaxespad": 0.0,
        "legend.labelcolor": ink,
        "figure.constrained_layout.h_pad": 0.03,
        "figure.constrained_layout.w_pad": 0.03,
    }
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn by the browser's fonts: text stays text.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def _themed(text: str, identifier: str, tooltips: Mapping[str, str], label: str, width: float) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    for element in list(root):
        if element.tag == f"{_SVG}metadata":
            root.remove(element)
    names = _identifiers(root, identifier)
    for element in root.iter():
        _mend(element, names, tooltips)
    height = float(root.get("viewBox", "0 0 1 1").split()[3])
    for name in ("width", "height", "version", "id"):
        root.attrib.pop(name, None)
    root.set("id", identifier)
    root.set("role", "img")
    root.set("aria-label", display_name(label, limit=2000))
    root.set("style", f"--natural:{width:g}px;aspect-ratio:{width:g}/{height:g}")
    return root


def _identifiers(root: ElementTree.Element, identifier: str) -> dict[str, str]:
    """New names of the ids that something refers to, numbered as they occur: matplotlib's hold hashes of floats whose
    last bits the layout solver does not give twice."""
    names: dict[str, str] = {}
    for element in root.iter():
        found = [element.get(_XLINK, "").removeprefix("#")]
        found += [match[1] for value in element.attrib.values() for match in _REFERENCE.finditer(value)]
        for name in filter(None, found):
            names.setdefault(name, f"{identifier}-{len(names)}")
    return names


def _mend(element: ElementTree.Element, names: Mapping[str, str], tooltips: Mapping[str, str]) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    element.tail = None
    if element.text and not element.text.strip():
        element.text = None
    if element.tag == "style":
        # matplotlib's own sheet would be valid for the whole page; the same rule stands in report.css for figures only.
        element.text = ""
    reference = element.attrib.pop(_XLINK, None)
    if reference is not None:
        element.set("href", "#" + names[reference.removeprefix("#")])
    own = element.attrib.pop("id", "")
    if own in names:
        element.set("id", names[own])
    if own in tooltips:
        title = ElementTree.Element("title")
        title.text = tooltips[own]
        element.insert(0, title)
    for name, value in list(element.attrib.items()):
        if name in {"style", "fill", "stroke", "clip-path"}:
            value = _COLOUR.sub(lambda found: _VARIABLES[found.group()], value)
            value = _FONT_FAMILY.sub("", _REFERENCE.sub(lambda found: f"url(#{names[found[1]]})", value))
            element.set(name, _FONT.sub(r"font-size: \2", value).strip())
        elif name in {"d", "transform", "x", "y", "width", "height"}:
            element.set(name, _DECIMALS.sub(lambda found: f"{float(found.group()):.2f}", value).strip())


def si(value: float, digits: int = 3) -> str:
    """`value` with an SI prefix: 46.0e12 is ``46 T``; the unit is the caller's."""
    if value == 0:
        return "0"
    for factor, prefix in (
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
        (1.0, ""),
        (1e-3, "m"),
        (1e-6, "µ"),
        (1e-9, "n"),
        (1e-12, "p"),
    ):
        # 0.9995: what rounds up to the next prefix is written with it.
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.{digits}g} {prefix}".strip()
    return f"{value:.{digits}g}"


def ticks_si(axis: Any, unit: str = "") -> None:
    """Write the ticks of a logarithmic axis with SI prefixes, without mathematics in the labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{si(value)}{unit}"))
    axis.set_minor_locator(NullLocator())


def labels(names: Sequence[str], limit: int = 26) -> list[str]:
    """Names as tick labels."""
    return [plot_name(name, limit) for name in names]


def legend(page: Canvas, colours: Mapping[str, str], columns: int = 4) -> None:
    """Say above the figure what the colours mean."""
    from matplotlib.patches import Patch

    if colours:
        page.figure.legend(
            handles=[Patch(color=colour, label=plot_name(name, 24)) for name, colour in colours.items()],
            loc="outside upper left",
            ncols=columns,
        )
