"""Golden vectors: inputs and outputs that every server must reproduce before it serves a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from latentd.decoding import GREEDY
from latentd.training import parity
from latentd.training.array import Array, to_npz
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.model import AE, Model, log_likelihood, to_data

_FEW_ROWS: Final = 2  # at other sizes than the trained one


def golden_npz(model: Model, x: Tensor, sizes: Sequence[parity.Size] = ()) -> bytes:
    """golden.npz: arrays of the rows x, and of a few rows at each of the other `sizes`, whose names
    begin with "1.", "2." and so on."""
    arrays = _vectors(model, x)
    for number, size in enumerate(sizes, 1):
        more = _vectors(model, parity.at_size(x[:_FEW_ROWS], size))
        arrays |= {f"{number}.{name}": array for name, array in more.items()}
    return to_npz(arrays)


@torch.no_grad()
def _vectors(model: Model, x: Tensor) -> dict[str, Array]:
    """x (n, *shape), mean, log_var (n, *latent_shape); z (2n, *latent_shape), decoded_x, params,
    log_likelihood (2n,). With columns, choices follow each z.

    z holds the means and as many draws from N(0, I). log_likelihood is of the rows of x, twice.
    PyTorch computes all outputs. An autoencoder has no log_var.
    """
    mean, log_var = model.encode(x)
    prior = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    z = torch.cat((mean, prior))
    params = model.decode(z)
    decoded, inputs = to_data(model, params), z
    if isinstance(model.likelihood, MixedLikelihood):
        choices = params.new_full((len(z), *model.spec.shape), GREEDY)
        choices[len(x) :] = 0.5  # half of the rows are drawn
        choices = model.likelihood.sure_choices(params, choices, seed=1)
        decoded, inputs = model.likelihood.draw(params, choices), torch.cat((z, choices), dim=1)
    tensors = {
        "x": x,
        "mean": mean,
        **({} if isinstance(model, AE) else {"log_var": log_var}),
        "z": inputs,
        "decoded_x": decoded,
        "params": params,
        "log_likelihood": log_likelihood(model, torch.cat((x, x)), params),
    }
    return {key: tensor.numpy() for key, tensor in tensors.items()}
