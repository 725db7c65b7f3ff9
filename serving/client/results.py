"""What the client gives back: one frozen dataclass an RPC, arrays in the model's own dtype.

Arrays are read-only views of the message that brought them; copy one before writing into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.bundle import XSpec
from serving.codec import Array


@dataclass(frozen=True)
class ModelVersion:
    """Which model and version answered."""

    model: str
    version: int
    digest: str  # "sha256:<hex>" of the bundle's manifest

    def __str__(self) -> str:
        return f"{self.model} version {self.version} ({self.digest[:15]})"


@dataclass(frozen=True)
class Limits:
    """What the server refuses beyond."""

    max_rows: int  # in one request or response
    max_message_bytes: int
    max_draws: int  # for each row in score


@dataclass(frozen=True)
class LaneCost:
    """The measured cost of running one graph."""

    lane: str  # encoder | decoder | reconstructor
    max_batch_rows: int
    seconds: dict[int, float]  # rows in a batch -> median time


@dataclass(frozen=True)
class ModelInfo:
    """What one model is, where it runs and what it costs."""

    served_by: ModelVersion
    family: str  # vae | ae
    x: XSpec  # one row of data
    latent_size: int
    likelihood: str  # bernoulli | gaussian
    params_per_element: int
    limits: Limits
    provider: str
    versions: list[int]  # every one being served, ascending
    lanes: list[LaneCost]
    preprocessing: str
    created: str  # UTC, ISO 8601
    training_scores: dict[str, Any]  # as in a bundle's manifest; {}: the bundle does not say


@dataclass(frozen=True)
class ListedModel:
    """One version the server found; state "ready", or "failed" for the reason given."""

    version: ModelVersion
    state: str
    reason: str
    newest: bool
    default: bool


@dataclass(frozen=True)
class Encoding:
    """The latent distribution of each row."""

    mean: Array  # float32, rows x latent size
    log_var: Array  # float32, rows x latent size
    z: Array | None  # float32, rows x latent size; only with draw=True
    seed: int  # what the draw used; 0 without one
    served_by: ModelVersion


@dataclass(frozen=True)
class Decoding:
    """Data for each latent: x, or png with as_png=True, or params with params=True."""

    x: Array  # rows x x_shape in the model's dtype; empty where png or params was asked for
    png: list[bytes]  # one file a row
    params: Array | None  # float32, rows x params per element x x_shape
    served_by: ModelVersion


@dataclass(frozen=True)
class Samples:
    """New data. served_by, seed and offset replay it."""

    x: Array  # rows x x_shape in the model's dtype; empty with as_png=True
    png: list[bytes]  # one file a row; only with as_png=True
    z: Array | None  # float32, rows x latent size; only with return_z=True
    seed: int
    offset: int  # index of the first row
    served_by: ModelVersion

    def __len__(self) -> int:
        return len(self.png) or len(self.x)


@dataclass(frozen=True)
class Reconstruction:
    """What the model makes of each row; the scores, in nats, only with scores=True."""

    x: Array  # rows x x_shape in the model's dtype; empty with as_png=True
    png: list[bytes]  # one file a row; only with as_png=True
    reconstruction_error: Array | None  # float32, rows
    kl: Array | None  # float32, rows
    elbo: Array | None  # float32, rows
    seed: int  # what the draw used; 0 without one
    served_by: ModelVersion


@dataclass(frozen=True)
class StreamedReconstruction:
    """What the model makes of the rows of one chunk. All but `errors` leaves out the rows there."""

    offset: int  # index of the chunk's first row
    errors: dict[int, str]  # place in the chunk -> why this row could not be taken
    x: Array  # rows x x_shape in the model's dtype; empty with omit_x=True
    reconstruction_error: Array  # float32, rows; nats, as the next two; empty without scores=True
    kl: Array
    elbo: Array
    mean: Array | None  # float32, rows x latent size; only with latents=True
    log_var: Array | None
    seed: int  # what the draws use; 0 without
    served_by: ModelVersion


@dataclass(frozen=True)
class Interpolation:
    """The way from one end point to the other, both included."""

    x: Array  # steps x x_shape in the model's dtype; empty with as_png=True
    png: list[bytes]  # one file a step; only with as_png=True
    z: Array | None  # float32, steps x latent size; only with return_z=True
    served_by: ModelVersion


@dataclass(frozen=True)
class Scores:
    """How likely each row is under the model, in nats."""

    elbo: Array  # float32, rows
    log_likelihood: Array  # float32, rows: the importance-weighted bound
    kl: Array  # float32, rows
    seed: int
    draws: int  # for each row
    served_by: ModelVersion
