"""`latentd bundle show` says what a bundle is, whether it is whole, and what to name instead."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentd import bundle
from latentd.__main__ import main
from latentd.bundle import Manifest
from latentd.console import bundle_text
from tests.support.manifest_documents import whole

FORMAT_1 = Path(__file__).parents[2] / "data" / "format1"


@pytest.fixture
def show(capsys):
    """Runs the command; returns its exit status, output and errors."""

    def run(*words: object) -> tuple[int, str, str]:
        status = main(["bundle", "show", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def spaced(text: str) -> str:
    """The text with single spaces, so that alignment and line breaks do not matter."""
    return " ".join(text.split())


def test_bundle_of_a_trained_model_is_described(show):
    status, text, errors = show(FORMAT_1 / "digits")
    assert (status, errors) == (0, "")
    assert all(len(line) <= 100 for line in text.splitlines())
    digest = hashlib.sha256((FORMAT_1 / "digits" / "1" / "manifest.json").read_bytes()).hexdigest()
    for said in (
        "digits version 1 digest",
        f"digest sha256:{digest}",
        "created 2026-11-27T23:25:27+00:00, in format 1",
        "verified yes: every file has the published bytes",
        "x image, uint8 8 x 8, 0 to 255; other values are refused",
        "z float32 4 posterior gaussian prior standard-normal",
        "likelihood bernoulli (logit); Score moves each element of x to an end of its range",
        "can encode, decode, reconstruct, interpolate, sample, draw, score, params, images",
        "graphs float32 inside, opset 20",
        "origin trained training data digits; model vae; architecture mlp; seed 1",
        "epoch 5; validation elbo -29.774",
        "parity rows 1000; test rows 180; batches 1, 2, 3, 1000; atol 1e-05; rtol 0.0001",
        "max abs difference (mean 1.1921e-07; log var 5.9605e-08; params 0; x 0)",
        "training scores of 1455 rows, in nats reconstruction 25.47 at 5 %, 29.15 at 50 %",
        "encoder.onnx 18,179 bytes sha256 b0725c8e60027166...",
    ):
        assert said in spaced(text)


def test_free_axes_origin_and_tiles_are_described(toy_bundles):
    document = whole(json.loads((toy_bundles / "toy" / "1" / bundle.MANIFEST).read_text())) | {
        "origin": {"kind": "adopted", "source": "example/vae", "license": None},
        "parity": {"other_sizes": [[16, 24], [512, 512]], "history": [0.5] * 100},
        "evaluation": {"rows": 10, "bound": {"nll": 86.53125, "exact": False}},
    }
    data = json.dumps(document).encode()
    text = spaced("\n".join(bundle_text.lines(Manifest.from_json(data), data, "yes")))
    for said in (
        "x image, uint8 h x w x 3, 0 to 255;",
        "z float32 4 x h/8 x w/8; scale 0.18215; shift 0, 0.5, -1, 0.002",
        "axis h a multiple of 8 from 16 to 512, by default 64 axis w a multiple of 8",
        "params, images, map, tiles",
        "map holds training rows, which GetMap returns to callers with the scope infer",
        "origin adopted; source example/vae parity",
        "parity other sizes 16 x 24, 512 x 512; history (100 values)",
        "encoder tiles size (h ",
        "evaluation rows 10; bound (nll 86.531; exact false)",
    ):
        assert said in text


def test_what_a_model_lacks_is_explained(show, publish_toy, tmp_path):
    publish_toy(tmp_path, posterior="point")
    status, text, _ = show(tmp_path / "toy")
    assert status == 0
    assert "can encode, decode, reconstruct, interpolate, params, images" in spaced(text)
    assert "no sample the model has no prior, so there is no distribution" in spaced(text)
    assert "no score the model encodes each row to a point, so it" in spaced(text)


def test_newest_version_of_a_model_is_shown(show, publish_toy, tmp_path, monkeypatch):
    for _ in range(10):
        path = publish_toy(tmp_path)
    (tmp_path / "toy" / "pinned").write_text("3")
    assert show(tmp_path / "toy")[1].startswith("toy version 10\n")
    assert show(tmp_path / "toy" / "3")[1].startswith("toy version 3\n")
    monkeypatch.chdir(path)
    assert show(".")[1].startswith("toy version 10\n")


def test_manifest_alone_is_described_but_not_verified(show, publish_toy, tmp_path):
    copy = shutil.copy(publish_toy(tmp_path) / bundle.MANIFEST, tmp_path / "copy.json")
    status, text, _ = show(copy)
    assert status == 0
    assert "verified no: only the manifest was read. Name its folder" in spaced(text)


def test_json_is_the_manifest(show, publish_toy, tmp_path):
    path = publish_toy(tmp_path)
    status, text, _ = show(path, "--json")
    assert (status, text.encode()) == (0, (path / bundle.MANIFEST).read_bytes())


def test_damaged_bundle_is_described_and_fails(show, publish_toy, tmp_path):
    path = publish_toy(tmp_path)
    (path / bundle.DECODER).write_bytes(b"no graph")
    status, text, errors = show(path)
    assert status == 65
    assert "verified DAMAGED: toy/1/decoder.onnx" in spaced(text)
    assert errors.startswith("latentd: toy/1/decoder.onnx is not the file that was published")
    status, text, errors = show(path, "--json")
    assert (status, json.loads(text)["model"]) == (65, "toy")
    assert "sha256 differs" in errors


def test_invalid_manifest_names_the_key(show, publish_toy, tmp_path):
    path = publish_toy(tmp_path) / bundle.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"opset": 0}))
    for shown in (path, path.parent):
        status, text, errors = show(shown)
        assert (status, text) == (65, "")
        assert "opset is 0; expected an integer from 1 to 1000." in errors


def test_other_files_are_named(show, publish_toy, tmp_path):
    path = publish_toy(tmp_path)
    (path / "notes.txt").write_text("x")
    assert "The manifest does not name notes.txt: ignored" in spaced(show(path)[1])


def test_text_of_a_manifest_cannot_control_the_terminal(show, publish_toy, tmp_path):
    path = publish_toy(tmp_path) / bundle.MANIFEST
    hostile = {"preprocessing": "\x1b[2J none\n  verified yes", "parity": {"\x1b]0;x\x07": 1}}
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile))
    status, text, _ = show(path)
    assert status == 0
    assert text.replace("\n", "").isprintable()
    assert sum(line.startswith("  verified") for line in text.splitlines()) == 1


def test_folder_without_a_bundle_names_what_to_show(show, publish_toy, tmp_path):
    publish_toy(tmp_path, model="one")
    publish_toy(tmp_path, model="two")
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path, f"holds the models one, two. Name one: {tmp_path / 'one'}."),
        (tmp_path / "empty", "holds no bundle. Name the folder of a version or of a model"),
        (tmp_path / "none", "does not exist."),
    ):
        status, text, errors = show(path)
        assert (status, text) == (78, "")
        assert errors == f"latentd: {path} {said}\n" or said in errors


def test_reader_that_exits_early_ends_the_command_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "latentd", "bundle", "show", str(FORMAT_1 / "digits")]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
