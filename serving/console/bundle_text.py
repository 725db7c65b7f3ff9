"""A bundle in words, line by line, for people on a terminal."""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from latentd.bundle import SCORES, Manifest
from latentd.columns import describe
from latentd.shapes import format_lengths

_WIDTH: Final = 100
_MAX_LINES: Final = 6  # of one fact; --json has all of it
_LABEL: Final = 17  # columns
_CAPABILITIES: Final = ("sample", "draw", "score", "params", "images", "map")
_CONFIG: Final = ("data", "model", "architecture", "seed")
_LEVELS: Final = (5, 50, 95)  # percent
_LONGEST: Final = 8  # numbers of a list that are printed


def lines(manifest: Manifest, data: bytes, verified: str) -> Iterator[str]:
    """All of it; data: the bytes of the manifest; verified: whether the files were, in words."""
    yield f"{manifest.model} version {manifest.version}"
    facts = (
        ("digest", f"sha256:{hashlib.sha256(data).hexdigest()}"),
        ("created", f"{manifest.created}, in format {manifest.format}"),
        ("verified", verified),
    )
    for label, text in (*facts, *_model(manifest), *_history(manifest)):
        yield from _wrapped(label, text)
    yield "  files"
    width = max(map(len, manifest.files))
    for name, file in manifest.files.items():
        yield f"    {name:{width}}  {file['bytes']:>13,} bytes  sha256 {file['sha256'][:16]}..."


def _model(manifest: Manifest) -> Iterator[tuple[str, str]]:
    x, likelihood, missing = manifest.x, manifest.likelihood, manifest.unavailable
    low, high = x.range
    values = "any finite number" if math.isinf(low) else f"{low:g} to {high:g}"
    strict = "; other values are refused" if manifest.x_bounded else ""
    kind = f"{x.kind} at {x.sample_rate} Hz" if x.sample_rate else x.kind
    yield "x", f"{kind}, {x.dtype} {format_lengths(x.shape.json)}, {values}{strict}"
    if x.columns:
        yield "columns", describe(x.columns)
    numbers = {name: getattr(manifest.z, name) for name in ("scale", "shift")}
    known = "".join(f"; {name} {_words(value)}" for name, value in numbers.items() if value)
    yield "z", f"float32 {format_lengths(manifest.z.shape.json)}{known}"
    for axis in manifest.axes.values():
        yield f"axis {axis.name}", f"{axis.expected}, by default {axis.default}"
    yield "posterior", manifest.posterior
    yield "prior", manifest.prior or "none"
    named = f"{likelihood.name} ({', '.join(likelihood.parameters)})" if likelihood else "none"
    binary = "; Score moves each element of x to an end of its range"
    yield "likelihood", named + binary * (likelihood is not None and likelihood.binary)
    able = [name for name in _CAPABILITIES if name not in missing]
    able += ["contributions"] * (not {"score", "contributions"} & missing.keys())
    able += ["tiles"] * bool(manifest.tiles)
    yield "can", ", ".join(("encode", "decode", "reconstruct", "interpolate", *able))
    for name, reason in missing.items():
        yield f"no {name}", f"the model {reason}"
    if "map" not in missing:
        yield "map", "holds training rows, which GetMap returns to callers with the scope infer"
    yield "preprocessing", manifest.preprocessing
    yield "graphs", f"{manifest.precision} inside, opset {manifest.opset}"


def _history(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Where the model comes from, and what was measured."""
    origin = dict(manifest.origin)
    yield "origin", "; ".join(filter(None, (str(origin.pop("kind", "")), _words(origin))))
    training = manifest.training
    if config := _object(training, "config"):
        yield "training", _words({key: config[key] for key in _CONFIG if key in config})
    metrics = _object(training, "metrics")
    if "validation_elbo" in metrics and "epoch" in metrics:
        yield "", _words({key: metrics[key] for key in ("epoch", "validation_elbo")})
    if manifest.parity:
        yield "parity", _words(manifest.parity)
    for graph, tile in manifest.tiles.items():
        yield f"{graph} tiles", _words(vars(tile))
    if scores := manifest.training_scores:
        yield "training scores", f"of {scores['rows']} rows, in nats"
        levels = scores["levels"]
        nearest = [
            min(range(len(levels)), key=lambda i: abs(levels[i] - level)) for level in _LEVELS
        ]
        for name in SCORES:
            quantiles = ", ".join(f"{scores[name][i]:.4g} at {levels[i]:g} %" for i in nearest)
            yield f"  {name.removesuffix('_error')}", quantiles
    if manifest.threshold:
        yield "threshold", str(manifest.threshold)
    if manifest.evaluation:
        yield "evaluation", _words(manifest.evaluation)


def _object(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object at a key of a free one; {}: there is none."""
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _words(value: Any) -> str:
    """Any JSON value, without what is empty or long."""
    if isinstance(value, Mapping):
        parts = [(str(key).replace("_", " "), inner, _words(inner)) for key, inner in value.items()]
        return "; ".join(
            f"{key} ({text})" if isinstance(inner, Mapping) else f"{key} {text}"
            for key, inner, text in parts
            if text
        )
    if isinstance(value, list | tuple):
        if len(value) > _LONGEST:
            return f"({len(value)} values)"
        return ", ".join(
            " x ".join(map(_words, one)) if isinstance(one, list | tuple) else _words(one)
            for one in value
        )
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * (_LABEL + 2)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(
        printable,
        _WIDTH,
        initial_indent=f"  {label:{_LABEL - 1}} ",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        max_lines=_MAX_LINES,
        placeholder=" ...",
    )
