"""Export: checkpoint -> encoder.onnx, decoder.onnx, likelihood.onnx -> parity check -> bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from latentd import bundle
from latentd.bundle import Manifest, Threshold, Tile
from latentd.shapes import Axis
from latentd.training import (
    checkpoint,
    data,
    latent_map,
    networks,
    onnx_graphs,
    parity,
    publication,
    quantiles,
    score_quantiles,
    threads,
    tiles,
)
from latentd.training.checkpoint import Checkpoint
from latentd.training.dataset import Dataset
from latentd.training.errors import TrainingError
from latentd.training.fp16 import to_half
from latentd.training.golden import golden_npz
from latentd.training.manifest import manifest_of
from latentd.training.readers.picture_cache import PictureCache
from latentd.training.text import export as text_export
from latentd.training.tolerances import TOLERANCES

_GOLDEN_ROWS: Final = 16  # per kind: encoded rows, their means, draws from N(0, I)
_USUAL_MAX_SIZE: Final = 1024
_MAX_ATTENTION: Final = 64  # positions each way: attention needs 64 MiB for all pairs of them
_LARGEST_MAX_SIZE: Final = 8192  # where an image with colors has almost the most values of a row


def export(
    path: Path,
    bundles: Path,
    name: str,
    source: str | None = None,
    precision: str = "float32",
    max_size: int | None = None,
    threshold_percentile: float | None = None,
    map_rows: int = 0,
) -> Path:
    """Publish the checkpoint `path` as the next version of model `name` under `bundles`.

    source: the rows for the parity check, in --data's notation; default: the checkpoint's own.
    precision: float32 or float16 for the graphs' nets. max_size: the largest height and width that
    the bundle takes, of a model with spatial latents; None: 1024, less with attention, or the
    trained size if that is larger. threshold_percentile: of the training rows' reconstruction
    errors: rows with a larger error are outliers. map_rows: how many training rows the bundle keeps
    for GetMap; 0: none. Returns the folder of the version. Raises TrainingError, and RunFailed if a
    graph and PyTorch compute different results. On an error, nothing is published.
    """
    publication.check(bundles, name)
    quantiles.check_percentile(threshold_percentile)
    latent_map.check_rows(map_rows)
    saved = checkpoint.load(path)
    if threshold_percentile is not None and saved.config.model == "ae":
        raise TrainingError(
            "--threshold-percentile: an autoencoder's rows have no likelihood, so there is no "
            "score to compare. Leave it out."
        )
    axes = _axes(saved, max_size)
    dataset = _dataset(path, saved, source)
    with threads.using(threads.of_run(saved.config.threads)):
        manifest, files = _build(path, name, saved, dataset, precision, axes)
    if threshold_percentile is not None:
        threshold = _threshold(threshold_percentile, saved, dataset, manifest, files)
        manifest = dataclasses.replace(manifest, threshold=threshold)
    if map_rows:
        with threads.using(threads.of_run(saved.config.threads)):
            made = latent_map.make(saved.model(), manifest, files, dataset, map_rows)
        files = files | {bundle.MAP: made}
    return publication.publish(bundles, manifest, files)


def _threshold(
    percentile: float,
    saved: Checkpoint,
    dataset: Dataset,
    manifest: Manifest,
    files: Mapping[str, bytes],
) -> Threshold:
    """The threshold at a percentile of the training rows, and how many validation rows exceed it:
    the model was not fitted to them, so their share is what new rows will have."""
    least = quantiles.error_at(manifest.training_scores, percentile)
    x = dataset.validation.x
    if not len(x):
        return Threshold(percentile, least)
    model, graphs = saved.model(), (files[bundle.ENCODER], files[bundle.DECODER])
    with threads.using(threads.of_run(saved.config.threads)):
        if saved.spec.text:
            errors = text_export.errors(model, *graphs, x)
        else:
            likelihood = files[bundle.LIKELIHOOD]
            errors = score_quantiles.scores(model, *graphs, likelihood, x, "validation rows").errors
    return Threshold(percentile, least, len(errors), int((errors > least).sum()))


def _axes(saved: Checkpoint, max_size: int | None) -> dict[str, Axis]:
    """Height and width, where both are free."""
    stride = networks.stride(saved.config)
    if stride is None:
        if max_size is not None:
            raise TrainingError(
                "--max-size is for models with --latents spatial; this one takes images of the "
                "trained size only. Leave it out."
            )
        return {}
    trained = max(saved.spec.shape[:2])
    largest, why = _LARGEST_MAX_SIZE, ""
    if saved.config.attention:
        largest = min(largest, max(_MAX_ATTENTION * stride, trained))
        why = (
            f"; larger images have more than {_MAX_ATTENTION}x{_MAX_ATTENTION} positions, of which "
            "--attention compares all pairs"
        )
    most = min(largest, max(_USUAL_MAX_SIZE, trained)) if max_size is None else max_size
    if not trained <= most <= largest:
        raise TrainingError(
            f"--max-size {most}: expected a number from {trained}, the trained size, to "
            f"{largest}{why}."
        )
    return {
        name: Axis(name, multiple_of=stride, min=2 * stride, max=most // stride * stride, default=n)
        for name, n in zip("hw", saved.spec.shape[:2], strict=True)
    }


def other_sizes(axes: Mapping[str, Axis]) -> list[tuple[int, int]]:
    """Sizes to check a model at, besides the trained one: the smallest, a wide and a tall one."""
    if not axes:
        return []
    h, w = axes["h"], axes["w"]
    return [
        (h.min, w.min),
        (h.nearest(h.default * 3 // 2), w.nearest(w.default * 5 // 2)),
        (h.nearest(h.default * 4), w.nearest(w.default * 2)),
    ]


def _build(
    path: Path,
    name: str,
    saved: Checkpoint,
    dataset: Dataset,
    precision: str,
    axes: Mapping[str, Axis],
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files of a bundle, after the checks."""
    model = saved.model()
    if saved.spec.text:
        if precision != "float32":
            raise TrainingError(
                f"--precision {precision}: texts need float32, because each byte depends on the "
                "one before it, and float16 would choose other bytes. Leave it out."
            )
        files = text_export.files(model, name, parity.rows(dataset)[0])
        measured, scores = text_export.measure(model, files, dataset)
        return manifest_of(path, name, saved, model, files, measured, scores), files
    exported = to_half(model) if precision == "float16" else model
    encoder = onnx_graphs.encoder(exported, name)
    decoder = onnx_graphs.decoder(exported, name)
    likelihood = onnx_graphs.likelihood(model, name)
    rows, counts = parity.rows(dataset)
    sizes = other_sizes(axes)
    measured = counts | parity.measure(model, encoder, decoder, rows, precision, sizes)
    difference = parity.measure_likelihood(model, likelihood, rows, sizes)
    measured["max_abs_difference"]["log_likelihood"] = difference
    scores = score_quantiles.quantiles(model, encoder, decoder, likelihood, dataset)
    files = {
        bundle.ENCODER: encoder,
        bundle.DECODER: decoder,
        bundle.LIKELIHOOD: likelihood,
        bundle.GOLDEN: golden_npz(model, rows[:_GOLDEN_ROWS], sizes[:2]),
    }
    manifest = dataclasses.replace(
        manifest_of(path, name, saved, model, files, measured, scores),
        axes=axes,
        precision=precision,
    )
    manifest = dataclasses.replace(
        manifest,
        tiles=tiles.measure(
            manifest,
            encoder,
            decoder,
            rows[:2].numpy(),
            TOLERANCES[precision],
            torch.get_num_threads(),
        ),
    )
    return manifest, files


