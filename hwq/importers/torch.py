"""PyTorch modules as graphs: torch.export traces them, torch.onnx writes what it traced, the ONNX importer reads that."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Graph
from hwq.importers import torch_decomposed, torch_quantized, torch_stored

__all__ = ["VERSION", "from_torch"]

# The version that the torch dialects were compared with.
VERSION = "2.13.0"
# Lines of torch's own message that an error repeats.
LINES = 4


def from_torch(module: Any, example_inputs: Any, *, dynamic_shapes: Any = None) -> Graph:
    """Import a PyTorch module.

    Parameters
    ----------
    module : torch.nn.Module or torch.export.ExportedProgram
        A module is traced in evaluation mode and left as it was.
    example_inputs : torch.Tensor, tuple or mapping
        What its ``forward`` takes: one tensor, positional arguments, or arguments by name. Their shapes become the graph's.
    dynamic_shapes : optional
        As `torch.export.export` takes it: which dimensions stay open.

    Returns
    -------
    Graph
        Source form, shapes inferred. A float module has dialect ``ort``; a program that PT2E has quantized
        (``quantized_decomposed`` operators) ``torch-pt2e``; a module of eager quantized parts ``torch-fbgemm``, with Q and
        DQ nodes where its values are stored. Every scale keeps its float32 bits.

    Raises
    ------
    Error
        PyTorch or onnxscript is missing, torch cannot export the module (with torch's reason), or hwq lacks an operator or a quantized module.
    """
    torch = _need("torch", f"torch=={VERSION}")
    _need("onnxscript", "onnxscript")
    # Importing it registers the operators of namespace quantized_decomposed.
    _need("torch.ao.quantization.fx._decomposed", f"torch=={VERSION}")
    where = f"module {type(module).__name__}"
    program, eager = module, False
    if not isinstance(module, torch.export.ExportedProgram):
        if not isinstance(module, torch.nn.Module):
            raise Error(
                f"this is a {type(module).__name__}, not a PyTorch module",
                where="from_torch",
                remedy="give a torch.nn.Module or a torch.export.ExportedProgram",
            )
        standing, eager = torch_quantized.stand_in(torch, module)
        mode = torch_stored.following(torch, where)
        with mode:
            program = _exported(torch, standing, example_inputs, dynamic_shapes, where)
        eager |= mode.found
        if eager:
            torch_stored.checked(torch, module, example_inputs, where)
    _require_real(program, where)
    _require_counted(program, where)
    quantized = _quantized(program, where)
    graph = _read(_written(torch, program, where), where)
    if eager:
        return graph.replace(dialect="torch-fbgemm")
    return graph.replace(dialect="torch-pt2e") if quantized else graph


def _need(name: str, requirement: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Error(
            f"{name} is not installed", why="PyTorch modules are imported with it", remedy=f"pip install {requirement}"
        ) from error


def _exported(torch: Any, module: Any, example_inputs: Any, dynamic_shapes: Any, where: str) -> Any:
    """The module as torch.export sees it.

    Raises
    ------
    Error
        torch.export refuses it.
    """
    named = dict(example_inputs) if isinstance(example_inputs, Mapping) else None
    if named is not None:
        positional: tuple[Any, ...] = ()
    elif isinstance(example_inputs, (tuple, list)):
        positional = tuple(example_inputs)
    else:
        positional = (example_inputs,)
    with _evaluating(module), _quiet(where, "torch cannot export this module"), torch.no_grad():
        return torch.export.export(module, positional, named, dynamic_shapes=dynamic_shapes)


def _written(torch: Any, program: Any, where: str) -> Any:
    """The traced program as an ONNX model.

    Raises
    ------
    Error
        torch.onnx has no form for it.
    """
    with _quiet(where, "torch cannot write this module as ONNX"), torch.no_grad():
        return torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=True,
            custom_translation_table=torch_decomposed.translations(torch),
        ).model_proto


def _require_real(program: Any, where: str) -> None:
    """Refuse complex inputs, which torch.onnx would write as floats of one more dimension.

    Raises
    ------
    Error
        An input of the program is complex.
    """
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and getattr(value, "is_complex", bool)():
            raise Error(
                "the input is complex, and tensors here are real",
                where=f"{where}, input {node.name}",
                why=f"its dtype is {str(value.dtype).removeprefix('torch.')}",
                remedy="give real and imaginary parts as two inputs (torch.view_as_real)",
            )


def _require_counted(program: Any, where: str) -> None:
    """Refuse averages over another count than the window's, which torch.onnx writes as if it were the window's.

    Raises
    ------
    Error
        A pool has a ``divisor_override``.
    """
    for node in program.graph.nodes:
        if str(node.target).startswith(("aten.avg_pool2d.", "aten.avg_pool3d.")):
            names = [argument.name for argument in node.target._schema.arguments]
            stated = {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("divisor_override")
            if stated is not None:
                raise Error(
                    f"this average divides by {stated}, and torch.onnx writes pools that divide by their window",
                    where=f"{where}, node {node.name}",
                    remedy="leave divisor_override out and multiply the result by window size / divisor",
                )


def _quantized(program: Any, where: str) -> bool:
    """Whether the program quantizes; its scales must be what a Graph holds.

    Raises
    ------
    Error
        A float64 scale whose reciprocal is another float32 than that of the scale as float32.
    """
    found = False
    for node in program.graph.nodes:
        name = str(node.target)
        if not name.startswith("quantized_decomposed."):
            continue
        found = True
        scale = node.args[1] if len(node.args) > 1 else None
        if isinstance(scale, float) and np.float32(1 / scale) != np.float32(1) / np.float32(scale):
            raise Error(
                f"the scale {scale!r} is no float32, and rounding it would change what is quantized",
                where=f"{where}, node {node.name}",
                remedy="give scales as float32 values, as torch's observers do",
            )
    return found


def _read(model: Any, where: str) -> Graph:
    from hwq.importers.onnx import read

    return read(model, name="torch", file=where)


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Every part of the module in evaluation mode, and afterwards as it was."""
    trained = [part for part in module.modules() if part.training]
    try:
        module.eval()
    except NotImplementedError:  # exported modules have no modes; convert_pt2e's say so
        for part in trained:
            part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True


@contextlib.contextmanager
def _quiet(where: str, what: str) -> Iterator[None]:
    """torch's failures as one error, its chatter left out."""
    noisy = logging.getLogger("torch")
    level = noisy.level
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            noisy.setLevel(logging.CRITICAL)
            yield
    except Error:
        raise
    except Exception as error:  # torch raises whatever its tracer and its translations raise
        raise Error(
            what, where=where, why=_reason(error), remedy="export a part that torch.export and torch.onnx accept"
        ) from error
    finally:
        noisy.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first lines of what torch says; torch.onnx wraps the reason in advice about its own reports, which is left out."""
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:LINES])[:600]}"
