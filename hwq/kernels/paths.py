"""Which path (ISA variant) the kernels run on, and the op x path matrix."""

from __future__ import annotations

import os

from hwq import _kernels
from hwq.errors import Error

__all__ = ["available_isas", "isa", "matrix", "use_isa"]


class _Chosen:
    """What `use_isa` returns: as a context manager it puts the former path back."""

    def __init__(self, before: int):
        self._before = before

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        _kernels.choose(self._before)


def isa() -> str:
    """Name of the path in use: the best that the CPU has, unless ``HWQ_ISA`` or `use_isa` says otherwise."""
    return str(_kernels.paths()[_kernels.chosen()])


def available_isas() -> tuple[str, ...]:
    """Paths that this CPU and this build can run, ``ref`` first."""
    return tuple(name for i, name in enumerate(_kernels.paths()) if _kernels.available(i))


def use_isa(name: str) -> _Chosen:
    """Run every kernel of this process on the path `name`; every path gives the same bits.

    Returns
    -------
    context manager
        Optional: ``with use_isa("ref"): ...`` puts the former path back.

    Raises
    ------
    Error
        There is no such path, or this CPU cannot run it.
    """
    before = _kernels.chosen()
    names = _kernels.paths()
    if name not in names or not _kernels.choose(names.index(name)):
        raise Error(
            f"the kernel path {name} is not available",
            why="this CPU or this build lacks it" if name in names else "no such path",
            remedy=f"one of: {', '.join(available_isas())}",
        )
    return _Chosen(before)


def matrix() -> list[tuple[str, str, bool]]:
    """Every (op, path, present): has the path its own code for the op? What is absent runs its parent's."""
    paths = _kernels.paths()
    return [(op, path, _kernels.present(i, j)) for i, op in enumerate(_kernels.ops()) for j, path in enumerate(paths)]


def ceiling(scheme: str, rounds: int) -> int:
    """Run `rounds` of the register-only loop of a GEMM scheme (kernels.h names them): the MACs it stands for, or 0."""
    return _kernels.ceiling(scheme, rounds)


def markdown() -> str:
    """`matrix` as the table of kernels/README.md: a dot where a path has its own code."""
    rows: dict[str, list[bool]] = {}
    for op, _, present in matrix():
        rows.setdefault(op, []).append(present)
    paths = _kernels.paths()
    lines = [f"| op | {' | '.join(paths)} |", f"|---|{'---|' * len(paths)}"]
    lines += [f"| `{op}` | {' | '.join('●' if present else ' ' for present in row)} |" for op, row in rows.items()]
    return "\n".join(lines)


def _obey_environment() -> None:
    wish = os.environ.get("HWQ_ISA")
    if wish:
        use_isa(wish)


_obey_environment()
