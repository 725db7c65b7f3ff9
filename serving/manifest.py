"""Defines manifest.json: what a model is, field by field.

GetModel's response and the signatures of the graphs are made from it. `model_description` has the
part that GetModel also tells, `manifest_schema` the valid values of each field, `manifest_rules`
those that depend on other fields. Standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from latentd import manifest_rules, schema
from latentd.columns import Column
from latentd.errors import BundleError
from latentd.manifest_schema import FORMAT, MANIFEST, MAP, MAX_MANIFEST_BYTES
from latentd.model_description import UNBOUNDED, LatentFormat, ModelDescription, RowFormat
from latentd.outliers import Threshold
from latentd.shapes import Axis, Shape


@dataclass(frozen=True)
class Likelihood:
    """p(x | z), whose logarithm likelihood.onnx computes; of texts decoder.onnx.

    parameters: the name of each parameter that an element of x has: the decoder's `params` output
                has shape (rows, parameters, *x.shape). Texts have none: each byte depends on those
                before it
    bounded:    it is defined for values in x's range only
    binary:     it is defined for the two ends of x's range: Score moves each element to one of them
    contributions: of one row: the shape of the terms of -log p(x | z), which the graph also gives.
                None: it gives only their sum
    """

    name: str
    parameters: tuple[str, ...]
    bounded: bool = True
    binary: bool = False
    contributions: Shape | None = None


_FORMAT_1_LIKELIHOODS: Final = {
    likelihood.name: likelihood
    for likelihood in (
        Likelihood("bernoulli", ("logit",), binary=True),
        Likelihood("gaussian", ("mean", "log_std"), bounded=False),
        Likelihood("discretized-logistic", ("mean", "log_scale")),
    )
}
"""That format has only their names."""
_BRITISH: Final = "discretised-logistic"  # in early bundles of format 1; read for good


@dataclass(frozen=True)
class Tile:
    """The parts in which a graph can run a large row, and how good the result is, measured at
    export. `tiles` splits rows.

    size:               of a part: its length along each free axis of x
    overlap:            of two neighbors, at least, along each free axis
    exact:              the result differs from that of a whole row by rounding only
    max_abs_difference: the largest one measured, of mean or of x'; only if exact
    decibels:           only if not exact: of the decoder the peak signal-to-noise ratio of x', of
                        the encoder the signal-to-noise ratio of mean
    """

    size: Mapping[str, int]
    overlap: Mapping[str, int]
    exact: bool
    max_abs_difference: float | None = None
    decibels: float | None = None


@dataclass(frozen=True)
class Manifest(ModelDescription):
    """manifest.json, field by field."""

    model: str
    x: RowFormat
    z: LatentFormat
    likelihood: Likelihood | None  # None: the model defines none, so it has no scores
    opset: int
    preprocessing: str  # what the graphs do to x first, in words; clients must not do it
    parity: dict[str, Any]  # measured at export: batches, rows, largest errors, tolerance
    axes: Mapping[str, Axis] = field(default_factory=lambda: MappingProxyType({}))  # the free ones
    posterior: str = "gaussian"  # gaussian | point: x has a single latent, which is not drawn
    prior: str | None = "standard-normal"  # None: no distribution to sample latents from
    origin: dict[str, Any] = field(default_factory=lambda: {"kind": "trained"})
    tiles: Mapping[str, Tile] = field(default_factory=dict)  # of each graph; {}: not measured
    training: dict[str, Any] = field(default_factory=dict)  # configuration and metrics
    evaluation: dict[str, Any] = field(default_factory=dict)  # evaluation.json, if there was one
    precision: str = "float32"  # inside the graphs; inputs and outputs are float32 or bytes
    # How training rows score: rows, and for each of `levels` (percent, ascending) the quantile of
    # each of SCORES, in nats. With columns also `median_contributions`, one for each, unless the
    # bundle is older. {}: unknown, as in older bundles and for models without scores.
    training_scores: dict[str, Any] = field(default_factory=dict)
    threshold: Threshold | None = None  # None: none was chosen
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {sha256, bytes}
    version: int = 0  # given by publish
    created: str = ""  # UTC, ISO 8601; given by publish
    format: int = FORMAT  # of the file that it was read from

    @property
    def x_bounded(self) -> bool:
        """As ModelDescription.x_bounded."""
        return self.likelihood is not None and self.likelihood.bounded

    @property
    def parameters(self) -> tuple[str, ...]:
        """As ModelDescription.parameters."""
        return self.likelihood.parameters if self.likelihood else ()

    @property
    def contributions(self) -> Shape | None:
        """As ModelDescription.contributions."""
        return self.likelihood.contributions if self.likelihood else None

    @functools.cached_property
    def unavailable(self) -> Mapping[str, str]:
        """What this model cannot do -> the reason, as words that follow its name."""
        reasons = {}
        if self.prior is None:
            reasons["sample"] = "has no prior, so there is no distribution to sample latents from"
        if self.posterior == "point":
            reasons["draw"] = "encodes each row to a point, not to a distribution to draw from"
        if self.likelihood is None:
            reasons["params"] = reasons["score"] = "defines no likelihood"
        elif self.posterior == "point":
            reasons["score"] = "encodes each row to a point, so it defines no bound on log p(x)"
        elif self.prior is None:
            reasons["score"] = "has no prior, so it defines no bound on log p(x)"
        if self.x.is_text:
            reasons["params"] = (
                "decodes each byte given those before it, so no byte has parameters of its own"
            )
        if self.x.is_text and "score" not in reasons:
            reasons["contributions"] = "computes log p(x | z) of a whole text, not of each byte"
        elif "score" not in reasons and self.likelihood and not self.likelihood.contributions:
            reasons["contributions"] = (
                "was exported without contributions, by an earlier release; export it again"
            )
        if not self.default.x.is_8bit_image:
            reasons["images"] = "has data that is not 8-bit images, gray or RGB"
        if self.axes and not self.tiles:
            reasons["tiles"] = "was made without a measurement of tiles"
        if MAP not in self.files:
            reasons["map"] = "keeps no training rows: its bundle was made without --map-rows"
        return MappingProxyType(reasons)

    def to_json(self) -> bytes:
        """The file's bytes: UTF-8, indented for people, keys in the order above."""
        return (json.dumps(self._document(), indent=2, allow_nan=False) + "\n").encode()

    def check(self) -> None:
        """Raises BundleError(format) if from_json would reject it."""
        manifest_rules.check(self._document())

    @classmethod
    def from_json(cls, data: bytes, name: str = MANIFEST) -> Manifest:
        """Parse and check. Raises BundleError(format): it names the file, the key and what was
        expected."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(
                "format",
                f"{name} has {len(data)} bytes; expected at most {MAX_MANIFEST_BYTES}.",
            )
        try:
            raw = schema.parse(data)
        except schema.Invalid as error:
            raise BundleError("format", f"{name}: {error}") from None
        if isinstance(raw, dict) and raw.get("likelihood") == _BRITISH:
            raw["likelihood"] = "discretized-logistic"
        manifest_rules.check(raw, name)
        return cls(**(_from_format_1(raw) if raw["format"] == 1 else _from_format_2(raw)))

    def _document(self) -> dict[str, Any]:
        """As JSON has it, in format 2."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        unbounded = self.x.range == UNBOUNDED
        document |= {
            "x": {
                "kind": self.x.kind,
                "shape": self.x.shape.json,
                "dtype": self.x.dtype,
                "range": None if unbounded else list(self.x.range),
                **({"sample_rate": self.x.sample_rate} if self.x.sample_rate else {}),
                **({"columns": [c.to_json() for c in self.x.columns]} if self.x.columns else {}),
            },
            "z": {
                "shape": self.z.shape.json,
                **({"scale": list(self.z.scale)} if self.z.scale else {}),
                **({"shift": list(self.z.shift)} if self.z.shift else {}),
            },
            "likelihood": self.likelihood and _likelihood_document(self.likelihood),
            "axes": {name: _axis_document(axis) for name, axis in self.axes.items()},
            "tiles": {graph: _tile_document(tile) for graph, tile in self.tiles.items()},
            "format": FORMAT,
        }
        if self.threshold:
            return document | {"threshold": self.threshold.to_json()}
        del document["threshold"]
        return document


