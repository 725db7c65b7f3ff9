"""Runs a batch: gathers the rows of its requests, runs the graph, returns the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from latentd.batching.rowqueue import BatchItem
from latentd.batching.runner import Outputs
from latentd.models import sources
from latentd.models.scoring import Scoring
from latentd.models.sources import Source
from latentd.runtime.engine import Graph

ENCODER_OUTPUTS: Final = ("mean", "log_var")


@dataclass(frozen=True, slots=True)
class DecodePayload:
    """What a request to the decoder puts in its queue."""

    source: Source
    params: bool  # also return the parameters of p(x | z), not only its mean
    scoring: Scoring | None = None  # receives params and z, which are then not returned


def encode_batch(graph: Graph, batch: Sequence[BatchItem]) -> Outputs:
    """mean and log_var, float32 (rows, latent size), of a batch whose payloads are x."""
    rows = [item.payload[item.start : item.stop] for item in batch]
    return tuple(graph.run(rows[0] if len(rows) == 1 else np.concatenate(rows), ENCODER_OUTPUTS))


def decode_batch(graph: Graph, latent_size: int, batch: Sequence[BatchItem]) -> Outputs:
    """x, params (None if no request wants them) and z of a batch of DecodePayloads."""
    z = sources.materialize(batch, latent_size)
    if any(item.payload.params for item in batch):
        x, params = graph.run(z, ["x", "params"])
        start = 0
        for item in batch:
            stop = start + item.rows
            if item.payload.scoring is not None:
                item.payload.scoring.add(item.start, item.stop, z[start:stop], params[start:stop])
            start = stop
        return x, params, z
    return *graph.run(z, ["x"]), None, z
