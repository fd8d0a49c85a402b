"""Gradients that the forward pass does not say: straight through a rounding, and of one value for another."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

__all__ = ["instead", "round_through", "scale_gradient"]


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


class _Scale(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient * ctx.factor, None


def round_through(x: Any) -> Any:
    """Nearest integer, ties to even; the gradient passes as if nothing had happened (STE, Bengio et al. 2013)."""
    return _Round.apply(x)


def instead(soft: Any, exact: Any) -> Any:
    """The value of `exact` with the gradient of `soft`, which approximates it."""
    return _Instead.apply(soft, exact)


def scale_gradient(x: Any, factor: float) -> Any:
    """`x`, its gradient times `factor`."""
    return _Scale.apply(x, factor)
