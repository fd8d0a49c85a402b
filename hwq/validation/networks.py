"""The networks that quantization methods are scored on, and the protocol of each: what calibrates, what is scored.

The digits network of the package is always there; the others are read from a folder of real models (`$HWQ_SHARED/models`),
each only if its files are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hwq
from hwq import demo
from hwq.errors import Error
from hwq.files import read_npz
from hwq.graph import Array, Graph, Node, Tensor
from hwq.standardization import standardized

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True, eq=False)
class Network:
    """A float model with the samples that choices may be made on and those that are scored once.

    Attributes
    ----------
    name : str
    graph : Graph
        Float, channels first, so that it can be exported for runtimes that read ONNX.
    calibration, images : float32 arrays, samples first
        They share no sample.
    labels : int array
        Of `images`.
    protocol : str
    brief : bool
        The network is large: only the candidates of each group are scored.
    """

    name: str
    graph: Graph
    calibration: Array
    images: Array
    labels: Array
    protocol: str
    brief: bool = False


def digits(_folder: Path | None) -> Network | None:
    """The demo's network on scikit-learn's digits."""
    data = demo.data()
    return Network(
        "digits", hwq.load(str(demo.model_path())), data.calibration, data.images, data.labels,
        "scikit-learn's digits (BSD-3): 200 training images calibrate, 500 test images are scored",
    )  # fmt: skip


def keyword_spotting(folder: Path | None) -> Network | None:
    """DS-CNN of MLPerf Tiny on 49 x 10 MFCC features."""
    path, data = _files(folder, "kws/ds_cnn_f32.onnx", "kws/kws_mfcc_1000.npz")
    if path is None or data is None:
        return None
    arrays = read_npz(data)
    # The features are stored as the official int8 model's input: scale 0.5847029, zero point 83.
    features = ((arrays["x_int8"].astype(np.float32) - 83) * np.float32(0.5847029)).reshape(-1, 1, 49, 10)
    order = np.random.default_rng(0).permutation(len(features))
    return Network(
        "DS-CNN", hwq.load(str(path)), features[order[:100]], features[order[100:]], arrays["y"][order[100:]],
        "rng(0).permutation(1000): the first 100 calibrate, the other 900 are scored",
    )  # fmt: skip


def image_classification(folder: Path | None) -> Network | None:
    """ResNet-8 of MLPerf Tiny on CIFAR-10."""
    return _cifar(folder, "ResNet-8", "ic/resnet8_f32.onnx", 6)


def wide_image_classification(folder: Path | None) -> Network | None:
    """The wider ResNet that lies beside it, float TFLite."""
    return _cifar(folder, "wide ResNet", "ic/pretrainedResnet_large_float.tflite", 50, brief=True)


def _cifar(folder: Path | None, name: str, model: str, every: int, brief: bool = False) -> Network | None:
    path, train = _files(folder, model, "ic/cifar10_train3000.npz")
    _, test = _files(folder, model, "ic/cifar10_test1017.npz")
    if path is None or train is None or test is None:
        return None
    first, second = read_npz(train), read_npz(test)
    images = [np.ascontiguousarray(one["x"].transpose(0, 3, 1, 2).astype(np.float32)) for one in (first, second)]
    graph = hwq.load(str(path))
    count = -(-len(images[0]) // every)
    return Network(
        name, channels_first(graph), np.ascontiguousarray(images[0][::every]), images[1], second["y"],
        f"every {every}th of {len(images[0])} training images calibrates ({count}), {len(images[1])} test images are scored", brief,
    )  # fmt: skip


def channels_first(graph: Graph) -> Graph:
    """The same function with NCHW images; a graph that has no channels-last operator comes back as it is.

    Raises
    ------
    Error
        An operator that neither is a convolution or pool nor works element by element reads an image, such as a Flatten
        of more than one pixel.
    """
    plain = standardized(graph)
    if not any(node.layout == "NHWC" for node in plain.nodes):
        return plain
    tensors = {
        name: dataclasses.replace(one, shape=_moved(one.shape)) if one.data is None and len(one.shape) == 4 else one
        for name, one in plain.tensors.items()
    }
    nodes = []
    for node in plain.nodes:
        given = plain.tensors[node.inputs[0]].shape
        if len(given) == 4 and not _indifferent(node, given):
            raise Error(f"{node.op} of a channels-last image", where=f"node {node.name}")
        if node.op == "Conv":
            weight = plain.constant(node.inputs[1])
            assert weight is not None  # `standardized` says so
            turned = np.ascontiguousarray(np.moveaxis(weight, -1, 1))
            tensors[node.inputs[1]] = Tensor(node.inputs[1], "float32", turned.shape, turned)
        nodes.append(dataclasses.replace(node, layout=""))
    return plain.replace(nodes=nodes, tensors=list(tensors.values()), dialect="ort")


def _moved(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return shape[0], shape[3], shape[1], shape[2]


def _indifferent(node: Node, shape: tuple[int | str, ...]) -> bool:
    """Whether the operator's meaning does not depend on where the channels stand."""
    return (
        node.layout == "NHWC" or node.op in {"Relu", "Add", "Clip"} or (node.op == "Flatten" and shape[1:3] == (1, 1))
    )


def _files(folder: Path | None, *names: str) -> tuple[Path | None, ...]:
    found = [None if folder is None else folder / name for name in names]
    there = all(path is not None and path.is_file() for path in found)
    return tuple(found) if there else (None,) * len(names)


NETWORKS: tuple[Callable[[Path | None], Network | None], ...] = (
    digits,
    keyword_spotting,
    image_classification,
    wide_image_classification,
)
