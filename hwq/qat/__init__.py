"""Quantization-aware training (the torch extra): fake-quant modules whose forward pass equals the integer kernels bit for bit.

`prepare` quantizes a model as a plan says, lowers it as the plan's dialect does, and rebuilds every lowered group in PyTorch
on the stored integers themselves: sums of products are exact, requantization takes the dialect's own multiplier and
rounding. Gradients pass the roundings straight through (STE), which makes the derivatives by weights and scales those of
LSQ (Esser et al. 2020). `convert` writes the trained integers and scales back into the quantized Graph.

>>> prepared = hwq.qat.prepare(graph, plan, batches=images)      # doctest: +SKIP
>>> hwq.qat.distill(prepared, images, epochs=5)                  # doctest: +SKIP
>>> q = hwq.qat.convert(prepared)                                # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hwq.errors import Error
from hwq.graph import Array, Graph

if TYPE_CHECKING:
    from hwq.batches import Batches
    from hwq.calibration import Calibration
    from hwq.plan import Plan

__all__ = ["convert", "distill", "prepare"]

VERSION = "2.13.0"


def prepare(
    model: Any,
    plan: Plan | None = None,
    example_inputs: Any = None,
    *,
    calibration: Calibration | None = None,
    batches: Batches | None = None,
    dynamic_shapes: Any = None,
) -> Any:
    """A model made ready for quantization-aware training.

    Parameters
    ----------
    model : torch.nn.Module or Graph
        A module is imported in evaluation mode, its batch normalization folded with the running statistics and so frozen.
        A Graph is float, or already quantized (then `plan` must be None: the graph's own scales and integers are the start).
    plan : Plan, optional
        As `hwq.quantize` takes it; its result is the start, and before the first step the prepared module computes exactly
        what that graph computes. Rounding, scales and bias correction of the plan therefore give a better start.
    example_inputs : optional
        For a module: what its ``forward`` takes. The batch dimension stays open where the module allows it.
    calibration : Calibration, optional
        Of the graph; made from `batches`, else from `example_inputs`, when it is not given.
    batches : batches, optional
        Samples for the calibration and for what the plan rounds against data.
    dynamic_shapes : optional
        For a module: as `torch.export.export` takes it.

    Returns
    -------
    torch.nn.Module
        ``prepared(x)`` gives the model's outputs, float32 tensors whose bits are those of ``hwq.compile(convert(prepared))``.
        ``prepared.trace(x)`` gives every tensor as it is stored. Parameters: weights in units of their first scale, biases
        in steps of their layer's output, for each scale its factor over the first value, and weights, gains, slopes and
        embeddings that stay float; ``prepared.frozen`` names the float constants that keep their value. Ranges that are
        computed at run time are not learned.

    Raises
    ------
    Error
        PyTorch is missing, the model and the plan do not fit together, or a layer has no differentiable form.
    """
    _need("torch", f"torch=={VERSION}")
    from hwq.qat.preparation import prepared

    return prepared(model, plan, example_inputs, calibration, batches, dynamic_shapes)


def convert(prepared: Any) -> Graph:
    """The quantized Graph that a prepared module has become.

    It has the structure that `hwq.quantize` made, with the trained integers, scales and int32 biases; it runs, exports and
    is costed like any other, and gives the prepared module's bits.

    Raises
    ------
    Error
        `prepared` was not made by `prepare`, or training has driven a value out of its stored type.
    """
    _need("torch", f"torch=={VERSION}")
    from hwq.qat.conversion import converted

    return converted(prepared)


def distill(
    prepared: Any,
    samples: Array | Mapping[str, Array],
    labels: Array | None = None,
    *,
    teacher: Callable[..., Any] | None = None,
    epochs: int = 5,
    batch: int = 64,
    rate: float = 1e-2,
    temperature: float = 1.0,
    label_weight: float = 0.0,
    augment: Callable[[Any], Any] | None = None,
    average: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[float]:
    """Train a prepared module to give what its float model gives (Hinton et al. 2015), with Adam and a cosine schedule.

    The loss is ``T^2 KL(softmax(teacher / T) || softmax(student / T))`` over the last axis of every float output, or of the
    values that enter its Softmax; of outputs whose last axis has one element the squared difference over the teacher's mean
    square. Losses of several outputs are added, and with labels ``label_weight`` times the cross entropy of the first.

    Parameters
    ----------
    prepared : torch.nn.Module
        From `prepare`; trained in place. What ``requires_grad_(False)`` was said to (``prepared.weights``, say) stays as it is.
    samples : array or mapping of input name to array
        One array where the model has one input; samples lie along the first axis.
    labels : integer array (samples,), optional
    teacher : callable, optional
        Takes a batch as tensors and gives logits, one tensor or one for each output; default: the float model that was prepared.
    epochs, batch : int
    rate : float
        Peak step of Adam. Every parameter is in units of its own scale, so one rate serves all layers: 1e-2 is a hundredth of
        a step of the weights' grid or of the output's; scales move by 0.03 of it, relative to their first value.
    temperature : float
    label_weight : float
    augment : callable, optional
        Changes a batch (a tensor) before teacher and student see it.
    average : float
        Decay a step of the moving average of weights, biases and scales that takes their place at the end, from 0 (none) to
        below 1: 0.98 remembers about 50 steps. Weights that oscillate between two integers settle on the likelier one.
    seed : int
        Of the order of the samples; the same seed, thread count and versions give the same bits.
    progress : callable, optional
        Called as ``progress(done, total, "qat: steps")``.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    Error
        There are no samples, labels do not fit, nothing can be trained, a number makes no training (epochs of 0, an average of
        1), or the loss is not finite.
    """
    _need("torch", f"torch=={VERSION}")
    from hwq.qat.training import distilled

    return distilled(
        prepared,
        samples,
        labels,
        teacher,
        epochs,
        batch,
        rate,
        temperature,
        label_weight,
        augment,
        average,
        seed,
        progress,
    )


def _need(name: str, requirement: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise Error(
            f"{name} is not installed",
            why="quantization-aware training runs on it",
            remedy=f"pip install {requirement}",
        ) from error
