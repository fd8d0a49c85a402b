"""Distillation: a prepared module learns to give what its float model gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hwq.errors import Error
from hwq.graph import Array
from hwq.qat.network import Network
from hwq.qat.state import require_prepared

__all__ = ["distilled"]

# A scale moves by this share of the rate: all weights of a channel, or a whole activation, move with it.
SCALE_SHARE = 0.03
# Share of the steps over which the rate rises to its peak.
WARM_UP = 0.05


def distilled(
    prepared: Any,
    samples: Array | Mapping[str, Array],
    labels: Array | None,
    teacher: Callable[..., Any] | None,
    epochs: int,
    batch: int,
    rate: float,
    temperature: float,
    label_weight: float,
    augment: Callable[[Any], Any] | None,
    average: float,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> list[float]:
    """See `hwq.qat.distill`."""
    require_prepared(prepared)
    network: Network = prepared
    _require_settings(epochs, batch, rate, temperature, label_weight, average)
    feeds = _tensors(network, samples)
    count = len(next(iter(feeds.values())))
    answers = None if labels is None else torch.from_numpy(np.asarray(labels).astype(np.int64))
    if not count or (answers is not None and answers.shape != (count,)):
        raise Error(
            "there are no samples"
            if not count
            else f"{len(answers) if answers is not None else 0} labels for {count} samples",
            where="qat.distill",
            remedy="give at least one sample, and one class index a sample",
        )
    teach = teacher if teacher is not None else _teacher(network, label_weight)
    total = epochs * -(-count // batch)
    warm = max(1, int(total * WARM_UP))
    if not any(one.numel() and one.requires_grad for one in network.parameters()):
        raise Error(
            "there is nothing to train",
            where=f"graph {network.quantized.name}",
            why="the plan quantizes no weight, bias or activation of it, or none requires a gradient",
            remedy="prepare a model that has them, or another plan",
        )
    adam = _Adam([*network.weights, *network.biases, *network.floats], [*network.factors])
    means = _Means([*network.parameters()], average) if average else None
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    done = 0
    for _ in range(epochs):
        spent = 0.0
        for rows in torch.randperm(count, generator=generator).split(batch):
            part = {name: value[rows] for name, value in feeds.items()}
            if augment is not None:
                part = {name: augment(value) for name, value in part.items()}
            loss = _loss(network, teach, part, None if answers is None else answers[rows], temperature, label_weight)
            if not torch.isfinite(loss):
                raise Error("the loss is not finite", where="qat.distill", remedy="train with a smaller rate")
            loss.backward()
            adam.step(rate * min(1.0, (done + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done / total)))
            with torch.no_grad():
                for factor, scale in zip(network.factors, network.state.scales, strict=True):
                    factor.clamp_(*scale.limits)
            if means is not None:
                means.add()
            spent += float(loss.detach()) * len(rows)
            done += 1
            if progress is not None:
                progress(done, total, "qat: steps")
        losses.append(spent / count)
    if means is not None:
        means.put()
    return losses


class _Means:
    """Moving averages of trained values (Polyak and Juditsky 1992): what oscillates about the edge of a cell settles."""

    def __init__(self, values: list[Any], decay: float):
        self.values, self.decay, self.steps = values, decay, 0
        self.means = [torch.zeros_like(one) for one in values]

    def add(self) -> None:
        """Take in the values of this step; all steps count the same until there are as many as the decay remembers."""
        self.steps += 1
        share = max(1 / self.steps, 1 - self.decay)
        with torch.no_grad():
            for mean, value in zip(self.means, self.values, strict=True):
                mean.lerp_(value, share)

    def put(self) -> None:
        """The averages in the place of the values."""
        with torch.no_grad():
            for mean, value in zip(self.means, self.values, strict=True):
                value.copy_(mean)


def _require_settings(
    epochs: int, batch: int, rate: float, temperature: float, label_weight: float, average: float
) -> None:
    """Raise where a number makes no training."""
    wrong = [
        f"{name} = {value}"
        for name, value, fits in (
            ("epochs", epochs, epochs >= 1),
            ("batch", batch, batch >= 1),
            ("rate", rate, 0 < rate < math.inf),
            ("temperature", temperature, 0 < temperature < math.inf),
            ("label_weight", label_weight, 0 <= label_weight < math.inf),
            ("average", average, 0 <= average < 1),
        )
        if not fits
    ]
    if wrong:
        raise Error(
            f"no training has {', '.join(wrong)}",
            where="qat.distill",
            remedy="epochs and batch of at least 1, positive rate and temperature, label_weight from 0, average from 0 to below 1",
        )


class _Adam:
    """Adam (Kingma and Ba 2015) with its usual constants; torch.optim would import torch's compiler, some seconds."""

    def __init__(self, parameters: list[Any], scales: list[Any]):
        self.parameters = [*parameters, *scales]
        self.shares = [1.0] * len(parameters) + [SCALE_SHARE] * len(scales)
        self.first = [torch.zeros_like(one) for one in self.parameters]
        self.second = [torch.zeros_like(one) for one in self.parameters]
        self.steps = 0
        for one in self.parameters:
            one.grad = None  # of a backward pass of the caller's: its square would hold back a thousand steps

    def step(self, rate: float) -> None:
        """Move every parameter and forget its gradient."""
        self.steps += 1
        with torch.no_grad():
            for value, share, first, second in zip(self.parameters, self.shares, self.first, self.second, strict=True):
                if value.grad is None:
                    continue
                first.lerp_(value.grad, 0.1)
                second.mul_(0.999).addcmul_(value.grad, value.grad, value=0.001)
                deviation = (second / (1 - 0.999**self.steps)).sqrt_().add_(1e-12)
                value.addcdiv_(first, deviation, value=-rate * share / (1 - 0.9**self.steps))
                value.grad = None


