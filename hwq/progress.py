"""The one progress callback of hwq's long-running calls."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """What a library call reports while it works; any callable with this signature will do.

    It is called from the thread that works, after each finished piece; an exception that it raises stops the work.
    """

    def __call__(self, done: int, total: int | None, what: str, /) -> None:
        """Report progress.

        Parameters
        ----------
        done : int
            Pieces finished so far, never falling within one call.
        total : int or None
            Pieces in all; None when the input is a stream of unknown length.
        what : str
            What a piece is, such as ``"calibrate: samples"``.
        """
