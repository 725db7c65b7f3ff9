"""The repository while it serves: versions come, go, come back, and never disturb a call."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest

from serving import bundle, codec
from serving.errors import ConfigError
from serving.pb import vae_pb2 as pb
from serving.pb.vae_pb2_grpc import VaeServiceStub


@pytest.fixture
def open_stub(request) -> Callable[..., VaeServiceStub]:
    """A stub of a server; the channel is closed when the test ends."""

    def open_(server) -> VaeServiceStub:
        channel = grpc.insecure_channel(server.target)
        request.addfinalizer(channel.close)
        return VaeServiceStub(channel)

    return open_


@pytest.fixture
def publish(publish_toy) -> Callable[..., Path]:
    """Publish the toy's next version n, with 100 + n levels."""

    def publish(root: Path, **chosen: object) -> Path:
        versions = bundle.versions(root / str(chosen.get("model", "toy")))
        return publish_toy(root, **{"levels": 101 + max(versions, default=0)} | chosen)

    return publish


@pytest.fixture
def root(tmp_path, publish) -> Path:
    """A root with the toy's version 1."""
    publish(tmp_path)
    return tmp_path


@pytest.fixture
def server(root, start_server):
    """Serves `root` and looks when the test says so."""
    return start_server(root, reload_seconds=0, keep_versions=1, batch_budget_ms=1)


@pytest.fixture
def stub(server, open_stub) -> VaeServiceStub:
    return open_stub(server)


RETIRED = {"result": "retired", "reason": ""}


def answering(stub: VaeServiceStub, **which: object) -> int:
    """The version that answers, by its own word and by its arithmetic."""
    z = codec.to_tensor(np.ones((1, 16), np.float32))
    response = stub.Decode(pb.DecodeRequest(z=z, **which))
    levels = set(codec.from_rows(response.x).ravel().tolist())
    assert levels == {100 + response.served_by.version}, "not the graph that was named"
    return response.served_by.version


def failed(stub: VaeServiceStub) -> dict[int, str]:
    models = stub.ListModels(pb.ListModelsRequest()).models
    return {m.version.version: m.reason for m in models if m.state == pb.MODEL_STATE_FAILED}


def refused(server, reason: str) -> float:
    return server.metric("latentd_reloads_total", result="refused", reason=reason)


def wait_until(stub: VaeServiceStub, done: Callable[[], bool]) -> None:
    """Ask until something has happened; the test's own time limit ends what never does."""
    while not done():
        answering(stub)


def test_a_new_version_is_found_and_served_without_a_restart(
    root, publish, start_server, open_stub
):
    server = start_server(root, reload_seconds=0.02, keep_versions=1)
    stub = open_stub(server)
    assert answering(stub) == 1
    publish(root)
    wait_until(stub, lambda: answering(stub) == 2)
    wait_until(stub, lambda: server.metric("latentd_reloads_total", **RETIRED) == 1)
    with pytest.raises(grpc.RpcError, match="no version 1"):
        answering(stub, version=1)


def test_the_metrics_tell_what_is_served(root, publish, server, stub):
    def info(version: int) -> float:
        served = bundle.load(root / "toy" / str(version)).digest
        labels = {"model": "toy", "version": str(version), "digest": served}
        return server.metric("latentd_model_info", provider="CPUExecutionProvider", **labels)

    def cost(version: int) -> float:
        labels = {"lane": "decoder", "model": "toy", "version": str(version), "rows": "1"}
        return server.metric("latentd_batch_cost_seconds", **labels)

    def loaded_at(version: int) -> float:
        labels = {"model": "toy", "version": str(version)}
        return server.metric("latentd_model_loaded_timestamp_seconds", **labels)

    publish(root)
    assert (info(1), info(2)) == (1, 0)
    assert cost(1) > 0
    first = loaded_at(1)
    server.look()
    wait_until(stub, lambda: not info(1))
    assert (info(2), cost(1), loaded_at(1)) == (1, 0, 0)
    assert cost(2) > 0
    assert first < loaded_at(2) <= server.metric("latentd_last_look_timestamp_seconds")
    for lane in ("encoder", "decoder"):
        labels = {"lane": lane, "model": "toy", "version": "2"}
        costs = stub.GetModel(pb.GetModelRequest()).lanes[lane == "decoder"]
        assert server.metric("latentd_batch_rows_most", **labels) == costs.max_batch_rows


