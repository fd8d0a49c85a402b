"""The embedded default: a small MobileNet-style CNN for 8x8 digits, and the images to calibrate and score it.

`hwq.demo.train` made both files and says where the data come from and under which licenses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Digits", "data", "data_path", "model_path"]


class Digits(NamedTuple):
    """Images as the model takes them (float32, N x 1 x 8 x 8, pixel / 16 in 0..1) and their labels (int64, 0..9).

    Attributes
    ----------
    calibration : ndarray of float32, shape (200, 1, 8, 8)
        From the training part: what choices may be made on.
    calibration_labels : ndarray of int64, shape (200,)
    images : ndarray of float32, shape (500, 1, 8, 8)
        The test part, never seen in training or calibration.
    labels : ndarray of int64, shape (500,)
    """

    calibration: NDArray[np.float32]
    calibration_labels: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def model_path() -> Path:
    """Path of the float ONNX model: input ``image`` (N, 1, 8, 8) float32 in 0..1, output ``logits`` (N, 10)."""
    return Path(__file__).with_name("digits.onnx")


def data_path() -> Path:
    """Path of the ``.npz`` with uint8 pixels 0..16, labels, and each image's row in scikit-learn's digits."""
    return Path(__file__).with_name("digits.npz")


def data() -> Digits:
    """Calibration images, test images and their labels, as the model takes them."""
    import numpy as np

    from hwq.files import read_npz

    arrays = read_npz(data_path())

    def scale(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        # A pixel counts the ink of a 4x4 cell, 0..16; sixteenths are exact in float32.
        return (pixels.astype(np.float32) / np.float32(16))[:, None, :, :]

    return Digits(
        scale(arrays["calibration_images"]),
        arrays["calibration_labels"].astype(np.int64),
        scale(arrays["test_images"]),
        arrays["test_labels"].astype(np.int64),
    )
