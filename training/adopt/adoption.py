"""From a source and a card to a published bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from latentd import bundle
from latentd.bundle import LatentFormat, Manifest, RowFormat, RowShapes, Threshold
from latentd.shapes import Axis, Sizes
from latentd.training import graph_checks, machine, publication, quantiles, tiles
from latentd.training.adopt import glue, net, real_rows, row_scores, sounds
from latentd.training.adopt.admission import admit
from latentd.training.adopt.candidate import Candidate, NetRange, Reference
from latentd.training.adopt.card import NO_PRIOR, Card
from latentd.training.adopt.checks.graphs import DensityGraph
from latentd.training.adopt.checks.subject import from_unit
from latentd.training.adopt.expected import read as read_expected
from latentd.training.adopt.net import Net
from latentd.training.adopt.onnx_pair import OnnxPair
from latentd.training.adopt.pictures import Pictures
from latentd.training.adopt.source import Report, Route, Source
from latentd.training.array import Array, to_npz
from latentd.training.errors import TrainingError
from latentd.training.readers import image_files
from latentd.training.readers.picture import Bad, read_picture
from latentd.training.tolerances import TOLERANCES

Rows = Callable[[Sequence[int], int], Array]
"""The shape of a row of x, and how many -> such rows."""

_GOLDEN_ROWS: Final = 4  # encoded; twice as many latents are decoded
_FEW_GOLDEN_ROWS: Final = 2  # the same at other sizes than the default one
_MAX_IMAGES: Final = 32
_LOUD: Final = 3.0  # standard deviations, where audio has no range
_NOISE: Final = 0.5  # of further golden latents, as a part of the latents' own deviation


def adopt(
    route: Route,
    card: Card,
    bundles: Path,
    name: str,
    images: Path | None,
    expected: Path | None,
    real: Path | None,
    threshold_percentile: float | None,
    report: Report,
) -> Path:
    """See `adopt` of the package."""
    publication.check(bundles, name)
    quantiles.check_percentile(threshold_percentile)
    pictures = [] if images is None else _pictures(images)
    source = route(card, report)
    pair = source.pair
    described, card = net.describe(pair, source.card)
    report(f"model: {_in_words(described)}")
    encoding = glue.encoder(pair.encoder, described, name)
    decoding = glue.decoder(pair.decoder, described, name)
    manifest = _manifest(name, described, source)
    owners = () if expected is None else read_expected(expected, manifest)
    given = None if real is None else real_rows.read(real, manifest)
    reason = row_scores.summary(manifest, given)
    if threshold_percentile is not None and reason:
        raise TrainingError(f"--threshold-percentile needs percentiles of scores: {reason}.")
    if given is not None and described.is_image and not pictures:
        pictures = list(given[:_MAX_IMAGES])
    density = described.density
    likelihood = None if density is None else density.graph(manifest.x)
    readings = {
        correction: glue.decoder(pair.decoder, dataclasses.replace(described, density=other), name)
        for correction, other in (density.others if density else {}).items()
    }
    candidate = Candidate(
        manifest,
        encoding,
        decoding,
        source.reference(card),
        images=pictures,
        net_range=described.ends and NetRange(*described.ends),
        color_order=card.color_order,
        expected=owners,
        likelihood=likelihood,
        readings=readings,
        rows=given,
    )
    manifest = dataclasses.replace(manifest, parity=admit(candidate, report))
    rows = _rows(described, pictures, given)
    if manifest.axes:
        found = tiles.measure(
            manifest,
            encoding,
            decoding,
            rows(manifest.default.x.shape, 2),
            TOLERANCES[manifest.precision],
            machine.cpu_count(),
        )
        manifest = dataclasses.replace(manifest, tiles=found)
        report(f"tiles: {_tiles_in_words(manifest)}")
    if likelihood is not None or given is not None:
        if likelihood is not None and given is not None and not reason:
            scores = row_scores.of(manifest, encoding, decoding, likelihood, given)
            manifest = dataclasses.replace(manifest, training_scores=scores)
            reason = f"of {scores['rows']} rows"
            if threshold_percentile is not None:
                error = quantiles.error_at(scores, threshold_percentile)
                threshold = Threshold(threshold_percentile, error)
                manifest = dataclasses.replace(manifest, threshold=threshold)
                reason += f"; outliers are beyond {error:.6g} nats"
        report(f"percentiles of scores: {reason}")
    files = {
        bundle.ENCODER: encoding,
        bundle.DECODER: decoding,
        bundle.GOLDEN: _golden(manifest, candidate.reference, rows, likelihood),
    }
    if likelihood is not None:
        files[bundle.LIKELIHOOD] = likelihood
    folder = publication.publish(bundles, manifest, files)
    report(f"published: {folder}")
    return folder


def _manifest(name: str, described: Net, source: Source) -> Manifest:
    card, density, pair = described.card, described.density, source.pair
    x = _row_format(described)
    return Manifest(
        model=name,
        x=x,
        z=LatentFormat(described.z, card.scale or (), card.shift or ()),
        likelihood=None
        if density is None
        else dataclasses.replace(density.likelihood, contributions=x.shape),
        opset=max(pair.encoder.file.opset, pair.decoder.file.opset),
        preprocessing=_preprocessing(described),
        parity={},
        axes=described.axes,
        posterior=card.posterior or "",
        prior=None if card.prior == NO_PRIOR else card.prior,
        origin={
            "kind": "adopted",
            **source.origin,
            "source": card.source,
            "license": card.license,
            "card": card.document(),
        },
        precision=_precision(pair),
    )


def _row_format(described: Net) -> RowFormat:
    card, x = described.card, described.x
    if described.kind == "image":
        return RowFormat("image", x, "uint8", (0.0, 255.0))
    if described.kind == "vector":
        if described.density and described.density.is_bernoulli:
            return RowFormat("vector", x, "float32", (0.0, 1.0))
        return RowFormat("vector", x, "float32")
    rate = card.sample_rate or 0
    if card.range is None:
        return RowFormat("audio", x, "float32", sample_rate=rate)
    return RowFormat("audio", x, "float32", card.range, rate)


def _precision(pair: OnnxPair) -> str:
    """float16 if any of the weights is: the coarsest numbers decide what may differ."""
    models = (pair.encoder.file.model, pair.decoder.file.model)
    half = onnx.TensorProto.FLOAT16
    found = any(t.data_type == half for model in models for t in graph_checks.tensors(model))
    return "float16" if found else "float32"


def _preprocessing(described: Net) -> str:
    card = described.card
    if not described.is_image:
        parts = ["(x - mean) / std"] if card.mean is not None else []
        parts += [card.layout] if card.layout else []
        return f"{', '.join(parts)} inside the graphs" if parts else "none"
    if card.range is not None:
        low, high = card.range
        what = f"bytes to {low:g}..{high:g} and back"
    elif card.mean is not None:
        what = "(x / 255 - mean) / std and back"
    else:
        what = "none: the net has bytes"
    return f"{what}, {card.layout}, {card.color_order}, inside the graphs"


def _in_words(described: Net) -> str:
    given = "mean and log-variance" if described.is_gaussian else "a point"
    free = "; ".join(f"{axis.name} {axis.expected}" for axis in described.axes.values())
    kind = {"image": "images", "vector": "vectors", "audio": "audio"}[described.kind]
    return f"{kind} {described.x} -> {given} {described.z}" + (
        f"; {free}" if free else "; one size"
    )


def _tiles_in_words(manifest: Manifest) -> str:
    words = [
        f"{graph} {'exact' if tile.exact else f'approximate, {tile.decibels} dB'}"
        for graph, tile in manifest.tiles.items()
    ]
    return "; ".join(words) or "no axis has room for two"


def _rows(described: Net, pictures: Sequence[Array], given: Array | None) -> Rows:
    """Real rows of images; of audio, notes; of vectors, the owner's, or draws with the card's mean
    and std."""
    if described.is_image:
        parts = Pictures(pictures)
        return lambda shape, count: np.rint(parts.rows(shape, count) * 255).astype(np.uint8)

    mean, std = described.card.mean or (0.0,), described.card.std or (1.0,)

    def notes(shape: Sequence[int], count: int) -> Array:
        found = sounds.rows(shape, count, described.card.sample_rate or 1)
        if described.card.range is None:
            return (_LOUD * found * std + mean).astype(np.float32)
        return from_unit((found + 1) / 2, described.card.range, "float32")

    def draws(shape: Sequence[int], count: int) -> Array:
        if given is not None:
            return np.resize(given, (count, *shape))
        random = np.random.default_rng(0)
        if described.density and described.density.is_bernoulli:
            return random.random((count, *shape)).astype(np.float32)
        normal = random.standard_normal((count, *shape))
        return (normal * std + mean).astype(np.float32)

    return notes if described.kind == "audio" else draws


def _golden(
    manifest: Manifest, reference: Reference, rows: Rows, likelihood: bytes | None
) -> bytes:
    """golden.npz, as the owner's graphs compute it: at the default size, and at two others where
    sizes are free."""
    density = None if likelihood is None else DensityGraph(likelihood)
    shapes = [manifest.default, *map(manifest.at, other_sizes(manifest.axes))]
    arrays: dict[str, Array] = {}
    for number, at in enumerate(shapes):
        prefix, count = (f"{number}.", _FEW_GOLDEN_ROWS) if number else ("", _GOLDEN_ROWS)
        found = _golden_at(at, reference, rows, count, density)
        arrays |= {prefix + name: array for name, array in found.items()}
    return to_npz(arrays)


def _golden_at(
    at: RowShapes, reference: Reference, rows: Rows, count: int, density: DensityGraph | None
) -> dict[str, Array]:
    x = rows(at.x.shape, count)
    mean, log_var = reference.encode(x)
    noise = np.random.default_rng(0).standard_normal(mean.shape)
    z = np.concatenate([mean, mean + _NOISE * mean.std() * noise]).astype(np.float32)
    more = {} if log_var is None else {"log_var": log_var}
    found = {"x": x, "mean": mean, **more, "z": z, "decoded_x": reference.decode(z)}
    if density is None:
        return found
    params = reference.params(z)
    log_likelihood = density.log_prob(np.concatenate([x, x]), params)
    return found | {"params": params, "log_likelihood": log_likelihood}


def other_sizes(axes: Mapping[str, Axis]) -> list[Sizes]:
    """Two sizes besides the default one, as unlike it as the axes allow."""
    if not axes:
        return []
    default = {name: axis.default for name, axis in axes.items()}
    found: list[Sizes] = []
    for parts in ((1, 1), (2, 3), (3, 2), (3, 5)):  # halves of the default lengths
        size = {
            name: axis.nearest(axis.default * part // 2)
            for (name, axis), part in zip(axes.items(), parts, strict=False)
        }
        if size != default and size not in found:
            found.append(size)
    return found[:2]


def _pictures(folder: Path) -> list[Array]:
    """The first pictures below a folder, uint8 (height, width, 3)."""
    if not folder.is_dir():
        raise TrainingError(f"--images {folder} is not a folder.")
    found = image_files.find(folder)
    if not found.paths:
        raise TrainingError(f"--images {folder} has no pictures: {found.summary()}.")
    pictures = []
    for path in found.paths[:_MAX_IMAGES]:
        read = read_picture(path)
        if isinstance(read, Bad):
            detail = f": {read.detail}" if read.detail else ""
            raise TrainingError(f"--images: {path} is {read.reason}{detail}. Remove or replace it.")
        pictures.append(read)
    return pictures