def test_batches_and_threads_can_be_fixed_and_the_log_tells_the_costs(
    root, start_server, open_stub, caplog
):
    caplog.set_level("INFO")
    server = start_server(root, max_batch_rows=7, threads=2, batch_budget_ms=1)
    for lane in open_stub(server).GetModel(pb.GetModelRequest()).lanes:
        assert lane.max_batch_rows == 7
        said = f"{lane.lane}, toy version 1: batches of up to 7 rows, 2 thread(s); "
        (line,) = (r.getMessage() for r in caplog.records if said in r.getMessage())
        assert line.partition("batch: ")[2].count(",") == len(lane.costs) - 1


def test_a_version_of_the_same_size_takes_over_the_costs_and_another_is_measured(
    root, publish, server, stub
):
    def costs() -> list[float]:
        return [cost.seconds for cost in stub.GetModel(pb.GetModelRequest()).lanes[0].costs]

    first = costs()
    publish(root)
    server.look()
    assert (answering(stub), costs()) == (2, first)
    path = publish(root)
    encoder = onnx.load_model_from_string(bundle.load(path).files[bundle.ENCODER])
    encoder.doc_string = "a larger file"
    shutil.rmtree(path)
    publish(root, encoder_onnx=encoder.SerializeToString())
    server.look()
    assert answering(stub) == 3
    assert costs() != first


def damage(path: Path, how: str) -> None:
    """Make a published bundle one that must not be served."""
    encoder, manifest = path / bundle.ENCODER, path / bundle.MANIFEST
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
            shutil.copy(encoder, path.parent / "elsewhere")
            encoder.unlink()
            encoder.symlink_to(path.parent / "elsewhere")
        case "a manifest that is HTML":
            manifest.write_text("<html>404</html>")
        case "a manifest of unlikely types":
            manifest.write_text(manifest.read_text().replace('"bernoulli"', "[[]]"))
        case "an empty folder":
            shutil.rmtree(path)
            path.mkdir()


DAMAGE = {
    "a flipped bit": "checksum",
    "a truncated graph": "checksum",
    "a missing graph": "missing",
    "a link instead of a graph": "missing",
    "a manifest that is HTML": "format",
    "a manifest of unlikely types": "format",
    "an empty folder": "missing",
}


@pytest.mark.parametrize(("how", "reason"), DAMAGE.items(), ids=DAMAGE.keys())
def test_a_damaged_version_is_refused_once_while_the_old_one_serves_on(
    root, publish, server, stub, how, reason
):
    damage(publish(root), how)
    for _ in range(3):
        server.look()
        assert answering(stub) == 1
        assert list(failed(stub)) == [2]
        assert failed(stub)[2].endswith(".")
        assert refused(server, reason) == 1, "the same content was tried again"
    publish(root)
    server.look()
    assert answering(stub) == 3
    assert not failed(stub), "what lies behind the versions served is nobody's concern"


WRONG = {
    "no graph": ({"encoder_onnx": b"<html>"}, "engine"),
    "no golden vectors": ({"golden_npz": b"PK"}, "golden"),
    "an encoder as decoder": ("encoder", "signature"),
    "a graph of other levels": ("levels", "golden"),
}


