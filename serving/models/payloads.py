"""Runs a batch: gathers the rows of its requests, runs the graph, returns the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from latentd.batching.entries import BatchItem
from latentd.batching.runner import Outputs
from latentd.decoding import Decoding
from latentd.models import sources
from latentd.models.scoring import Scoring
from latentd.models.sources import Source
from latentd.runtime.engine import Graph


class DecodePayload(NamedTuple):
    """What a request to the decoder puts in its queue."""

    source: Source
    shape: tuple[int, ...]  # of one latent
    # Also return this output, from which scores are computed; None: only x.
    score_output: str | None
    scoring: Scoring | None = None  # receives that output and z, which are then not returned
    decoding: Decoding | None = None  # only if the decoder takes choices


def encode_batch(graph: Graph, outputs: Sequence[str], batch: Sequence[BatchItem]) -> Outputs:
    """mean and log_var (None if not among `outputs`) of a batch whose payloads are x: float32
    (rows, *shape of one latent)."""
    rows = [item.payload[item.start : item.stop] for item in batch]
    encoded = graph.run(rows[0] if len(rows) == 1 else np.concatenate(rows), outputs)
    return (*encoded, None) if len(encoded) == 1 else tuple(encoded)


def decode_batch(graph: Graph, batch: Sequence[BatchItem]) -> Outputs:
    """x, the score output (None if no request wants it) and z of a batch of DecodePayloads."""
    z = sources.materialize(batch, batch[0].payload.shape)
    first = batch[0].payload
    if first.decoding is None:
        rows = z
    else:
        choices = [item.payload.decoding.choices(item.start, item.stop) for item in batch]
        rows = np.concatenate((z, np.concatenate(choices)), axis=1)
    name = next((found for item in batch if (found := item.payload.score_output)), None)
    if name:  # the same in all that have one
        x, score_output = graph.run(rows, ["x", name])
        start = 0
        for item in batch:
            stop = start + item.rows
            if item.payload.scoring is not None:
                item.payload.scoring.add(
                    item.start, item.stop, z[start:stop], score_output[start:stop]
                )
            start = stop
        return x, score_output, z
    return *graph.run(rows, ["x"]), None, z
