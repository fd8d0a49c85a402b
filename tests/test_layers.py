"""Imports point down only: the table of the house, held by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hwq"

# Rank of every room, lowest first; a room covers the modules below it. The longest matching prefix counts.
RANKS = {
    "hwq._kernels": 1, "hwq._simulators": 1, "hwq.names": 1, "hwq.errors": 1, "hwq.files": 1, "hwq.numerics": 1, "hwq.progress": 1, "hwq.masking": 1,
    "hwq.graph": 2, "hwq.node": 2, "hwq.tensor": 2, "hwq.graph_file": 2, "hwq.elements": 1, "hwq.topology": 2, "hwq.dialect": 2, "hwq.work": 2, "hwq.kernels": 2,
    "hwq.validation.accuracy": 9, "hwq.validation.networks": 9, "hwq.validation.contenders": 9, "hwq.validation.methods": 8, "hwq.validation.choice": 9,
    "hwq.ops": 3, "hwq.range_search": 5, "hwq.standardization": 4,
    "hwq.calibration": 4, "hwq.plan": 4, "hwq.plan_sections": 4, "hwq.plan_toml": 4, "hwq.plan_reading": 4, "hwq.plan_operators": 4, "hwq.plan_values": 4, "hwq.samples": 4, "hwq.batches": 4, "hwq.statistics": 4, "hwq.patches": 4, "hwq.observers": 4,
    "hwq.quantization": 5, "hwq.annotation": 5, "hwq.placement": 5, "hwq.operator_kinds": 4, "hwq.scales": 5, "hwq.floating": 5, "hwq.transforms": 5, "hwq.rounding": 5, "hwq.cholesky": 5, "hwq.costly": 5, "hwq.dynamic": 5, "hwq.entropy": 4, "hwq.lowering": 5, "hwq.importers": 5, "hwq.encodings": 5, "hwq.exporters": 5, "hwq.translation": 5, "hwq.zoo": 5, "hwq.zoo_yolo": 5,
    "hwq.execution": 6, "hwq.simulators": 6,
    "hwq.comparison": 7,
    "hwq.reporting": 8, "hwq.validation": 8, "hwq.onnx_backend": 8, "hwq.verification": 8, "hwq.portability": 8, "hwq.repair": 8, "hwq.qat": 8, "hwq.overflow": 6, "hwq.difference": 8, "hwq.alignment": 7, "hwq.hypotheses": 8, "hwq.product_hypotheses": 8, "hwq.observation": 8,
    "hwq.demo": 9, "hwq.benchmark": 9,
    "hwq.cli": 10, "hwq.__main__": 11,
}  # fmt: skip
# Rooms of the same rank that must never see each other.
STRANGERS = [("hwq.execution", "hwq.simulators")]
# Who opens each door; masking must come before NumPy, which hwq.kernels loads.
DOORS = {"hwq._kernels": ("hwq.kernels", "hwq.masking"), "hwq._simulators": ("hwq.simulators",)}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    found = [prefix for prefix in RANKS if module == prefix or module.startswith(prefix + ".")]
    return max(found, key=len) if found else None


def imports(path: Path) -> list[tuple[int, str]]:
    module, found = name_of(path), []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "hwq"]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}" if base else package
            if base.split(".")[0] == "hwq":
                found += [(node.lineno, f"{base}.{alias.name}" if base == "hwq" else base) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = room(name_of(path))
    assert here is not None, (
        f"{name_of(path)} has no rank: give it one in tests/test_layers.py and a place in the README's map"
    )
    for line, target in imports(path):
        if target == "hwq.__version__":
            continue  # a fact of the package, no room
        there = room(target)
        if target == "hwq.__version__":
            continue
        if there is None:
            # `import hwq` or a promised name of it: only the top of the house may use the public surface.
            assert RANKS[here] >= 8, f"{path.name}:{line} uses the public surface from rank {RANKS[here]}"
            continue
        if there == here:
            continue
        assert RANKS[there] <= RANKS[here], (
            f"{path.name}:{line}: {here} (rank {RANKS[here]}) imports {target} (rank {RANKS[there]})"
        )
        assert (here, there) not in STRANGERS and (there, here) not in STRANGERS, (
            f"{path.name}:{line}: {here} must not see {there}"
        )
        if there in DOORS:
            assert here in DOORS[there], f"{path.name}:{line}: only {DOORS[there]} opens {there}"


@pytest.mark.parametrize("house", ["kernels", "simulators"])
def test_c_houses_never_heard_of_python(house: str) -> None:
    other = {"kernels": "hwq/simulators.h", "simulators": "hwq/kernels.h"}[house]
    sources = [*(ROOT / house).rglob("*.c"), *(ROOT / house).rglob("*.h")]
    assert sources
    for source in sources:
        text = source.read_text()
        assert "Python.h" not in text, source
        assert other not in text, f"{source} includes the other house"
        if "tests" not in source.parts:
            for word in ("malloc(", "calloc(", "realloc(", "free(", "printf(", "stdio.h"):
                assert word not in text or house == "simulators", f"{source} uses {word}"


def test_files_hold_one_idea() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in MODULES if (lines := path.read_text().count("\n")) > 450}
    assert not long, f"files over 450 lines: {long}"
