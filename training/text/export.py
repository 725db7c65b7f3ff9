"""What a bundle of a model of text holds: two graphs, golden vectors, and what was measured."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from latentd import bundle
from latentd.training import onnx_graphs, parity, quantiles
from latentd.training.array import Array, to_npz
from latentd.training.dataset import Dataset
from latentd.training.model import AE, Model, text_decoder
from latentd.training.text import graphs as text_graphs
from latentd.training.text import parity as text_parity

_GOLDEN_ROWS: Final = 16  # of each kind: encoded, decoded greedily, sampled, scored
_CANDIDATES: Final = 512  # among which golden rows are chosen
_GOLDEN_MARGIN: Final = 1e-4
"""The least margin of a golden row: a hundred times the rounding of other processors."""
_BATCH: Final = 256


def files(model: Model, name: str, x: Tensor) -> dict[str, bytes]:
    """The bundle's files. x: real rows (rows, length)."""
    return {
        bundle.ENCODER: onnx_graphs.encoder(model, name),
        bundle.DECODER: text_graphs.decoder(model, name),
        bundle.GOLDEN: golden(model, x),
    }


def measure(
    model: Model, made: dict[str, bytes], dataset: Dataset
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's `parity` and `training_scores`. Raises RunFailed if a graph and PyTorch
    differ."""
    rows, counts = parity.rows(dataset)
    graphs = made[bundle.ENCODER], made[bundle.DECODER]
    measured = counts | text_parity.measure(model, *graphs, rows)
    if isinstance(model, AE):
        return measured, {}
    return measured, quantiles.score_quantiles(*_scores(model, *graphs, dataset.train.x))


def errors(model: Model, encoder: bytes, decoder: bytes, x: Tensor) -> Array:
    """The reconstruction error of rows in nats, of many only some."""
    return _scores(model, encoder, decoder, x)[0]


def _scores(model: Model, encoder: bytes, decoder: bytes, x: Tensor) -> tuple[Array, Array]:
    picked = x[torch.from_numpy(quantiles.evenly_picked(len(x)))]
    return text_parity.scores(model, encoder, decoder, picked, _BATCH)


@torch.no_grad()
def golden(model: Model, x: Tensor) -> bytes:
    """golden.npz: x, mean, log_var of some rows; z, decoded_x and log_likelihood of rows of
    decoder.onnx's input. PyTorch computes all outputs.

    Another processor rounds otherwise, so decoded rows are those whose margins are the largest.
    """
    few = x[:_GOLDEN_ROWS]
    mean, log_var = model.encode(few)
    generator = torch.Generator().manual_seed(0)
    prior = torch.randn((_CANDIDATES, *model.latent_shape), generator=generator)
    again = x[torch.arange(_CANDIDATES) % len(x)]
    greedy, sampled, _ = text_parity.inputs(prior, again, seed=2)
    forced = text_parity.inputs(mean, few, seed=2).teacher_forced
    z = torch.cat((_clearest(model, greedy), _clearest(model, sampled), forced))
    decoded = text_decoder(model).decode(z)
    tensors: dict[str, Tensor] = {
        "x": few,
        "mean": mean,
        **({} if isinstance(model, AE) else {"log_var": log_var}),
        "z": z,
        "decoded_x": decoded.x,
        "log_likelihood": decoded.log_p,
    }
    return to_npz({key: tensor.numpy() for key, tensor in tensors.items()})


def _clearest(model: Model, rows: Tensor) -> Tensor:
    """The rows with the largest margins: _GOLDEN_ROWS, or fewer if fewer have _GOLDEN_MARGIN."""
    margin = text_decoder(model).decode(rows).margin[:, 0]
    best = margin.argsort(descending=True, stable=True)[:_GOLDEN_ROWS]
    return rows[best[margin[best] >= _GOLDEN_MARGIN]]