def _tensors(network: Network, samples: Array | Mapping[str, Array]) -> dict[str, Any]:
    named = samples if isinstance(samples, Mapping) else {network.lowered.inputs[0]: samples}
    if set(named) != set(network.lowered.inputs):
        raise Error(
            "the samples do not fit the model's inputs",
            where="qat.distill",
            remedy=f"give arrays for {', '.join(network.lowered.inputs[:16])}",
        )
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in named.items()}


def _teacher(network: Network, label_weight: float) -> Callable[..., Any] | None:
    if network.teacher is not None:
        logits: Callable[..., Any] = network.teacher.logits
        return logits
    if label_weight <= 0:
        raise Error(
            "there is no float model to learn from",
            where="qat.distill",
            why="the module was prepared from a quantized graph",
            remedy="pass teacher=, or labels and label_weight",
        )
    return None


def _loss(
    network: Network,
    teach: Callable[..., Any] | None,
    part: Mapping[str, Any],
    answers: Any,
    temperature: float,
    label_weight: float,
) -> Any:
    logits = network.logits(**part)
    if not any(one.requires_grad for one in logits):
        raise Error(
            "no parameter reaches the outputs",
            where=f"graph {network.quantized.name}",
            why="they are places, comparisons, or inputs as they came",
            remedy="prepare the part of the model in front of them",
        )
    loss = torch.zeros(())
    if teach is not None:
        with torch.no_grad():
            wanted = teach(**part)
        several = isinstance(wanted, (tuple, list))
        for given, right in zip(logits, wanted if several else [wanted], strict=False):
            loss = loss + _distance(given, right, temperature)
    if answers is not None and label_weight > 0:
        loss = loss + label_weight * F.cross_entropy(logits[0], answers)
    return loss


def _distance(given: Any, wanted: Any, temperature: float) -> Any:
    """The divergence over the last axis; of single numbers the squared difference over the teacher's mean square."""
    if not given.ndim or given.shape[-1] == 1:
        return (given - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
    one, other = F.log_softmax(wanted / temperature, -1), F.log_softmax(given / temperature, -1)
    return temperature**2 * F.kl_div(other, one, reduction="none", log_target=True).sum(-1).mean()
