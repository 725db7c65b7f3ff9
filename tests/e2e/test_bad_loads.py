"""Versions that would crash or block a server are tried in a child process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from latentd import bundle
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub
from tests.support import bad_bundles
from tests.support.slow_engine import slow_graph

LONG = 120
FLAGS = ("--poll-seconds", "0.2", "--lame-duck-seconds", "0.1", "--keep-versions", "1")
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
def good(toy_bundles) -> dict[str, bytes]:
    """The toy's files."""
    return dict(bundle.load(toy_bundles / "toy" / "1").files)


@pytest.fixture
def endless(good) -> bytes:
    """A decoder that never ends."""
    return slow_graph(good[bundle.DECODER], 10**15, above=-1e30)


@pytest.fixture
def root(tmp_path, publish_toy) -> Path:
    """A root with the toy's version 1."""
    publish_toy(tmp_path / "models")
    return tmp_path / "models"


class Asked:
    """A client of one connection."""

    def __init__(self, process) -> None:
        target, _ = process.ready()
        self._stub = VaeServiceStub(grpc.insecure_channel(target))

    def version(self) -> int:
        """The version that serves a call now."""
        request = pb.SampleRequest(count=1, seed=1)
        return self._stub.Sample(request, timeout=LONG).served_by.version

    def listed(self, state: int) -> dict[int, pb.ListedModel]:
        models = self._stub.ListModels(pb.ListModelsRequest(), timeout=LONG).models
        return {m.version.version: m for m in models if m.state == state}

    def until(self, done: Callable[[], bool], serves: int = 1) -> None:
        """Call until `done`; meanwhile this version must serve."""
        by = time.monotonic() + LONG
        while not done():
            assert self.version() == serves
            assert time.monotonic() < by, "it never happened"


def children(pid: int) -> dict[int, bytes]:
    """The descendants of a process, with their commands."""
    found: dict[int, bytes] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found |= {child: command} | children(child)
    return found


def trials(process) -> list[int]:
    """The server's running trials."""
    return [pid for pid, command in children(process.pid).items() if b"models.trial" in command]


def kill(process) -> None:
    """Kill a server's processes except its trials."""
    for pid, command in children(process.pid).items():
        if b"models.trial" not in command:
            os.kill(pid, signal.SIGKILL)
    process.signal(signal.SIGKILL)
    process.exit_status()


@WORKERS
def test_endless_version_harms_nothing(serve, root, publish_toy, endless, workers):
    process = serve("--bundles", str(root), *FLAGS, "--workers", workers)
    asked = Asked(process)
    assert asked.version() == 1
    publish_toy(root, decoder_onnx=endless)
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_LOADING))
    assert asked.listed(pb.MODEL_STATE_LOADING)[2].loading_since.endswith("+00:00")
    asked.until(lambda: process.value("latentd_loading_versions") == int(workers))
    (trial,) = trials(process)
    score = Path(f"/proc/{trial}/oom_score_adj")
    asked.until(lambda: score.read_text() == "1000\n")  # the kernel's first choice
    publish_toy(root)
    process.wait_for("toy version 2 has been loading for 5 s")
    by = time.monotonic() + LONG
    while asked.version() != 3:
        assert time.monotonic() < by
    asked.until(lambda: not trials(process), serves=3)  # nothing is gained by going on
    assert 2 not in asked.listed(pb.MODEL_STATE_FAILED)
    publish_toy(root, decoder_onnx=endless)
    asked.until(lambda: bool(trials(process)), serves=3)
    (root / "toy" / "pinned").write_text("1")  # which is seen while a version is loaded
    while asked.version() != 1:
        assert time.monotonic() < by + LONG
    (root / "toy" / "pinned").write_text("4")
    asked.until(lambda: bool(trials(process)))
    (trial,) = trials(process)
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0
    assert "Stopped." in process.log[-2]
    assert not Path(f"/proc/{trial}").exists()


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_restart_during_endless_load_serves_the_previous_version(
    serve, root, publish_toy, endless, tmp_path, workers
):
    publish_toy(root, decoder_onnx=endless)
    flags = ("--bundles", str(root), *FLAGS, "--workers", workers, "--state", str(tmp_path / "s"))
    process = serve(*flags)
    Asked(process).until(lambda: bool(trials(process)))
    (trial,) = trials(process)
    kill(process)
    by = time.monotonic() + LONG
    while Path(f"/proc/{trial}").exists() and "Z" not in Path(f"/proc/{trial}/stat").read_text():
        assert time.monotonic() < by, "the trial outlives its server"
    again = serve(*flags)
    asked = Asked(again)
    log = "".join(again.log).partition("Listening on")[0]
    assert "toy version 2 crashed a server while it was loaded" in log
    assert "toy version 2 has been loading" not in log, "it was not tried last"
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_LOADING))
    again.signal(signal.SIGTERM)
    assert again.exit_status() == 0


