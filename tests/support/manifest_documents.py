"""Manifests as JSON has them: a whole one, and values that are wrong in it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator

import latentd
from latentd import bundle

SCHEMA: Final = json.loads((Path(latentd.__file__).parent / "manifest.schema.json").read_text())


def schema_errors(document: Any) -> list[str]:
    """What manifest.schema.json finds wrong."""
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(document)]


def whole(toy: dict[str, Any]) -> dict[str, Any]:
    """The toy's manifest with free axes and with all optional keys. Its graphs do not match it."""
    axis = {"multiple_of": 8, "min": 16, "max": 512, "default": 64}
    tile = {"size": {"h": 64, "w": 64}, "overlap": {"h": 16, "w": 24}}
    file = dict(toy["files"][bundle.GOLDEN])
    scores = {"rows": 8, "levels": [0, 100]} | {name: [0.5, 1] for name in bundle.SCORES}
    return toy | {
        "x": toy["x"] | {"shape": ["h", "w", 3]},
        "z": {"shape": [4, "h/8", "w/8"], "scale": [0.18215], "shift": [0, 0.5, -1, 2e-3]},
        "axes": {"h": axis, "w": dict(axis)},
        "files": toy["files"] | {bundle.LIKELIHOOD: file, bundle.MAP: dict(file)},
        "tiles": {
            "encoder": tile | {"exact": True, "max_abs_difference": 1e-6},
            "decoder": tile | {"exact": False, "decibels": 38.5},
        },
        "training": {"config": {"rate": 1e-3}},
        "evaluation": {"nll": 86.5},
        "training_scores": scores,
        "threshold": {
            "percentile": 99.5,
            "reconstruction_error": 40,
            "validation_rows": 200,
            "validation_outliers": 3,
        },
    }


def audio(document: dict[str, Any]) -> dict[str, Any]:
    """A whole manifest as that of a model of stereo sounds of any length."""
    axis = {"multiple_of": 8, "min": 16, "max": 512, "default": 64}
    x = {"kind": "audio", "shape": ["t", 2], "dtype": "float32", "range": [-1, 1]}
    return document | {
        "x": x | {"sample_rate": 44100},
        "z": {"shape": [4, "t/8"]},
        "axes": {"t": axis},
        "tiles": {},
    }


def text(document: dict[str, Any]) -> dict[str, Any]:
    """A whole manifest as that of a model of texts of at most 15 bytes."""
    files = {name: entry for name, entry in document["files"].items() if name != bundle.LIKELIHOOD}
    return document | {
        "x": {"kind": "text", "shape": [16], "dtype": "uint8", "range": [0, 255]},
        "z": {"shape": [4]},
        "likelihood": {
            "name": "categorical",
            "parameters": [],
            "bounded": True,
            "binary": False,
        },
        "axes": {},
        "tiles": {},
        "files": files,
    }


