"""What the lanes do with a batch: its requests' rows gathered, run, and handed back as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentd.batching.rowqueue import BatchItem
from latentd.batching.runner import Outputs
from latentd.models import sources
from latentd.models.scoring import Scoring
from latentd.models.sources import Source
from latentd.runtime.engine import Graph

Array = NDArray[Any]

ENCODED: Final = ("mean", "log_var")


@dataclass(frozen=True, slots=True)
class DecodePayload:
    """What waits in the decoder lane."""

    source: Source
    params: bool  # the parameters of p(x | z) are wanted, not only its mean
    scoring: Scoring | None = None  # takes params and z; then none of them is wanted


def encode_batch(graph: Graph, batch: Sequence[BatchItem]) -> Outputs:
    """mean and log_var for the rows of a batch whose payloads are x."""
    rows = [share.payload[share.start : share.stop] for share in batch]
    return tuple(graph.run(rows[0] if len(rows) == 1 else np.concatenate(rows), ENCODED))


def decode_batch(graph: Graph, latent_size: int, batch: Sequence[BatchItem]) -> Outputs:
    """x, params (None if nobody wants them) and z for a batch whose payloads are decodings."""
    z = sources.materialize(batch, latent_size)
    if any(share.payload.params for share in batch):
        x, params = graph.run(z, ["x", "params"])
        start = 0
        for share in batch:
            stop = start + share.rows
            if share.payload.scoring is not None:
                share.payload.scoring.take(
                    share.start, share.stop, z[start:stop], params[start:stop]
                )
            start = stop
        return x, params, z
    return *graph.run(z, ["x"]), None, z
