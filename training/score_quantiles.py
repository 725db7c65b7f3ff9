"""Quantiles of the training rows' scores. They show how unusual another row's scores are.

They are computed as in serving: by the exported graphs on ONNX Runtime, through the mean.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from latentd.training import parity
from latentd.training import quantiles as common
from latentd.training.dataset import Dataset, max_batch_rows
from latentd.training.model import AE, Model, decoder_rows, gaussian_kl

_BATCH: Final = 256


class Scores(NamedTuple):
    """Of some rows, in nats: reconstruction error and KL (rows,), float64; of rows with columns
    what each column adds to the error (rows, columns), float32."""

    errors: npt.NDArray[np.float64]
    kls: npt.NDArray[np.float64]
    contributions: npt.NDArray[np.float32]


def quantiles(
    model: Model, encoder: bytes, decoder: bytes, likelihood: bytes, dataset: Dataset
) -> dict[str, Any]:
    """Manifest.training_scores: quantiles of reconstruction error, KL and ELBO in nats, and with
    columns the median of each column's contribution. Returns {} for an autoencoder, which has no
    likelihood."""
    if isinstance(model, AE):
        return {}
    x = dataset.train.x
    errors, kls, contributions = scores(model, encoder, decoder, likelihood, x, "training rows")
    return common.score_quantiles(errors, kls, contributions if dataset.spec.columns else None)


@torch.no_grad()
def scores(
    model: Model, encoder: bytes, decoder: bytes, likelihood: bytes, rows: Tensor, what: str
) -> Scores:
    """The scores of rows, of many only some. what: the rows in words, for the progress bar."""
    picked = torch.from_numpy(common.evenly_picked(len(rows)))
    batch = max_batch_rows(model.output_shape, _BATCH)
    encode, decode, density = map(parity.session, (encoder, decoder, likelihood))
    parts = []
    title = f"scoring {what}"
    for numbers in tqdm(torch.split(picked, batch), title, unit="batch", delay=2, disable=None):
        x = rows[numbers]
        latent = {name: torch.from_numpy(a) for name, a in parity.run(encode, x, batch).items()}
        mean, log_var = latent["mean"], latent["log_var"]
        params = torch.from_numpy(parity.run(decode, decoder_rows(model, mean), batch)["params"])
        log_p, terms = parity.log_likelihood_of(density, x, params)
        kept = terms if model.spec.columns else terms[:, :0]  # of large images they are many
        parts.append(Scores(-log_p, gaussian_kl(mean, log_var).double().numpy(), kept))
    return Scores(*map(np.concatenate, zip(*parts, strict=True)))
