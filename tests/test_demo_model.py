"""The shipped demo model and images: what the files hold, scored by onnxruntime, checked against scikit-learn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwq import demo
from hwq.demo import train
from hwq.errors import Error


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(demo.model_path(), load_external_data=False)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_files_are_small() -> None:
    assert demo.model_path().stat().st_size + demo.data_path().stat().st_size < 1_000_000


def test_data_are_scaled_pixels_with_labels() -> None:
    digits = demo.data()
    assert digits.calibration.shape == (200, 1, 8, 8) and digits.images.shape == (500, 1, 8, 8)
    assert digits.calibration_labels.shape == (200,) and digits.labels.shape == (500,)
    for images, labels in ((digits.calibration, digits.calibration_labels), (digits.images, digits.labels)):
        assert images.dtype == np.float32 and labels.dtype == np.int64
        assert images.min() == 0.0 and images.max() == 1.0
        np.testing.assert_array_equal(images * 16, np.round(images * 16))
        assert set(labels) == set(range(10))


def test_calibration_and_test_do_not_overlap() -> None:
    digits = demo.data()
    calibration = {image.tobytes() for image in digits.calibration}
    test = {image.tobytes() for image in digits.images}
    assert len(calibration) == 200 and len(test) == 500 and not calibration & test


def test_images_are_scikit_learns() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, the source of the images, is not installed"
    )
    source = datasets.load_digits()
    with np.load(demo.data_path()) as arrays:
        for part in ("calibration", "test"):
            rows = arrays[f"{part}_rows"]
            np.testing.assert_array_equal(arrays[f"{part}_images"], source.images[rows])
            np.testing.assert_array_equal(arrays[f"{part}_labels"], source.target[rows])


def test_split_is_the_scripts() -> None:
    fit, held = train.split(1797)
    assert sorted([*fit, *held]) == list(range(1797))
    with np.load(demo.data_path()) as arrays:
        assert set(arrays["calibration_rows"]) <= set(fit)
        assert set(arrays["test_rows"]) == set(held)


def test_float_accuracy_under_onnxruntime() -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle of this test")
    digits = demo.data()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(demo.model_path()), options, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": digits.images})[0]
    assert logits.shape == (500, 10) and logits.dtype == np.float32
    assert np.mean(logits.argmax(axis=1) == digits.labels) >= 0.97
    # The batch is free, and one image alone is scored as in company.
    alone = session.run(["logits"], {"image": digits.images[:1]})[0]
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-4, atol=1e-4)


def test_it_survives_int8_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle of this test")
    import onnxruntime as ort
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    digits = demo.data()

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"image": digits.calibration}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    quantized = tmp_path / "int8.onnx"
    quantize_static(str(demo.model_path()), str(quantized), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # Exact u8s8 products on CPUs without VNNI; the default kernels saturate there.
    options.add_session_config_entry("session.x64quantprecision", "1")

    def answers(path: Path) -> np.ndarray:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"image": digits.images})[0].argmax(axis=1)

    assert np.mean(answers(quantized) == answers(demo.model_path())) >= 0.98


def test_interface(model: onnx.ModelProto) -> None:
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    (image,), (logits,) = model.graph.input, model.graph.output
    dims = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (image, logits)]
    assert (image.name, logits.name) == ("image", "logits")
    assert dims == [["N", 1, 8, 8], ["N", 10]]
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and {"stem/conv", "block1/depthwise", "head/dense"} <= set(names)


def test_kinds_of_layers(model: onnx.ModelProto) -> None:
    shapes = _shapes(model)
    kinds, strides = [], []
    for node in model.graph.node:
        if node.op_type != "Conv":
            kinds.append(node.op_type)
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        outputs, per_group, height, width = shapes[node.input[1]]
        assert attributes["kernel_shape"] == [height, width]
        strides.append(attributes["strides"][0])
        if attributes["group"] == outputs and per_group == 1 and outputs > 1:
            kinds.append("depthwise")
        else:
            assert attributes["group"] == 1
            kinds.append("pointwise" if height == width == 1 else "standard")
    assert kinds.count("standard") == 1 and kinds.count("depthwise") == 3 and kinds.count("pointwise") == 3
    assert kinds.count("Clip") == 1 and kinds.count("Relu") == 6 and kinds.count("Add") == 1
    assert kinds[-3:] == ["GlobalAveragePool", "Flatten", "Gemm"]
    assert sorted(strides) == [1, 1, 1, 1, 1, 1, 2]
    assert "BatchNormalization" not in kinds


def test_parameters_and_macs(model: onnx.ModelProto) -> None:
    # By hand: outputs * (inputs / groups * k * k + 1) per layer; the two scalars are the bounds of ReLU6.
    by_hand = 16 * 10 + 16 * 10 + 32 * 17 + 32 * 10 + 64 * 33 + 64 * 10 + 64 * 65 + 10 * 65
    assert sum(int(np.prod(shape)) for shape in _shapes(model).values()) == by_hand + 2 == 8748
    # Output positions * weights: 8x8 up to block1, 4x4 after the stride.
    macs_by_hand = 64 * (16 * 9 + 16 * 9 + 32 * 16) + 16 * (32 * 9 + 64 * 32 + 64 * 9 + 64 * 64) + 640
    inferred = onnx.shape_inference.infer_shapes(model)
    places = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][2:] for v in inferred.graph.value_info}
    shapes = _shapes(model)
    macs = sum(
        int(np.prod(shapes[node.input[1]])) * int(np.prod(places.get(node.output[0], [])))
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    )
    assert macs == macs_by_hand == 163_968


def test_clip_is_relu6(model: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (clip,) = [node for node in model.graph.node if node.op_type == "Clip"]
    low, high = (constants[name] for name in clip.input[1:])
    assert low.shape == high.shape == () and (low, high) == (0.0, 6.0)


def test_training_script_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Error, match=r"torch==2\.13\.0") as caught:
        train.train(np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64))
    assert caught.value.remedy == "pip install torch==2.13.0"
    assert train.main(["--out", str(tmp_path / "model")]) == 2
    assert "torch==2.13.0" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_training_again_reaches_the_promise(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch, which trains the demo model, is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn, the source of the images, is not installed")
    assert train.main(["--out", str(tmp_path)]) == 0
    again = onnx.load(tmp_path / "digits.onnx")
    shipped = onnx.load(demo.model_path())
    assert [n.SerializeToString() for n in again.graph.node] == [n.SerializeToString() for n in shipped.graph.node]
    assert _shapes(again) == _shapes(shipped)
    digits = demo.data()
    assert train.score(again, digits.images, digits.labels) >= 0.97
    with np.load(tmp_path / "digits.npz") as new, np.load(demo.data_path()) as old:
        assert set(new.files) == set(old.files)
        for name in new.files:
            np.testing.assert_array_equal(new[name], old[name])
    assert train.main(["--out", str(tmp_path)]) == 2  # never overwritten unasked
