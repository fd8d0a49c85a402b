"""Gradients that the forward pass does not say: straight through a rounding, and of one value for another."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

__all__ = ["finite", "instead", "instead_within", "round_through", "round_within", "scale_gradient"]


class _Round(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient


class _Instead(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, soft: Any, exact: Any) -> Any:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient, None


class _RoundWithin(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, low: float, high: float) -> Any:
        made = torch.round(x)
        ctx.save_for_backward(made)
        ctx.bounds = low, high
        return made.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _inside(gradient, *ctx.saved_tensors, *ctx.bounds), None, None


class _InsteadWithin(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, soft: Any, exact: Any, low: float, high: float) -> Any:
        ctx.save_for_backward(soft)
        ctx.bounds = low, high
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return _inside(gradient, *ctx.saved_tensors, *ctx.bounds), None, None, None


def _inside(gradient: Any, x: Any, low: float, high: float) -> Any:
    """The gradient where `x` is at most half a step beyond its bounds, 0 elsewhere: one pass over memory, without a mask."""
    return torch.ops.aten.hardtanh_backward(gradient, x, low - 0.5, high + 0.5)


class _Scale(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * ctx.factor, None


class _Finite(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return torch.nan_to_num(gradient, 0.0, 0.0, 0.0)


def finite(x: Any) -> Any:
    """`x`; where a function of it has no finite slope (a root of 0, which stored values are often), no gradient passes."""
    return _Finite.apply(x)


def round_through(x: Any) -> Any:
    """Nearest integer, ties to even; the gradient passes as if nothing had happened (STE, Bengio et al. 2013)."""
    return _Round.apply(x)


def round_within(x: Any, low: float, high: float) -> Any:
    """Nearest integer, clamped; the gradient passes where the integer needed no clamp."""
    return _RoundWithin.apply(x, float(low), float(high))


def instead_within(soft: Any, exact: Any, low: float, high: float) -> Any:
    """The value of `exact`, integers between the bounds, with the gradient of `soft` where it rounds to one of them."""
    return _InsteadWithin.apply(soft, exact, float(low), float(high))


def instead(soft: Any, exact: Any) -> Any:
    """The value of `exact` with the gradient of `soft`, which approximates it."""
    return _Instead.apply(soft, exact)


def scale_gradient(x: Any, factor: float) -> Any:
    """`x`, its gradient times `factor`."""
    return _Scale.apply(x, factor)