def _likelihood_document(likelihood: Likelihood) -> dict[str, Any]:
    document = {f.name: getattr(likelihood, f.name) for f in dataclasses.fields(likelihood)}
    shape = document.pop("contributions")
    return document | ({} if shape is None else {"contributions": shape.json})


def _axis_document(axis: Axis) -> dict[str, int]:
    document = dataclasses.asdict(axis)
    del document["name"]
    return document


def _tile_document(tile: Tile) -> dict[str, Any]:
    values = {f.name: getattr(tile, f.name) for f in dataclasses.fields(tile)}
    lengths = {name: dict(values[name]) for name in ("size", "overlap")}
    return {name: value for name, value in (values | lengths).items() if value is not None}


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _from_format_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 had fixed shapes, flat latents, and always a prior and a likelihood."""
    x, low_high = raw["x"], _floats(raw["x"]["range"])
    fields = dict(raw)
    point = fields.pop("family") == "ae"
    return fields | {
        "x": RowFormat(x["kind"], Shape.parse(x["shape"]), x["dtype"], (low_high[0], low_high[1])),
        "z": LatentFormat(Shape.parse([fields.pop("latent_size")])),
        "likelihood": _FORMAT_1_LIKELIHOODS[raw["likelihood"]],
        "posterior": "point" if point else "gaussian",
    }


def _likelihood(raw: Mapping[str, Any]) -> Likelihood:
    shape = raw.get("contributions")
    parts = {"parameters": tuple(raw["parameters"]), "contributions": shape and Shape.parse(shape)}
    return Likelihood(**(dict(raw) | parts))


def _threshold(raw: Mapping[str, Any]) -> Threshold:
    numbers = {name: float(raw[name]) for name in ("percentile", "reconstruction_error")}
    return Threshold(**(dict(raw) | numbers))


def _from_format_2(raw: Mapping[str, Any]) -> dict[str, Any]:
    x, z, likelihood, threshold = raw["x"], raw["z"], raw["likelihood"], raw.get("threshold")
    low, high = UNBOUNDED if x["range"] is None else _floats(x["range"])
    return dict(raw) | {
        "x": RowFormat(
            x["kind"],
            Shape.parse(x["shape"]),
            x["dtype"],
            (low, high),
            x.get("sample_rate", 0),
            tuple(map(Column.from_json, x.get("columns", ()))),
        ),
        "z": LatentFormat(
            Shape.parse(z["shape"]), _floats(z.get("scale", ())), _floats(z.get("shift", ()))
        ),
        "likelihood": likelihood and _likelihood(likelihood),
        "axes": MappingProxyType(
            {name: Axis(name=name, **bounds) for name, bounds in raw["axes"].items()}
        ),
        "tiles": {graph: Tile(**tile) for graph, tile in raw.get("tiles", {}).items()},
        "threshold": threshold and _threshold(threshold),
    }
