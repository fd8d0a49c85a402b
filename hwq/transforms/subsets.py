"""Which samples a method looks at: those of data that can be read once, as many as fit, or a few spread over all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hwq.batches import Batch, Batches, cut, feeds
from hwq.floating import widened
from hwq.graph import Array, Graph

__all__ = ["kept", "pieces_within", "thinned"]

Pieces = list[Mapping[str, Array]]

# Samples that are kept of data that can be read only once.
KEPT_BYTES = 256 << 20


def kept(graph: Graph, batches: Batches | None) -> Batches | None:
    """Batches that can be read again: an iterator's first samples, at most `KEPT_BYTES` of them."""
    if not isinstance(batches, Iterator):
        return batches
    found: list[Batch] = []
    spent = 0
    for feed in feeds(graph, batches):
        spent += sum(value.nbytes for value in feed.values())
        if found and spent > KEPT_BYTES:
            break
        found.append(feed)
    return found


def pieces_within(graph: Graph, batches: Batches, limit: int, stored: Mapping[str, int] | None = None) -> Pieces:
    """Pieces of the samples, as many as `limit` bytes hold the activations of; `stored`: bytes of an element of values that the
    quantized model holds as integers.
    """
    kept: Pieces = []
    spent = 0
    for feed in feeds(graph, batches):
        for piece in cut(graph, feed):
            spent += _piece_bytes(graph, piece, stored or {})
            if kept and spent > limit:
                return kept
            kept.append(piece)
    return kept


def thinned(graph: Graph, pieces: Pieces, most: int) -> Pieces:
    """At most `most` of the samples, evenly; whole pieces where the model fixes the batch."""
    count = sum(len(next(iter(piece.values()))) for piece in pieces)
    stride = -(-count // most)
    free = all(one.shape and isinstance(one.shape[0], str) for one in map(graph.tensors.__getitem__, graph.inputs))
    if not free:
        return pieces[::stride]
    found: Pieces = []
    at = 0
    for piece in pieces:
        taken = {name: value[(-at) % stride :: stride] for name, value in piece.items()}
        at += len(next(iter(piece.values())))
        if all(map(len, taken.values())):
            found.append(taken)
    return found


def _piece_bytes(graph: Graph, piece: Mapping[str, Array], stored: Mapping[str, int]) -> int:
    """A bound on what the float and the quantized model hold of a piece at once: inputs and the largest three values of either,
    one of them not stored yet.
    """
    from hwq.ops.inference import infer_shapes

    shapes = {name: value.shape for name, value in piece.items()}
    known = infer_shapes(widened(graph), shapes).tensors
    sizes = {name: one.bytes for name, one in known.items() if one.concrete and not one.constant}
    held = {name: size * stored.get(name, 4) // 4 for name, size in sizes.items()}
    plain, rounded = (sorted(one.values(), reverse=True) for one in (sizes, held))
    inputs = 2 * sum(value.nbytes for value in piece.values())
    return inputs + sum(plain[:3]) + sum(plain[:1]) + sum(rounded[:2])
