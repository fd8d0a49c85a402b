"""Quantize a float graph as a plan says: ordinary QuantizeLinear and DequantizeLinear nodes, in source form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwq.annotation import Annotation
from hwq.dialect import find
from hwq.errors import Error
from hwq.exporters.opset import opset_of
from hwq.floating import require_range, retyped
from hwq.graph import Graph
from hwq.ops.folding import fold
from hwq.placement import place
from hwq.plan import Plan
from hwq.scales import Scales
from hwq.standardization import standardized

if TYPE_CHECKING:
    from hwq.batches import Batches
    from hwq.calibration import Calibration

__all__ = ["annotate", "quantize", "transformed"]


def quantize(graph: Graph, plan: Plan, cal: Calibration | None = None, batches: Batches | None = None) -> Graph:
    """The quantized graph that a plan makes of a float graph.

    Weights become integer constants behind a DequantizeLinear; activations pass a QuantizeLinear and a DequantizeLinear
    where integer runtimes fuse them (behind the clamp that follows a matrix operator, on both operands and the result
    of a residual sum, with one scale through operators that only move values); biases of integer layers become int32
    with ``scale = float32(input scale * weight scale)``; a model output made by an integer layer is stored as integers
    and dequantized. Softmax, Sigmoid and HardSigmoid outputs take their function's range [0, 1], every other activation
    its calibrated one. What held minus infinity in calibration (attention masks) stays float; ``graph.source["unbounded"]``
    of the result names it.

    Parameters
    ----------
    graph : Graph
        Float, in source form.
    plan : Plan
    cal : Calibration, optional
        Of the same graph. Not needed where the plan gives every activation's scale or leaves activations float.
    batches : batches, optional
        Samples of the input for the methods that run the model again, layer by layer behind the quantized layers before
        it: rounding "gptq" and "coordinate", scale "seq-mse" and "weighted", empirical bias correction; for the observer "coordinate"; and for
        transforms, which change what activations hold (`hwq.transforms.sequence` states their order). Without them
        the second moments of a calibration with ``moments=True`` serve. They change layers with constant 2-D or
        convolution weights; other constants are rounded to the nearest.

    Returns
    -------
    Graph
        In source form; value names of the float graph stay, ``X_quantized`` and ``X_dequantized`` stand beside ``X``
        (a model output keeps its name for the dequantized value; ``X_float`` is what is quantized).

    Raises
    ------
    Error
        Graph, plan and calibration do not fit together, or plan and dialect contradict each other.
    NotSupportedYet
        A method of the plan that is not built; the message names its key.
    """
    dialect = find(plan.dialect)
    given = None if cal is None else cal.hash
    if cal is not None:
        from hwq.calibration import fingerprint

        if cal.graph != fingerprint(graph):
            raise Error(
                "the calibration belongs to another graph", where=f"graph {graph.name}", remedy="calibrate this graph"
            )
    # Imported here: cost (`annotate`) needs no kernels.
    from hwq.range_search import search_ranges
    from hwq.transforms.biases import with_biases
    from hwq.transforms.reconstruction import needs_samples, reconstruct
    from hwq.transforms.sequence import Sequence
    from hwq.transforms.subsets import kept

    folded = _folded(graph, plan)
    if cal is not None and cal.unbounded:
        folded = folded.replace(source={**folded.source, "unbounded": cal.unbounded})
    batches = kept(folded, batches)
    folded, cal = Sequence(folded, plan, dialect, cal, batches).run()
    correct = plan.transforms.bias_correction is not None
    if correct:
        folded = with_biases(folded)
    typed = retyped(folded, plan, values=True)
    if cal is not None and typed is not folded:
        require_range(folded, typed, cal)
    folded = typed
    placement = place(folded, plan, dialect)
    scales = Scales(folded, plan, dialect, placement, cal)
    search_ranges(scales, batches)
    if correct or any(needs_samples(constant.weights) for constant in placement.constants.values()):
        scales.graph = folded = reconstruct(scales, batches, correct)
    made = Annotation(folded, placement, scales).graph()
    facts = {
        **folded.source,
        "float_graph": graph.hash,
        "plan": plan.hash,
        "calibration": given,
        "opset": opset_of(made) if isinstance(folded.source.get("opset"), int) else folded.source.get("opset"),
        "overridable": None,  # the quantized model is ours to write: its constants are constants
    }
    made = made.replace(source={key: value for key, value in facts.items() if value is not None}, dialect=plan.dialect)
    if dialect.integers:
        from hwq.lowering import lower

        lower(made, plan.dialect)  # refuses by name what has no kernel of integers
    return made


def transformed(graph: Graph, plan: Plan, cal: Calibration | None = None, batches: Batches | None = None) -> Graph:
    """The float model as the plan's transforms leave it, which `quantize` with the same arguments stores: the same function,
    channels scaled (and outliers clamped, with `clip`). What `compare` needs to put single layers of such a model back to float.

    Parameters
    ----------
    graph, plan, cal, batches
        As for `quantize`.

    Raises
    ------
    Error
        A transform does not apply, or needs samples.
    """
    from hwq.transforms.sequence import Sequence
    from hwq.transforms.subsets import kept

    folded = _folded(graph, plan)
    return Sequence(folded, plan, find(plan.dialect), cal, kept(folded, batches)).run()[0]


def annotate(graph: Graph, plan: Plan) -> Graph:
    """The same structure as `quantize` gives, without calibration and weights: for cost only.

    Scales, zero points and stored integers are declared but have no values (``Quantization(scale=None)``); execution
    refuses such a graph. Floating-point types of the plan (float16, bfloat16) become the types of the tensors.

    Raises
    ------
    Error
        As `quantize`, but for the dialect's limits: what a machine can do is for the machine to say.
    """
    dialect = find(plan.dialect)
    typed = retyped(_folded(graph, plan), plan)
    made = Annotation(typed, place(typed, plan, dialect), None).graph()
    return made.replace(source={**graph.source, "float_graph": graph.hash, "plan": plan.hash}, dialect=plan.dialect)


def _folded(graph: Graph, plan: Plan) -> Graph:
    """The graph with constants computed and batch normalization inside the layers before it.

    Raises
    ------
    Error
        A rule of the plan fits nothing, neither as the model says it nor as it is folded.
    """
    _require_float(graph)
    folded = fold(standardized(graph))
    plan.resolve([*graph.nodes, *folded.nodes])
    return folded


def _require_float(graph: Graph) -> None:
    """Refuse a graph that cannot be quantized.

    Raises
    ------
    Error
        The graph is quantized already, or lowered.
    """
    if graph.form != "source":
        raise Error(
            "a lowered graph cannot be quantized", where=f"graph {graph.name}", remedy="quantize first, then lower"
        )
    taken = next(
        (
            node
            for node in graph.nodes
            if node.op in {"QuantizeLinear", "DequantizeLinear"}
            or "Integer" in node.op
            or node.op.startswith(("QLinear", "DynamicQuantize"))
        ),
        None,
    )
    if taken is not None or any(tensor.quantization for tensor in graph.tensors.values()):
        raise Error(
            "the model is quantized already",
            where=f"graph {graph.name}" if taken is None else f"node {taken.name} ({taken.op})",
            remedy="quantize the float model; Plan.of(this model) gives the plan that it obeys",
        )
