"""Which versions are served: the newest, the pinned, and always at least one."""

from __future__ import annotations

import shutil

import grpc
import pytest

from latentd import bundle
from latentd.errors import ConfigError
from latentd.pb import vae_pb2 as pb


def test_republished_version_number_is_reloaded(root, publish, server, stub):
    before = stub.GetModel(pb.GetModelRequest()).served_by
    shutil.rmtree(root / "toy" / "1")
    (publish(root, posterior="point") / bundle.ENCODER).write_bytes(b"damaged")
    server.scan()
    assert stub.GetModel(pb.GetModelRequest()).served_by == before
    shutil.rmtree(root / "toy" / "1")
    publish(root, posterior="point")
    server.scan()
    assert stub.answering() == 1
    assert stub.GetModel(pb.GetModelRequest()).posterior == "point"
    assert server.metric("latentd_queue_rows", graph="decoder", model="toy", version="1") == 0
    stub.wait_until(
        lambda: server.metric("latentd_reloads_total", result="unloaded", reason="") == 1
    )


def test_deleting_the_newest_version_rolls_back(root, publish, server, stub):
    path = publish(root)
    server.scan()
    assert stub.answering() == 2
    shutil.rmtree(path)
    server.scan()
    assert stub.answering() == 1


@pytest.mark.parametrize("what", ["version", "versions", "root", "model for a bad one"])
def test_empty_root_keeps_served_models(root, publish, server, stub, what):
    match what:
        case "version":
            shutil.rmtree(root / "toy" / "1")
        case "versions":
            shutil.rmtree(root / "toy")
        case "root":
            shutil.rmtree(root)
        case "model for a bad one":
            (publish(root) / bundle.ENCODER).write_bytes(b"damaged")
            shutil.rmtree(root / "toy" / "1")
    server.scan()
    server.scan()
    assert stub.answering() == 1
    root.mkdir(exist_ok=True)
    publish(root)
    newest = publish(root)
    server.scan()
    assert stub.answering() == int(newest.name)


def test_removed_model_is_unloaded(root, publish, server, stub):
    publish(root, model="other")
    server.scan()
    assert stub.answering(model="other") == 1
    assert stub.answering() == 1, "who names no model goes on being answered by the first"
    shutil.rmtree(root / "other")
    server.scan()
    with pytest.raises(grpc.RpcError, match="Model 'other' is not served"):
        stub.answering(model="other")
    assert stub.answering() == 1


def test_pin_rolls_back_and_unpin_rolls_forward(root, publish, server, stub):
    publish(root)
    publish(root)
    pinned = root / "toy" / "pinned"
    for text, version in (("2\n", 2), ("1", 1), (None, 3), ("3", 3)):
        pinned.write_text(text) if text else pinned.unlink()
        server.scan()
        assert stub.answering() == version
    publish(root)
    server.scan()
    assert stub.answering() == 3


@pytest.mark.parametrize("text", ["", "newest", "-1", "1 2", "9"])
def test_pin_to_missing_version_is_reported(root, publish, server, stub, text):
    (root / "toy" / "pinned").write_text(text)
    server.scan()
    server.scan()
    assert stub.answering() == 1
    assert server.metric("latentd_reloads_total", result="rejected", reason="pin") == 1
    (reason,) = stub.failed().values()
    assert "pinned" in reason


def test_pin_by_setting(root, publish, start_server, open_stub):
    publish(root)
    publish(root)
    (root / "toy" / "pinned").write_text("1")
    server = start_server(root, poll_seconds=0, keep_versions=2, pin="toy=2")
    stub = open_stub(server)
    assert stub.answering() == 2
    assert list(stub.GetModel(pb.GetModelRequest()).versions) == [1, 2]
    for pin in ("toy", "toy=0", "toy=1;other=2", "../up=1"):
        with pytest.raises(ConfigError, match="model=version"):
            start_server(root, pin=pin)


def test_pin_of_missing_model_is_logged(root, publish, start_server, caplog):
    publish(root)
    with caplog.at_level("WARNING"):
        start_server(root, pin="toy=1,tpy=2")
    message = [r.getMessage() for r in caplog.records if "--pin" in r.getMessage()]
    assert message == ["--pin: model tpy is not served; served models: toy."]


def test_replaced_link_of_the_root_is_followed(tmp_path, publish, start_server, open_stub):
    # As Kubernetes swaps the contents of a volume: root/toy -> ..data/toy, ..data -> a folder.
    publish(tmp_path / "..one")
    publish(tmp_path / "..two")
    publish(tmp_path / "..two")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "toy").symlink_to("..data/toy")
    server = start_server(tmp_path, poll_seconds=0, keep_versions=1, max_batch_latency_ms=1)
    stub = open_stub(server)
    assert stub.answering() == 1
    (tmp_path / "..new").symlink_to("..two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    server.scan()
    assert stub.answering() == 2
