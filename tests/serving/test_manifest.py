"""Every field of a manifest is checked; an invalid one is rejected by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentd import bundle, codec, schema
from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.errors import BundleError
from latentd.models.likelihood_graphs import to_unit_interval
from latentd.pb import vae_pb2 as pb
from latentd.shapes import Axis, Shape, SizeError
from tests.support.likelihoods import LIKELIHOODS
from tests.support.manifest_documents import (
    WRONG,
    WRONG_IN_FORMAT_1,
    WRONG_OF_AUDIO,
    WRONG_OF_TABLE,
    WRONG_TABLES_TO_THE_CODE,
    WRONG_TO_THE_CODE,
    altered,
    audio,
    table,
    whole,
)

FORMAT_1 = Path(__file__).parents[1] / "data" / "format1"


@pytest.fixture(scope="module")
def good(toy_bundles: Path) -> dict[str, Any]:
    """A manifest with free axes and with all optional keys."""
    return whole(json.loads((toy_bundles / "toy" / "1" / bundle.MANIFEST).read_text()))


def format_1(model: str) -> dict[str, Any]:
    """A manifest of format 1: digits is a VAE, points an autoencoder."""
    document: dict[str, Any] = json.loads((FORMAT_1 / model / "1" / bundle.MANIFEST).read_text())
    return document


def read(document: dict[str, Any]) -> Manifest:
    return Manifest.from_json(json.dumps(document).encode())


def refused(data: bytes | dict[str, Any]) -> str:
    """The message, which is one sentence or two and names the file."""
    with pytest.raises(BundleError) as error:
        Manifest.from_json(data if isinstance(data, bytes) else json.dumps(data).encode())
    message = str(error.value)
    assert error.value.reason == "format"
    assert message.startswith("manifest.json")
    assert message.endswith(".")
    assert len(message.encode()) < 500
    return message


@pytest.mark.parametrize(("key", "value", "said"), [*WRONG, *WRONG_TO_THE_CODE])
def test_invalid_value_names_key_and_expected(good, key, value, said):
    assert re.search(said, refused(altered(good, key, value)))


@pytest.mark.parametrize(("key", "value", "said"), WRONG_OF_AUDIO)
def test_invalid_value_of_audio_names_key_and_expected(good, key, value, said):
    assert re.search(said, refused(altered(audio(good), key, value)))


@pytest.mark.parametrize(("key", "value", "said"), [*WRONG_OF_TABLE, *WRONG_TABLES_TO_THE_CODE])
def test_invalid_value_of_a_table_names_key_and_expected(good, key, value, said):
    assert re.search(said, refused(altered(table(good), key, value)))


@pytest.mark.parametrize(("key", "value", "said"), WRONG_IN_FORMAT_1)
def test_invalid_value_in_format_1_names_key_and_expected(key, value, said):
    assert re.search(said, refused(altered(format_1("digits"), key, value)))


def test_whole_manifest_is_read_and_written(good):
    manifest = read(good)
    assert json.loads(manifest.to_json()) == good
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.axes["h"] == Axis("h", multiple_of=8, min=16, max=512, default=64)
    assert manifest.z == LatentFormat(
        Shape.parse([4, "h/8", "w/8"]), (0.18215,), (0.0, 0.5, -1.0, 2e-3)
    )
    assert manifest.likelihood == LIKELIHOODS["bernoulli"]
    manifest.check()


def test_audio_is_read_and_written(good):
    document = audio(good)
    manifest = read(document)
    assert json.loads(manifest.to_json()) == document
    assert manifest.x == RowFormat("audio", Shape.parse(["t", 2]), "float32", (-1.0, 1.0), 44100)
    assert (manifest.default.x.shape, manifest.default.z) == ((64, 2), (4, 8))
    assert sorted(manifest.unavailable) == ["contributions", "images", "tiles"]
    with pytest.raises(SizeError, match=r"t is 100; expected a multiple of 8 .* length is 104."):
        manifest.shapes_of_x((100, 2))


def test_a_table_is_read_and_written(good):
    document = table(good)
    manifest = read(document)
    assert json.loads(manifest.to_json()) == document
    assert manifest.default.x.columns == manifest.x.columns
    pressure, color = manifest.x.columns
    assert (pressure.mean, pressure.std, pressure.cardinality) == (101_325, 250, 0)
    assert (color.levels, color.cardinality, color.fill_value) == (("blue", "red"), 3, 2)
    assert manifest.decoder_row(manifest.default) == (6,)  # a latent, and a choice for each column


def test_rows_have_the_shapes_of_their_sizes(good):
    manifest = read(good)
    assert (manifest.default.x.shape, manifest.default.z) == ((64, 64, 3), (4, 8, 8))
    assert manifest.default.params == (1, 64, 64, 3)
    assert manifest.at({}) is manifest.default
    wide = manifest.at({"w": 512})
    assert (wide.x.shape, wide.z, wide.key) == ((64, 512, 3), (4, 8, 64), (64, 512))
    assert manifest.shapes_of_x((64, 512, 3)) == manifest.shapes_of_z((4, 8, 64)) == wide
    assert manifest.largest.x.shape == (512, 512, 3)
    assert manifest.smallest.x.shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((64, 500, 3), "w is 500; expected a multiple of 8 from 16 to 512. The nearest valid leng"),
        ((8, 64, 3), "h is 8; expected a multiple of 8 from 16 to 512. The nearest .* is 16."),
        ((64, 64, 1), r"expected shape \[h, w, 3\], got \[64, 64, 1\]"),
        ((64, 64), r"expected shape \[h, w, 3\], got \[64, 64\]"),
    ],
)
def test_rows_of_other_sizes_are_refused(good, lengths, said):
    with pytest.raises(SizeError, match=said):
        read(good).shapes_of_x(lengths)


@pytest.mark.parametrize(
    ("without", "lacks"),
    [
        ({}, []),
        ({"prior": None}, ["sample", "score"]),
        ({"posterior": "point"}, ["draw", "score"]),
        ({"posterior": "point", "prior": None}, ["draw", "sample", "score"]),
        ({"likelihood": None}, ["params", "score"]),
        ({"x": {"shape": ["h", "w", 4]}}, ["images"]),
        ({"x": {"dtype": "float32"}}, ["images"]),
        ({"likelihood": {}}, ["contributions"]),
    ],
)
def test_manifest_tells_what_the_model_cannot_do(good, without, lacks):
    document = good | without | {"x": good["x"] | without.get("x", {})}
    if "likelihood" not in without:
        document["likelihood"] = good["likelihood"] | {"contributions": ["h", "w", 3]}
    elif without["likelihood"] is not None:
        document["likelihood"] = good["likelihood"]
    else:
        document["files"] = {k: v for k, v in good["files"].items() if k != bundle.LIKELIHOOD}
    assert sorted(read(document).unavailable) == lacks


@pytest.mark.parametrize(
    "key", ["format", "model", "created", "x", "z", "axes", "posterior", "prior", "files"]
)
def test_missing_key_is_named(good, key):
    document = {name: value for name, value in good.items() if name != key}
    assert f"{key} is missing; expected" in refused(document)


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


def test_optional_keys_may_be_missing(good):
    optional = ("training", "evaluation", "precision", "training_scores", "tiles")
    manifest = read({name: value for name, value in good.items() if name not in optional})
    assert (manifest.precision, manifest.training_scores, manifest.tiles) == ("float32", {}, {})
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("low", "high", "taken"),
    [
        *((0.0, 1.0, True), (-1, 1, True), (-1e30, 1e30, True), (0, 1e-29, True)),
        *((0, 1e31, False), (-1e300, 1e300, False), (0, 10**400, False), (1, 1, False)),
        *((1, 1 + 1e-9, False), (1e30, 1e30 + 1, False), (0, 1e-40, False), (1, 0, False)),
    ],
)
@pytest.mark.parametrize("format_", [1, 2])
def test_float_data_of_accepted_ranges_can_be_scored(good, format_, low, high, taken):
    document = good if format_ == 2 else format_1("digits")
    x = document["x"] | {"dtype": "float32", "range": [low, high]}
    if not taken:
        assert "x.range is" in refused(document | {"x": x})
        return
    spec = read(document | {"x": x}).default.x
    assert (spec.dtype, spec.range) == ("float32", (float(low), float(high)))
    scaled = to_unit_interval(np.array([low, high], np.float32), spec.range)
    np.testing.assert_allclose(scaled, [0, 1], atol=1e-6)


def test_floats_may_have_no_range(good):
    x = good["x"] | {"dtype": "float32", "range": None}
    unbounded = good["likelihood"] | {"bounded": False, "binary": False}
    manifest = read(good | {"x": x, "likelihood": unbounded})
    assert manifest.default.x.range == (-np.inf, np.inf)
    assert json.loads(manifest.to_json())["x"]["range"] is None
    for key in ("bounded", "binary"):
        wrong = good | {"x": x, "likelihood": unbounded | {key: True}}
        assert f"likelihood.{key} is True; expected false, as x.range is null" in refused(wrong)


def test_format_1_is_read_as_format_2():
    digits, points = read(format_1("digits")), read(format_1("points"))
    assert (digits.format, digits.posterior, digits.prior) == (1, "gaussian", "standard-normal")
    assert digits.likelihood == LIKELIHOODS["bernoulli"]
    assert digits.default.x == DataSpec("image", (8, 8), "uint8", (0.0, 255.0))
    assert (digits.default.z, digits.default.params) == ((4,), (1, 8, 8))
    assert (digits.axes, sorted(digits.unavailable)) == ({}, ["contributions", "map"])
    assert "its bundle was made without --map-rows" in digits.unavailable["map"]
    assert digits.training_scores["rows"] == 1455
    # An autoencoder of format 1 keeps its prior: it always could be sampled.
    assert (points.posterior, points.prior) == ("point", "standard-normal")
    assert points.default.params == (2, 8, 8)
    assert sorted(points.unavailable) == ["draw", "map", "score"]


def test_older_manifest_of_format_1_is_read():
    """A manifest without the keys that came later is valid."""
    optional = ("training", "evaluation", "precision", "training_scores")
    document = {name: value for name, value in format_1("digits").items() if name not in optional}
    manifest = read(document)
    assert (manifest.precision, manifest.training_scores) == ("float32", {})


def test_bytes_alone_have_a_discretized_logistic():
    document = format_1("points")
    document["x"] |= {"dtype": "float32", "range": [0, 1]}
    said = "x.dtype is 'float32'; expected uint8, as likelihood is discretized-logistic"
    assert said in refused(document)


def test_reads_the_british_spelling_of_early_bundles():
    document = format_1("points") | {"likelihood": "discretised-logistic"}
    assert read(document).likelihood == LIKELIHOODS["discretized-logistic"]


def test_read_manifest_can_be_published_again():
    """Of format 1 all but the files: a bundle of format 2 has one more."""
    manifest = read(format_1("points"))
    files = manifest.files | {bundle.LIKELIHOOD: manifest.files[bundle.ENCODER]}
    manifest = dataclasses.replace(manifest, format=2, files=files)
    manifest.check()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_formatted_value_is_short_and_valid_utf8():
    nested: Any = "y" * 500
    for _ in range(10):
        nested = [nested] * 10
    for value in (nested, "x" * 10_000, {"\ud800": 1}, 10**4000, "\udcff"):
        assert len(schema.format_value(value).encode()) < 500


@pytest.mark.parametrize(("x_size", "z_size"), [(2, 5000), (5000, 2), (5000, 5000)])
def test_largest_responses_of_as_many_rows_as_allowed_fit_into_a_message(x_size, z_size):
    x = RowFormat.of(DataSpec("vector", (x_size,), "float32", (0.0, 1.0)))
    z = LatentFormat(Shape.parse([z_size]))
    manifest = Manifest("m", x, z, likelihood=None, opset=18, preprocessing="", parity={})
    limit = 1 << 20
    rows = manifest.default.rows_in(limit)
    of_x, of_z = (np.zeros((rows, size), np.float32) for size in (x_size, z_size))
    data, latents = codec.to_rows(of_x), codec.to_tensor(of_z)
    encoded = pb.EncodeResponse(mean=latents, log_var=latents, z=latents)
    streamed = pb.StreamReconstructResponse(x=data, mean=latents, log_var=latents)
    assert max(encoded.ByteSize(), streamed.ByteSize()) <= limit
