"""The model as self-contained ONNX graphs with a dynamic batch and no random operators.

With spatial latents, height and width are dynamic too, and named: h and w of x, h/8 and w/8 of z.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import onnx
import torch
from onnxscript import opset18
from torch import Tensor, nn

from latentd.training import graph_checks
from latentd.training.likelihoods.likelihood import Likelihood
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.model import AE, Model, decoder_rows, to_data, to_unit

MAX_ROWS: Final = 1 << 16  # upper end of the batch dimension's range
MAX_SIZE: Final = 1 << 28  # upper end of a flat row's length
MAX_SIDE: Final = 1 << 12  # upper end of a spatial latent's height and width
_OF_LIKELIHOOD: Final = ("log_likelihood", "contributions")
_op: Final[Any] = opset18  # its own types are too narrow: they do not know Python's numbers


class Free(NamedTuple):
    """The free axes of a graph. The exporter invents names for those that it derives from others,
    so they get these names afterwards."""

    axes: Mapping[str, Mapping[int, str]]  # of each input and output: an axis's number and name
    dimensions: Mapping[str, Any]  # by name, in torch.export's notation


class EncoderGraph(nn.Module):
    """x in the data's form -> mean, and log_var unless the latent is a point."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, log_var = self.model.encode(x)
        return (mean,) if isinstance(self.model, AE) else (mean, log_var)


class DecoderGraph(nn.Module):
    """z -> x in the data's form, and params of p(x|z)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        params = self.model.decode(z)
        return to_data(self.model, params), params


class MixedDecoderGraph(nn.Module):
    """z, and a choice for each column, -> x in the data's units, and params of p(x|z)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.latents = model, model.latent_shape[0]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        params = self.model.decode(z[:, : self.latents])
        assert isinstance(self.model.likelihood, MixedLikelihood)
        return self.model.likelihood.draw(params, z[:, self.latents :]), params


class LikelihoodGraph(nn.Module):
    """x in the data's form and params -> log p(x|z), summed in float64, and on request the terms
    of -log p(x|z)."""

    def __init__(self, likelihood: Likelihood, contributions: bool = True) -> None:
        super().__init__()
        self.likelihood, self.contributions = likelihood, contributions

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        terms = self.likelihood.terms(to_unit(x), params)
        # Thousands of nats in float32 have steps of 1e-4 and more.
        log_p = -terms.sum(tuple(range(1, terms.ndim)), dtype=torch.float64)
        return (log_p, terms) if self.contributions else (log_p,)


def encoder(model: Model, name: str) -> bytes:
    """encoder.onnx: x (batch, *shape) -> mean, log_var float32 (batch, *latent_shape); of an
    autoencoder only mean."""
    shape, _ = _example_shapes(model)
    x = torch.zeros((2, *shape), dtype=getattr(torch, model.spec.dtype))
    outputs = ("mean",) if isinstance(model, AE) else ("mean", "log_var")
    return graph(EncoderGraph(model), {"x": x}, outputs, name, free(model.stride))


def decoder(model: Model, name: str) -> bytes:
    """decoder.onnx: z float32 (batch, *latent_shape), with columns (batch, latents + columns), -> x
    (batch, *shape), params float32 (batch, parameters, *shape)."""
    _, shape = _example_shapes(model)
    z = decoder_rows(model, torch.zeros(2, *shape))
    module = MixedDecoderGraph(model) if model.spec.columns else DecoderGraph(model)
    return graph(module, {"z": z}, ("x", "params"), name, free(model.stride))


def likelihood(model: Model, name: str) -> bytes:
    """likelihood.onnx: x (batch, *shape), params float32 (batch, parameters, *shape) ->
    log_likelihood float64 (batch,) in nats, and contributions float32 (batch, *terms), which sum to
    its negative. It has no weights."""
    shape, _ = _example_shapes(model)
    inputs = {
        "x": torch.zeros((2, *shape), dtype=getattr(torch, model.spec.dtype)),
        "params": torch.zeros(2, len(model.likelihood.parameters), *shape),
    }
    module = LikelihoodGraph(model.likelihood)
    return graph(module, inputs, _OF_LIKELIHOOD, name, free(model.stride), _ACCURATE)


def dims_of_contributions(graph: bytes) -> list[int | str]:
    """The lengths of one row's contributions, as likelihood.onnx gives them: numbers, or the names
    of free axes."""
    model = onnx.load_from_string(graph)
    (value,) = (output for output in model.graph.output if output.name == "contributions")
    _, *dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def flat_likelihood(likelihood: Likelihood, name: str) -> bytes:
    """As `likelihood`, but for rows of any length: x float32 (batch, size) in [0, 1], params
    (batch, parameters, size)."""
    inputs = {"x": torch.zeros(2, 3), "params": torch.zeros(2, len(likelihood.parameters), 3)}
    batch = {0: "batch"}
    axes = {"x": batch | {1: "size"}, "params": batch | {2: "size"}, "log_likelihood": batch}
    lengths = Free(
        axes, {"batch": _dimension("batch", MAX_ROWS), "size": _dimension("size", MAX_SIZE)}
    )
    module = LikelihoodGraph(likelihood, contributions=False)
    return graph(module, inputs, _OF_LIKELIHOOD[:1], name, lengths, _ACCURATE)


