"""Names that come from files, made safe for each place that prints them."""

from __future__ import annotations

import html
import unicodedata

__all__ = ["csv_cell", "display_name", "html_name", "plot_name", "rich_name"]

# Longest name shown; the middle of a longer one is cut, so that both its scope and its leaf stay readable.
LIMIT = 120


def display_name(name: object, limit: int = LIMIT) -> str:
    """Return `name` as one printable line of at most `limit` characters.

    Control, format (bidirectional overrides, zero-width) and surrogate characters become ``\\xNN`` / ``\\uNNNN``, so
    no terminal escape sequence survives.
    """
    text = str(name)
    if len(text) > limit:
        keep = (limit - 1) // 2
        text = text[:keep] + "…" + text[-keep:]
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _visible(character) else _escaped(character) for character in text)


def rich_name(name: object, limit: int = LIMIT) -> str:
    """`display_name` with rich's markup escaped."""
    from rich.markup import escape

    return escape(display_name(name, limit))


def html_name(name: object, limit: int = LIMIT) -> str:
    """`display_name` escaped for HTML text and quoted attributes."""
    return html.escape(display_name(name, limit), quote=True)


def plot_name(name: object, limit: int = 40) -> str:
    """`display_name` with matplotlib's mathematics switched off (a backslash before each dollar)."""
    return display_name(name, limit).replace("$", r"\$")


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet runs as a formula: text starting with ``= + - @`` gets a leading quote mark.

    Numbers pass unchanged.
    """
    if not isinstance(value, str):
        return value
    text = display_name(value, limit=max(LIMIT, 400))
    return "'" + text if text[:1] in {"=", "+", "-", "@"} else text


def _visible(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
