"""The README keeps its word: its scripts run, its matrix is the dispatch table, its files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = dict(re.findall(r"<!-- script: (\w+) -->\n```python\n(.*?)```", README, re.DOTALL))


def test_there_are_three_short_scripts() -> None:
    assert set(SCRIPTS) == {"kernels", "cost", "plan"}
    assert all(script.count("\n") <= 25 for script in SCRIPTS.values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[name]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if name == "plan":
        assert {path.name for path in tmp_path.iterdir()} >= {"digits_int8.onnx", "digits.html"}


def test_the_five_lines_about_accuracy_run(tmp_path, monkeypatch) -> None:
    import numpy as np
    from typer.testing import CliRunner

    import hwq
    from hwq import demo
    from hwq.cli import app

    digits = demo.data()
    (tmp_path / "m.onnx").write_bytes(Path(demo.model_path()).read_bytes())
    np.savez(tmp_path / "d.npz", x=digits.images[:12], y=digits.labels[:12])
    graph = hwq.load(tmp_path / "m.onnx")
    hwq.calibrate(graph, digits.calibration).save(tmp_path / "c.npz")
    # One layer of the plan is bad.
    rule = '[[layers]]\nmatch = { name = "stem/conv" }\nweights = { dtype = "int4", granularity = "tensor" }\n'
    (tmp_path / "p.toml").write_text(hwq.Plan.uniform("int8", "uint8", dialect="hwq").to_toml() + rule)
    (text,) = re.findall(r"<!-- commands: debugging -->\n```\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].split() for line in text.strip().splitlines()]
    assert len(lines) == 5
    monkeypatch.chdir(tmp_path)
    told = []
    for line in lines:
        ran = CliRunner().invoke(app, line[1:])
        assert line[0] == "hwq" and ran.exit_code == 0, ran.output
        told.append(ran.stdout)
    before, after = (float(re.search(r"output SQNR ([\d.-]+) dB", text)[1]) for text in (told[0], told[4]))  # type: ignore[index]
    assert after > before + 5


def test_the_kernels_script_needs_no_other_room() -> None:
    code = (
        SCRIPTS["kernels"]
        + "\nimport sys\nprint(sorted(name for name in sys.modules if name.startswith(('onnx', 'hwq.plan', 'hwq.ops', 'pydantic'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_it_starts_with_the_two_commands() -> None:
    first = re.search(r"```\n(.*?)```", README, re.DOTALL)
    assert first and [line.split("#")[0].strip() for line in first[1].strip().splitlines()] == [
        "make demo",
        "make test",
    ]


def test_the_matrix_is_the_dispatch_table() -> None:
    from hwq.kernels.paths import markdown

    shown = re.search(r"<!-- matrix: begin -->\n(.*?)<!-- matrix: end -->", README, re.DOTALL)
    assert shown and shown[1].strip() == markdown().strip(), "put hwq.kernels.paths.markdown() between the marks"


def test_commands_of_one_block_write_different_files() -> None:
    """Existing files are refused, and a page has report.json and layers.csv beside it."""
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL):
        names = re.findall(r"-o (\S+)", block)
        pages = [Path(name).parent for name in names if name.endswith(".html")]
        assert len(set(names)) == len(names) and len(set(pages)) == len(pages), block


def test_links_and_paths_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    (chart,) = re.findall(r"## The map\n(.*?)\n## ", README, re.DOTALL)
    for line in re.findall(r"^\| `([^|]+)` \|", chart, re.MULTILINE):
        for name in line.replace("`", "").replace(",", " ").split():
            base = "hwq/" if not (ROOT / name.rstrip("*")).exists() and not name.endswith("*") else ""
            assert (ROOT / base / name).exists() or list(ROOT.glob(name)), name
    for verb in re.findall(r"^\$ hwq (\w+)", README, re.MULTILINE):
        done = subprocess.run([sys.executable, "-m", "hwq", verb, "--help"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, verb