def altered(document: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The document with another value at a key, whose parts are separated by "/"."""
    document = copy.deepcopy(document)
    *path, last = key.split("/")
    inner = document
    for part in path:
        inner = inner[part]
    inner[last] = value
    return document


RIGHT: Final[list[tuple[str, Any]]] = [
    ("model", "a" * 64),
    ("version", 999_999_999),
    ("created", "2026-11-27T20:00:00Z"),
    ("created", "2026-11-27T20:00:00.123456-03:30"),
    ("x/dtype", "float32"),
    ("x/range", [0, 1]),
    ("z/scale", [1, 2, 3, 4]),
    ("z/shape", [4, "w", "h/4"]),
    ("axes/h/multiple_of", 16),
    ("axes/h/max", 1 << 16),
    ("posterior", "point"),
    ("prior", None),
    ("likelihood/parameters", ["mean", "log_scale_2"]),
    ("likelihood/bounded", False),
    ("likelihood/binary", False),
    ("likelihood/contributions", ["h", "w", 3]),
    ("likelihood/contributions", [5]),
    ("origin", {"kind": "adopted", "source": "somewhere"}),
    ("opset", 1000),
    ("preprocessing", ""),
    ("precision", "float16"),
    ("training_scores", {}),
    ("threshold/percentile", 100),
    ("threshold/reconstruction_error", -1.5),
    ("threshold/validation_outliers", 200),
    ("threshold", {"percentile": 0.5, "reconstruction_error": 40}),
    ("files/golden.npz/bytes", 1 << 40),
    ("files/map.npz/bytes", 1 << 24),
]
"""Values that are right in the whole manifest."""

WRONG: Final[list[tuple[str, Any, str]]] = [
    ("format", 99, "format 99; this release reads formats 1, 2. Export the model again"),
    ("format", True, "format is True; expected 2"),
    ("format", None, "format is None; expected 2"),
    ("model", "Toy", "model is 'Toy'; expected 1 to 64 lower-case letters"),
    ("model", ["toy"], r"model is \['toy'\]"),
    ("version", 0, "version is 0; expected an integer from 1 to 999999999"),
    ("version", 1_000_000_000, "version is 1000000000"),
    ("version", True, "version is True"),
    ("created", "yesterday", "created is 'yesterday'; expected a time in ISO 8601"),
    ("created", "2026-11-27T20:00:00", "created is .*; expected a time in .* with its offset"),
    ("created", 5, "created is 5"),
    ("opset", -1, "opset is -1; expected an integer from 1 to 1000"),
    ("preprocessing", 5, "preprocessing is 5; expected text"),
    ("preprocessing", "x" * 10_001, "preprocessing is 'x+...x+'; expected text of at most 10000"),
    ("precision", "int8", "precision is 'int8'; expected one of float32, float16"),
    ("x", [4, 4], r"x is \[4, 4\]; expected an object"),
    ("x/kind", "video", "x.kind is 'video'; expected one of image, vector, audio, text"),
    ("x/kind", "text", r"x.shape is .*; expected one number from 2, as x.kind is text"),
    ("x/kind", "audio", "x.dtype is 'uint8'; expected float32, as x.kind is audio"),
    ("x/kind", "vector", r"x.shape is \['h', 'w', 3\]; expected one length, as x.kind is vector"),
    ("x/dtype", "float64", "x.dtype is 'float64'; expected one of uint8, float32"),
    ("x/shape", [], r"x.shape is \[\]; expected 1 to 6 lengths: numbers from 1, names of free"),
    ("x/shape", ["h", "w", 0], r"x.shape is \['h', 'w', 0\]"),
    ("x/shape", ["h", "w", True], "x.shape is"),
    ("x/shape", ["h", "w", None], "x.shape is"),
    ("x/shape", ["h", "w", 1 << 29], "x.shape is"),
    ("x/shape", ["H", "w", 3], "x.shape is"),
    ("x/shape", ["h", "w/2", 3], r"x.shape is .*; expected free axes undivided, as in 'h'"),
    ("x/shape", ["h", "w*2", 3], "x.shape is"),
    ("x/shape", ["h"], r"x.shape is \['h'\]; expected height, width\[, channels\]"),
    ("x/shape", ["h", "w", 3, 1], r"x.shape is .*; expected height, width\[, channels\]"),
    ("x/range", ["0", "255"], r"x.range is \['0', '255'\]; expected null, or the lowest and the"),
    ("x/range", [0, 255, 1], "x.range is"),
    ("x/range", [0, 256], r"x.range is \[0, 256\]; expected two ascending integers from 0 to"),
    ("x/range", [-1, 255], "x.range is"),
    ("x/range", [0.5, 255], "x.range is"),
    ("x/range", [0, 10**400], "x.range is"),
    ("x/range", None, "x.dtype is 'uint8'; expected float32, as x.range is null"),
    ("x/extra", 1, "x.extra is unknown; expected kind, dtype, shape, range, sample_rate, c"),
    ("x/sample_rate", 44100, "x.sample_rate is 44100; expected no such key, as x.kind is image"),
    ("z", 16, "z is 16; expected an object"),
    ("z/shape", [], r"z.shape is \[\]; expected 1 to 6 lengths"),
    ("z/shape", [1] * 7, "z.shape is"),
    ("z/shape", ["h/0", "w"], "z.shape is"),
    ("z/shape", ["h/08", "w"], "z.shape is"),
    ("z/shape", ["h/", "w"], "z.shape is"),
    ("z/scale", [], r"z.scale is \[\]; expected one finite number, or one for each channel"),
    ("z/scale", 0.5, "z.scale is 0.5"),
    ("z/shift", ["0"], "z.shift is"),
    ("z/mean", 1, "z.mean is unknown; expected shape, scale, shift"),
    ("axes", None, "axes is None; expected an object"),
    ("axes", [], r"axes is \[\]; expected an object"),
    ("axes/Width", {}, "a key of axes is 'Width'; expected an axis: a lower-case letter, then"),
    ("axes/h", 64, "axes.h is 64; expected an object"),
    ("axes/h/multiple_of", 0, "axes.h.multiple_of is 0; expected an integer from 1"),
    ("axes/h/min", 0, "axes.h.min is 0; expected an integer from 1"),
    ("axes/h/max", 1 << 32, "axes.h.max is 4294967296"),
    ("axes/h/default", "64", "axes.h.default is '64'"),
    ("axes/h/step", 8, "axes.h.step is unknown; expected multiple_of, min, max, default"),
    ("posterior", "laplace", "posterior is 'laplace'; expected one of gaussian, point"),
    ("posterior", None, "posterior is None"),
    ("prior", "normal", "prior is 'normal'; expected one of standard-normal, null"),
    ("prior", "", "prior is ''"),
    ("likelihood", "bernoulli", "likelihood is 'bernoulli'; expected null, or an object"),
    ("likelihood", None, "files.likelihood.onnx is .*; expected no such file, as likelihood is nu"),
    ("likelihood/name", "", "likelihood.name is ''; expected 1 to 64 lower-case letters"),
    ("likelihood/name", 1, "likelihood.name is 1"),
    ("likelihood/parameters", [], r"likelihood.parameters is \[\]; expected a list of names"),
    ("likelihood/parameters", ["mean", "mean"], "likelihood.parameters is"),
    ("likelihood/parameters", ["Mean"], "likelihood.parameters is"),
    ("likelihood/parameters", ["mean", 1], "likelihood.parameters is"),
    ("likelihood/parameters", [f"p{n}" for n in range(257)], "likelihood.parameters is"),
    ("likelihood/bounded", 1, "likelihood.bounded is 1; expected one of True, False"),
    ("likelihood/binary", None, "likelihood.binary is None"),
    ("likelihood/contributions", [], r"contributions is \[\]; expected 1 to 6 lengths"),
    ("likelihood/contributions", ["h/8", 3], "expected a shape without axes but those of axes, un"),
    ("likelihood/scale", 1, "likelihood.scale is unknown; expected name, parameters, bounded"),
    ("origin", "adopted", "origin is 'adopted'; expected an object"),
    ("origin", {}, "origin.kind is None; expected one of trained, adopted"),
    ("origin/kind", "found", "origin.kind is 'found'; expected one of trained, adopted"),
    ("tiles", [], r"tiles is \[\]; expected an object"),
    ("tiles", {"decoder": {}}, "tiles.encoder is missing; expected an object"),
    ("tiles/encoder/size", 64, "tiles.encoder.size is 64; expected an object"),
    ("tiles/encoder/size/h", 0, "tiles.encoder.size.h is 0; expected an integer from 1"),
    ("tiles/encoder/overlap/w", -8, "tiles.encoder.overlap.w is -8; expected an integer from 0"),
    ("tiles/encoder/exact", 1, "tiles.encoder.exact is 1; expected one of True, False"),
    ("tiles/encoder/max_abs_difference", -1, "difference is -1; expected a finite number from 0"),
    ("tiles/decoder/decibels", "38", "tiles.decoder.decibels is '38'; expected a finite number"),
    ("parity", None, "parity is None; expected an object"),
    ("training", [1], r"training is \[1\]; expected an object"),
    ("evaluation", 1, "evaluation is 1; expected an object"),
    ("training_scores", 5, "training_scores is 5; expected an object"),
    ("training_scores/rows", -1, "training_scores.rows is -1; expected an integer from 1"),
    ("training_scores/rows", 1 << 32, "training_scores.rows is"),
    ("training_scores/levels", [0, 101], r"scores.levels is \[0, 101\]; expected percents"),
    ("training_scores/levels", [0], "scores.levels is .*; expected two or more ascending"),
    ("training_scores/kl", ["0", "1"], "training_scores.kl is"),
    ("training_scores/nll", [0, 1], "training_scores.nll is unknown; expected rows, levels"),
    ("threshold", 99, "threshold is 99; expected an object"),
    ("threshold/percentile", 101, "threshold.percentile is 101; expected a number from 0 to 100"),
    ("threshold/reconstruction_error", None, "threshold.reconstruction_error is None; expected a"),
    ("threshold/validation_rows", 0, "validation_rows is 0; expected an integer from 1"),
    ("threshold/validation_outliers", -1, "validation_outliers is -1; expected an integer from 0"),
    ("threshold/elbo", 4, "threshold.elbo is unknown; expected percentile, reconstruction_error"),
    ("files", {}, "files.encoder.onnx is missing; expected an object"),
    ("files/golden.npz", None, "files.golden.npz is None; expected an object"),
    ("files/golden.npz", {"sha256": "0" * 64}, "files.golden.npz.bytes is missing; expected a"),
    ("files/up.sh", {}, "files.up.sh is unknown; expected encoder.onnx, decoder.onnx, golden.npz"),
    ("files/golden.npz/sha256", "0" * 63, "sha256 is .*; expected 64 hexadecimal digits"),
    ("files/golden.npz/sha256", "A" * 64, "sha256 is"),
    ("files/golden.npz/bytes", -1, "bytes is -1; expected an integer from 0"),
    ("files/golden.npz/bytes", 1.5, "bytes is 1.5"),
    ("files/map.npz/bytes", (1 << 24) + 1, "expected an integer from 0 to 16777216"),
    ("extra", 1, "extra is unknown; expected format, model, version"),
]
"""Values that are wrong in the whole manifest: the key, the value, and what the message says."""

WRONG_OF_AUDIO: Final[list[tuple[str, Any, str]]] = [
    ("x/kind", "image", "x.sample_rate is 44100; expected no such key, as x.kind is image"),
    ("x/kind", "vector", "x.shape is .*; expected one length, as x.kind is vector"),
    ("x/shape", ["t"], r"x.shape is \['t'\]; expected samples, channels, as x.kind is audio"),
    ("x/shape", ["t", 2, 1], "x.shape is .*; expected samples, channels"),
    ("x/dtype", "uint8", "x.dtype is 'uint8'; expected float32, as x.kind is audio"),
    ("x/sample_rate", 0, "x.sample_rate is 0; expected an integer from 1 to 16777216"),
    ("x/sample_rate", 44100.5, "x.sample_rate is 44100.5"),
    ("x/sample_rate", None, "x.sample_rate is None"),
]
"""The same, in the manifest of a model of audio."""

WRONG_OF_TEXT: Final[list[tuple[str, Any, str]]] = [
    ("x/dtype", "float32", "x.dtype is 'float32'; expected uint8, as x.kind is text"),
    ("x/range", [0, 127], r"x.range is .*; expected \[0, 255\], as x.kind is text"),
    ("x/range", None, r"x.range is null; expected \[0, 255\], as x.kind is text"),
    ("x/shape", [1], r"x.shape is \[1\]; expected one number from 2, as x.kind is text"),
    ("x/shape", [8, 8], r"x.shape is \[8, 8\]; expected one number from 2"),
    ("z/shape", [2, 2], r"z.shape is \[2, 2\]; expected one length, as x.kind is text"),
    ("likelihood", None, "likelihood is null; expected an object, as x.kind is text"),
    ("likelihood/parameters", ["logit"], "likelihood.parameters is .*; expected an empty list, as"),
    ("likelihood/binary", True, "likelihood.binary is True; expected false, as x.kind is text"),
    ("files/likelihood.onnx", {"sha256": "0" * 64, "bytes": 1}, "expected no such file, as x.kind"),
]
"""The same, in the manifest of a model of text."""

COLUMN: Final = {
    "name": "pressure",
    "mean": 101325.0,
    "std": 250,
    "fill_value": 101325.0,
    "is_integer": True,
}
CATEGORICAL: Final = {"name": "color", "levels": ["blue", "red"], "fill_value": 2}


def table(document: dict[str, Any]) -> dict[str, Any]:
    """A whole manifest as that of a model of tables with a numeric and a categorical column."""
    x = {"kind": "vector", "shape": [2], "dtype": "float32", "range": None}
    likelihood = {"name": "mixed", "parameters": ["p0", "p1", "p2"], "bounded": False}
    return document | {
        "x": x | {"columns": [COLUMN, CATEGORICAL]},
        "z": {"shape": [4]},
        "likelihood": likelihood | {"binary": False},
        "axes": {},
        "tiles": {},
        "training_scores": document["training_scores"] | {"median_contributions": [12.5, -3]},
    }


WRONG_OF_TABLE: Final[list[tuple[str, Any, str]]] = [
    ("x/kind", "image", "x.shape is .*; expected height, width"),
    ("x/range", [0, 1], "x.range is .*; expected null, as x.columns is given"),
    ("x/dtype", "uint8", "x.dtype is 'uint8'; expected float32, as x.range is null"),
    ("z/shape", [2, 2], r"z.shape is \[2, 2\]; expected one length, as x.columns is given"),
    ("x/columns", [], r"x.columns is \[\]; expected a list of columns with different names"),
    ("x/columns", [COLUMN, {"name": "a"}], "x.columns is"),
    ("x/columns", [COLUMN, COLUMN | {"name": ""}], "x.columns is"),
    ("x/columns", [COLUMN, COLUMN | {"name": "b", "std": 0}], "x.columns is"),
    ("x/columns", [COLUMN, COLUMN | {"name": "b", "mean": 1e31}], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"mean": 0, "std": 1}], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"is_integer": True}], "x.columns is"),
    ("x/columns", [COLUMN | {"is_integer": 1}, CATEGORICAL], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"levels": []}], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"levels": ["a", "a"]}], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"unit": "m"}], "x.columns is"),
    ("training_scores/median_contributions", [], "expected a list of finite numbers"),
    ("training_scores/median_contributions", ["1", 2], "expected a list of finite numbers"),
]
"""The same, in the manifest of a model of tables."""

WRONG_TABLES_TO_THE_CODE: Final[list[tuple[str, Any, str]]] = [
    ("x/shape", [3], r"x.shape is \[3\]; expected 2, one for each of x.columns"),
    ("x/columns", [COLUMN, COLUMN], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"fill_value": 3}], "x.columns is"),
    ("x/columns", [COLUMN, CATEGORICAL | {"name": "a\nb"}], "x.columns is"),
    ("training_scores/median_contributions", [1], "expected 2 numbers, one for each of x.columns"),
]
"""Of these only the code knows that they are wrong."""

WRONG_TO_THE_CODE: Final[list[tuple[str, Any, str]]] = [
    ("version", 1.0, "version is 1.0"),
    ("x/shape", ["h", "w", 3.0], "x.shape is"),
    ("preprocessing", "\ud800", "preprocessing is '.ud800'; expected text"),
    ("training/config/rate", 1 << 70, "training.config.rate is .*; expected a 64-bit integer"),
    ("training/a key", "\ud800", "training.'a key' is '.ud800'; expected text that UTF-8 can hold"),
    ("x/range", [255, 0], "x.range is"),
    ("x/shape", ["h", "h", 3], r"x.shape is .*; expected a shape with each axis of axes once \(h,"),
    ("x/shape", ["h", 64, 3], "x.shape is"),
    ("x/shape", ["h", "width", 3], "x.shape is"),
    ("x/shape", ["h", "w", 1 << 12], "x.shape is .*; expected at most 268435456 elements at the"),
    ("z/shape", [4, "h/8", 8], r"z.shape is .*; expected a shape with each axis of axes once \(h,"),
    ("z/shape", [1 << 20, "h/8", "w/8"], "z.shape is .*; expected at most 268435456 elements at"),
    ("z/shape", [4, "h/16", "w/8"], "axes.h.multiple_of is 8; expected a multiple of 16, by which"),
    ("z/scale", [1, 2], "z.scale is .*; expected one number, or one for each of 4 channels"),
    ("axes", {}, r"x.shape is .*; expected a shape with each axis of axes once \(there is none\)"),
    ("axes/h/min", 20, "axes.h.min is 20; expected a multiple of 8"),
    ("axes/h/max", 500, "axes.h.max is 500; expected a multiple of 8"),
    ("axes/h/max", 8, "axes.h.max is 8; expected an integer from 16"),
    ("axes/h/default", 60, "axes.h.default is 60; expected a multiple of 8"),
    ("axes/h/default", 520, "axes.h.default is 520; expected an integer from 16 to 512"),
    ("axes/h/default", 8, "axes.h.default is 8; expected an integer from 16 to 512"),
    (
        "tiles/encoder/size",
        {"h": 64},
        r"size is .*; expected a length for each axis of axes \(h, w",
    ),
    ("tiles/encoder/size/h", 60, "tiles.encoder.size.h is 60; expected a multiple of 8"),
    ("tiles/encoder/size/h", 520, "tiles.encoder.size.h is 520; expected an integer from 16 to 5"),
    ("tiles/encoder/overlap/h", 12, "tiles.encoder.overlap.h is 12; expected a multiple of 8"),
    ("tiles/encoder/overlap/h", 40, "encoder.overlap.h is 40; expected an integer from 0 to 32"),
    ("tiles/encoder/exact", False, "max_abs_difference is 1e-06; expected no such key, as tiles"),
    (
        "tiles/decoder/exact",
        True,
        "decoder.max_abs_difference is None; expected a number, as tiles",
    ),
    ("tiles/decoder/max_abs_difference", 0, "expected no such key, as tiles.decoder.exact is fals"),
    ("training_scores/levels", [1, 0], "scores.levels is .*; expected two or more ascending"),
    ("threshold/validation_outliers", 201, "expected a number up to validation_rows, 200"),
    ("training_scores/kl", [1, 2, 3], "kl is .*; expected as many numbers as levels, 2"),
    ("training_scores/elbo", [0.0, float("nan")], "training_scores.elbo is"),
]
"""The same, for rules that JSON Schema cannot express."""

WRONG_IN_FORMAT_1: Final[list[tuple[str, Any, str]]] = [
    ("family", "gan", "family is 'gan'; expected one of vae, ae"),
    ("likelihood", [[]], r"likelihood is \[\[\]\]; expected one of bernoulli, gaussian"),
    ("likelihood", 1, "likelihood is 1"),
    ("latent_size", 65537, "latent_size is 65537; expected an integer from 1 to 65536"),
    ("latent_size", "16", "latent_size is '16'"),
    ("x/shape", [], r"x.shape is \[\]; expected 1 to 3 lengths"),
    ("x/shape", ["h", "w"], "x.shape is"),
    ("x/shape", [8, 8.0], r"x.shape is \[8, 8.0\]"),
    ("x/shape", [1 << 20, 1 << 20], "x.shape is"),
    ("x/shape", [8, 8, 1, 1], "x.shape is"),
    ("x/shape", [64], r"x.shape is \[64\]; expected height, width\[, channels\]"),
    ("x/range", None, "x.range is None; expected the lowest and the highest"),
    ("x/dtype", "float64", "x.dtype is 'float64'; expected one of uint8, float32"),
    ("files/likelihood.onnx", {}, "files.likelihood.onnx is unknown; expected encoder.onnx"),
    ("files/map.npz", {}, "files.map.npz is unknown; expected encoder.onnx"),
    ("axes", {}, "axes is unknown; expected format, model, version"),
    ("prior", None, "prior is unknown; expected"),
]
"""Values that are wrong in a manifest of format 1."""
