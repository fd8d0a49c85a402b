"""hwq scalesim beside the real tool, where an environment has it (HWQ_SCALESIM names its interpreter)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwq.benchmark.simulators import Case, cases, compare
from hwq.errors import Error


def test_every_dataflow_and_mode_is_a_case() -> None:
    assert len(set(cases())) == 6


def test_a_missing_tool_is_told(tmp_path: Path) -> None:
    with pytest.raises(Error, match="interpreter"):
        compare(tmp_path / "python")
    (tmp_path / "python").write_text("#!/bin/sh\necho no module >&2; exit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(Error, match="failed"):
        compare(tmp_path / "python")


@pytest.mark.skipif("HWQ_SCALESIM" not in os.environ, reason="HWQ_SCALESIM names no interpreter with scalesim==3.0.0")
def test_reports_are_identical_and_hundreds_of_times_cheaper() -> None:
    (found,) = compare(Path(os.environ["HWQ_SCALESIM"]), [Case("ws", "USER")])
    assert found.identical and found.ratio > 500
