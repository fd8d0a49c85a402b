"""Einsum: sums of products by named axes, two operands at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, arithmetic, dims
from hwq.ops.base import Inferred, Op, register
from hwq.ops.elementwise import operands
from hwq.work import Work

__all__ = ["Einsum", "contract"]

# Stand for the axes of an ellipsis, counted from the back; no letter that an equation may have.
_OPEN = "0123456789"


def terms(node: Node, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter an axis for each operand, and for the result; digits are the axes of an ellipsis.

    Raises
    ------
    Error
        The equation is malformed, or does not fit the operands.
    """
    text = node.attributes.get("equation", "")
    text = str(text.decode("utf-8", "replace") if isinstance(text, bytes) else text).replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    letters = text.replace("...", "").replace(",", "").replace("->", "")
    if len(parts) != len(ranks) or len(text) > 1024 or not all(one.isascii() and one.isalpha() for one in letters):
        raise dims.fault(node, f"the equation {text[:80]!r} does not fit {len(ranks)} operands")
    widest = 0
    given = []
    for part, rank in zip(parts, ranks, strict=True):
        count = rank - len(part.replace("...", ""))
        if part.count("...") > 1 or count < 0 or (count and "..." not in part) or count > len(_OPEN):
            raise dims.fault(node, f"the term {part[:40]!r} does not fit an operand of rank {rank}")
        widest = max(widest, count)
        given.append(part.replace("...", _OPEN[:count][::-1]))
    if arrow:
        made = right.replace("...", _OPEN[:widest][::-1])
    else:  # letters that occur once, in alphabetical order
        every = "".join(parts).replace("...", "")
        made = _OPEN[:widest][::-1] + "".join(sorted(one for one in set(every) if every.count(one) == 1))
    if len(set(made)) != len(made) or not set(made) <= set("".join(given)):
        raise dims.fault(node, f"the result {right[:40]!r} names an axis twice, or one that no operand has")
    return given, made


def _sizes(node: Node, given: Sequence[str], shapes: Sequence[Sequence[Dim]]) -> dict[str, Dim]:
    """The length of every axis; an axis of an ellipsis may be 1 in some operands."""
    found: dict[str, Dim] = {}
    for term, shape in zip(given, shapes, strict=True):
        for letter, dim in zip(term, shape, strict=True):
            known = found.setdefault(letter, dim)
            if known == 1 or isinstance(known, str):
                found[letter] = dim if known == 1 or isinstance(dim, int) else known
            elif isinstance(dim, int) and dim not in (1, known):
                raise dims.fault(node, f"axis {letter} is {known} long in one operand and {dim} in another")
    return found


def contract(
    node: Node, given: Sequence[Array], multiply: Callable[[Array, Array], Array], total: Callable[[Array, tuple[int, ...]], Array]
) -> Array:  # fmt: skip
    """The value: operands from the left, two at a time, as batched matrix products; an axis that only one of them has is summed first."""
    parts, made = terms(node, [one.ndim for one in given])
    _sizes(node, parts, [one.shape for one in given])
    value, term = _diagonal(given[0], parts[0])
    for index in range(1, len(given)):
        other, name = _diagonal(given[index], parts[index])
        later = set(made).union(*parts[index + 1 :])
        value, term = _reduced(value, term, later | set(name), total)
        other, name = _reduced(other, name, later | set(term), total)
        value, term = _pair(value, term, other, name, later, multiply)
    value, term = _reduced(value, term, set(made), total)
    return np.array(value.transpose([term.index(letter) for letter in made]), order="C")


def _diagonal(x: Array, term: str) -> tuple[Array, str]:
    """An operand without repeated axes."""
    kept = "".join(dict.fromkeys(term))
    if kept == term:
        return x, term
    codes = {letter: place for place, letter in enumerate(kept)}
    return np.asarray(np.einsum(x, [codes[one] for one in term], [codes[one] for one in kept])), kept


def _reduced(
    x: Array, term: str, wanted: set[str], total: Callable[[Array, tuple[int, ...]], Array]
) -> tuple[Array, str]:
    axes = tuple(place for place, letter in enumerate(term) if letter not in wanted)
    return (total(x, axes), "".join(letter for letter in term if letter in wanted)) if axes else (x, term)


def _pair(
    a: Array, left: str, b: Array, right: str, later: set[str], multiply: Callable[[Array, Array], Array]
) -> tuple[Array, str]:
    """One product: axes of both that go on are its batch, axes of both that end are summed."""
    both = [letter for letter in left if letter in right]
    # An axis that one operand holds once for all places is no axis to sum over.
    ends = [letter for letter in both if letter not in later]
    batch = [letter for letter in both if letter in later]
    rows, columns = (
        [letter for letter in mine if letter not in other] for mine, other in ((left, right), (right, left))
    )
    size: dict[str, int] = {}
    for letter, n in (*zip(left, a.shape, strict=True), *zip(right, b.shape, strict=True)):
        size[letter] = n if size.get(letter, 1) == 1 else size[letter]

    def laid(x: Array, term: str, *groups: Sequence[str]) -> Array:
        order = [letter for group in groups for letter in group]
        turned = x.transpose([term.index(letter) for letter in order])
        full = np.broadcast_to(
            turned, [size[letter] if letter in ends else n for letter, n in zip(order, turned.shape, strict=True)]
        )
        lead = full.shape[: len(groups[0])]
        last = [math.prod(size[letter] for letter in group) for group in groups[1:]]
        return full.reshape(*lead, *last)

    product = multiply(laid(a, left, batch, rows, ends), laid(b, right, batch, ends, columns))
    letters = [*batch, *rows, *columns]
    return product.reshape([size[letter] for letter in letters]), "".join(letters)


@register
class Einsum(Op):
    """Products of operands summed over the axes that the result leaves out, as the equation names them."""

    names = ("Einsum",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = operands(node, inputs, 1, 64)
        dtype = dims.same_types(node, given)
        if not dims.rank_known(*given):
            return [(dtype, (), False)]
        parts, made = terms(node, [len(one.shape) for one in given])
        sizes = _sizes(node, parts, [one.shape for one in given])
        return [(dtype, tuple(sizes[letter] for letter in made), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        return [contract(node, [one for one in inputs if one is not None], arithmetic.matmul, arithmetic.total)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: of two operands a batched product; else a multiplication and an addition for each place of all axes."""
        given = [graph.tensors[name] for name in node.inputs]
        _ = [one.elements for one in given]  # raises where a dimension is open
        parts, made = terms(node, [len(one.shape) for one in given])
        sizes = {
            letter: accounting.number(dim) for letter, dim in _sizes(node, parts, [one.shape for one in given]).items()
        }
        if len(given) != 2:
            operations = 2 * math.prod(sizes.values()) * max(len(given) - 1, 1)
            return accounting.vector(node, graph, operations=operations)
        left, right, last = set(parts[0]), set(parts[1]), set(made)
        groups, m, k, n = (
            math.prod(sizes[letter] for letter in letters)
            for letters in (left & right & last, left - right, (left | right) - last, right - left)
        )
        return accounting.multiply(node, graph, kind="gemm", groups=groups, m=m, k=k, n=n,
                                   batch=1, input_h=1, input_w=m, input_c=k, output_h=1, output_w=m, output_c=n)  # fmt: skip
