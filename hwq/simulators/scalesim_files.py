"""SCALE-Sim's own configuration and topology files, versions 2 and 3, read into plain records."""

from __future__ import annotations

import configparser
from dataclasses import dataclass
from pathlib import Path

from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike, read_bytes

__all__ = ["Configuration", "Layer", "read_configuration", "read_topology"]

# A topology or configuration is a page of text; what is larger is something else.
MAX_TEXT_BYTES = 16 << 20
# A "DP" layer becomes one layer per channel; this bounds what one line may expand to.
MAX_LAYERS = 100_000


@dataclass(frozen=True)
class Layer:
    """One line of a topology: sizes in elements, the input already padded.

    A GEMM of M x K by K x N is an M x K input under a 1 x K filter, as the tool maps it.
    """

    name: str
    ifmap_h: int
    ifmap_w: int
    filter_h: int
    filter_w: int
    channels: int
    filters: int
    stride_h: int
    stride_w: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int, int]:
        """The eight sizes, in the order of the file."""
        return (self.ifmap_h, self.ifmap_w, self.filter_h, self.filter_w,
                self.channels, self.filters, self.stride_h, self.stride_w)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What the memory model needs of a configuration file; SRAM in kB of 1024 one-byte words.

    ``bandwidths`` is None in CALC mode, else words per cycle for input reads, filter reads and output writes.
    """

    run_name: str
    rows: int
    cols: int
    dataflow: str
    ifmap_kb: int
    filter_kb: int
    ofmap_kb: int
    bandwidths: tuple[int, int, int] | None


def read_configuration(path: PathLike) -> Configuration:
    """Read a ``.cfg`` of version 2 or 3.

    Version 3 takes the read bandwidths of USER mode from ``[layout] IfmapSRAMBankBandwidth`` and
    ``FilterSRAMBankBandwidth``; version 2 has no such section and takes all three from ``Bandwidth``.

    Raises
    ------
    Error
        Missing keys, numbers out of range, an unusable run name, or a feature this model does not have (custom
        layouts, sparsity, Ramulator traces).
    """
    where = str(path)
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_text(path))
    except configparser.Error as error:
        raise Error("this is not a SCALE-Sim configuration", where=where, why=error.message) from error
    reader = _Reader(parser, where)
    for section, key, feature in (
        ("layout", "IfmapCustomLayout", "custom layouts"),
        ("layout", "FilterCustomLayout", "custom layouts"),
        ("sparsity", "SparsitySupport", "sparsity"),
        ("run_presets", "UseRamulatorTrace", "Ramulator traces"),
    ):
        if reader.text(section, key, "false").lower() in {"true", "yes", "on", "1"}:
            raise NotSupportedYet(f"{feature} in the SCALE-Sim compatibility run", where=f"{where}: [{section}] {key}",
                                  remedy=f"set {key} to False")  # fmt: skip
    mode = reader.text("run_presets", "InterfaceBandwidth")
    if mode not in {"CALC", "USER"}:
        raise Error(f"InterfaceBandwidth is {mode!r}", where=where, remedy="use CALC or USER")
    dataflow = reader.text("architecture_presets", "Dataflow")
    if dataflow not in {"ws", "os", "is"}:
        raise Error(f"unknown dataflow {dataflow!r}", where=where, remedy="use os, ws or is")
    return Configuration(
        run_name=_folder_name(reader.text("general", "run_name"), where),
        rows=reader.number("architecture_presets", "ArrayHeight"),
        cols=reader.number("architecture_presets", "ArrayWidth"),
        dataflow=dataflow,
        ifmap_kb=reader.number("architecture_presets", "IfmapSramSzkB"),
        filter_kb=reader.number("architecture_presets", "FilterSramSzkB"),
        ofmap_kb=reader.number("architecture_presets", "OfmapSramSzkB"),
        bandwidths=_bandwidths(reader) if mode == "USER" else None,
    )


def _bandwidths(reader: _Reader) -> tuple[int, int, int]:
    writes = reader.first_number("architecture_presets", "Bandwidth")
    if not reader.parser.has_section("layout"):
        return (writes, writes, writes)
    reads = []
    for operand in ("Ifmap", "Filter"):
        bandwidth = reader.number("layout", f"{operand}SRAMBankBandwidth")
        banks = int(reader.text("layout", f"{operand}SRAMBankNum", "1"))
        if banks < 1 or bandwidth % banks:
            raise Error(f"{operand}SRAMBankBandwidth {bandwidth} is not a multiple of {operand}SRAMBankNum {banks}",
                        where=reader.where, why="SCALE-Sim divides it over the banks and stops here too")  # fmt: skip
        reads.append(bandwidth)
    return (reads[0], reads[1], writes)


def _folder_name(name: str, where: str) -> str:
    if name in {"", ".", ".."} or set(name) & set("/\\:\0") or not name.isprintable() or len(name) > 200:
        raise Error("run_name cannot name a folder", where=where, why="the reports go into out/<run_name>/",
                    remedy="use letters, digits, underscores")  # fmt: skip
    return name


class _Reader:
    """Typed access to a parsed configuration; a missing key tells its section and name."""

    def __init__(self, parser: configparser.ConfigParser, where: str):
        self.parser = parser
        self.where = where

    def text(self, section: str, key: str, default: str | None = None) -> str:
        value = self.parser.get(section, key, fallback=default)
        if value is None:
            raise Error(f"[{section}] {key} is missing", where=self.where, remedy="see SCALE-Sim's configs/scale.cfg")
        return value.strip()

    def number(self, section: str, key: str) -> int:
        return _number(self.text(section, key), f"{self.where}: [{section}] {key}")

    def first_number(self, section: str, key: str) -> int:
        return _number(self.text(section, key).split(",")[0], f"{self.where}: [{section}] {key}")


def read_topology(path: PathLike, gemm: bool | None = None) -> list[Layer]:
    """Read a topology ``.csv``: convolutions (one or two stride columns) or GEMMs (M, N, K).

    Parameters
    ----------
    path : path
        The first line is a header. A version 3 line may end in a sparsity ratio such as ``1:1``, which is ignored; two
        numbers after the filter count are the vertical and the horizontal stride, as in version 2.
    gemm : bool, optional
        None decides by the header: its second to fourth cells are M, N, K in a GEMM file.

    Returns
    -------
    list of Layer
        A name that contains ``DP`` stands for one layer per channel, as in the tool.

    Raises
    ------
    Error
        No layers, a line with too few or unreadable numbers, a filter larger than its input, or too many layers.
    """
    lines = _text(path).splitlines()
    if not lines:
        raise Error("the topology is empty", where=str(path), remedy="give a header line and one line per layer")
    header = [cell.strip().lower() for cell in lines[0].split(",")]
    if gemm is None:
        gemm = header[1:4] == ["m", "n", "k"]
    layers: list[Layer] = []
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line.split(",")]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            where = f"{path}:{number}"
            layers += [_gemm(cells, where)] if gemm else _convolutions(cells, header, where, MAX_LAYERS - len(layers))
        if len(layers) > MAX_LAYERS:
            raise Error(f"more than {MAX_LAYERS} layers", where=str(path))
    if not layers:
        raise Error("the topology has no layers", where=str(path), remedy="give one line per layer after the header")
    return layers


def _gemm(cells: list[str], where: str) -> Layer:
    if len(cells) < 4:
        raise Error(f"{len(cells)} cells, a GEMM line has a name, M, N and K", where=where)
    m, n, k = (_number(cell, where) for cell in cells[1:4])
    return Layer(cells[0], m, k, 1, k, 1, n, 1, 1)


def _convolutions(cells: list[str], header: list[str], where: str, room: int) -> list[Layer]:
    name, numbers = cells[0], cells[1:]
    if numbers and ":" in numbers[-1]:
        numbers = numbers[:-1]
    if len(numbers) == 8 and "batch" in "".join(header[8:9]):
        if _number(numbers[7], where) != 1:
            raise Error(f"batch {numbers[7]}", where=where, why="SCALE-Sim has no batch: it reads one layer per line")
        numbers = numbers[:7]
    if len(numbers) not in (7, 8):
        raise Error(f"{len(numbers)} numbers, a layer has 7 (one stride) or 8 (two strides)", where=where,
                    remedy="name, input h, w, filter h, w, channels, filters, stride; or --input gemm")  # fmt: skip
    sizes = [_number(cell, where) for cell in numbers]
    ifmap_h, ifmap_w, filter_h, filter_w, channels, filters, stride_h = sizes[:7]
    if filter_h > ifmap_h or filter_w > ifmap_w:
        raise Error(f"a {filter_h} x {filter_w} filter does not fit into a {ifmap_h} x {ifmap_w} input", where=where,
                    why="SCALE-Sim pads nothing: the input size includes the padding")  # fmt: skip
    layer = Layer(name, ifmap_h, ifmap_w, filter_h, filter_w, channels, filters, stride_h, sizes[-1])
    if "DP" not in name:
        return [layer]
    if channels > room:
        raise Error(f"a DP layer of {channels} channels", where=where, why=f"more than {MAX_LAYERS} layers in all")
    return [Layer(f"{name}Channel_{channel}", *layer.sizes[:4], 1, *layer.sizes[5:]) for channel in range(channels)]


def _number(text: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise Error(f"{text[:40]!r} is not a whole number", where=where) from error
    if not 0 < value < 1 << 31:
        raise Error(f"{text[:40]} is out of range", where=where, remedy="sizes are at least 1 and below 2^31")
    return value


def _text(path: PathLike) -> str:
    try:
        return read_bytes(Path(path), MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Error("this is not text", where=str(path), why=str(error)) from error
