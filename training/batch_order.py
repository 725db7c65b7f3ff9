"""The order in which an epoch takes its rows."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from latentd.training.networks.gru import text_mask

_AT_ONCE: Final = 65_536  # rows: `text_mask` makes numbers of four bytes of each byte
_WINDOW: Final = 50  # batches: among so many, texts are sorted by length


def draw(x: Tensor, size: int, text: bool, generator: torch.Generator) -> Tensor:
    """The indices of rows x (rows, *shape), drawn again in each epoch: int64 (rows,). Each `size`
    of them are a batch.

    Texts of similar lengths share a batch, so that few steps read more than their texts. The last
    batch, which may be smaller, holds texts of any length.
    """
    order = torch.randperm(len(x), generator=generator)
    batches = len(x) // size
    if not text or batches < 2:
        return order
    lengths = torch.cat([text_mask(part).sum(1).cpu() for part in torch.split(x, _AT_ONCE)])
    whole, rest = order[: batches * size], order[batches * size :]
    windows = [window[lengths[window].argsort()] for window in torch.split(whole, _WINDOW * size)]
    whole = torch.cat(windows).view(batches, size)
    return torch.cat((whole[torch.randperm(batches, generator=generator)].flatten(), rest))
