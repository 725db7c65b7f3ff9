"""What the client gives back: one frozen dataclass an RPC, arrays in the model's own dtype.

`values_outside_range` counts the values of each row that lie beyond the model's range: there the
model was never trained, so that its answer for such a row says mostly that it is unusual.

Arrays are read-only views of the message that brought them; copy one before writing into it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from PIL import Image

from latentd import codec, images
from latentd.bundle import DataSpec
from latentd.codec import Array
from latentd.pb import vae_pb2 as pb


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


_DTYPE_NAMES: Final = {value: name for name, value in codec.DATA_TYPES.items()}


def read_version(message: pb.ModelVersion) -> ModelVersion:
    """Which model and version a response names."""
    return ModelVersion(message.model, message.version, message.digest)


def read_model_info(message: pb.GetModelResponse) -> ModelInfo:
    """GetModel's response."""
    return ModelInfo(
        served_by=read_version(message.served_by),
        family=message.family,
        x=DataSpec(
            message.kind,
            tuple(message.x_shape),
            _DTYPE_NAMES.get(message.x_dtype, "unknown"),
            (message.x_min, message.x_max),
        ),
        latent_size=message.latent_size,
        likelihood=message.likelihood,
        params_per_element=message.params_per_element,
        limits=Limits(
            message.limits.max_rows, message.limits.max_message_bytes, message.limits.max_draws
        ),
        provider=message.provider,
        versions=list(message.versions),
        profiles=[
            GraphProfile(
                graph.graph, graph.max_batch_rows, {c.rows: c.seconds for c in graph.costs}
            )
            for graph in message.profiles
        ],
        preprocessing=message.preprocessing,
        created=message.created,
        training_scores=_training_scores(message.training_scores),
    )


def _training_scores(message: pb.TrainingScores) -> dict[str, Any]:
    if not message.rows:
        return {}
    lists = ("levels", "reconstruction_error", "kl", "elbo")
    return {"rows": message.rows} | {name: list(getattr(message, name)) for name in lists}


def read_listed_models(message: pb.ListModelsResponse) -> list[ListedModel]:
    """ListModels' response."""
    return [
        ListedModel(
            read_version(model.version),
            pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
            model.reason,
            model.newest,
            model.default,
            model.loading_since,
        )
        for model in message.models
    ]


def read_encoding(message: pb.EncodeResponse) -> Encoding:
    """Encode's response."""
    return Encoding(
        codec.from_tensor(message.mean, "mean"),
        codec.from_tensor(message.log_var, "log_var"),
        _given(message.HasField("z"), message.z, "z"),
        message.seed,
        _outside(message),
        read_version(message.served_by),
    )


def read_decoding(message: pb.DecodeResponse) -> Decoding:
    """Decode's response."""
    params = _given(message.HasField("params"), message.params, "params")
    return Decoding(*_rows(message.x), params, read_version(message.served_by))


def read_samples(message: pb.SampleResponse | pb.StreamSamplesResponse) -> Samples:
    """Sample's response, or one of StreamSamples'."""
    return Samples(
        *_rows(message.x),
        _given(message.HasField("z"), message.z, "z"),
        message.seed,
        message.offset,
        read_version(message.served_by),
    )


def read_reconstruction(message: pb.ReconstructResponse) -> Reconstruction:
    """Reconstruct's response."""
    return Reconstruction(
        *_rows(message.x),
        _floats(message.reconstruction_error) if message.reconstruction_error else None,
        _floats(message.kl) if message.kl else None,
        _floats(message.elbo) if message.elbo else None,
        message.seed,
        _outside(message),
        read_version(message.served_by),
    )


def read_streamed_reconstruction(message: pb.StreamReconstructResponse) -> StreamedReconstruction:
    """One of StreamReconstruct's responses."""
    return StreamedReconstruction(
        message.offset,
        {error.row: error.description for error in message.errors},
        _tensor_or_empty(message.x),
        _floats(message.reconstruction_error),
        _floats(message.kl),
        _floats(message.elbo),
        _given(message.HasField("mean"), message.mean, "mean"),
        _given(message.HasField("log_var"), message.log_var, "log_var"),
        message.seed,
        _outside(message),
        read_version(message.served_by),
    )


def read_interpolation(message: pb.InterpolateResponse) -> Interpolation:
    """Interpolate's response."""
    z = _given(message.HasField("z"), message.z, "z")
    return Interpolation(*_rows(message.x), z, _outside(message), read_version(message.served_by))


def read_scores(message: pb.ScoreResponse) -> Scores:
    """Score's response."""
    return Scores(
        _floats(message.elbo),
        _floats(message.log_likelihood),
        _floats(message.kl),
        message.seed,
        message.draws,
        _outside(message),
        read_version(message.served_by),
    )


def _rows(rows: pb.Rows) -> tuple[Array | None, list[bytes]]:
    """The fields of results.Rows."""
    if rows.WhichOneof("content") == "tensor":
        return codec.from_tensor(rows.tensor, "x.tensor"), []
    return None, list(rows.png.files)


def _tensor_or_empty(rows: pb.Rows) -> Array:
    tensor, _ = _rows(rows)
    return np.empty(0, np.uint8) if tensor is None else tensor


def _given(present: bool, tensor: pb.Tensor, field: str) -> Array | None:
    return codec.from_tensor(tensor, field) if present else None


def _floats(values: Iterable[float]) -> Array:
    return np.fromiter(values, np.float32)


def _outside(message: Any) -> Array | None:
    """How many values of each row lie outside the model's range; None: none does."""
    counts = message.values_outside_range
    return np.fromiter(counts, np.uint32) if counts else None
