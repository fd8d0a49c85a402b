"""The table of modes in kernels/README.md: which kernel each mode of a plan calls, found by watching the calls.

``PYTHONPATH=tests python tests/test_modes_table.py`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from test_estimation_modes import product_of
from test_modes import MODES, layer, plan_of

import hwq
from hwq import _kernels
from hwq.exporters.onnx import to_model

README = Path(__file__).resolve().parent.parent / "kernels" / "README.md"
BEGIN, END = "<!-- modes -->\n", "<!-- /modes -->"
KINDS = ("gemm", "matmul", "conv", "depthwise")
NAMES = {
    "gemm_s16": lambda arguments: "gemm_s16s8",
    "gemm_s4": lambda arguments: "gemm_f32s4" if str(getattr(arguments[0], "dtype", "")) == "float32" else "gemm_s4",
    "gemm_f32s8": lambda arguments: "gemm_f32s8",
    "gemm_half": lambda arguments: "gemm_f32",
    "gemm_f32": lambda arguments: "gemm_f32",
    "gemm_sequential": lambda arguments: "gemm_sequential",
    "gemm": lambda arguments: "gemm_s8s8" if arguments[1] else "gemm_u8s8",
}


@contextmanager
def watched() -> Iterator[list[str]]:
    """The kernels of products that run meanwhile."""
    seen: list[str] = []
    kept = {name: getattr(_kernels, name) for name in (*NAMES, "conv")}

    def watch(name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            seen.append(convolution(arguments) if name == "conv" else NAMES[name](arguments))
            return kept[name](*arguments, **named)

        return call

    for name in kept:
        setattr(_kernels, name, watch(name))
    try:
        yield seen
    finally:
        for name, function in kept.items():
            setattr(_kernels, name, function)


def convolution(arguments: tuple[Any, ...]) -> str:
    """Of the door's arguments: the type of the image, and the taps of a depthwise convolution."""
    kind, taps = arguments[6], arguments[10]
    return ("conv" if taps is None else "depthwise") + ("_f32" if kind == _kernels.TYPES["float32"] else "_s32")


def row(name: str) -> list[str]:
    """Kernels of products, convolutions and depthwise ones; the operators in the file; what a machine is asked for."""
    kernels: list[str] = []
    for kind in KINDS:
        graph, x = layer(kind)
        q = hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))
        program = hwq.compile(q)
        with watched() as seen:
            program(x, intermediates=True)  # step by step: what C runs in one go calls the same kernels
        kernels.append(", ".join(f"`{one}`" for one in dict.fromkeys(seen)) or "NumPy, float64")
        if kind == "gemm":
            work = product_of(q)
            ops = to_model(q).graph.node
            blocks = any(a.name == "block_size" for node in ops for a in node.attribute)
            kept = [node.op_type for node in ops if node.op_type not in {"Relu"}]
            form = ", ".join(dict.fromkeys(kept)) + (" in blocks" if blocks else "")
    assert kernels[0] == kernels[1]
    return [name, kernels[0], kernels[2], kernels[3], form, f"{work.precision}, W{work.weight_bits} A{work.input_bits}"]


def markdown() -> str:
    head = ["mode", "Gemm, MatMul", "Conv", "depthwise", "operators in the ONNX file (of a Gemm)", "cost asks for"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row(name)) + " |" for name in MODES]
    return "\n".join(lines) + "\n"


def test_the_readme_holds_what_the_modes_call() -> None:
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == markdown()


if __name__ == "__main__":
    print(markdown(), end="")
