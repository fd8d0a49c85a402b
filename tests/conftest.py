"""The checks of the C house take minutes of their own: they run beside the Python tests, which ask for them last. And what many tests
stand on: a network, PyTorch's engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import c_checks
import pytest

from hwq.graph import Graph


def _builds(item: pytest.Item) -> bool:
    return Path(item.path).name == "test_c.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_builds)  # stable


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        c_checks.begin([item.name for item in session.items if _builds(item)])


def pytest_sessionfinish() -> None:
    c_checks.stop()


@pytest.fixture(scope="session")
def cnn() -> Graph:
    """`tiny.cnn`, loaded once: a Graph cannot change."""
    import tiny

    return tiny.graph(tiny.cnn())


@pytest.fixture
def fbgemm_engine() -> Iterator[None]:
    """PyTorch on one thread with its fbgemm engine."""
    import torch

    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no fbgemm engine")
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    yield
    torch.backends.quantized.engine = before
    torch.set_num_threads(threads)
