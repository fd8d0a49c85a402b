"""Writing a plan as TOML: one inline table a setting, so that a diff of two plans reads well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["to_toml"]


def to_toml(plan: Mapping[str, Any]) -> str:
    """The text of a plan file from a plan's plain values.

    Floats are written with `repr`, the shortest text that reads back to the same bits.
    """
    lines = [f"schema = {plan['schema']}", f"dialect = {_value(plan['dialect'])}", "", "[default]"]
    lines += [f"{key} = {_value(value)}" for key, value in plan["default"].items()]
    active = {key: value for key, value in plan["transforms"].items() if value is not False}
    if active:
        lines += ["", "[transforms]", *(f"{key} = {_value(value)}" for key, value in active.items())]
    for layer in plan["layers"]:
        lines += ["", "[[layers]]", f"match = {_value(layer['match'])}"]
        lines += [f"{key} = {_value(layer[key])}" for key in ("weights", "activations") if layer[key]]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML forbids raw.
        return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f") if value.isascii() else _quoted(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return (
            "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None) + " }"
        )
    if isinstance(value, Sequence):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _quoted(text: str) -> str:
    # Surrogate pairs of JSON are not TOML: write code points above U+FFFF with \U.
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _value(key)
