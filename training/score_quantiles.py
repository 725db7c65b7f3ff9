"""Quantiles of the training rows' scores. They show how unusual another row's scores are.

They are computed as in serving: by the exported graphs on ONNX Runtime, through the mean.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from latentd.training import parity
from latentd.training import quantiles as common
from latentd.training.dataset import Dataset, max_batch_rows
from latentd.training.model import AE, Model, decoder_rows, gaussian_kl

_BATCH: Final = 256


@torch.no_grad()
def quantiles(
    model: Model, encoder: bytes, decoder: bytes, likelihood: bytes, dataset: Dataset
) -> dict[str, Any]:
    """Manifest.training_scores: quantiles of reconstruction error, KL and ELBO in nats, and with
    columns the median of each column's contribution. Returns {} for an autoencoder, which has no
    likelihood."""
    if isinstance(model, AE):
        return {}
    rows = dataset.train.x
    picked = torch.from_numpy(common.evenly_picked(len(rows)))
    batch = max_batch_rows(model.output_shape, _BATCH)
    encode, decode, density = map(parity.session, (encoder, decoder, likelihood))
    errors, rates, contributions = [], [], []
    title = "scoring training rows"
    for numbers in tqdm(torch.split(picked, batch), title, unit="batch", delay=2, disable=None):
        x = rows[numbers]
        latent = {name: torch.from_numpy(a) for name, a in parity.run(encode, x, batch).items()}
        mean, log_var = latent["mean"], latent["log_var"]
        params = torch.from_numpy(parity.run(decode, decoder_rows(model, mean), batch)["params"])
        log_p, terms = parity.log_likelihood_of(density, x, params)
        errors.append(-log_p)
        if dataset.spec.columns:
            contributions.append(terms)
        rates.append(gaussian_kl(mean, log_var).double().numpy())
    return common.score_quantiles(
        np.concatenate(errors),
        np.concatenate(rates),
        np.concatenate(contributions) if contributions else None,
    )
