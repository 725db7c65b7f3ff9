"""Defines manifest.json: what a model is, field by field, and the valid values of each field.

GetModel's response and the signatures of the graphs are made from it. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from latentd import schema
from latentd.errors import BundleError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
GOLDEN: Final = "golden.npz"
FILES: Final = (ENCODER, DECODER, GOLDEN)
MAX_MANIFEST_BYTES: Final = 1 << 20

MODEL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
KINDS: Final = ("image", "vector")
DTYPES: Final = ("uint8", "float32")
FAMILIES: Final = ("vae", "ae")
PRECISIONS: Final = ("float32", "float16")
LIKELIHOODS: Final = {"bernoulli": 1, "gaussian": 2, "discretized-logistic": 2}
"""Each likelihood's name and its parameters per element of x: the decoder's `params` output has
shape (rows, parameters, *x.shape). bernoulli: logits. gaussian: mean, log standard deviation.
discretized-logistic, of bytes: mean, log scale. All of x scaled to [0, 1]."""
_BRITISH: Final = "discretised-logistic"  # in early bundles; read for good, never written

SCORES: Final = ("reconstruction_error", "kl", "elbo")

_MAX_VERSION: Final = 999_999_999
_MAX_ELEMENTS: Final = 1 << 28  # of one row
_MAX_FLOAT: Final = 1e30
"""Of float32 data: differences and quotients of such numbers are finite in float32."""


@dataclass(frozen=True)
class DataSpec:
    """One row of data, as clients send and receive it."""

    kind: str  # image | vector
    shape: tuple[int, ...]  # of one row; images are height, width[, channels]
    dtype: str  # uint8 | float32
    range: tuple[float, float]  # lowest and highest valid value

    @property
    def size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one row on the wire."""
        return self.size * (1 if self.dtype == "uint8" else 4)


