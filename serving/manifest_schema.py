"""The valid values of each field of manifest.json, for each format. Standard library only.

`manifest_rules` has the values that depend on other fields.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from latentd import columns, schema
from latentd.shapes import AXIS_NAME, Shape

FORMAT: Final = 2
"""The format that is written; format 1 is read for good."""
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
LIKELIHOOD: Final = "likelihood.onnx"
GOLDEN: Final = "golden.npz"
MAP: Final = "map.npz"
FILES: Final = (ENCODER, DECODER, GOLDEN)
"""The files of every bundle. One with a likelihood also has LIKELIHOOD, since format 2, unless its
rows are texts: their decoder computes it. MAP is optional, since format 2."""
MAX_MAP_BYTES: Final = 16 << 20
MAX_MANIFEST_BYTES: Final = 1 << 20

MODEL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
KINDS: Final = ("image", "vector", "audio", "text")
KINDS_1: Final = ("image", "vector")
"""Those of format 1."""
DTYPES: Final = ("uint8", "float32")
FAMILIES: Final = ("vae", "ae")
POSTERIORS: Final = ("gaussian", "point")
PRIORS: Final = ("standard-normal", None)
ORIGINS: Final = ("trained", "adopted")
PRECISIONS: Final = ("float32", "float16")
SCORES: Final = ("reconstruction_error", "kl", "elbo")

_FORMAT_1_LIKELIHOOD_NAMES: Final = ("bernoulli", "gaussian", "discretized-logistic")
_MAX_VERSION: Final = 999_999_999
MAX_ELEMENTS: Final = 1 << 28  # of one row
_MAX_DIMS: Final = 6
_MAX_ROWS: Final = (1 << 32) - 1
_MAX_SAMPLE_RATE: Final = 1 << 24
MAX_FLOAT: Final = 1e30
"""Of float32 data: differences and quotients of such numbers are finite in float32."""


def _is_fixed_shape(value: Any) -> bool:
    return (
        schema.is_list(value)
        and 1 <= len(value) <= 3
        and all(type(n) is int and 1 <= n <= MAX_ELEMENTS for n in value)
        and math.prod(value) <= MAX_ELEMENTS
    )


def _is_shape(value: Any) -> bool:
    if not schema.is_list(value) or not 1 <= len(value) <= _MAX_DIMS:
        return False
    if not all(type(n) is str or (type(n) is int and 1 <= n <= MAX_ELEMENTS) for n in value):
        return False
    try:
        Shape.parse(value)
    except ValueError:
        return False
    return True


def _is_range(value: Any) -> bool:
    return schema.is_list(value) and len(value) == 2 and all(map(schema.is_number, value))


def _is_ascending(value: Any) -> bool:
    return (
        schema.is_list(value)
        and len(value) >= 2
        and all(map(schema.is_number, value))
        and list(value) == sorted(value)
    )


def _is_names(value: Any) -> bool:
    if not schema.is_list(value) or len(value) > 256:
        return False
    names = {name for name in value if isinstance(name, str) and AXIS_NAME.fullmatch(name)}
    return len(names) == len(value)


def _is_numbers(value: Any) -> bool:
    return schema.is_list(value) and len(value) >= 1 and all(map(schema.is_number, value))


_FILE: Final = schema.Fields(
    {
        "sha256": schema.pattern(re.compile("[0-9a-f]{64}"), "64 hexadecimal digits in lower case"),
        "bytes": schema.integer(0, 1 << 40),
    }
)
_MAP_FILE: Final = dataclasses.replace(
    _FILE, required={**_FILE.required, "bytes": schema.integer(0, MAX_MAP_BYTES)}
)
_QUANTILES: Final = schema.Rule("two or more ascending numbers", _is_ascending)
_RANGE: Final = schema.Rule("the lowest and the highest value, both finite", _is_range)
_NAME: Final = schema.pattern(
    MODEL_NAME,
    "1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a letter or a "
    "digit",
)
_COMMON: Final[Mapping[str, schema.Check]] = {
    "model": _NAME,
    "version": schema.integer(1, _MAX_VERSION),
    "created": schema.time(),
    "opset": schema.integer(1, 1000),
    "preprocessing": schema.text(10_000),
    "parity": schema.Tree(),
}
_COMMON_OPTIONAL: Final[Mapping[str, schema.Check]] = {
    "training": schema.Tree(),
    "evaluation": schema.Tree(),
    "precision": schema.one_of(*PRECISIONS),
    "training_scores": schema.EmptyOr(
        schema.Fields(
            {"rows": schema.integer(1, _MAX_ROWS)} | dict.fromkeys(("levels", *SCORES), _QUANTILES),
            {"median_contributions": schema.Rule("a list of finite numbers", _is_numbers)},
        )
    ),
}
_FORMAT_1: Final = schema.Fields(
    {
        "format": schema.one_of(1),
        **_COMMON,
        "family": schema.one_of(*FAMILIES),
        "x": schema.Fields(
            {
                "kind": schema.one_of(*KINDS_1),
                "dtype": schema.one_of(*DTYPES),
                "shape": schema.Rule(
                    f"1 to 3 lengths from 1, for {MAX_ELEMENTS} elements at most", _is_fixed_shape
                ),
                "range": _RANGE,
            }
        ),
        "latent_size": schema.integer(1, 1 << 16),
        "likelihood": schema.one_of(*_FORMAT_1_LIKELIHOOD_NAMES),
        "files": schema.Fields(dict.fromkeys(FILES, _FILE)),
    },
    _COMMON_OPTIONAL,
)
_LENGTHS: Final = schema.integer(1, MAX_ELEMENTS)
_SHAPE: Final = schema.Rule(
    f"1 to {_MAX_DIMS} lengths: numbers from 1, names of free axes, or parts of them as in 'h/8'",
    _is_shape,
)
_NUMBERS: Final = schema.Rule("one finite number, or one for each channel", _is_numbers)
_AXIS: Final = schema.pattern(AXIS_NAME, "an axis: a lower-case letter, then letters and digits")
_TILE: Final = schema.Fields(
    {
        "size": schema.Map(_AXIS, _LENGTHS),
        "overlap": schema.Map(_AXIS, schema.integer(0, MAX_ELEMENTS)),
        "exact": schema.one_of(True, False),
    },
    {
        "max_abs_difference": schema.Rule(
            "a finite number from 0", lambda value: schema.is_number(value) and value >= 0
        ),
        "decibels": schema.Rule("a finite number", schema.is_number),
    },
)
_COLUMNS: Final = schema.Rule(
    "a list of columns with different names: each has a name, and mean and std or levels",
    columns.are_valid,
)
_FORMAT_2: Final = schema.Fields(
    {
        "format": schema.one_of(2),
        **_COMMON,
        "x": schema.Fields(
            {
                "kind": schema.one_of(*KINDS),
                "dtype": schema.one_of(*DTYPES),
                "shape": _SHAPE,
                "range": schema.Optional(_RANGE),
            },
            {"sample_rate": schema.integer(1, _MAX_SAMPLE_RATE), "columns": _COLUMNS},
        ),
        "z": schema.Fields({"shape": _SHAPE}, {"scale": _NUMBERS, "shift": _NUMBERS}),
        "axes": schema.Map(
            _AXIS,
            schema.Fields(dict.fromkeys(("multiple_of", "min", "max", "default"), _LENGTHS)),
        ),
        "posterior": schema.one_of(*POSTERIORS),
        "prior": schema.one_of(*PRIORS),
        "likelihood": schema.Optional(
            schema.Fields(
                {
                    "name": _NAME,
                    "parameters": schema.Rule("a list of names", _is_names),
                    "bounded": schema.one_of(True, False),
                    "binary": schema.one_of(True, False),
                },
                {"contributions": _SHAPE},
            )
        ),
        "origin": schema.Tree(),
        "files": schema.Fields(dict.fromkeys(FILES, _FILE), {LIKELIHOOD: _FILE, MAP: _MAP_FILE}),
    },
    {
        **_COMMON_OPTIONAL,
        "tiles": schema.EmptyOr(schema.Fields({"encoder": _TILE, "decoder": _TILE})),
        "threshold": schema.Fields(
            {
                "percentile": schema.Rule(
                    "a number from 0 to 100",
                    lambda value: schema.is_number(value) and 0 <= value <= 100,
                ),
                "reconstruction_error": schema.Rule("a finite number", schema.is_number),
            },
            {
                "validation_rows": schema.integer(1, _MAX_ROWS),
                "validation_outliers": schema.integer(0, _MAX_ROWS),
            },
        ),
    },
)
FORMATS: Final[Mapping[int, schema.Fields]] = {1: _FORMAT_1, 2: _FORMAT_2}
"""The fields of each manifest format, by its number."""
