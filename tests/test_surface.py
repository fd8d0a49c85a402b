"""The public surface: every promised name is there, what comes later says so, importing is light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hwq

ROOT = Path(__file__).resolve().parent.parent

PROMISED = ["load", "calibrate", "Plan", "quantize", "lower", "compile", "execute", "compare", "estimate", "export", "report", "accelerators",
            "dialects", "explain", "kernels", "Graph", "Calibration", "Accelerator", "Estimate", "Quantization", "Error"]  # fmt: skip
LATER = ["check", "search"]


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_is_there_and_documented(name: str) -> None:
    value = getattr(hwq, name)
    assert (value.__doc__ or "").strip()
    assert name in dir(hwq) and name in hwq.__all__


@pytest.mark.parametrize("name", LATER)
def test_what_comes_later_says_so(name: str) -> None:
    with pytest.raises(hwq.NotSupportedYet, match=r"not supported yet: .+"):
        getattr(hwq, name)("model.onnx", budget=1)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        hwq.quantise  # noqa: B018


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print(*sys.modules)"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_is_light() -> None:
    assert not loaded("import hwq") & {"numpy", "onnx", "pydantic", "rich", "typer", "matplotlib", "jinja2"}


def test_help_needs_no_numpy() -> None:
    code = "import contextlib, io\nfrom hwq.cli import app\nwith contextlib.redirect_stdout(io.StringIO()):\n    app(['--help'], standalone_mode=False)"
    assert not loaded(code) & {"numpy", "onnx", "pydantic", "matplotlib", "jinja2"}


def test_a_source_tree_without_kernels_says_what_to_do(tmp_path) -> None:
    tree = tmp_path / "tree"
    (tree / "hwq").mkdir(parents=True)
    (tree / "setup.py").touch()
    (tree / "hwq" / "__init__.py").write_text((ROOT / "hwq" / "__init__.py").read_text())
    done = subprocess.run([sys.executable, "-c", "import hwq"], cwd=tree, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "make dev" in done.stderr and str(tree) in done.stderr


def test_a_wheel_holds_hwq_alone(tmp_path) -> None:
    """Without package finding told what to include, kernels/, simulators/, tests/ and reports/ would be installed too."""
    pytest.importorskip("setuptools", "77")
    done = subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path), "--bdist-dir", str(tmp_path / "build")],
                          cwd=ROOT, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hwq"}
    assert "cp311-abi3" in wheel.name
    for needed in (
        "hwq/py.typed",
        "hwq/_kernels.pyi",
        "hwq/demo/digits.onnx",
        "hwq/demo/digits.npz",
        "hwq/simulators/accelerators/t4.toml",
    ):
        assert needed in names, needed
    assert any(name.startswith("hwq/_kernels") and name.endswith(".so") for name in names)
    assert any(name.startswith("hwq/reporting/") and name.endswith(".html") for name in names)
