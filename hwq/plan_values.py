"""Given scales and zero points of a plan: numbers, lists, or arrays in files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.files import read_npz
from hwq.graph import Array
from hwq.names import display_name

__all__ = ["given_array"]


def given_array(given: Any, folder: str, where: str, files: dict[Path, dict[str, Array]]) -> Array:
    """The values of a number, a list, or ``"file:PATH.npz#NAME"``.

    Parameters
    ----------
    given : number, list or str
    folder : str
        Where relative paths start.
    where : str
        For the message.
    files : dict
        Archives that were read already; this one is added.

    Raises
    ------
    Error
        The file cannot be read, or holds no such array.
    """
    if not isinstance(given, str):
        return np.asarray(given)
    file, _, name = given.removeprefix("file:").rpartition("#")
    path = Path(folder) / file
    if path not in files:
        files[path] = read_npz(path)
    if name not in files[path]:
        raise Error(
            f"the file has no array {display_name(name)}",
            where=f"{where}, {path}",
            remedy=f"it holds {', '.join(display_name(key) for key in list(files[path])[:16])}",
        )
    return files[path][name]
