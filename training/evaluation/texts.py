"""What is measured of a model of text only: greedy decodes, samples and interpolations.

An autoregressive decoder can have a good likelihood without z. Its greedy decodes of different z
are then the same text, which no likelihood shows.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from latentd.texts import to_texts
from latentd.training.evaluation import samples
from latentd.training.evaluation.loaded_run import LoadedRun
from latentd.training.model import text_decoder
from latentd.training.networks.gru import text_mask
from latentd.training.sheets import text as text_sheets
from latentd.training.text import parity as text_parity

DECODES: Final = 1000  # from the prior
_SHOWN: Final = 10
_INTERPOLATED: Final = 8  # codes of test rows, two by two


@torch.inference_mode()
def measure_texts(loaded: LoadedRun, mean: Tensor, seed: int) -> dict[str, Any]:
    """Counts over the first test rows and over DECODES draws of the prior, and a few texts.

    mean: the codes of those test rows, (rows, latents).
    """
    x = loaded.dataset.test.x[: len(mean)]
    texts = to_texts(x)
    z = samples.prior(DECODES, mean.shape[1], seed)
    greedy, drawn = to_texts(samples.decode(loaded.model, z)), _sampled(loaded, z, seed)
    known = set(to_texts(loaded.dataset.train.x))
    again = samples.decode(loaded.model, mean)
    of_text = text_mask(x)
    return {
        # Each row's last byte is an end for certain, so it counts as no byte.
        "bytes": int(of_text[:, :-1].sum()),
        "words": sum(len(text.split()) for text in texts),
        "exact_reconstructions": sum(a == b for a, b in zip(to_texts(again), texts, strict=True)),
        "byte_accuracy": float((again == x)[of_text].float().mean()),
        "decodes": DECODES,
        "distinct_greedy_decodes": len(set(greedy)),
        "distinct_samples": len(set(drawn)),
        "new_samples": sum(text not in known for text in drawn),
        "samples": drawn[:_SHOWN],
        "interpolations": text_sheets.interpolations(loaded.model, mean[:_INTERPOLATED]),
    }


def likelihoods(bound: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """The NLL and the rate a byte, bits, and perplexities. bound: of the same rows as `found`."""
    total, rows = bound["nll"] * bound["rows"], bound["rows"]
    nll = total / found["bytes"]
    return {
        "nll_per_byte": nll,
        "bits_per_byte": nll / math.log(2),
        "rate_per_byte": bound["rate"] * rows / found["bytes"],
        "perplexity_per_byte": math.exp(nll),
        # As papers have it: a sentence's end counts as a word.
        "perplexity_per_word": math.exp(min(total / (found["words"] + rows), 700)),
    }


def _sampled(loaded: LoadedRun, z: Tensor, seed: int) -> list[str]:
    """Texts drawn from p(x|z), one for each z."""
    x = torch.zeros((len(z), *loaded.model.spec.shape), dtype=torch.uint8)
    rows = text_parity.inputs(z, x, seed).sampled.to(loaded.device)
    return to_texts(text_decoder(loaded.model).decode(rows).x.cpu())
