"""The checks of the C house take minutes of their own: they run beside the Python tests, which ask for them last. And the network that many tests read."""

from __future__ import annotations

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
