"""What the client gives back: one frozen dataclass an RPC, arrays in the model's own dtype.

`values_outside_range` counts the values of each row that lie beyond the model's range: there the
model was never trained, so that its answer for such a row says mostly that it is unusual.

Arrays are read-only views of the message that brought them; copy one before writing into it.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from latentd import images
from latentd.bundle import DataSpec
from latentd.codec import Array


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
class GraphProfile:
    """The measured cost of running one graph."""

    graph: str  # encoder | decoder
    max_batch_rows: int
    seconds: dict[int, float]  # rows in a batch -> fastest of several runs


@dataclass(frozen=True)
class ModelInfo:
    """What one model is, where it runs and what it costs."""

    served_by: ModelVersion
    family: str  # vae | ae
    x: DataSpec  # one row of data
    latent_size: int
    likelihood: str  # bernoulli | gaussian | discretised-logistic
    params_per_element: int
    limits: Limits
    provider: str
    versions: list[int]  # every one being served, ascending
    profiles: list[GraphProfile]
    preprocessing: str
    created: str  # UTC, ISO 8601
    training_scores: dict[str, Any]  # as in a bundle's manifest; {}: the bundle does not say


@dataclass(frozen=True)
class ListedModel:
    """One version the server found; state "ready", "failed" for the reason given, or "loading"."""

    version: ModelVersion
    state: str
    reason: str
    newest: bool
    default: bool
    loading_since: str = ""  # UTC, ISO 8601


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows of data as a response brought them. A notebook shows them as one picture."""

    tensor: Array | None  # None where PNG files, or other outputs, were asked for
    png: list[bytes]  # one file a row; only with as_png=True

    @functools.cached_property
    def x(self) -> Array:
        """The rows in the model's dtype, rows x x_shape; from the PNG files where those came.

        A grey model's PNG files hold no channel axis: x is then rows x height x width. Raises
        AttributeError where the call asked for params in place of x.
        """
        if self.tensor is not None:
            return self.tensor
        if not self.png:
            raise AttributeError(
                f"this {type(self).__name__} holds params and no x: make the call without "
                "params=True to get x"
            )
        return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in self.png])

    def __len__(self) -> int:
        if self.tensor is None and not self.png:
            params = getattr(self, "params", None)
            return 0 if params is None else len(params)
        return len(self.png) if self.tensor is None else len(self.tensor)

    def grid(self, columns: int = 0) -> Image.Image:
        """All rows in one picture, `columns` wide (0: square). Raises TypeError where the rows are
        not 8-bit images."""
        if not self._are_pictures():
            raise TypeError(f"rows of {self._described()} are not 8-bit images")
        return Image.open(io.BytesIO(images.make_grid(self.x, columns)))

    def __repr__(self) -> str:
        """What came and what replays it, without the numbers themselves."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [f"{len(self)} rows of {self._described()}"]
        for name, value in given.items():
            if isinstance(value, np.ndarray) and name != "tensor":
                shown.append(f"{name}: {value.dtype} {value.shape}")
            elif isinstance(value, int):
                shown.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(shown)}, {given['served_by']})"

    def _repr_png_(self) -> bytes | None:
        """What IPython shows; None: the text."""
        return images.make_grid(self.x) if self._are_pictures() and len(self) else None

    def _are_pictures(self) -> bool:
        if self.tensor is None:
            return bool(self.png)
        shape = self.tensor.shape[1:]
        return self.tensor.dtype == np.uint8 and (len(shape) == 2 or shape[2:] in ((1,), (3,)))

    def _described(self) -> str:
        if self.tensor is None:
            return "PNG" if self.png else "params"
        return f"{self.tensor.dtype} {'x'.join(map(str, self.tensor.shape[1:]))}"


@dataclass(frozen=True)
class Encoding:
    """The latent distribution of each row."""

    mean: Array  # float32, rows x latent size
    log_var: Array  # float32, rows x latent size
    z: Array | None  # float32, rows x latent size; only with draw=True
    seed: int  # what the draw used; 0 without one
    values_outside_range: Array | None  # uint32, rows: of each the values beyond; None: none is
    served_by: ModelVersion


@dataclass(frozen=True, repr=False)
class Decoding(Rows):
    """Data for each latent: x, or params with params=True."""

    params: Array | None  # float32, rows x params per element x x_shape
    served_by: ModelVersion


@dataclass(frozen=True, repr=False)
class Samples(Rows):
    """New data. served_by, seed and offset replay it."""

    z: Array | None  # float32, rows x latent size; only with include_z=True
    seed: int
    offset: int  # index of the first row
    served_by: ModelVersion


@dataclass(frozen=True, repr=False)
class Reconstruction(Rows):
    """What the model makes of each row; the scores, in nats, only with include_scores=True."""

    reconstruction_error: Array | None  # float32, rows
    kl: Array | None  # float32, rows
    elbo: Array | None  # float32, rows
    seed: int  # what the draw used; 0 without one
    values_outside_range: Array | None  # uint32, rows: of each the values beyond; None: none is
    served_by: ModelVersion


@dataclass(frozen=True)
class StreamedReconstruction:
    """What the model makes of the rows of one chunk. All but `errors` leaves out the rows there."""

    offset: int  # index of the chunk's first row
    errors: dict[int, str]  # place in the chunk -> why this row could not be taken
    x: Array  # rows x x_shape in the model's dtype; empty with include_x=False
    reconstruction_error: (
        Array  # float32, rows; nats, as the next two; empty without include_scores=True
    )
    kl: Array
    elbo: Array
    mean: Array | None  # float32, rows x latent size; only with include_latents=True
    log_var: Array | None
    seed: int  # what the draws use; 0 without
    values_outside_range: Array | None  # uint32, rows: of each the values beyond; None: none is
    served_by: ModelVersion


@dataclass(frozen=True, repr=False)
class Interpolation(Rows):
    """The path from one end point to the other, both included; a row is a step."""

    z: Array | None  # float32, steps x latent size; only with include_z=True
    values_outside_range: Array | None  # uint32, rows: of each the values beyond; None: none is
    served_by: ModelVersion


@dataclass(frozen=True)
class Scores:
    """How likely each row is under the model, in nats."""

    elbo: Array  # float32, rows
    log_likelihood: Array  # float32, rows: the importance-weighted bound
    kl: Array  # float32, rows
    seed: int
    draws: int  # for each row
    values_outside_range: Array | None  # uint32, rows: of each the values beyond; None: none is
    served_by: ModelVersion
