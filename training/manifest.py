"""The manifest of a model that was trained here: its rows, latents, likelihood, and training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx

from latentd import bundle
from latentd.bundle import LatentFormat, Manifest, RowFormat
from latentd.shapes import Shape
from latentd.training import graph_checks, onnx_graphs
from latentd.training.checkpoint import Checkpoint
from latentd.training.dataset import RowSpec
from latentd.training.distributed import notice
from latentd.training.evaluation.results_file import saved_evaluation, weights_digest
from latentd.training.likelihoods.mixed import MixedLikelihood
from latentd.training.model import Model
from latentd.training.objective import describe_elbo

_LATER: Final = 1 << 14  # bytes of what a manifest gets after its evaluation: files, a threshold


def manifest_of(
    path: Path,
    name: str,
    saved: Checkpoint,
    model: Model,
    files: Mapping[str, bytes],
    measured: dict[str, Any],
    scores: dict[str, Any],
) -> Manifest:
    """The manifest of a model without free axes. measured, scores: `parity`, `training_scores`."""
    manifest = Manifest(
        model=name,
        x=_row_format(model),
        z=_latent_format(model),
        likelihood=likelihood_format(model, saved.config.likelihood, files.get(bundle.LIKELIHOOD)),
        posterior="gaussian" if saved.config.model == "vae" else "point",
        prior="standard-normal" if saved.config.model == "vae" else None,
        opset=graph_checks.opset(onnx.load_from_string(files[bundle.ENCODER])),
        preprocessing=_preprocessing(saved.spec),
        parity=measured,
        training={
            "config": dataclasses.asdict(saved.config),
            "objective": describe_elbo(saved.config, saved.spec),
            "split": saved.split,
            "metrics": saved.history[-1] if saved.history else {},  # empty during the first epoch
        },
        evaluation=saved_evaluation(path, weights_digest(model)),
        training_scores=scores,
    )
    return fitted(manifest)


def fitted(manifest: Manifest) -> Manifest:
    """The manifest without the evaluation's columns if they would make it too large."""
    if len(manifest.to_json()) <= bundle.MAX_MANIFEST_BYTES - _LATER:
        return manifest
    kept = {key: value for key, value in manifest.evaluation.items() if key != "columns"}
    if len(kept) < len(manifest.evaluation):
        notice("The evaluation's columns are too many for the manifest: evaluation.json has them.")
    return dataclasses.replace(manifest, evaluation=kept)


def likelihood_format(model: Model, name: str, graph: bytes | None) -> bundle.Likelihood:
    """What the manifest says of the model's likelihood. graph: likelihood.onnx, if it has one."""
    likelihood = model.likelihood
    if isinstance(likelihood, MixedLikelihood) and likelihood.parameters != ("mean", "log_std"):
        name = "mixed"
    return bundle.Likelihood(
        name,
        likelihood.parameters,
        likelihood.bounded,
        likelihood.binary,
        None if graph is None else Shape.parse(onnx_graphs.dims_of_contributions(graph)),
    )


def _row_format(model: Model) -> RowFormat:
    spec = model.spec
    sides = spec.shape[:2] if model.stride is None else ("h", "w")
    shape = Shape.parse([*sides, *spec.shape[2:]])
    if spec.columns:
        return RowFormat(spec.kind, shape, spec.dtype, columns=spec.columns)
    return RowFormat(spec.kind, shape, spec.dtype, (0.0, spec.highest))


def _latent_format(model: Model) -> LatentFormat:
    stride, (channels, *sides) = model.stride, model.latent_shape
    free = sides if stride is None else (f"h/{stride}", f"w/{stride}")
    return LatentFormat(Shape.parse([channels, *free]))


def _preprocessing(spec: RowSpec) -> str:
    if spec.text:
        return "none: x is a text's bytes in UTF-8, then zeros, which the encoder reads as they are"
    if spec.columns:
        return (
            "numbers are standardized by the mean and std of each column, and categorical columns "
            "become one-hot, inside the graphs; x goes in and comes out in the data's own units"
        )
    if spec.dtype == "uint8":
        return "x / 255 as float32 goes in, round(255 x) as uint8 comes out, inside the graphs"
    return "none: x is float32 in [0, 1]"