@pytest.mark.slow  # four servers start
def test_version_that_crashes_repeatedly_is_rejected(serve, root, publish_toy, endless):
    publish_toy(root, decoder_onnx=endless)
    flags = ("--bundles", str(root), *FLAGS, "--workers", "1")
    for _ in range(2):
        process = serve(*flags)
        asked = Asked(process)
        asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_LOADING))  # noqa: B023
        kill(process)
    asked = Asked(serve(*flags))
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_FAILED))
    assert "crashed repeatedly" in asked.listed(pb.MODEL_STATE_FAILED)[2].reason
    os.utime(root / "toy" / "2" / bundle.GOLDEN)
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_LOADING))


def test_sigterm_during_load_without_trial(serve, root, publish_toy, endless):
    flags = ("--workers", "1", "--load-trial", "false")
    process = serve("--bundles", str(root), *FLAGS, *flags)
    asked = Asked(process)
    publish_toy(root, decoder_onnx=endless)
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_LOADING))
    process.wait_for("toy version 2 has been loading for 5 s")
    process.signal(signal.SIGTERM)
    assert process.exit_status() == 0
    process.wait_for("exiting without waiting")


@pytest.mark.slow  # for as long as the deadline
def test_trial_has_a_timeout(serve, root, publish_toy, endless):
    process = serve("--bundles", str(root), *FLAGS, "--load-timeout-seconds", "8")
    asked = Asked(process)
    publish_toy(root, decoder_onnx=endless)
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_FAILED))
    assert "--load-timeout-seconds" in asked.listed(pb.MODEL_STATE_FAILED)[2].reason
    assert process.value("latentd_reloads_total", result="rejected", reason="timeout") >= 1
    assert not trials(process)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "memory"), (signal.SIGSEGV, "crash")]
)
def test_killed_trial_rejects_the_version(serve, root, publish_toy, endless, number, reason):
    process = serve("--bundles", str(root), *FLAGS, "--workers", "1")
    asked = Asked(process)
    publish_toy(root, decoder_onnx=endless)
    asked.until(lambda: bool(trials(process)))
    os.kill(trials(process)[0], number)
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_FAILED))
    assert process.value("latentd_reloads_total", result="rejected", reason=reason) == 1


def sparse(path: Path) -> None:
    """Make a file 40 GB long, without content."""
    with path.open("r+b") as file:
        file.truncate(40 << 30)


def says(manifest: Path, nbytes: int) -> None:
    """Change the size of the encoder in a manifest."""
    raw = json.loads(manifest.read_text())
    raw["files"][bundle.ENCODER]["bytes"] = nbytes
    manifest.write_text(json.dumps(raw))


def fifo(path: Path) -> None:
    """Replace a file by a pipe without a writer."""
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe as a graph": (lambda at: fifo(at / bundle.ENCODER), "missing"),
    "a pipe as the manifest": (lambda at: fifo(at / bundle.MANIFEST), "missing"),
    "a graph of 40 GB": (lambda at: sparse(at / bundle.ENCODER), "checksum"),
    "a manifest of 40 GB": (lambda at: sparse(at / bundle.MANIFEST), "checksum"),
    "a graph of 40 GB that is said to be": (
        lambda at: (sparse(at / bundle.ENCODER), says(at / bundle.MANIFEST, 40 << 30))[0],
        "memory",
    ),
}

