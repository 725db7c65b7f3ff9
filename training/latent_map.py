"""The map of training rows that `export --map-rows` puts into a bundle: see latentd.latent_map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentd import bundle, latent_map
from latentd.bundle import Manifest
from latentd.latent_map import MAX_ROWS, MIN_ROWS, LatentMap
from latentd.training import parity, quantiles, score_quantiles
from latentd.training.array import Array
from latentd.training.dataset import Dataset, Rows, max_batch_rows
from latentd.training.errors import TrainingError
from latentd.training.evaluation.active_units import measure_units
from latentd.training.model import Model, gaussian_kl
from latentd.training.text import export as text_export

_BATCH: Final = 256
_MAX_NUMBERS: Final = 1 << 25  # of all latents together: it bounds memory


def check_rows(rows: int) -> None:
    """Raise TrainingError if a map cannot have so many rows; 0: no map."""
    if rows and not MIN_ROWS <= rows <= MAX_ROWS:
        raise TrainingError(
            f"--map-rows {rows}: expected 0, or a number from {MIN_ROWS} to {MAX_ROWS}."
        )


@torch.no_grad()
def make(
    model: Model, manifest: Manifest, files: Mapping[str, bytes], dataset: Dataset, rows: int
) -> bytes:
    """map.npz of at most `rows` training rows, evenly spaced: of n training rows, row j of the map
    is row j * n // rows. Raises TrainingError if the file would be too large.

    files: the bundle's graphs, which compute all of it, as in serving
    """
    numbers = math.prod(manifest.default.z)
    limit = min(rows, len(dataset.train), _MAX_NUMBERS // numbers)
    if limit < MIN_ROWS:
        raise TrainingError(
            f"--map-rows: {len(dataset.train)} training rows with latents of {numbers:,} numbers "
            f"make no map, which needs {MIN_ROWS} rows. Leave it out."
        )
    picked = torch.from_numpy(quantiles.evenly_picked(len(dataset.train), limit))
    x = dataset.train.x[picked]
    mean, log_var = _encode(files[bundle.ENCODER], x)
    found = _of_latents(mean, log_var) | _labels(dataset.train, picked, dataset.classes)
    if log_var is not None:
        found["reconstruction_error"] = _errors(model, files, x).astype(np.float32)
        found["kl"] = gaussian_kl(mean, log_var).numpy()
    made = LatentMap(**found, **_looks(x.numpy(), manifest.x.kind)).to_npz()
    if len(made) > bundle.MAX_MAP_BYTES:
        raise TrainingError(
            f"--map-rows {rows}: the map has {len(made) >> 20} MiB; a bundle takes "
            f"{bundle.MAX_MAP_BYTES >> 20} MiB. Keep fewer rows."
        )
    return made


def rows_in(folder: Path, manifest: Manifest) -> int:
    """The number of rows in the map of a published bundle."""
    return len(latent_map.load(folder, manifest))


def _encode(encoder: bytes, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """mean and log_var of rows; None: the posterior is a point."""
    batch = max_batch_rows(tuple(x.shape[1:]), _BATCH)
    encoded = parity.run(parity.session(encoder), x, batch)
    log_var = encoded.get("log_var")
    return torch.from_numpy(encoded["mean"]), None if log_var is None else torch.from_numpy(log_var)


def _errors(model: Model, files: Mapping[str, bytes], x: Tensor) -> Array:
    """The reconstruction error of each row, in nats."""
    graphs = files[bundle.ENCODER], files[bundle.DECODER]
    if model.spec.text:
        return text_export.errors(model, *graphs, x)
    likelihood = files[bundle.LIKELIHOOD]
    return score_quantiles.scores(model, *graphs, likelihood, x, "rows of the map").errors


def _of_latents(mean: Tensor, log_var: Tensor | None) -> dict[str, Array]:
    """What the map says of latents. Without a log_var the units have a variance and no KL."""
    rows, z = len(mean), tuple(mean.shape[1:])
    flat = mean.flatten(1)
    units = measure_units(flat, torch.zeros_like(flat) if log_var is None else log_var.flatten(1))
    found = principal_components(flat.numpy())
    kept = mean.flatten(2).mean(2) if latent_map.is_pooled(z) else mean
    return {
        "mean": kept.numpy(),
        "components": found.components.reshape(2, *z),
        "center": found.center.reshape(z),
        "position": found.position.reshape(rows, 2),
        "explained_variance": found.explained_variance,
        "active": units.active.numpy().reshape(z),
        **({} if log_var is None else {"unit_kl": units.kl.float().numpy().reshape(z)}),
    }


class Components(NamedTuple):
    """The two principal components of some points; see LatentMap."""

    components: npt.NDArray[np.float32]
    center: npt.NDArray[np.float32]
    position: npt.NDArray[np.float32]
    explained_variance: npt.NDArray[np.float64]


def principal_components(points: npt.NDArray[np.float32]) -> Components:
    """Of points (rows, numbers). The number of largest size in each component is positive, so that
    the same points always have the same components. Of points on a line, or of one number, the
    second is zeros."""
    rows, numbers = points.shape
    center = points.mean(axis=0, dtype=np.float64)
    centered = points - center
    # The smaller of the two matrices that have the same eigenvalues.
    small = centered.T @ centered if numbers <= rows else centered @ centered.T
    values, vectors = np.linalg.eigh(small)
    directions = vectors.T[::-1][:2]
    if numbers > rows:
        directions = directions @ centered
    total = max(float(np.einsum("ij,ij->", centered, centered)), np.finfo(np.float64).tiny)
    explained = np.zeros(2)
    explained[: len(directions)] = values[::-1][:2].clip(0) / total
    components = np.zeros((2, numbers))
    for component, direction, share in zip(components, directions, explained, strict=False):
        if share > 1e-12:  # else rounding alone decides where it points
            largest = direction[np.abs(direction).argmax()]
            component[:] = direction * (np.sign(largest) / np.linalg.norm(direction))
    return Components(
        components.astype(np.float32),
        center.astype(np.float32),
        (centered @ components.T).astype(np.float32),
        explained,
    )


def _labels(train: Rows, picked: Tensor, classes: tuple[str, ...]) -> dict[str, Array]:
    """classes and label; {}: the data has none."""
    if train.y is None:
        return {}
    values, index = np.unique(train.y[picked].numpy(), return_inverse=True)
    names = [classes[value] if classes else str(value) for value in values.tolist()]
    return {"classes": np.array(names, np.str_), "label": index.astype(np.int32)}


def _looks(x: Array, kind: str) -> dict[str, Any]:
    """The sprites of images; other rows as they are. Images of other than one or three channels
    have neither."""
    if kind != "image":
        return {"x": x}
    if x.shape[3:] not in ((), (1,), (3,)):
        return {}
    pixels = x if x.dtype == np.uint8 else np.round(x.clip(0, 1) * 255).astype(np.uint8)
    sheet, shape = latent_map.sprite_sheet(pixels)
    return {"sprites": np.frombuffer(sheet, np.uint8), "sprite_shape": np.array(shape)}
