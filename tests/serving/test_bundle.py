"""A bundle appears whole or not at all, and an altered one is never served."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from latentd import bundle
from latentd.errors import BundleError, ConfigError
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support import permissions


def test_versions_are_numbered_and_load_checks_them(publish_toy, tmp_path):
    assert [publish_toy(tmp_path).name for _ in range(3)] == ["1", "2", "3"]
    assert bundle.versions(tmp_path / "toy") == [1, 2, 3]
    loaded = bundle.load(tmp_path / "toy" / "2")
    assert loaded.manifest.version == 2
    assert set(loaded.files) == {*bundle.FILES, bundle.LIKELIHOOD}


def test_root_above_a_model_or_version_is_found(publish_toy, tmp_path):
    root = tmp_path / "models"
    version = publish_toy(root)
    assert bundle.root_above(version) == bundle.root_above(version.parent) == root
    assert bundle.root_above(root) is None
    assert bundle.root_above(tmp_path / "nowhere") is None
    shutil.copytree(version, root / "1")  # a version in the wrong place hides no model
    assert bundle.root_above(root) is None


def test_concurrent_publishers_get_different_versions(publish_toy, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: publish_toy(tmp_path), range(16)))
    assert sorted(int(path.name) for path in paths) == list(range(1, 17))
    for path in paths:
        bundle.load(path)
    assert not list((tmp_path / "toy").glob(".*"))


def test_failed_publish_leaves_nothing(publish_toy, tmp_path, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(bundle, "_write", no_space)
        with pytest.raises(OSError, match="No space"):
            publish_toy(tmp_path)
    assert not (tmp_path / "toy").exists()
    publish_toy(tmp_path)
    monkeypatch.setattr(bundle, "_write", no_space)
    with pytest.raises(OSError, match="No space"):
        publish_toy(tmp_path)
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["1"]


def test_folder_of_the_owner_stays(publish_toy, tmp_path, monkeypatch):
    """Only an empty folder that the call made itself is removed."""
    (tmp_path / "toy").mkdir()
    monkeypatch.setattr(bundle, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish_toy(tmp_path)
    assert (tmp_path / "toy").exists()


def test_publisher_outlives_the_failure_of_another(publish_toy, tmp_path, monkeypatch):
    """The other one removes the empty folder just before this one makes a folder in it."""
    make = tempfile.mkdtemp

    def late(**given: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        (tmp_path / "toy").rmdir()
        return make(**given)

    monkeypatch.setattr(tempfile, "mkdtemp", late)
    bundle.load(publish_toy(tmp_path))


def test_publish_skips_numbers_that_are_files(publish_toy, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "1").write_text("notes")
    assert publish_toy(tmp_path).name == "2"
    assert bundle.versions(tmp_path / "toy") == [2]


@pytest.mark.parametrize("name", ["", "../up", "Über", "a/b", "-a", "a" * 65])
def test_invalid_model_name_is_rejected(publish_toy, tmp_path, name):
    with pytest.raises(
        BundleError, match=r"manifest.json: model is .*; expected 1 to 64 lower-case letters"
    ):
        publish_toy(tmp_path, model=name)
    assert list(tmp_path.iterdir()) == []


def damage(path, how: str) -> None:
    manifest = path / bundle.MANIFEST
    encoder = path / bundle.ENCODER
    match how:
        case "a flipped bit":
            data = bytearray(encoder.read_bytes())
            data[len(data) // 2] ^= 1
            encoder.write_bytes(data)
        case "a truncated graph":
            encoder.write_bytes(encoder.read_bytes()[:-1])
        case "a missing graph":
            encoder.unlink()
        case "a link instead of a graph":
            encoder.rename(path.parent / "elsewhere")
            encoder.symlink_to(path.parent / "elsewhere")
        case "no manifest":
            manifest.unlink()
        case "a manifest that is HTML":
            manifest.write_text("<html>404</html>")
        case "a format of the future":
            manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 99'))
        case "an unknown key":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"extra": 1}))
        case "a copied version":
            manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))


DAMAGE = {
    "a flipped bit": "checksum",
    "a truncated graph": "checksum",
    "a missing graph": "missing",
    "a link instead of a graph": "missing",
    "no manifest": "missing",
    "a manifest that is HTML": "format",
    "a format of the future": "format",
    "an unknown key": "format",
    "a copied version": "format",
}


@pytest.mark.parametrize(("how", "reason"), DAMAGE.items(), ids=DAMAGE.keys())
def test_damaged_bundle_is_rejected_at_start(publish_toy, start_server, tmp_path, how, reason):
    publish_toy(tmp_path)
    damage(publish_toy(tmp_path), how)
    server = start_server(tmp_path)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        assert stub.Sample(pb.SampleRequest(count=1)).served_by.version == 1
        ready, failed = stub.ListModels(pb.ListModelsRequest()).models
    assert (ready.version.version, ready.state) == (1, pb.MODEL_STATE_READY)
    assert (failed.version.version, failed.state) == (2, pb.MODEL_STATE_FAILED)
    assert failed.reason.endswith(".")
    assert server.metric("latentd_reloads_total", result="rejected", reason=reason) == 1


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        ({"encoder_onnx": b"no graph"}, "engine"),
        ({"golden_npz": b"no archive"}, "golden"),
        ("decoder as encoder", "signature"),
        ("encoder of another scale", "golden"),
    ],
    ids=["no graph", "no golden vectors", "decoder as encoder", "encoder of another scale"],
)
def test_wrong_graph_with_valid_checksums_is_rejected(
    publish_toy, start_server, tmp_path, replaced, reason
):
    good = bundle.load(publish_toy(tmp_path))
    if replaced == "decoder as encoder":
        replaced = {"encoder_onnx": good.files[bundle.DECODER]}
    elif replaced == "encoder of another scale":
        # 255 in the graph becomes 254: the shapes are right and every value is wrong.
        encoder = good.files[bundle.ENCODER].replace(b"\x00\x00\x7f\x43", b"\x00\x00\x7e\x43")
        assert encoder != good.files[bundle.ENCODER]
        replaced = {"encoder_onnx": encoder}
    publish_toy(tmp_path, **replaced)
    server = start_server(tmp_path)
    assert server.metric("latentd_reloads_total", result="rejected", reason=reason) == 1
    assert server.metric("latentd_reloads_total", result="loaded", reason="") == 1


def test_only_newest_versions_are_served(publish_toy, start_server, tmp_path):
    for _ in range(4):
        publish_toy(tmp_path)
    server = start_server(tmp_path, keep_versions=2)
    with grpc.insecure_channel(server.target) as channel:
        stub = VaeServiceStub(channel)
        assert list(stub.GetModel(pb.GetModelRequest()).versions) == [3, 4]
        assert stub.Sample(pb.SampleRequest(count=1)).served_by.version == 4
        assert stub.Sample(pb.SampleRequest(count=1, version=3)).served_by.version == 3
        with pytest.raises(grpc.RpcError, match="toy version 2 is not served"):
            stub.Sample(pb.SampleRequest(count=1, version=2))


def test_default_of_several_models_must_be_named(publish_toy, start_server, tmp_path):
    publish_toy(tmp_path, model="one")
    publish_toy(tmp_path, model="two")
    with (
        grpc.insecure_channel(start_server(tmp_path).target) as channel,
        pytest.raises(grpc.RpcError, match="one, two"),
    ):
        VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
    named = start_server(tmp_path, default_model="two")
    with grpc.insecure_channel(named.target) as channel:
        answer = VaeServiceStub(channel).Sample(pb.SampleRequest(count=1))
        assert answer.served_by.model == "two"


def test_server_without_bundles_does_not_start(publish_toy, start_server, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        start_server(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="No bundle"):
        start_server(tmp_path)
    damage(publish_toy(tmp_path), "a flipped bit")
    with pytest.raises(ConfigError, match="sha256 differs"):
        start_server(tmp_path)


def test_publish_to_unwritable_folder_raises_oserror(publish_toy, tmp_path):
    tmp_path.chmod(0o500)
    with permissions.enforced(), pytest.raises(PermissionError):
        publish_toy(tmp_path)


def test_manifest_round_trip(publish_toy, tmp_path):
    manifest = bundle.load(publish_toy(tmp_path)).manifest
    assert bundle.Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(BundleError, match="opset is 0; expected an integer from 1 to 1000"):
        bundle.Manifest.from_json(dataclasses.replace(manifest, opset=0).to_json())


def test_evaluation_is_optional_and_an_object(publish_toy, tmp_path):
    manifest = bundle.load(publish_toy(tmp_path)).manifest
    found = dataclasses.replace(manifest, evaluation={"nll": 86.5})
    assert bundle.Manifest.from_json(found.to_json()) == found
    raw = json.loads(manifest.to_json())
    del raw["evaluation"]  # as bundles were before there was one
    assert bundle.Manifest.from_json(json.dumps(raw).encode()).evaluation == {}
    with pytest.raises(bundle.BundleError, match=r"evaluation is \[1\]; expected an object"):
        bundle.Manifest.from_json(json.dumps(raw | {"evaluation": [1]}).encode())
