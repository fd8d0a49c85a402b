"""Names from files: whatever they hold, models load, run, print and save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bad_models import FLOAT, model
from onnx import helper, numpy_helper

from hwq.errors import Error
from hwq.graph import Graph
from hwq.importers import load
from hwq.names import csv_cell, html_name, plot_name, rich_name
from hwq.ops.base import lookup
from hwq.ops.evaluate import evaluate, fold, infer_shapes

HOSTILE = ["conv[/a]", r"$\frac{1$", "<script>alert(1)</script>", "=1+1", "\x1b[31mred\x1b[0m", "x" * 1_000_000, "../../etc/passwd", "a\nb\r\tc",
           "‮abc", "N", "1", "{0}", "%s%n", "'; DROP TABLE", " ", "\0", "[bold]", "a:b,c"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=[f"name{index}" for index in range(len(HOSTILE))])
def test_hostile_names_work_everywhere(name: str, tmp_path: Path) -> None:
    made = model([helper.make_node("Conv", [f"{name}x", f"{name}w", f"{name}b"], [f"{name}c"], name, pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"{name}c"], [name], name)],
                 [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), f"{name}w"), numpy_helper.from_array(np.zeros(4, np.float32), f"{name}b")],
                 inputs=[helper.make_tensor_value_info(f"{name}x", FLOAT, [name, 3, 8, 8])], outputs=[name])  # fmt: skip
    path = tmp_path / "hostile.onnx"
    path.write_bytes(made.SerializeToString())
    graph = load(path)
    assert (
        [node.op for node in graph] == ["Conv", "Relu"]
        and graph.nodes[0].origin == name
        and len({node.name for node in graph}) == 2
    )
    found = evaluate(fold(graph), {f"{name}x": np.ones((2, 3, 8, 8), np.float32)})
    assert found[name].max() == 27
    bound = infer_shapes(graph, batch=3)
    assert (
        bound.tensors[name].shape == (3, 4, 8, 8)
        and lookup(bound.nodes[0]).work(bound.nodes[0], bound).macs == 3 * 64 * 27 * 4
    )
    graph.save(tmp_path / "graph.npz")
    assert Graph.load(tmp_path / "graph.npz").hash == graph.hash == load(tmp_path / "graph.npz").hash
    text = graph.to_text()
    assert text.isprintable() or "\n" in text
    assert "\x1b" not in text and "\x00" not in text and "‮" not in text and len(text) < 5000
    assert (
        "<script" not in html_name(name)
        and "\x1b" not in rich_name(name)
        and not str(csv_cell(name)).startswith(("=", "+", "-", "@"))
    )
    assert "$" not in plot_name(name).replace(r"\$", "")
    with pytest.raises(Error) as caught:
        evaluate(graph, {f"{name}x": np.ones((2, 3, 8, 9), np.float32)})
    assert len(str(caught.value)) < 2000 and "\x1b" not in str(caught.value)
