"""The valid values of each field of manifest.json, for each format. Standard library only."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from latentd import columns, schema
from latentd.errors import BundleError
from latentd.shapes import AXIS_NAME, Shape

FORMAT: Final = 2
"""The format that is written; format 1 is read for good."""
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
LIKELIHOOD: Final = "likelihood.onnx"
GOLDEN: Final = "golden.npz"
FILES: Final = (ENCODER, DECODER, GOLDEN)
"""The files of every bundle. One with a likelihood also has LIKELIHOOD, since format 2, unless its
rows are texts: their decoder computes it."""
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
_MAX_ELEMENTS: Final = 1 << 28  # of one row
_MAX_DIMS: Final = 6
_MAX_SAMPLE_RATE: Final = 1 << 24
_MAX_FLOAT: Final = 1e30
"""Of float32 data: differences and quotients of such numbers are finite in float32."""


def _is_fixed_shape(value: Any) -> bool:
    return (
        schema.is_list(value)
        and 1 <= len(value) <= 3
        and all(type(n) is int and 1 <= n <= _MAX_ELEMENTS for n in value)
        and math.prod(value) <= _MAX_ELEMENTS
    )


def _is_shape(value: Any) -> bool:
    if not schema.is_list(value) or not 1 <= len(value) <= _MAX_DIMS:
        return False
    if not all(type(n) is str or (type(n) is int and 1 <= n <= _MAX_ELEMENTS) for n in value):
        return False
    try:
        Shape.parse(value)
    except ValueError:
        return False
    return True


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


def _is_names(value: Any) -> bool:
    if not schema.is_list(value) or len(value) > 256:
        return False
    names = {name for name in value if isinstance(name, str) and AXIS_NAME.fullmatch(name)}
    return len(names) == len(value)


def _is_false(value: Any) -> bool:
    return value is False


def _is_numbers(value: Any) -> bool:
    return schema.is_list(value) and len(value) >= 1 and all(map(schema.is_number, value))


_FILE: Final = schema.Fields(
    {
        "sha256": schema.pattern(re.compile("[0-9a-f]{64}"), "64 hexadecimal digits in lower case"),
        "bytes": schema.integer(0, 1 << 40),
    }
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
            {"rows": schema.integer(1, (1 << 32) - 1)}
            | dict.fromkeys(("levels", *SCORES), _QUANTILES)
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
                    f"1 to 3 lengths from 1, for {_MAX_ELEMENTS} elements at most", _is_fixed_shape
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
_LENGTHS: Final = schema.integer(1, _MAX_ELEMENTS)
_SHAPE: Final = schema.Rule(
    f"1 to {_MAX_DIMS} lengths: numbers from 1, names of free axes, or parts of them as in 'h/8'",
    _is_shape,
)
_NUMBERS: Final = schema.Rule("one finite number, or one for each channel", _is_numbers)
_AXIS: Final = schema.pattern(AXIS_NAME, "an axis: a lower-case letter, then letters and digits")
_TILE: Final = schema.Fields(
    {
        "size": schema.Map(_AXIS, _LENGTHS),
        "overlap": schema.Map(_AXIS, schema.integer(0, _MAX_ELEMENTS)),
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
        "files": schema.Fields(dict.fromkeys(FILES, _FILE), {LIKELIHOOD: _FILE}),
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
            }
        ),
    },
)
FORMATS: Final[Mapping[int, schema.Fields]] = {1: _FORMAT_1, 2: _FORMAT_2}
"""The fields of each manifest format, by its number."""


def check(manifest: Any, name: str = MANIFEST) -> None:
    """Raises BundleError(format) unless every field of the manifest is valid."""
    found = manifest.get("format") if isinstance(manifest, dict) else FORMAT
    if type(found) is not int:
        found = FORMAT  # its table reports the error
    if found not in FORMATS:
        raise BundleError(
            "format",
            f"{name} has format {schema.format_value(found)}; this release reads formats "
            f"{', '.join(map(str, FORMATS))}. Export the model again with the matching release.",
        )
    try:
        FORMATS[found].check(manifest)
        for key, value, rule in _rules(manifest):
            rule.check(value, key)
    except schema.Invalid as error:
        raise BundleError("format", f"{name}: {error}") from None


def _rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    """Rules that depend on another key: the key, its value and the rule."""
    x = manifest["x"]
    if x["kind"] == "text":
        bytes_ = schema.Rule("uint8, as x.kind is text", "uint8".__eq__)
        yield "x.dtype", x["dtype"], bytes_
        every = schema.Rule("[0, 255], as x.kind is text", lambda r: r and [*r] == [0, 255])
        yield "x.range", x["range"], every
    if x["kind"] == "audio":
        yield "x.dtype", x["dtype"], schema.Rule("float32, as x.kind is audio", "float32".__eq__)
    if x["range"] is None:
        floats = schema.Rule("float32, as x.range is null", "float32".__eq__)
        yield "x.dtype", x["dtype"], floats
    elif x["dtype"] == "uint8":
        ends = "two ascending integers from 0 to 255, as x.dtype is uint8"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_bytes)
    else:
        ends = f"two ascending numbers from {-_MAX_FLOAT:g} to {_MAX_FLOAT:g}, apart in float32"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_floats)
    if x["kind"] == "image":
        lengths = "height, width[, channels], as x.kind is image"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: 2 <= len(shape) <= 3)
    elif x["kind"] == "audio":
        lengths = "samples, channels, as x.kind is audio"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) == 2)
    elif x["kind"] == "text":
        lengths = "one number from 2, as x.kind is text"
        fixed = schema.Rule(lengths, lambda s: len(s) == 1 and type(s[0]) is int and s[0] >= 2)
        yield "x.shape", x["shape"], fixed
    else:
        lengths = "one length, as x.kind is vector"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) == 1)
    if "columns" in x:
        yield "x.kind", x["kind"], schema.Rule("vector, as x.columns is given", "vector".__eq__)
        unbounded = schema.Rule("null, as x.columns is given", lambda value: value is None)
        yield "x.range", x["range"], unbounded
        number = len(x["columns"])
        each = schema.Rule(
            f"{number}, one for each of x.columns", lambda shape: list(shape) == [number]
        )
        yield "x.shape", x["shape"], each
    if manifest["format"] == 1:
        if manifest["likelihood"] == "discretized-logistic":
            bytes_ = schema.Rule("uint8, as likelihood is discretized-logistic", "uint8".__eq__)
            yield "x.dtype", x["dtype"], bytes_
    else:
        yield from _axis_rules(manifest)
        yield from _tile_rules(manifest)
        yield from _format_2_rules(manifest)
    if scores := manifest.get("training_scores"):
        levels = scores["levels"]
        percents = schema.Rule("percents from 0 to 100", lambda v: v[0] >= 0 and v[-1] <= 100)
        yield "training_scores.levels", levels, percents
        as_many = schema.Rule(
            f"as many numbers as levels, {len(levels)}", lambda v: len(v) == len(levels)
        )
        for name in SCORES:
            yield f"training_scores.{name}", scores[name], as_many


def _axis_rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    axes = manifest["axes"]
    shapes = {f"{name}.shape": manifest[name]["shape"] for name in ("x", "z")}
    names = ", ".join(axes) or "there is none"
    once = schema.Rule(
        f"a shape with each axis of axes once ({names})",
        lambda shape: sorted(d.axis for d in Shape.parse(shape).dims if d.axis) == sorted(axes),
    )
    for key, shape in shapes.items():
        yield key, shape, once
    whole = schema.Rule(
        "free axes undivided, as in 'h'", lambda shape: not any("/" in str(dim) for dim in shape)
    )
    yield "x.shape", shapes["x.shape"], whole
    for dim in Shape.parse(shapes["z.shape"]).dims:
        if dim.axis:
            multiple = axes[dim.axis]["multiple_of"]
            why = f"a multiple of {dim.divisor}, by which z.shape divides {dim.axis}"
            yield f"axes.{dim.axis}.multiple_of", multiple, _multiple_of(dim.divisor, why)
    for name, axis in axes.items():
        multiples = _multiple_of(axis["multiple_of"], f"a multiple of {axis['multiple_of']}")
        for bound in ("min", "max", "default"):
            yield f"axes.{name}.{bound}", axis[bound], multiples
        yield f"axes.{name}.max", axis["max"], schema.integer(axis["min"], _MAX_ELEMENTS)
        yield f"axes.{name}.default", axis["default"], schema.integer(axis["min"], axis["max"])
    likelihood = manifest["likelihood"]
    if likelihood is not None and (terms := likelihood.get("contributions")):
        key = "likelihood.contributions"
        shapes[key] = terms
        known = schema.Rule(
            f"a shape without axes but those of axes, undivided ({names})",
            lambda shape: all(d.json in axes for d in Shape.parse(shape).dims if d.axis),
        )
        yield key, terms, known
    largest = {name: axis["max"] for name, axis in axes.items()}
    fits = schema.Rule(
        f"at most {_MAX_ELEMENTS} elements at the largest sizes",
        lambda shape: math.prod(Shape.parse(shape).at(largest)) <= _MAX_ELEMENTS,
    )
    for key, shape in shapes.items():
        yield key, shape, fits


def _tile_rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    axes = manifest["axes"]
    names = ", ".join(axes) or "there is none"
    each = schema.Rule(
        f"a length for each axis of axes ({names})", lambda v: v.keys() == axes.keys()
    )
    for graph, tile in manifest.get("tiles", {}).items():
        key = f"tiles.{graph}"
        for lengths in ("size", "overlap"):
            yield f"{key}.{lengths}", tile[lengths], each
        for name, axis in axes.items():
            size, overlap, multiple = tile["size"][name], tile["overlap"][name], axis["multiple_of"]
            multiples = _multiple_of(multiple, f"a multiple of {multiple}")
            yield f"{key}.size.{name}", size, multiples
            yield f"{key}.size.{name}", size, schema.integer(axis["min"], axis["max"])
            yield f"{key}.overlap.{name}", overlap, multiples
            yield f"{key}.overlap.{name}", overlap, schema.integer(0, size // 2)
        because = f"as {key}.exact is {str(tile['exact']).lower()}"
        present = schema.Rule(f"a number, {because}", lambda value: value is not None)
        absent = schema.Rule(f"no such key, {because}", lambda value: value is None)
        exact, approximate = (present, absent) if tile["exact"] else (absent, present)
        yield f"{key}.max_abs_difference", tile.get("max_abs_difference"), exact
        yield f"{key}.decibels", tile.get("decibels"), approximate


def _multiple_of(divisor: int, expected: str) -> schema.Rule:
    return schema.Rule(expected, lambda value: value % divisor == 0)


def _format_2_rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    z, likelihood = manifest["z"], manifest["likelihood"]
    each = schema.Rule(
        f"one number, or one for each of {z['shape'][0]} channels",
        lambda numbers: len(numbers) in (1, z["shape"][0]),
    )
    for key in ("scale", "shift"):
        if key in z:
            yield f"z.{key}", z[key], each
    x = manifest["x"]
    because = f"as x.kind is {x['kind']}"
    rated = schema.Rule(f"a number, {because}", lambda rate: rate is not None)
    unrated = schema.Rule(f"no such key, {because}", lambda rate: rate is None)
    yield "x.sample_rate", x.get("sample_rate"), rated if x["kind"] == "audio" else unrated
    yield "origin.kind", manifest["origin"].get("kind"), schema.one_of(*ORIGINS)
    is_text = x["kind"] == "text"
    if "columns" in x:
        flat = schema.Rule("one length, as x.columns is given", lambda shape: len(shape) == 1)
        yield "z.shape", z["shape"], flat
    if likelihood is None or is_text:
        why = because if is_text else "as likelihood is null"
        absent = schema.Rule(f"no such file, {why}", lambda file: file is None)
        yield f"files.{LIKELIHOOD}", manifest["files"].get(LIKELIHOOD), absent
    if is_text:
        some = schema.Rule(f"an object, {because}", lambda value: value is not None)
        yield "likelihood", likelihood, some
        none = schema.Rule(f"an empty list, {because}", lambda names: not names)
        yield "likelihood.parameters", likelihood["parameters"], none
        yield "likelihood.binary", likelihood["binary"], schema.Rule(f"false, {because}", _is_false)
        flat = schema.Rule(f"one length, {because}", lambda shape: len(shape) == 1)
        yield "z.shape", z["shape"], flat
    if likelihood is None or is_text:
        return
    names = schema.Rule("a list of names", lambda names: len(names) >= 1)
    yield "likelihood.parameters", likelihood["parameters"], names
    file = schema.Rule("that file, which computes the likelihood", lambda file: file is not None)
    yield f"files.{LIKELIHOOD}", manifest["files"].get(LIKELIHOOD), file
    if manifest["x"]["range"] is None:
        for key in ("bounded", "binary"):
            false = schema.Rule("false, as x.range is null", lambda value: not value)
            yield f"likelihood.{key}", likelihood[key], false
