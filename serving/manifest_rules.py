"""Checks a manifest: each field, and the fields whose values depend on each other. Standard library
only."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from latentd import schema
from latentd.errors import BundleError
from latentd.manifest_schema import (
    FORMAT,
    FORMATS,
    LIKELIHOOD,
    MANIFEST,
    MAX_ELEMENTS,
    MAX_FLOAT,
    ORIGINS,
    SCORES,
)
from latentd.shapes import Shape


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
        ends = f"two ascending numbers from {-MAX_FLOAT:g} to {MAX_FLOAT:g}, apart in float32"
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
        if medians := scores.get("median_contributions"):
            number = len(x.get("columns", ()))
            each = schema.Rule(
                f"{number} numbers, one for each of x.columns", lambda v: len(v) == number
            )
            yield "training_scores.median_contributions", medians, each


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
        yield f"axes.{name}.max", axis["max"], schema.integer(axis["min"], MAX_ELEMENTS)
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
        f"at most {MAX_ELEMENTS} elements at the largest sizes",
        lambda shape: math.prod(Shape.parse(shape).at(largest)) <= MAX_ELEMENTS,
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
    if threshold := manifest.get("threshold"):
        rows = threshold.get("validation_rows", 0)
        part = schema.Rule(f"a number up to validation_rows, {rows}", lambda count: count <= rows)
        yield "threshold.validation_outliers", threshold.get("validation_outliers", 0), part
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


def _multiple_of(divisor: int, expected: str) -> schema.Rule:
    return schema.Rule(expected, lambda value: value % divisor == 0)


def _is_range_of_bytes(value: Any) -> bool:
    low, high = value
    return 0 <= low < high <= 255 and all(float(end).is_integer() for end in value)


def _is_range_of_floats(value: Any) -> bool:
    if not all(-MAX_FLOAT <= end <= MAX_FLOAT for end in value):
        return False
    low, high = struct.unpack("2f", struct.pack("2f", *value))  # as float32 has them
    return bool(high - low >= 1 / MAX_FLOAT)


def _is_false(value: Any) -> bool:
    return value is False
