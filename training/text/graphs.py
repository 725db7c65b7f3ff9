"""decoder.onnx of a model of text: one graph that draws, decodes greedily and scores.

A row of its input is z and then a choice for each byte: see `gru.Step`. It has no random operators
and no loops.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from latentd.training import graph_checks, onnx_graphs
from latentd.training.model import Model, text_decoder
from latentd.training.networks.gru import Decoder, State, Step
from latentd.training.text.unrolling import Unrolled

_STATE: Final = ("hidden", "token", "alive", "log_p")  # what a step takes and gives
_AFTER: Final = "after_"  # begins a step's outputs
_BATCH: Final = "batch"


class _StartGraph(nn.Module):
    """z and choices -> what the first step takes."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        hidden, gates, state = self.decoder.start_state(z[:, : self.decoder.latents])
        return hidden, *state, gates


class _StepGraph(nn.Module):
    """A step without its margin."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.step = Step(decoder)

    def forward(
        self, hidden: Tensor, token: Tensor, alive: Tensor, log_p: Tensor, gates: Tensor, c: Tensor
    ) -> tuple[Tensor, ...]:
        hidden, state, _ = self.step(hidden, gates, State(token, alive, log_p), c)
        return hidden, *state


def decoder(model: Model, name: str) -> bytes:
    """decoder.onnx: z float32 (batch, latents + length) -> x uint8 (batch, length), log_likelihood
    float32 (batch, 1)."""
    net = text_decoder(model)
    rows, hidden = 2, net.gru.hidden_size
    row = torch.zeros(rows, net.latents + net.length)
    widths = {"hidden": hidden, "token": 1, "alive": 1, "log_p": 1, "gates": 3 * hidden, "c": 1}
    # Each its own tensor: the exporter takes inputs that are one object for one input.
    inputs = {name: torch.zeros(rows, width) for name, width in widths.items()}
    after = tuple(_AFTER + name for name in _STATE)
    start = _part(_StartGraph(net), {"z": row}, (*_STATE, "gates"), name)
    step = _part(_StepGraph(net), inputs, after, name)

    graph = Unrolled()
    choices = [f"c{number}" for number in range(net.length)]
    lengths = np.array([net.latents, *[1] * net.length], np.int64)
    graph.constant(numpy_helper.from_array(lengths, "lengths"))
    graph.node("Split", ["z", "lengths"], ["latents", *choices], axis=1)
    now = dict(graph.add(start.graph, "start", {"z": "z"}))
    gates_name, tokens = now.pop("gates"), []
    for choice in choices[:-1]:
        found = graph.add(step.graph, "step", {**now, "gates": gates_name, "c": choice})
        now = {name: found[_AFTER + name] for name in _STATE}
        tokens.append(now["token"])
    # A row's last byte is always an end.
    graph.constant(numpy_helper.from_array(np.zeros((1, 1), np.float32), "end"))
    graph.node("Mul", [now["token"], "end"], ["last"])
    graph.node("Concat", [*tokens, "last"], ["tokens"], axis=1)
    graph.node("Cast", ["tokens"], ["x"], to=TensorProto.UINT8)
    graph.node("Identity", [now["log_p"]], ["log_likelihood"])
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "decoder",
            [_value("z", TensorProto.FLOAT, net.latents + net.length)],
            [
                _value("x", TensorProto.UINT8, net.length),
                _value("log_likelihood", TensorProto.FLOAT, 1),
            ],
            list(graph.initializers.values()),
        ),
        opset_imports=list(step.opset_import),
        ir_version=step.ir_version,
        producer_name=step.producer_name,
        producer_version=step.producer_version,
    )
    onnx_graphs.name_model(made, name)
    graph_checks.check(made, {name: {0: _BATCH} for name in ("z", "x", "log_likelihood")})
    return made.SerializeToString()


def _part(
    module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], name: str
) -> onnx.ModelProto:
    rows = onnx_graphs.batch_only((*inputs, *outputs))
    return onnx.load_from_string(onnx_graphs.graph(module, inputs, outputs, name, rows))


def _value(name: str, kind: int, length: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [_BATCH, length])
