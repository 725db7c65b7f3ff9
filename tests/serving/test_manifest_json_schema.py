"""serving/manifest.schema.json says what the code checks: each takes what the other takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from latentd import bundle, manifest_rules, manifest_schema, schema
from latentd.errors import BundleError
from tests.support.manifest_documents import (
    RIGHT,
    SCHEMA,
    WRONG,
    WRONG_OF_AUDIO,
    WRONG_OF_TABLE,
    WRONG_OF_TEXT,
    altered,
    audio,
    schema_errors,
    table,
    text,
    whole,
)
from tests.support.spatial_bundle import publish_spatial


@pytest.fixture(scope="module")
def good(toy_bundles: Path) -> dict[str, Any]:
    """A manifest with free axes and with all optional keys."""
    return whole(manifest_of(toy_bundles / "toy" / "1"))


def manifest_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / bundle.MANIFEST).read_text())
    return document


def code_accepts(document: Any) -> bool:
    try:
        manifest_rules.check(document)
    except BundleError:
        return False
    return True


def table_accepts(document: Any) -> bool:
    """Whether each key has a valid value, apart from rules that depend on several keys."""
    try:
        manifest_schema.FORMATS[2].check(document)
    except schema.Invalid:
        return False
    return True


def test_published_manifests_are_valid(good, toy_bundles, publish_toy, tmp_path):
    plain = manifest_of(publish_toy(tmp_path, posterior="point"))
    spatial = manifest_of(publish_spatial(tmp_path))
    for document in (manifest_of(toy_bundles / "toy" / "1"), good, plain, spatial):
        assert not schema_errors(document)


def without(document: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """The document without a likelihood and with other values."""
    files = {name: document["files"][name] for name in bundle.FILES}
    return document | {"likelihood": None, "files": files} | changed


def test_models_that_lack_something_are_valid(good):
    floats = good["x"] | {"dtype": "float32", "range": None}
    unbounded = good["likelihood"] | {"bounded": False, "binary": False}
    for document in (
        without(good, prior=None, training_scores={}),
        without(good, posterior="point", x=floats),
        good | {"x": floats, "likelihood": unbounded},
        good | {"axes": {}, "tiles": {}, "x": good["x"] | {"shape": [8, 8]}, "z": {"shape": [2]}},
    ):
        assert code_accepts(document)
        assert not schema_errors(document)


@pytest.mark.parametrize(("key", "value"), RIGHT)
def test_right_value_passes_in_both(good, key, value):
    document = altered(good, key, value)
    assert code_accepts(document)
    assert not schema_errors(document)


@pytest.mark.parametrize(("key", "value"), [wrong[:2] for wrong in WRONG])
def test_wrong_value_fails_in_both(good, key, value):
    document = altered(good, key, value)
    assert not code_accepts(document)
    assert schema_errors(document)


def test_audio_is_judged_alike(good):
    right = audio(good)
    unrated = {key: value for key, value in right["x"].items() if key != "sample_rate"}
    wrong = [altered(right, key, value) for key, value, _ in WRONG_OF_AUDIO]
    assert code_accepts(right)
    assert not schema_errors(right)
    for document in (right | {"x": unrated}, *wrong):
        assert not code_accepts(document)
        assert schema_errors(document)


def test_text_is_judged_alike(good):
    right = text(good)
    assert code_accepts(right)
    assert not schema_errors(right)
    for key, value, _ in WRONG_OF_TEXT:
        document = altered(right, key, value)
        assert not code_accepts(document), key
        assert schema_errors(document), key


def test_a_table_is_judged_alike(good):
    right = table(good)
    assert code_accepts(right)
    assert not schema_errors(right)
    for key, value, _ in WRONG_OF_TABLE:
        document = altered(right, key, value)
        assert not code_accepts(document), key
        assert schema_errors(document), key


def test_rules_of_two_keys_fail_in_both(good):
    floats = good["x"] | {"dtype": "float32", "range": None}
    unbounded = good["likelihood"] | {"bounded": False, "binary": False}
    for document in (
        good | {"likelihood": None},
        without(good, likelihood=good["likelihood"]),
        good | {"files": without(good)["files"]},
        good | {"x": floats},
        good | {"x": floats, "likelihood": unbounded | {"binary": True}},
        good | {"x": good["x"] | {"dtype": "float32", "range": [0, 1e31]}},
        good | {"x": good["x"] | {"range": None}, "likelihood": unbounded},
    ):
        assert not code_accepts(document)
        assert schema_errors(document)


def keys(document: dict[str, Any], above: str = "") -> Iterator[str]:
    """Every key, with its parts separated by "/"."""
    for name, value in document.items():
        yield above + name
        if isinstance(value, dict):
            yield from keys(value, f"{above}{name}/")


VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 8, 1.5, 1 << 40, "", "h", "h/8", "Point"),
    *([], [1, 2], ["h"], {}, {"": 1}),
]


def test_any_other_value_of_any_key_is_judged_alike(good):
    tried = 0
    for key in keys(good):
        *path, last = key.split("/")
        missing = copy.deepcopy(good)
        inner = missing
        for part in path:
            inner = inner[part]
        del inner[last]
        for document in (missing, *(altered(good, key, value) for value in VALUES)):
            tried += 1
            if code_accepts(document):
                assert not schema_errors(document), key
            if not table_accepts(document):
                assert schema_errors(document), key
    assert tried > 1000


def described(node: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Each property below a node, and whether it has a description."""
    for name, inner in node.get("properties", {}).items():
        yield f"{path}/{name}", "description" in inner
        yield from described(inner, f"{path}/{name}")
    for inner in (*node.get("anyOf", ()), node.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from described(inner, f"{path}")


def test_each_key_has_a_description():
    Draft202012Validator.check_schema(SCHEMA)
    found = list(described(SCHEMA))
    assert len(found) > 40
    assert not [path for path, has in found if not has]
