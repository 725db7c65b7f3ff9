"""The model as two self-contained ONNX graphs with a dynamic batch and no random operators."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Final

import onnx
import torch
from torch import Tensor, nn

from latentd.training.errors import RunFailed
from latentd.training.model import Model, to_data

MAX_ROWS: Final = 1 << 16  # upper end of the batch dimension's range
_FORBIDDEN: Final = ("Random", "Dropout", "Multinomial", "Bernoulli")


class EncoderGraph(nn.Module):
    """x in the data's form -> mean, log_var."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode(x)


class DecoderGraph(nn.Module):
    """z -> x in the data's form, and params of p(x|z)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        params = self.model.decode(z)
        return to_data(self.model, params), params


def encoder(model: Model, name: str) -> bytes:
    """encoder.onnx: x (batch, *shape) -> mean, log_var float32 (batch, latent_size)."""
    x = torch.zeros((2, *model.spec.shape), dtype=getattr(torch, model.spec.dtype))
    return _graph(EncoderGraph(model), x, "x", ("mean", "log_var"), name)


def decoder(model: Model, name: str, latent_size: int) -> bytes:
    """decoder.onnx: z float32 (batch, latent_size) -> x (batch, *shape), params float32 (batch,
    parameters, *shape)."""
    return _graph(DecoderGraph(model), torch.zeros(2, latent_size), "z", ("x", "params"), name)


def opset(graph: bytes) -> int:
    """The version of the standard operators that a graph uses."""
    imports = onnx.load_from_string(graph).opset_import
    return next(entry.version for entry in imports if entry.domain in ("", "ai.onnx"))


def _graph(
    module: nn.Module, example: Tensor, input_name: str, output_names: tuple[str, ...], name: str
) -> bytes:
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            external_data=False,
            input_names=[input_name],
            output_names=list(output_names),
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # The exporter leaves these fields empty.
    onnx.helper.set_model_props(model, {"model": name, "created-by": "latentd"})
    check(model)
    return model.SerializeToString()


def check(model: onnx.ModelProto) -> None:
    """Raise RunFailed if the graph cannot be served: invalid, random, in training mode, fixed to
    one batch size, or with external weights."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunFailed(f"The exported graph is not valid ONNX: {error}.") from None
    functions = [function.node for function in model.functions]
    for node in (node for nodes in (model.graph.node, *functions) for node in nodes):
        training = any(a.name == "training_mode" and a.i for a in node.attribute)
        if node.op_type.startswith(_FORBIDDEN) or training:
            raise RunFailed(f"The exported graph is random or in training mode: {node.op_type}.")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "batch":
            raise RunFailed(f"The exported graph's {value.name} is frozen to one batch size.")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise RunFailed("The exported graph keeps its weights in another file.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
