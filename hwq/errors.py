"""The one exception that hwq raises for bad input: what, where, why, remedy."""

from __future__ import annotations

from hwq.names import display_name

__all__ = ["Error", "NotSupportedYet"]


class Error(Exception):
    """Bad input, told so that the reader can mend it.

    Parameters
    ----------
    what : str
        What is wrong, in one sentence without a final full stop.
    where : str, optional
        File, node, tensor or key. Printed through `display_name`, so hostile names are safe.
    why : str, optional
        The rule or fact that makes it wrong.
    remedy : str, optional
        What to do about it.

    Attributes
    ----------
    what, where, why, remedy : str or None
        The four parts, as given.
    """

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None):
        self.what = what
        self.where = where
        self.why = why
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [display_name(self.what, limit=400)]
        if self.where:
            parts[0] = f"{display_name(self.where, limit=300)}: {parts[0]}"
        if self.why:
            parts.append(f"why: {display_name(self.why, limit=600)}")
        if self.remedy:
            parts.append(f"remedy: {display_name(self.remedy, limit=600)}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process pools; keyword arguments do not survive the default pickling.
        return (_rebuild, (type(self), self.what, self.where, self.why, self.remedy))


class NotSupportedYet(Error):
    """A promised name whose room is not built yet."""

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, remedy: str | None = None):
        super().__init__(
            what if what.startswith("not supported yet") else f"not supported yet: {what}",
            where=where,
            why=why,
            remedy=remedy,
        )


def _rebuild(kind: type[Error], what: str, where: str | None, why: str | None, remedy: str | None) -> Error:
    return kind(what, where=where, why=why, remedy=remedy)
