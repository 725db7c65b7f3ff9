"""Reads the responses of the server into `results`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from latentd import codec
from latentd.bundle import LatentFormat, RowFormat, Threshold, Tile
from latentd.client.results import (
    Decoding,
    Encoding,
    GraphProfile,
    Interpolation,
    LatentMap,
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
from latentd.columns import Column
from latentd.outliers import MEDIANS
from latentd.pb import vae_pb2 as pb
from latentd.shapes import Axis, Dim, Shape

_TILED: Final[Mapping[int, str]] = {
    pb.TILED_EXACT: "exact",
    pb.TILED_APPROXIMATE: "approximate",
}


def read_version(message: pb.ModelVersion) -> ModelVersion:
    """The model and version of a response."""
    return ModelVersion(message.model, message.version, message.digest)


def read_model_info(message: pb.GetModelResponse) -> ModelInfo:
    """Read GetModel's response."""
    return ModelInfo(
        served_by=read_version(message.served_by),
        x=RowFormat(
            message.kind,
            _shape(message.x_shape),
            codec.NAMES.get(message.x_dtype, "unknown"),
            (message.x_min, message.x_max),
            message.sample_rate,
            tuple(map(_column, message.columns)),
        ),
        z=LatentFormat(_shape(message.z_shape), tuple(message.z_scale), tuple(message.z_shift)),
        axes={
            axis.name: Axis(axis.name, axis.multiple_of, axis.min, axis.max, axis.default)
            for axis in message.axes
        },
        x_bounded=message.x_bounded,
        posterior=message.posterior,
        prior=message.prior,
        likelihood=message.likelihood,
        parameters=tuple(message.parameters),
        unavailable=dict(message.unavailable),
        limits=Limits(
            message.limits.max_rows, message.limits.max_message_bytes, message.limits.max_draws
        ),
        provider=message.provider,
        versions=list(message.versions),
        profiles=[
            GraphProfile(
                graph.graph,
                graph.max_batch_rows,
                {c.rows: c.seconds for c in graph.timings},
                tuple(graph.x_shape),
            )
            for graph in message.profiles
        ],
        preprocessing=message.preprocessing,
        created=message.created,
        training_scores=_training_scores(message.training_scores),
        tiles={tile.graph: _tile(tile) for tile in message.tiles},
        threshold=_threshold(message),
        contributions=_shape(message.contributions_shape) if message.contributions_shape else None,
    )


def _shape(dims: Iterable[pb.Dim]) -> Shape:
    return Shape(tuple(Dim(dim.length, dim.axis, max(1, dim.divisor)) for dim in dims))


def _column(message: pb.Column) -> Column:
    fill_value = message.fill_value if message.HasField("fill_value") else None
    return Column(
        message.name,
        tuple(message.levels),
        message.mean,
        message.std,
        fill_value,
        message.is_integer,
    )


def _tile(message: pb.Tile) -> Tile:
    measured = (message.max_abs_difference, None) if message.exact else (None, message.decibels)
    return Tile(dict(message.size), dict(message.overlap), message.exact, *measured)


def _threshold(message: pb.GetModelResponse) -> Threshold | None:
    if not message.HasField("threshold"):
        return None
    chosen = message.threshold
    counts = chosen.validation_rows, chosen.validation_outliers
    return Threshold(chosen.percentile, chosen.reconstruction_error, *counts)


def _training_scores(message: pb.TrainingScores) -> dict[str, Any]:
    if not message.rows:
        return {}
    lists = ("levels", "reconstruction_error", "kl", "elbo")
    found = {"rows": message.rows} | {name: list(getattr(message, name)) for name in lists}
    medians = list(message.median_contributions)
    return found | ({MEDIANS: medians} if medians else {})


def read_listed_models(message: pb.ListModelsResponse) -> list[ListedModel]:
    """Read ListModels' response."""
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


def read_map(message: pb.GetMapResponse) -> LatentMap:
    """Read GetMap's response."""
    center = codec.from_tensor(message.center, "center")
    is_vector = message.x.WhichOneof("content") == "tensor"
    return LatentMap(
        codec.from_tensor(message.mean, "mean"),
        codec.from_tensor(message.components, "components"),
        center,
        codec.from_tensor(message.position, "position"),
        (message.explained_variance[0], message.explained_variance[1]),
        _optional_tensor(message.HasField("unit_kl"), message.unit_kl, "unit_kl"),
        np.fromiter(message.active, np.bool_).reshape(center.shape),
        list(message.classes),
        np.fromiter(message.label, np.uint32) if message.label else None,
        _floats(message.reconstruction_error) if message.reconstruction_error else None,
        _floats(message.kl) if message.kl else None,
        message.sprites,
        (message.sprite_height, message.sprite_width),
        _optional_tensor(is_vector, message.x.tensor, "x.tensor"),
        list(message.x.text.texts),
        read_version(message.served_by),
    )


