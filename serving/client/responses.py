"""From the messages that answer to what the client gives back: a function for each of `results`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from latentd import codec
from latentd.bundle import DataSpec
from latentd.client.results import (
    Decoding,
    Encoding,
    GraphProfile,
    Interpolation,
    Limits,
    ListedModel,
    ModelInfo,
    ModelVersion,
    Reconstruction,
    Samples,
    Scores,
    StreamedReconstruction,
)
from latentd.codec import Array
from latentd.pb import vae_pb2 as pb

_DTYPE_NAMES: Final = {value: name for name, value in codec.DATA_TYPES.items()}


def version(message: pb.ModelVersion) -> ModelVersion:
    """Which model and version a response names."""
    return ModelVersion(message.model, message.version, message.digest)


def model_info(message: pb.GetModelResponse) -> ModelInfo:
    """GetModel's response."""
    return ModelInfo(
        served_by=version(message.served_by),
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


def listed_models(message: pb.ListModelsResponse) -> list[ListedModel]:
    """ListModels' response."""
    return [
        ListedModel(
            version(model.version),
            pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower(),
            model.reason,
            model.newest,
            model.default,
            model.loading_since,
        )
        for model in message.models
    ]


def encoding(message: pb.EncodeResponse) -> Encoding:
    """Encode's response."""
    return Encoding(
        codec.from_tensor(message.mean, "mean"),
        codec.from_tensor(message.log_var, "log_var"),
        _given(message.HasField("z"), message.z, "z"),
        message.seed,
        _outside(message),
        version(message.served_by),
    )


def decoding(message: pb.DecodeResponse) -> Decoding:
    """Decode's response."""
    params = _given(message.HasField("params"), message.params, "params")
    return Decoding(*_rows(message.x), params, version(message.served_by))


def samples(message: pb.SampleResponse | pb.StreamSamplesResponse) -> Samples:
    """Sample's response, or one of StreamSamples'."""
    return Samples(
        *_rows(message.x),
        _given(message.HasField("z"), message.z, "z"),
        message.seed,
        message.offset,
        version(message.served_by),
    )


def reconstruction(message: pb.ReconstructResponse) -> Reconstruction:
    """Reconstruct's response."""
    return Reconstruction(
        *_rows(message.x),
        _floats(message.reconstruction_error) if message.reconstruction_error else None,
        _floats(message.kl) if message.kl else None,
        _floats(message.elbo) if message.elbo else None,
        message.seed,
        _outside(message),
        version(message.served_by),
    )


def streamed_reconstruction(message: pb.StreamReconstructResponse) -> StreamedReconstruction:
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
        version(message.served_by),
    )


def interpolation(message: pb.InterpolateResponse) -> Interpolation:
    """Interpolate's response."""
    z = _given(message.HasField("z"), message.z, "z")
    return Interpolation(*_rows(message.x), z, _outside(message), version(message.served_by))


def scores(message: pb.ScoreResponse) -> Scores:
    """Score's response."""
    return Scores(
        _floats(message.elbo),
        _floats(message.log_likelihood),
        _floats(message.kl),
        message.seed,
        message.draws,
        _outside(message),
        version(message.served_by),
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
