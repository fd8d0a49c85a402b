"""The quantized models of HWQ_SHARED against the installed LiteRT: no differing value, in every layer and at the output."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import shared

import hwq

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
MODELS = (
    "ad01_int8", "ic/pretrainedResnet_quant", "kws/kws_ref_model", "tiny/hello_world_int8", "tiny/micro_speech_quantized",
    "ic/pretrainedResnet_large_int8",
)  # fmt: skip
RANDOM = 4


def inputs(name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [rng.integers(-128, 128, shape).astype(np.int8) for _ in range(RANDOM)]
    if name.startswith("ic/"):
        images = np.load(shared("models", "ic", "cifar10_test1017.npz"))["x"][:RANDOM]
        found += [(image[None].astype(np.int16) - 128).astype(np.int8) for image in images]
    if name.startswith("kws/"):
        found += [
            row.reshape(shape) for row in np.load(shared("models", "kws", "kws_mfcc_1000.npz"))["x_int8"][:RANDOM]
        ]
    return found


@pytest.mark.parametrize("dialect", ["litert-ref", "litert-xnnpack"])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_litert_s(name: str, dialect: str) -> None:
    path = shared("models", *f"{name}.tflite".split("/"))
    graph = hwq.load(str(path))
    program = hwq.compile(graph, dialect)
    reference = dialect == "litert-ref"
    resolver = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    # Preserving every tensor would switch XNNPACK off, so there only outputs are compared.
    runtime = interpreter.Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=resolver,
        num_threads=1,
        experimental_preserve_all_tensors=reference,
    )
    runtime.allocate_tensors()
    entry, end = runtime.get_input_details()[0], runtime.get_output_details()[0]["index"]
    made = {value for node in graph.nodes for value in node.outputs}
    compared = 0
    for x in inputs(name, tuple(int(size) for size in entry["shape"])):
        runtime.set_tensor(entry["index"], x)
        runtime.invoke()
        y, seen = program(x, intermediates=True)
        np.testing.assert_array_equal(y, runtime.get_tensor(end))
        for detail in runtime.get_tensor_details() if reference else ():
            if detail["name"] in made and detail["name"] in seen:
                np.testing.assert_array_equal(seen[detail["name"]], runtime.get_tensor(detail["index"]))
                compared += 1
    assert compared or not reference
