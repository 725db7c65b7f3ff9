"""What GetModel, ListModels and GetMap respond."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from latentd import codec
from latentd.bundle import MAP
from latentd.errors import InvalidArgument
from latentd.models.inference import ServedModel
from latentd.models.repository import Repository
from latentd.pb import vae_pb2 as pb
from latentd.rpc import fields
from latentd.settings import Settings
from latentd.shapes import Shape


def get_model(
    model: ServedModel, repository: Repository, provider: str, settings: Settings
) -> pb.GetModelResponse:
    """One model: shapes, ranges, limits, provider and measured speed."""
    manifest = model.manifest
    x, likelihood, threshold = manifest.x, manifest.likelihood, manifest.threshold
    return pb.GetModelResponse(
        served_by=model.served_by,
        kind=x.kind,
        x_shape=_dims(x.shape),
        x_dtype=codec.DATA_TYPES[x.dtype],
        x_min=x.range[0],
        x_max=x.range[1],
        x_bounded=manifest.x_bounded,
        z_shape=_dims(manifest.z.shape),
        z_scale=manifest.z.scale,
        z_shift=manifest.z.shift,
        axes=[pb.Axis(**dataclasses.asdict(axis)) for axis in manifest.axes.values()],
        posterior=manifest.posterior,
        prior=manifest.prior or "",
        likelihood=likelihood.name if likelihood else "",
        parameters=manifest.parameters,
        unavailable=manifest.unavailable,
        limits=pb.Limits(
            max_rows=model.max_rows(manifest.default),
            max_message_bytes=settings.max_message_bytes,
            max_draws=settings.max_draws,
        ),
        provider=provider,
        versions=repository.versions(manifest.model),
        profiles=[
            pb.GraphProfile(
                graph=batcher.name,
                max_batch_rows=profile.max_batch_rows(size.elements),
                timings=[pb.BatchTiming(rows=c.rows, seconds=c.seconds) for c in size.timings],
                x_shape=size.x_shape,
            )
            for batcher, profile in model.batchers()
            for size in profile.sizes
        ],
        preprocessing=manifest.preprocessing,
        created=manifest.created,
        training_scores=pb.TrainingScores(**manifest.training_scores),
        tiles=[
            pb.Tile(graph=graph, **dataclasses.asdict(tile))
            for graph, tile in manifest.tiles.items()
        ],
        sample_rate=x.sample_rate,
        columns=[pb.Column(**dataclasses.asdict(column)) for column in x.columns],
        threshold=pb.Threshold(**dataclasses.asdict(threshold)) if threshold else None,
        contributions_shape=_dims(manifest.contributions) if manifest.contributions else (),
    )


def list_models(repository: Repository, root: Path) -> pb.ListModelsResponse:
    """Every version that was found below `root`, with its state."""
    models = repository.models()
    newest = {model.manifest.model: model for model in models}  # ascending: the last one wins
    ready = [
        pb.ListedModel(
            version=model.served_by,
            state=pb.MODEL_STATE_READY,
            newest=model is newest[model.manifest.model],
            default=model.manifest.model == repository.default,
        )
        for model in models
    ]
    rejected = [
        pb.ListedModel(
            version=pb.ModelVersion(model=entry.model, version=entry.version),
            state=pb.MODEL_STATE_FAILED,
            reason=fields.without_folders(entry.reason, root),
        )
        for entry in repository.rejected()
    ]
    loading = [
        pb.ListedModel(
            version=pb.ModelVersion(model=load.model, version=load.version),
            state=pb.MODEL_STATE_LOADING,
            loading_since=load.since,
        )
        for load in repository.loading()
    ]
    return pb.ListModelsResponse(models=ready + rejected + loading)


def get_map(model: ServedModel, settings: Settings) -> pb.GetMapResponse:
    """The map of training rows that the bundle has; reads its file. Raises InvalidArgument if it is
    larger than a message, and Unavailable."""
    nbytes = model.manifest.files[MAP]["bytes"]
    if nbytes > settings.max_message_bytes:
        raise InvalidArgument(
            "model",
            f"its map of {nbytes:,} bytes is larger than a message; the limit is "
            f"{settings.max_message_bytes:,} bytes",
            "Raise --max-message-mib",
        )
    found = model.read_map()
    response = pb.GetMapResponse(
        served_by=model.served_by,
        explained_variance=found.explained_variance,
        active=found.active.ravel().tolist(),
    )
    for name in ("mean", "components", "center", "position", "unit_kl"):
        if (array := getattr(found, name)) is not None:
            codec.write_tensor(array, getattr(response, name))
    for name in ("classes", "label", "reconstruction_error", "kl"):
        if (array := getattr(found, name)) is not None:
            getattr(response, name).extend(array.tolist())
    if found.sprites is not None and found.sprite_shape is not None:
        response.sprites = found.sprites.tobytes()
        response.sprite_height, response.sprite_width = found.sprite_shape.tolist()
    if found.x is not None:
        is_text = model.manifest.x.is_text
        codec.write_rows(found.x, pb.FORMAT_TEXT if is_text else pb.FORMAT_RAW, response.x)
    return response


def _dims(shape: Shape) -> list[pb.Dim]:
    return [pb.Dim(length=dim.length, axis=dim.axis, divisor=dim.divisor) for dim in shape.dims]
