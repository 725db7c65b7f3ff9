"""Exports one half of an owner's model to ONNX, with free axes."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import onnx
import torch
from torch import Tensor
from torch.distributions import Distribution

from latentd.training import onnx_graphs
from latentd.training.adopt.modules import branches
from latentd.training.adopt.modules.halves import Half
from latentd.training.adopt.source import Report
from latentd.training.errors import AdmissionError, TrainingError

_OPSET: Final = 18  # GroupNormalization of later ones is slow or missing in runtimes
_MAX_REASON: Final = 300  # characters


class Names(NamedTuple):
    """Of a graph's tensors, and of the half in messages."""

    half: str
    input: str
    outputs: Sequence[str]


Exporter = Callable[[Half, Tensor, Names, Sequence[int]], onnx.ModelProto]


def export(
    half: Half, rows: Tensor, names: Names, free: Sequence[int], report: Report
) -> onnx.ModelProto:
    """The graph. Raises AdmissionError if no exporter makes one.

    rows: an example, whose free axes have unequal lengths of more than one
    free: the numbers of the input's free axes
    """
    reasons = []
    for name, exporter in _EXPORTERS.items():
        began = time.perf_counter()
        try:
            with half.evaluation(), _quiet(), _without_validation():
                model = exporter(half, rows, names, free)
        except TrainingError:
            raise
        except Exception as error:  # of an exporter's inside: they have no common class
            reasons.append(f"{name}: {_reason(error)}")
            report(f"export: {names.half} not by {reasons[-1]}")
            continue
        onnx_graphs.forget_source(model)
        report(f"export: {names.half} by {name}, {time.perf_counter() - began:.0f} s")
        return model
    raise AdmissionError(
        f"{names.half} cannot be exported to ONNX; {'; '.join(reasons)}. Change what these name in "
        "the model's code, or export it yourself and adopt the two graphs with --onnx."
    )


def _by_dynamo(half: Half, rows: Tensor, names: Names, free: Sequence[int]) -> onnx.ModelProto:
    """An axis that the code fixes is an error."""
    program = torch.onnx.export(
        half,
        (rows,),
        dynamo=True,
        external_data=False,
        opset_version=_OPSET,
        input_names=[names.input],
        output_names=list(names.outputs),
        dynamic_shapes=[dict.fromkeys(free, torch.export.Dim.DYNAMIC)],
        verbose=False,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _by_script(half: Half, rows: Tensor, names: Names, free: Sequence[int]) -> onnx.ModelProto:
    """It may fix an axis silently, which shows only when the graph runs at another size; and it
    would fix a branch on values."""
    branches.require_none(names.half, half, rows)
    file: Any = io.BytesIO()  # which torch writes to, though its types do not say so
    torch.onnx.export(
        half,
        (rows,),
        file,
        dynamo=False,
        opset_version=_OPSET,
        input_names=[names.input],
        output_names=list(names.outputs),
        dynamic_axes={names.input: {axis: f"free_{axis}" for axis in free}},
    )
    return onnx.load_from_string(file.getvalue())


_EXPORTERS: Final[dict[str, Exporter]] = {
    "torch.export": _by_dynamo,
    "TorchScript": _by_script,
}
"""The second one is tried where the first one fails."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A failure is told in one line: without the programs that the exporters print."""
    inner: Any = torch._C
    log = inner._jit_onnx_log
    inner._jit_onnx_log = lambda *_: None  # torch has no public switch for it
    try:
        with onnx_graphs.quiet(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        inner._jit_onnx_log = log


@contextlib.contextmanager
def _without_validation() -> Iterator[None]:
    """torch's distributions compare values, which no exporter can follow."""
    before: Any = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def _reason(error: BaseException) -> str:
    """The first words of what began the failure."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
