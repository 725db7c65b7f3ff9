"""Parity of a model of text: the graphs against PyTorch, byte by byte.

Bytes must be equal. Only where rounding could have chosen another byte may a row differ: such rows
are counted. `gru.Decoded.margin` says how near another byte was.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from latentd.decoding import GREEDY
from latentd.training import parity
from latentd.training.errors import RunFailed
from latentd.training.model import AE, Model, gaussian_kl, text_decoder
from latentd.training.networks import gru
from latentd.training.tolerances import TOLERANCES

UNSURE: Final = 1e-5
"""A row whose margin is smaller may differ. Margins are nats or probabilities, whose rounding is
near 1e-6."""
_UNIFORM_STEPS: Final = 1 << 23  # float32 has each of their middles exactly, and they round to 1
_ROWS_IN_SMALL_BATCHES: Final = 200
_TOLERANCE: Final = TOLERANCES["float32"]


class Inputs(NamedTuple):
    """Rows of decoder.onnx's input: float32 (rows, latents + length) each."""

    greedy: Tensor
    sampled: Tensor
    teacher_forced: Tensor


def inputs(z: Tensor, x: Tensor, seed: int) -> Inputs:
    """The same latents (rows, latents) with choices of each kind. x: the forced bytes."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, _UNIFORM_STEPS, x.shape, generator=generator)
    greedy = z.new_full(x.shape, GREEDY)
    uniform = (steps.float() + 0.5) / _UNIFORM_STEPS
    choices = (greedy, uniform, gru.teacher_forced(x))
    return Inputs(*(torch.cat((z, choice), dim=1) for choice in choices))


@torch.no_grad()
def measure(model: Model, encoder: bytes, decoder: bytes, x: Tensor) -> dict[str, Any]:
    """The largest differences over rows x (rows, length), as `parity.measure` gives them, and the
    rows that differ. Raises RunFailed at the first difference that rounding does not explain."""
    encode, decode = parity.session(encoder), parity.session(decoder)
    mean, log_var = model.encode(x)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    rows = inputs(mean + (0.5 * log_var).exp() * noise, x, seed=1)
    expected = {kind: text_decoder(model).decode(part) for kind, part in rows._asdict().items()}
    eager = {"mean": mean, "log_var": log_var}
    if isinstance(model, AE):
        del eager["log_var"]
    errors = dict.fromkeys([*eager, "log_likelihood"], 0.0)
    differing = dict.fromkeys(rows._fields, 0)
    batches = parity.batch_sizes(model.output_shape)
    for batch in batches:
        count = len(x) if batch >= len(x) else min(_ROWS_IN_SMALL_BATCHES, len(x))
        found = parity.run(encode, x[:count], batch)
        for name, tensor in eager.items():
            error = parity.compare(name, found[name], tensor[:count].numpy(), batch, _TOLERANCE)
            errors[name] = max(errors[name], error)
        for kind, part in rows._asdict().items():
            differ, error = compare_texts(kind, decode, part[:count], expected[kind], batch)
            differing[kind] = max(differing[kind], differ)
            errors["log_likelihood"] = max(errors["log_likelihood"], error)
    return {
        "batches": list(batches),
        "atol": _TOLERANCE.atol,
        "rtol": _TOLERANCE.rtol,
        "max_abs_difference": errors,
        "rows_with_other_bytes": differing,
        "unsure_margin": UNSURE,
        "unsure_rows": {kind: int((part.margin < UNSURE).sum()) for kind, part in expected.items()},
    }


def compare_texts(
    kind: str, session: ort.InferenceSession, rows: Tensor, expected: gru.Decoded, batch: int
) -> tuple[int, float]:
    """How many rows have other bytes, and the largest difference of log p of the others. Raises
    RunFailed for a difference that rounding does not explain."""
    found = parity.run(session, rows, batch)
    x, log_p = expected.x[: len(rows)].numpy(), expected.log_p[: len(rows)].numpy()
    same = (found["x"] == x).all(1)
    sure = (expected.margin[: len(rows), 0] >= UNSURE).numpy()
    if wrong := int((sure & ~same).sum()):
        raise RunFailed(
            f"Parity failed: at batch {batch}, {wrong} of {len(rows)} texts ({kind}) from ONNX "
            "Runtime have other bytes than PyTorch's. Nothing was published."
        )
    name = f"log_likelihood ({kind})"
    got = np.where(same[:, None], found["log_likelihood"], log_p)
    return int((~same).sum()), parity.compare(name, got, log_p, batch, _TOLERANCE)


@torch.no_grad()
def scores(
    model: Model, encoder: bytes, decoder: bytes, x: Tensor, batch: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The reconstruction error and the KL of rows, through the mean: float64 (rows,) nats."""
    encode, decode = parity.session(encoder), parity.session(decoder)
    errors, rates = [], []
    for part in torch.split(x, batch):
        latent = {name: torch.from_numpy(a) for name, a in parity.run(encode, part, batch).items()}
        rows = torch.cat((latent["mean"], gru.teacher_forced(part)), dim=1)
        errors.append(-parity.run(decode, rows, batch)["log_likelihood"][:, 0].astype(np.float64))
        rates.append(gaussian_kl(latent["mean"], latent["log_var"]).double().numpy())
    return np.concatenate(errors), np.concatenate(rates)