@pytest.mark.parametrize(("files", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_graph_with_right_checksums_is_refused_while_the_old_one_serves_on(
    root, publish, server, stub, files, reason
):
    good = bundle.load(root / "toy" / "1").files
    if files == "encoder":
        files = {"decoder_onnx": good[bundle.ENCODER]}
    elif files == "levels":  # version 1's decoder with the golden vectors of another
        files = {"decoder_onnx": good[bundle.DECODER], "levels": 200}
    publish(root, **files)
    server.look()
    assert answering(stub) == 1
    assert refused(server, reason) == 1
    assert list(failed(stub)) == [2]


def test_a_bundle_that_is_copied_in_place_is_served_when_it_is_whole(
    root, publish, server, stub, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    publish(elsewhere)
    source = publish(elsewhere)
    target = root / "toy" / "2"
    target.mkdir()
    for name in sorted([bundle.MANIFEST, *bundle.FILES], reverse=True):  # the manifest is not last
        data = (source / name).read_bytes()
        with (target / name).open("wb") as file:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                server.look()
                assert answering(stub) == 1
                file.write(half)
                file.flush()
    server.look()
    assert answering(stub) == 2
    assert not failed(stub)


def test_a_mended_version_is_tried_again_even_if_size_and_mtime_are_the_same(
    root, publish, server, stub
):
    path = publish(root) / bundle.DECODER
    good, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=times)
    server.look()
    assert answering(stub) == 1
    path.write_bytes(good)
    os.utime(path, ns=times)
    server.look()
    assert answering(stub) == 2


def test_a_number_that_is_deleted_and_published_anew_is_served_anew(root, publish, server, stub):
    before = stub.GetModel(pb.GetModelRequest()).served_by
    shutil.rmtree(root / "toy" / "1")
    damage(publish(root, family="ae"), "a flipped bit")
    server.look()
    assert stub.GetModel(pb.GetModelRequest()).served_by == before
    shutil.rmtree(root / "toy" / "1")
    publish(root, family="ae")
    server.look()
    assert answering(stub) == 1
    assert stub.GetModel(pb.GetModelRequest()).family == "ae"
    assert server.metric("latentd_queue_rows", lane="decoder", model="toy", version="1") == 0
    wait_until(stub, lambda: server.metric("latentd_reloads_total", **RETIRED) == 1)


def test_deleting_the_newest_version_rolls_back(root, publish, server, stub):
    path = publish(root)
    server.look()
    assert answering(stub) == 2
    shutil.rmtree(path)
    server.look()
    assert answering(stub) == 1


@pytest.mark.parametrize("what", ["version", "versions", "root", "model for a bad one"])
def test_what_disappears_altogether_is_served_on(root, publish, server, stub, what):
    match what:
        case "version":
            shutil.rmtree(root / "toy" / "1")
        case "versions":
            shutil.rmtree(root / "toy")
        case "root":
            shutil.rmtree(root)
        case "model for a bad one":
            damage(publish(root), "a flipped bit")
            shutil.rmtree(root / "toy" / "1")
    server.look()
    server.look()
    assert answering(stub) == 1
    root.mkdir(exist_ok=True)
    publish(root)
    newest = publish(root)
    server.look()
    assert answering(stub) == int(newest.name)


def test_a_model_that_was_removed_is_served_no_more_and_the_others_are(root, publish, server, stub):
    publish(root, model="other")
    server.look()
    assert answering(stub, model="other") == 1
    assert answering(stub) == 1, "who names no model goes on being answered by the first"
    shutil.rmtree(root / "other")
    server.look()
    with pytest.raises(grpc.RpcError, match="No model 'other'"):
        answering(stub, model="other")
    assert answering(stub) == 1


def test_a_pin_rolls_back_and_its_removal_rolls_forward(root, publish, server, stub):
    publish(root)
    publish(root)
    pinned = root / "toy" / "pinned"
    for text, version in (("2\n", 2), ("1", 1), (None, 3), ("3", 3)):
        pinned.write_text(text) if text else pinned.unlink()
        server.look()
        assert answering(stub) == version
    publish(root)
    server.look()
    assert answering(stub) == 3


@pytest.mark.parametrize("text", ["", "newest", "-1", "1 2", "9"])
def test_a_pin_to_nothing_changes_nothing_and_says_so(root, publish, server, stub, text):
    (root / "toy" / "pinned").write_text(text)
    server.look()
    server.look()
    assert answering(stub) == 1
    assert refused(server, "pin") == 1
    (reason,) = failed(stub).values()
    assert "pinned" in reason


def test_a_server_can_be_pinned_by_a_setting(root, publish, start_server, open_stub):
    publish(root)
    publish(root)
    (root / "toy" / "pinned").write_text("1")
    server = start_server(root, reload_seconds=0, keep_versions=2, pin="toy=2")
    stub = open_stub(server)
    assert answering(stub) == 2
    assert list(stub.GetModel(pb.GetModelRequest()).versions) == [1, 2]
    for pin in ("toy", "toy=0", "toy=1;other=2", "../up=1"):
        with pytest.raises(ConfigError, match="model=version"):
            start_server(root, pin=pin)


def test_a_volume_that_is_swapped_as_a_whole_by_its_link_is_followed(
    tmp_path, publish, start_server, open_stub
):
    # As Kubernetes swaps the contents of a volume: root/toy -> ..data/toy, ..data -> a folder.
    publish(tmp_path / "..one")
    publish(tmp_path / "..two")
    publish(tmp_path / "..two")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "toy").symlink_to("..data/toy")
    server = start_server(tmp_path, reload_seconds=0, keep_versions=1, batch_budget_ms=1)
    stub = open_stub(server)
    assert answering(stub) == 1
    (tmp_path / "..new").symlink_to("..two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    server.look()
    assert answering(stub) == 2


@pytest.mark.parametrize("listener", ["core", "aio"])
def test_a_call_ends_on_the_version_it_began_on_which_then_is_released(
    root, publish, start_server, open_stub, listener
):
    server = start_server(root, reload_seconds=0, keep_versions=1, listener=listener)
    stub = open_stub(server)
    stream = stub.StreamSamples(pb.StreamSamplesRequest(count=200_000, seed=1, chunk_rows=100))
    chunks = [next(stream)]
    publish(root)
    shutil.rmtree(root / "toy" / "1")
    server.look()
    assert answering(stub) == 2
    assert server.metric("latentd_retiring_versions") == 1
    chunks += stream
    assert {chunk.served_by.version for chunk in chunks} == {1}
    assert len(chunks) == 2000
    wait_until(stub, lambda: server.metric("latentd_reloads_total", **RETIRED) == 1)
    assert server.metric("latentd_retiring_versions") == 0
    assert server.metric("latentd_model_loaded_timestamp_seconds", model="toy", version="1") == 0


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["core", "aio"])
def test_50_swaps_under_load_are_noticed_by_nobody(
    root, publish, start_server, open_stub, listener
):
    """Every answer is of one version wholly, none fails, and memory stays as it was."""
    server = start_server(root, reload_seconds=0.02, keep_versions=1, listener=listener)
    stub = open_stub(server)
    done = threading.Event()

    def call() -> set[int]:
        x = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
        mine, seen = open_stub(server), set()
        while not done.is_set():
            seen.add(answering(mine))
            # Encoder and decoder of two versions would not give x back.
            whole = mine.Reconstruct(pb.ReconstructRequest(x=codec.to_rows(x)))
            np.testing.assert_array_equal(codec.from_rows(whole.x), x)
            chunks = list(mine.StreamSamples(pb.StreamSamplesRequest(count=50, chunk_rows=10)))
            assert len({chunk.served_by.version for chunk in chunks}) == 1
        return seen

    def swap(times: int) -> int:
        for _ in range(times):
            version = int(publish(root).name)
            wait_until(stub, lambda version=version: answering(stub) == version)
        wait_until(stub, lambda: server.metric("latentd_retiring_versions") == 0)
        return resident_bytes()

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call) for _ in range(8)]
        before = swap(20)
        after = swap(50)
        done.set()
        seen = [caller.result() for caller in callers]
    assert len(set.union(*seen)) > 10, "the callers hardly met a swap"
    assert after - before < 10 << 20, f"{before >> 20} MiB became {after >> 20}"
    assert server.metric("latentd_reloads_total", **RETIRED) == 70


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