def read_encoding(message: pb.EncodeResponse) -> Encoding:
    """Read Encode's response."""
    return Encoding(
        codec.from_tensor(message.mean, "mean"),
        _optional_tensor(message.HasField("log_var"), message.log_var, "log_var"),
        _optional_tensor(message.HasField("z"), message.z, "z"),
        message.seed,
        _outside_range(message),
        read_version(message.served_by),
        _tiled(message),
    )


def read_decoding(message: pb.DecodeResponse) -> Decoding:
    """Read Decode's response."""
    params = _optional_tensor(message.HasField("params"), message.params, "params")
    return Decoding(*_rows(message.x), params, read_version(message.served_by), _tiled(message))


def read_samples(message: pb.SampleResponse | pb.StreamSamplesResponse) -> Samples:
    """Read Sample's response, or one of StreamSamples' responses."""
    return Samples(
        *_rows(message.x),
        _optional_tensor(message.HasField("z"), message.z, "z"),
        message.seed,
        message.offset,
        read_version(message.served_by),
        _tiled(message),
    )


def read_reconstruction(message: pb.ReconstructResponse) -> Reconstruction:
    """Read Reconstruct's response."""
    return Reconstruction(
        *_rows(message.x),
        _floats(message.reconstruction_error) if message.reconstruction_error else None,
        _floats(message.kl) if message.kl else None,
        _floats(message.elbo) if message.elbo else None,
        message.seed,
        _outside_range(message),
        read_version(message.served_by),
        _tiled(message),
        **_outliers(message),
    )


def read_streamed_reconstruction(message: pb.StreamReconstructResponse) -> StreamedReconstruction:
    """Read one of StreamReconstruct's responses."""
    return StreamedReconstruction(
        message.offset,
        {error.row: error.description for error in message.errors},
        _tensor_or_empty(message.x),
        _floats(message.reconstruction_error),
        _floats(message.kl),
        _floats(message.elbo),
        _optional_tensor(message.HasField("mean"), message.mean, "mean"),
        _optional_tensor(message.HasField("log_var"), message.log_var, "log_var"),
        message.seed,
        _outside_range(message),
        read_version(message.served_by),
        **_outliers(message),
    )


def read_interpolation(message: pb.InterpolateResponse) -> Interpolation:
    """Read Interpolate's response."""
    z = _optional_tensor(message.HasField("z"), message.z, "z")
    return Interpolation(
        *_rows(message.x),
        z,
        _outside_range(message),
        read_version(message.served_by),
        _tiled(message),
    )


def read_scores(message: pb.ScoreResponse) -> Scores:
    """Read Score's response."""
    return Scores(
        _floats(message.elbo),
        _floats(message.log_likelihood),
        _floats(message.kl),
        message.seed,
        message.draws,
        _outside_range(message),
        read_version(message.served_by),
        **_outliers(message),
        reconstruction_error=(
            _floats(message.reconstruction_error) if message.reconstruction_error else None
        ),
    )


def _outliers(message: Any) -> dict[str, Any]:
    """The fields threshold, is_outlier and contributions."""
    known, terms = message.HasField("threshold"), message.contributions
    return {
        "threshold": message.threshold if known else None,
        "is_outlier": np.fromiter(message.is_outlier, np.bool_) if known else None,
        "contributions": _optional_tensor(
            message.HasField("contributions"), terms, "contributions"
        ),
    }


def _rows(rows: pb.Rows) -> tuple[Array | None, list[bytes]]:
    """The fields of `Rows`."""
    if rows.WhichOneof("content") == "tensor":
        return codec.from_tensor(rows.tensor, "x.tensor"), []
    return None, list(rows.images.files)


def _tensor_or_empty(rows: pb.Rows) -> Array:
    tensor, _ = _rows(rows)
    return np.empty(0, np.uint8) if tensor is None else tensor


def _optional_tensor(present: bool, tensor: pb.Tensor, field: str) -> Array | None:
    return codec.from_tensor(tensor, field) if present else None


def _floats(values: Iterable[float]) -> Array:
    return np.fromiter(values, np.float32)


def _tiled(message: Any) -> str:
    return _TILED.get(message.tiled, "")


def _outside_range(message: Any) -> Array | None:
    """The number of values of each row that lie outside the model's range; None: none."""
    counts = message.values_outside_range
    return np.fromiter(counts, np.uint32) if counts else None