def free(stride: int | None) -> Free:
    """The free axes of a model's graphs. stride: Model.stride."""
    batch, rows = {0: "batch"}, {"batch": _dimension("batch", MAX_ROWS)}
    outputs = {"log_likelihood": batch}
    if stride is None:
        return batch_only(("x", "params", "z", "mean", "log_var", *_OF_LIKELIHOOD))
    x, params = batch | {1: "h", 2: "w"}, batch | {2: "h", 3: "w"}
    z = batch | {2: f"h/{stride}", 3: f"w/{stride}"}
    height, width = (_dimension(name, MAX_SIDE) for name in ("height", "width"))
    # The exporter must know that x's sides are multiples: it would refuse plain dimensions.
    sides = {"h": stride * height, "w": stride * width, z[2]: height, z[3]: width}
    axes = {"x": x, "params": params, "z": z, "mean": z, "log_var": z, "contributions": x}
    return Free(outputs | axes, rows | sides)


def batch_only(names: Iterable[str]) -> Free:
    """A free batch for inputs and outputs of these names, and no other free axis."""
    batch, rows = {0: "batch"}, {"batch": _dimension("batch", MAX_ROWS)}
    return Free(dict.fromkeys(names, batch), rows)


def _dimension(name: str, longest: int) -> Any:
    return torch.export.Dim(name, min=1, max=longest)


def _example_shapes(model: Model) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of x and z to export with. Free axes have unequal lengths, so that the exporter cannot
    take two for one."""
    x, z = model.spec.shape, model.latent_shape
    if model.stride is None:
        return x, z
    height, width = 3, 5
    return (height * model.stride, width * model.stride, *x[2:]), (z[0], height, width)


def _cross_entropy(logits: Any, x: Any, *unused: Any, **more: Any) -> Any:
    """log(1 + exp(l)) - x l, as (max(l, 0) - x l) - log(sigmoid(|l|)): its large terms cancel
    exactly, and it has few operators, which are most of what a row of a small model costs."""
    log_sigmoid = _op.Log(_op.Sigmoid(_op.Abs(logits)))
    return _op.Sub(_op.Sub(_op.Relu(logits), _op.Mul(x, logits)), log_sigmoid)


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    assert beta == 1
    tail = _op.Log(_op.Add(_op.Exp(_op.Neg(_op.Abs(x))), _op.CastLike(1.0, x)))
    return _op.Add(_op.Relu(x), tail)


def _log_sigmoid(x: Any) -> Any:
    return _op.Neg(_softplus(_op.Neg(x)))


def _expm1(x: Any) -> Any:
    """exp(x) - 1 in float64, and x itself where even that loses its digits."""
    power = _op.Exp(_op.Cast(x, to=onnx.TensorProto.DOUBLE))
    difference = _op.CastLike(_op.Sub(power, _op.CastLike(1.0, power)), x)
    return _op.Where(_op.Less(_op.Abs(x), _op.CastLike(1e-8, x)), x, difference)


def _square(x: Any) -> Any:
    return _op.Mul(x, x)


_ACCURATE: Final[Mapping[Any, Callable[..., Any]]] = {
    torch.ops.aten.binary_cross_entropy_with_logits.default: _cross_entropy,
    torch.ops.aten.softplus.default: _softplus,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.expm1.default: _expm1,
    torch.ops.aten.square.default: _square,
}
"""Functions that ONNX lacks, for densities. The exporter's own are inaccurate, log(sigmoid(x)) and
exp(x) - 1, or slow: ONNX Runtime's Softplus takes three times as long."""


def graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    output_names: tuple[str, ...],
    name: str,
    free: Free,
    functions: Mapping[Any, Callable[..., Any]] | None = None,
) -> bytes:
    """A module as a checked graph.

    inputs: by name, each with two rows. functions: how to write operators of torch in ONNX,
    where not in the exporter's way."""
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            external_data=False,
            input_names=list(inputs),
            output_names=list(output_names),
            dynamic_shapes=[
                {axis: free.dimensions[name] for axis, name in free.axes[key].items()}
                for key in inputs
            ],
            custom_translation_table=dict(functions or {}),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    forget_source(model)
    _name_axes(model, free.axes)
    name_model(model, name)
    graph_checks.check(model, free.axes)
    return model.SerializeToString()


def name_model(model: onnx.ModelProto, name: str) -> None:
    """Write into a graph which model it is of. The exporter leaves these fields empty."""
    onnx.helper.set_model_props(model, {"model": name, "created-by": "latentd"})


def forget_source(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about torch's code: source lines, paths of this machine."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    functions = (*model.functions, *(node for f in model.functions for node in f.node))
    for part in (graph, *graph.node, *values, *functions):
        part.ClearField("metadata_props")


def _name_axes(model: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Name the free axes. One that the exporter has fixed stays as it is."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in axes[value.name].items():
            dimension = value.type.tensor_type.shape.dim[axis]
            if dimension.HasField("dim_param"):
                dimension.dim_param = name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's output about its internals. Exceptions propagate."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