@dataclass(frozen=True)
class Manifest:
    """manifest.json, field by field."""

    model: str
    x: DataSpec
    latent_size: int
    likelihood: str  # a key of LIKELIHOODS
    family: str  # vae | ae: a plain autoencoder gives a point, so it has no ELBO
    opset: int
    preprocessing: str  # what the graphs do to x first, in words; clients must not do it
    parity: dict[str, Any]  # measured at export: batches, rows, largest errors, tolerance
    training: dict[str, Any] = field(default_factory=dict)  # configuration and metrics
    evaluation: dict[str, Any] = field(default_factory=dict)  # evaluation.json, if there was one
    precision: str = "float32"  # inside the graphs; inputs and outputs are float32 or bytes
    # How training rows score: rows, and for each of `levels` (percent, ascending) the quantile of
    # each of SCORES, in nats. {}: unknown, as in older bundles and for autoencoders.
    training_scores: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {sha256, bytes}
    version: int = 0  # given by publish
    created: str = ""  # UTC, ISO 8601; given by publish
    format: int = FORMAT

    def to_json(self) -> bytes:
        """The file's bytes: UTF-8, indented for people, keys in the order above."""
        return (json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n").encode()

    def check(self) -> None:
        """Raises BundleError(format) if from_json would reject it."""
        _check(dataclasses.asdict(self))

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
        _check(raw, name)
        x = raw["x"]
        low, high = map(float, x["range"])
        spec = DataSpec(x["kind"], tuple(x["shape"]), x["dtype"], (low, high))
        return cls(**raw | {"x": spec})


def _is_shape(value: Any) -> bool:
    return (
        schema.is_list(value)
        and 1 <= len(value) <= 3
        and all(type(n) is int and 1 <= n <= _MAX_ELEMENTS for n in value)
        and math.prod(value) <= _MAX_ELEMENTS
    )


def _is_range(value: Any) -> bool:
    return schema.is_list(value) and len(value) == 2 and all(map(schema.is_number, value))


def _is_range_of_bytes(value: Any) -> bool:
    low, high = value
    return 0 <= low < high <= 255 and all(float(end).is_integer() for end in value)


def _is_range_of_floats(value: Any) -> bool:
    if not all(-_MAX_FLOAT <= end <= _MAX_FLOAT for end in value):
        return False
    low, high = struct.unpack("2f", struct.pack("2f", *value))  # as float32 has them
    return bool(high - low >= 1 / _MAX_FLOAT)


def _is_ascending(value: Any) -> bool:
    return (
        schema.is_list(value)
        and len(value) >= 2
        and all(map(schema.is_number, value))
        and list(value) == sorted(value)
    )


_FILE: Final = schema.Fields(
    {
        "sha256": schema.pattern(re.compile("[0-9a-f]{64}"), "64 hexadecimal digits in lower case"),
        "bytes": schema.integer(0, 1 << 40),
    }
)
_QUANTILES: Final = schema.Rule("two or more ascending numbers", _is_ascending)
_FORMAT_1: Final = schema.Fields(
    {
        "format": schema.one_of(1),
        "model": schema.pattern(
            MODEL_NAME,
            "1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a "
            "letter or a digit",
        ),
        "version": schema.integer(1, _MAX_VERSION),
        "created": schema.time(),
        "family": schema.one_of(*FAMILIES),
        "x": schema.Fields(
            {
                "kind": schema.one_of(*KINDS),
                "dtype": schema.one_of(*DTYPES),
                "shape": schema.Rule(
                    f"1 to 3 lengths from 1, for {_MAX_ELEMENTS} elements at most", _is_shape
                ),
                "range": schema.Rule("the lowest and the highest value, both finite", _is_range),
            }
        ),
        "latent_size": schema.integer(1, 1 << 16),
        "likelihood": schema.one_of(*LIKELIHOODS),
        "opset": schema.integer(1, 1000),
        "preprocessing": schema.text(10_000),
        "parity": schema.Tree(),
        "files": schema.Fields(dict.fromkeys(FILES, _FILE)),
    },
    optional={
        "training": schema.Tree(),
        "evaluation": schema.Tree(),
        "precision": schema.one_of(*PRECISIONS),
        "training_scores": schema.EmptyOr(
            schema.Fields(
                {"rows": schema.integer(1, (1 << 32) - 1)}
                | dict.fromkeys(("levels", *SCORES), _QUANTILES)
            )
        ),
    },
)
_FORMATS: Final[Mapping[int, schema.Fields]] = {1: _FORMAT_1}
"""The fields of each manifest format, by its number."""


def _rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    """Rules that depend on another key: the key, its value and the rule."""
    x = manifest["x"]
    if x["dtype"] == "uint8":
        ends = "two ascending integers from 0 to 255, as x.dtype is uint8"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_bytes)
    else:
        ends = f"two ascending numbers from {-_MAX_FLOAT:g} to {_MAX_FLOAT:g}, apart in float32"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_floats)
    if x["kind"] == "image":
        lengths = "height, width[, channels], as x.kind is image"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) >= 2)
    else:
        lengths = "one length, as x.kind is vector"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) == 1)
    if manifest["likelihood"] == "discretized-logistic":
        bytes_ = schema.Rule("uint8, as likelihood is discretized-logistic", "uint8".__eq__)
        yield "x.dtype", x["dtype"], bytes_
    if scores := manifest.get("training_scores"):
        levels = scores["levels"]
        percents = schema.Rule("percents from 0 to 100", lambda v: v[0] >= 0 and v[-1] <= 100)
        yield "training_scores.levels", levels, percents
        as_many = schema.Rule(
            f"as many numbers as levels, {len(levels)}", lambda v: len(v) == len(levels)
        )
        for name in SCORES:
            yield f"training_scores.{name}", scores[name], as_many


def _check(manifest: Any, name: str = MANIFEST) -> None:
    """Raises BundleError(format) unless every field of the manifest is valid."""
    found = manifest.get("format") if isinstance(manifest, dict) else FORMAT
    if type(found) is not int:
        found = FORMAT  # its table reports the error
    if found not in _FORMATS:
        raise BundleError(
            "format",
            f"{name} has format {schema.format_value(found)}; this release reads format "
            f"{', '.join(map(str, _FORMATS))}. Export the model again with the matching release.",
        )
    try:
        _FORMATS[found].check(manifest)
        for key, value, rule in _rules(manifest):
            rule.check(value, key)
    except schema.Invalid as error:
        raise BundleError("format", f"{name}: {error}") from None