def report(folder: Path) -> dict[str, Any]:
    """A summary of the published bundle, for the user."""
    manifest = bundle.load(folder).manifest
    return {
        "published": str(folder),
        "version": manifest.version,
        "bytes": {name: entry["bytes"] for name, entry in manifest.files.items()},
        "opset": manifest.opset,
        "free_axes": {name: axis.expected for name, axis in manifest.axes.items()}
        or "none: every x has the trained size",
        "tiles": {graph: _tile_report(tile) for graph, tile in manifest.tiles.items()}
        or "none: no row is larger than a tile",
        "parity": manifest.parity,
        "training_scores": f"of {manifest.training_scores['rows']} rows"
        if manifest.training_scores
        else "none: an autoencoder's rows have no likelihood",
        "threshold": str(manifest.threshold or "none; --threshold-percentile keeps one"),
        "map": _map_report(folder, manifest),
        "evaluation": "of these weights, in the manifest"
        if manifest.evaluation
        else "none of these weights; `evaluate` before `export` records one",
    }


def _tile_report(tile: Tile) -> str:
    size = ", ".join(f"{name} {length}" for name, length in tile.size.items())
    return f"{size}: {'exact' if tile.exact else f'approximate, {tile.decibels} dB'}"


def _map_report(folder: Path, manifest: Manifest) -> str:
    if bundle.MAP not in manifest.files:
        return "none; --map-rows keeps one"
    rows = latent_map.rows_in(folder, manifest)
    return f"of {rows} training rows, which GetMap returns"


def _dataset(path: Path, saved: Checkpoint, source: str | None) -> Dataset:
    try:
        if source is None:
            dataset = data.load(saved.config, PictureCache.beside(path), saved.spec.columns)
        else:
            dataset = data.load(saved.config.with_data(source), known=saved.spec.columns)
    except TrainingError as error:
        raise TrainingError(
            f"{error} Parity is measured on real rows: name some with --data."
        ) from None
    if dataset.spec != saved.spec:
        raise TrainingError(
            f"--data {source or saved.config.data} has {dataset.spec}; this checkpoint was trained "
            f"on {saved.spec}."
        )
    return dataset
