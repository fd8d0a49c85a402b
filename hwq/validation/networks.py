"""The networks that quantization methods are scored on, and the protocol of each: what calibrates, what is scored.

The digits network of the package is always there; the others are read from a folder of real models (`$HWQ_SHARED/models`),
each only if its files are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hwq
from hwq import demo
from hwq.files import read_npz
from hwq.graph import Array, Graph

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True, eq=False)
class Network:
    """A float model with the samples that choices may be made on and those that are scored once.

    Attributes
    ----------
    name : str
    path : Path
        Of the ONNX model, for runtimes that read files.
    graph : Graph
    calibration, images : float32 arrays, samples first
        They share no sample.
    labels : int array
        Of `images`.
    protocol : str
    """

    name: str
    path: Path
    graph: Graph
    calibration: Array
    images: Array
    labels: Array
    protocol: str


def digits(_folder: Path | None) -> Network | None:
    """The demo's network on scikit-learn's digits."""
    data = demo.data()
    return Network(
        "digits", demo.model_path(), hwq.load(str(demo.model_path())), data.calibration, data.images, data.labels,
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
        "DS-CNN", path, hwq.load(str(path)), features[order[:100]], features[order[100:]], arrays["y"][order[100:]],
        "rng(0).permutation(1000): the first 100 calibrate, the other 900 are scored",
    )  # fmt: skip


def image_classification(folder: Path | None) -> Network | None:
    """ResNet-8 of MLPerf Tiny on CIFAR-10."""
    path, train = _files(folder, "ic/resnet8_f32.onnx", "ic/cifar10_train3000.npz")
    _, test = _files(folder, "ic/resnet8_f32.onnx", "ic/cifar10_test1017.npz")
    if path is None or train is None or test is None:
        return None
    first, second = read_npz(train), read_npz(test)
    images = [np.ascontiguousarray(one["x"].transpose(0, 3, 1, 2).astype(np.float32)) for one in (first, second)]
    return Network(
        "ResNet-8", path, hwq.load(str(path)), np.ascontiguousarray(images[0][::6]), images[1], second["y"],
        "every sixth of 3000 training images calibrates (500), 1017 test images are scored",
    )  # fmt: skip


def _files(folder: Path | None, *names: str) -> tuple[Path | None, ...]:
    found = [None if folder is None else folder / name for name in names]
    there = all(path is not None and path.is_file() for path in found)
    return tuple(found) if there else (None,) * len(names)


NETWORKS: tuple[Callable[[Path | None], Network | None], ...] = (digits, keyword_spotting, image_classification)
