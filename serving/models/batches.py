"""What the lanes do with a batch: its requests' rows gathered, run, and handed back as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving.batching.rowqueue import Share
from serving.batching.runner import Outputs
from serving.models import sources
from serving.runtime.engine import Graph

Array = NDArray[Any]

ENCODED: Final = ("mean", "log_var")


@dataclass(frozen=True, slots=True)
class Reconstructing:
    """What waits in the reconstructor lane."""

    x: Array
    params: bool  # the parameters of p(x | z) are wanted, not only its mean
    latents: bool  # mean and log_var are wanted


def encode_batch(graph: Graph, batch: Sequence[Share]) -> Outputs:
    """mean and log_var for the rows of a batch whose payloads are x."""
    x = _joined([share.payload[share.start : share.stop] for share in batch])
    return tuple(graph.run(x, ENCODED))


def decode_batch(graph: Graph, latent_size: int, batch: Sequence[Share]) -> Outputs:
    """x, params (None if nobody wants them) and z for a batch whose payloads are decodings."""
    z = sources.gather(batch, latent_size)
    if any(share.payload.params for share in batch):
        return *graph.run(z, ["x", "params"]), z
    return *graph.run(z, ["x"]), None, z


def reconstruct_batch(graph: Graph, batch: Sequence[Share]) -> Outputs:
    """x through its mean, params, mean and log_var (each None if nobody wants it) for a batch whose
    payloads are reconstructions."""
    x = _joined([share.payload.x[share.start : share.stop] for share in batch])
    wanted = ["x"]
    if any(share.payload.params for share in batch):
        wanted.append("params")
    if any(share.payload.latents for share in batch):
        wanted.extend(ENCODED)
    given = dict(zip(wanted, graph.run(x, wanted), strict=True))
    return tuple(map(given.get, ("x", "params", *ENCODED)))


def _joined(rows: list[Array]) -> Array:
    return rows[0] if len(rows) == 1 else np.concatenate(rows)