REPLACED: dict[str, tuple[str, Callable[[dict[str, bytes]], bytes], str]] = {
    "a decoder that takes 10 GB": (
        "decoder_onnx",
        lambda good: bad_bundles.allocating(good[bundle.DECODER], 10),
        "memory",
    ),
    "golden vectors that unpack to 1 GB": (
        "golden_npz",
        lambda good: bad_bundles.bomb(good[bundle.GOLDEN], 1),
        "golden",
    ),
    "golden vectors of no rows": (
        "golden_npz",
        lambda good: bad_bundles.of_no_rows(good[bundle.GOLDEN]),
        "golden",
    ),
    "a negated decoder": (
        "decoder_onnx",
        lambda good: bad_bundles.negated(good[bundle.DECODER]),
        "golden",
    ),
    "a decoder that is wrong beyond three rows": (
        "decoder_onnx",
        lambda good: bad_bundles.wrong_beyond(good[bundle.DECODER], 3),
        "golden",
    ),
}


def test_harmful_versions_are_rejected_and_the_next_is_served(serve, root, publish_toy, good):
    flags = ("--workers", "1", "--load-memory-mib", "512")
    process = serve("--bundles", str(root), *FLAGS, *flags)
    asked = Asked(process)
    asked.version()
    before = process.memory("VmHWM")
    beside = root.parent / "beside"
    for what in (*DAMAGE, *REPLACED):
        for version in bundle.versions(root / "toy"):
            (beside / "toy" / str(version)).mkdir(parents=True)
        if what in DAMAGE:
            damage, reason = DAMAGE[what]
            made = publish_toy(beside)
            damage(made)
        else:
            name, make, reason = REPLACED[what]
            made = publish_toy(beside, **{name: make(good)})
        number = int(made.name)
        made.rename(root / "toy" / made.name)
        shutil.rmtree(beside)
        asked.until(lambda: number in asked.listed(pb.MODEL_STATE_FAILED))  # noqa: B023
        counted = process.value("latentd_reloads_total", result="rejected", reason=reason)
        assert counted >= 1, (what, asked.listed(pb.MODEL_STATE_FAILED)[number].reason)
    assert process.memory("VmHWM") - before < 96 << 20
    (root / "toy" / "pinned").unlink(missing_ok=True)
    last = publish_toy(root)
    by = time.monotonic() + LONG
    while asked.version() != int(last.name):
        assert time.monotonic() < by, "the good one was not found"


@pytest.mark.parametrize("alter", [fifo, sparse], ids=["a pipe", "40 GB"])
def test_unreadable_pin_is_reported_without_blocking(serve, root, alter):
    process = serve("--bundles", str(root), *FLAGS, "--workers", "1")
    asked = Asked(process)
    (root / "toy" / "pinned").write_text("1")
    alter(root / "toy" / "pinned")
    process.wait_for("Rejected toy: .*pinned cannot be read")
    assert asked.version() == 1


def test_too_large_model_is_rejected(serve, root, publish_toy, good):
    process = serve("--bundles", str(root), *FLAGS, "--workers", "1", "--load-memory-mib", "64")
    asked = Asked(process)
    publish_toy(root, golden_npz=good[bundle.GOLDEN] + bytes(65 << 20))
    asked.until(lambda: 2 in asked.listed(pb.MODEL_STATE_FAILED))
    assert asked.listed(pb.MODEL_STATE_FAILED)[2].reason.startswith("Its files hold 65 MiB")


def test_two_workers_share_one_trial(serve, root):
    process = serve("--bundles", str(root), *FLAGS, "--workers", "2")
    process.ready()
    found = [line.partition("decoder, ")[2] for line in process.log if "  decoder, toy" in line]
    assert len(found) == 2
    assert found[0] == found[1], "each has measured for itself"
