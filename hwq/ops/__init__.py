"""Operators, one family a file. `load()` registers them all."""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["load"]

_loaded = False


def load() -> None:
    """Import every family once, so that `hwq.ops.base.REGISTRY` is complete."""
    global _loaded
    if not _loaded:
        _loaded = True
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
