"""p(x|z) of texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from latentd.training.likelihoods.likelihood import Likelihood
from latentd.training.networks.gru import BYTES, text_mask


class Categorical(Likelihood):
    """Of text: each byte given those before it, up to the text's end and with it.

    A byte has no parameters without the text itself. `gru.Decoder` gives logits (rows, length - 1,
    256) for a text, and -log p(x|z) is the sum over its bytes.
    """

    outputs, parameters = BYTES, ()

    def terms(self, x: Tensor, params: Tensor) -> Tensor:
        """x: rows of bytes (rows, length). params: the decoder's logits for these texts."""
        # The last byte of a row is always an end.
        tokens = x[:, :-1].long().remainder(BYTES)
        nll = F.cross_entropy(params.transpose(1, 2), tokens, reduction="none")
        return nll * text_mask(x)[:, :-1]
