"""Every field of a manifest is checked; an invalid one is rejected by name."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentd import bundle, likelihood, schema
from latentd.bundle import DataSpec, Manifest
from latentd.errors import BundleError


@pytest.fixture(scope="module")
def good(toy_bundles: Path) -> dict[str, Any]:
    """The toy's manifest, with all optional keys."""
    manifest = json.loads((toy_bundles / "toy" / "1" / bundle.MANIFEST).read_text())
    scores = {"rows": 8, "levels": [0, 100]} | {name: [0.5, 1] for name in bundle.SCORES}
    return manifest | {"training_scores": scores, "training": {"config": {"rate": 1e-3}}}


def altered(good: dict[str, Any], key: str, value: Any) -> bytes:
    """The document with another value at a key, whose parts are separated by "/"."""
    document = copy.deepcopy(good)
    *path, last = key.split("/")
    inner = document
    for part in path:
        inner = inner[part]
    inner[last] = value
    return json.dumps(document).encode()


def refused(data: bytes) -> str:
    with pytest.raises(BundleError) as error:
        Manifest.from_json(data)
    assert error.value.reason == "format"
    return str(error.value)


WRONG = [
    ("format", 99, "this release reads format 1"),
    ("format", True, "format is True; expected 1"),
    ("format", None, "format is None; expected 1"),
    ("model", "Toy", "model is 'Toy'; expected 1 to 64 lower-case letters"),
    ("model", ["toy"], r"model is \['toy'\]"),
    ("version", 0, "version is 0; expected an integer from 1 to 999999999"),
    ("version", 1.0, "version is 1.0"),
    ("version", True, "version is True"),
    ("created", "yesterday", "created is 'yesterday'; expected a time in ISO 8601"),
    (
        "created",
        "2026-11-27T20:00:00",
        "created is .*; expected a time in ISO 8601 with its offset",
    ),
    ("created", 5, "created is 5"),
    ("family", "gan", "family is 'gan'; expected one of vae, ae"),
    ("likelihood", [[]], r"likelihood is \[\[\]\]; expected one of bernoulli, gaussian"),
    ("likelihood", 1, "likelihood is 1"),
    ("latent_size", 65537, "latent_size is 65537; expected an integer from 1 to 65536"),
    ("latent_size", "16", "latent_size is '16'"),
    ("opset", -1, "opset is -1; expected an integer from 1 to 1000"),
    ("preprocessing", 5, "preprocessing is 5; expected text"),
    ("preprocessing", "\ud800", "preprocessing is '.ud800'; expected text"),
    ("preprocessing", "x" * 10_001, "preprocessing is 'x+...x+'; expected text of at most 10000"),
    ("precision", "int8", "precision is 'int8'; expected one of float32, float16"),
    ("x", [4, 4], r"x is \[4, 4\]; expected an object"),
    ("x/kind", "sequence", "x.kind is 'sequence'; expected one of image, vector"),
    ("x/kind", "vector", r"x.shape is \[4, 4\]; expected one length, as x.kind is vector"),
    ("x/dtype", "float64", "x.dtype is 'float64'; expected one of uint8, float32"),
    ("x/shape", [], r"x.shape is \[\]; expected 1 to 3 lengths"),
    ("x/shape", [4, 4.0], r"x.shape is \[4, 4.0\]"),
    ("x/shape", [16], r"x.shape is \[16\]; expected height, width\[, channels\]"),
    ("x/shape", [1 << 20, 1 << 20], "x.shape is"),
    ("x/shape", [4, 4, 1, 1], "x.shape is"),
    ("x/range", ["0", "255"], r"x.range is \['0', '255'\]; expected the lowest and the highest"),
    ("x/range", [0, 255, 1], "x.range is"),
    ("x/range", [0, 256], r"x.range is \[0, 256\]; expected two ascending integers from 0 to"),
    ("x/range", [255, 0], "x.range is"),
    ("x/range", [0.5, 255], "x.range is"),
    ("x/range", [0, 10**400], "x.range is"),
    ("x/extra", 1, "x.extra is unknown; expected kind, dtype, shape, range"),
    ("parity", None, "parity is None; expected an object"),
    ("training", [1], r"training is \[1\]; expected an object"),
    (
        "training/config/rate",
        1 << 70,
        "training.config.rate is .*; expected a 64-bit integer",
    ),
    ("training/a key", "\ud800", "training.'a key' is '.ud800'; expected text that UTF-8 can hold"),
    ("training_scores", 5, "training_scores is 5; expected an object"),
    ("training_scores/rows", -1, "training_scores.rows is -1; expected an integer from 1"),
    ("training_scores/rows", 1 << 32, "training_scores.rows is"),
    (
        "training_scores/levels",
        [0, 101],
        r"scores.levels is \[0, 101\]; expected percents",
    ),
    (
        "training_scores/levels",
        [1, 0],
        "scores.levels is .*; expected two or more ascending",
    ),
    (
        "training_scores/kl",
        [1, 2, 3],
        "kl is .*; expected as many numbers as levels, 2",
    ),
    ("training_scores/elbo", [0.0, float("nan")], "training_scores.elbo is"),
    ("training_scores/kl", ["0", "1"], "training_scores.kl is"),
    ("files", {}, "files.encoder.onnx is missing; expected an object"),
    ("files/golden.npz", None, "files.golden.npz is None; expected an object"),
    ("files/golden.npz", {"sha256": "0" * 64}, "files.golden.npz.bytes is missing; expected a"),
    ("files/up.sh", {}, "files.up.sh is unknown; expected encoder.onnx, decoder.onnx, golden.npz"),
    ("files/golden.npz/sha256", "0" * 63, "sha256 is .*; expected 64 hexadecimal digits"),
    ("files/golden.npz/sha256", "A" * 64, "sha256 is"),
    ("files/golden.npz/bytes", -1, "bytes is -1; expected an integer from 0"),
    ("files/golden.npz/bytes", 1.5, "bytes is 1.5"),
    ("extra", 1, "extra is unknown; expected format, model, version"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG)
def test_invalid_value_names_key_and_expected(good, key, value, said):
    message = refused(altered(good, key, value))
    assert message.startswith("manifest.json")
    assert re.search(said, message), message
    assert message.endswith(".")
    assert len(message.encode()) < 500


@pytest.mark.parametrize("key", ["format", "model", "created", "x", "latent_size", "files"])
def test_missing_key_is_named(good, key):
    document = {name: value for name, value in good.items() if name != key}
    assert f"{key} is missing; expected" in refused(json.dumps(document).encode())


MALFORMED = {
    "no JSON": (lambda s: "<html>404</html>", "not JSON in UTF-8: Expecting value"),
    "no object": (lambda s: "[]", r"the document is \[\]; expected an object"),
    "a key twice": (lambda s: s[:-1] + ', "opset": 1}', "the key 'opset' appears twice"),
    "NaN": (
        lambda s: s.replace("0.001", "NaN"),
        "training.config.rate is nan; expected a finite",
    ),
    "infinity": (
        lambda s: s.replace("0.001", "-Infinity"),
        "config.rate is -inf; expected",
    ),
    "a huge number": (
        lambda s: s.replace("0.001", "1e999"),
        "config.rate is inf; expected",
    ),
    "a long number": (lambda s: s.replace("0.001", "9" * 5000), "not JSON in UTF-8: Exceeds the"),
    "other bytes": (lambda s: s.replace("0.001", '"\udcff"'), "not JSON in UTF-8: 'utf-8' codec"),
    "depth": (lambda s: s.replace("0.001", "[" * 40 + "]" * 40), "too deep; expected at most 32"),
    "great depth": (lambda s: "[" * 100_000, "not JSON in UTF-8: maximum recursion depth"),
    "size": (
        lambda s: s.replace("0.001", "[" + "0," * (1 << 19) + "0]"),
        "bytes; expected at most 1048576",
    ),
}


@pytest.mark.parametrize(("alter", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_ambiguous_json_is_rejected(good, alter, said):
    data = alter(json.dumps(good)).encode(errors="surrogateescape")
    assert re.search(said, refused(data))


def test_older_manifest_is_read(good):
    """A manifest without the newer keys is valid."""
    optional = ("training", "evaluation", "precision", "training_scores")
    document = {name: value for name, value in good.items() if name not in optional}
    manifest = Manifest.from_json(json.dumps(document).encode())
    assert (manifest.precision, manifest.training_scores) == ("float32", {})
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("low", "high", "taken"),
    [
        *((0.0, 1.0, True), (-1, 1, True), (-1e30, 1e30, True), (0, 1e-29, True)),
        *((0, 1e31, False), (-1e300, 1e300, False), (0, 10**400, False), (1, 1, False)),
        *((1, 1 + 1e-9, False), (1e30, 1e30 + 1, False), (0, 1e-40, False), (1, 0, False)),
    ],
)
def test_float_data_of_accepted_ranges_can_be_scored(good, low, high, taken):
    x = {"kind": "image", "shape": [4, 4], "dtype": "float32", "range": [low, high]}
    data = json.dumps(good | {"x": x}).encode()
    if not taken:
        assert "x.range is" in refused(data)
        return
    spec = Manifest.from_json(data).x
    assert spec == DataSpec("image", (4, 4), "float32", (float(low), float(high)))
    scaled = likelihood.to_unit_interval(np.array([low, high], np.float32), spec)
    np.testing.assert_allclose(scaled, [0, 1], atol=1e-6)


def test_bytes_alone_have_a_discretized_logistic(good):
    x = {"kind": "vector", "shape": [16], "dtype": "float32", "range": [0, 1]}
    document = good | {"x": x, "likelihood": "discretized-logistic"}
    said = "x.dtype is 'float32'; expected uint8, as likelihood is discretized-logistic"
    assert said in refused(json.dumps(document).encode())


def test_reads_the_british_spelling_of_early_bundles(good):
    x = {"kind": "vector", "shape": [16], "dtype": "uint8", "range": [0, 255]}
    document = good | {"x": x, "likelihood": "discretised-logistic"}
    manifest = Manifest.from_json(json.dumps(document).encode())
    assert manifest.likelihood == "discretized-logistic"
    assert b"discretised" not in manifest.to_json()


def test_formatted_value_is_short_and_valid_utf8():
    nested: Any = "y" * 500
    for _ in range(10):
        nested = [nested] * 10
    for value in (nested, "x" * 10_000, {"\ud800": 1}, 10**4000, "\udcff"):
        assert len(schema.format_value(value).encode()) < 500
