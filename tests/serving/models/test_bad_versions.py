"""A version that cannot be served is rejected with a reason; the previous one is still served."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from latentd import bundle
from latentd.errors import BundleError, ConfigError
from latentd.models.rejected import MAX_REASON
from tests.support import permissions


def refused(server, reason: str) -> float:
    return server.metric("latentd_reloads_total", result="rejected", reason=reason)


def damage(path: Path, how: str) -> None:
    """Damage a published bundle."""
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
def test_damaged_version_is_rejected_once(root, publish, server, stub, how, reason):
    damage(publish(root), how)
    for _ in range(3):
        server.scan()
        assert stub.answering() == 1
        assert list(stub.failed()) == [2]
        assert stub.failed()[2].endswith(".")
        assert str(root) not in stub.failed()[2], "the path of the root must not be shown"
        assert refused(server, reason) == 1, "the same content was tried again"
    publish(root)
    server.scan()
    assert stub.answering() == 3
    assert not stub.failed(), "versions older than those served are not reported"


WRONG = {
    "no graph": ({"encoder_onnx": b"<html>"}, "engine"),
    "no golden vectors": ({"golden_npz": b"PK"}, "golden"),
    "an encoder as decoder": ("encoder", "signature"),
    "a graph of other levels": ("levels", "golden"),
}


@pytest.mark.parametrize(("files", "reason"), WRONG.values(), ids=WRONG.keys())
def test_wrong_graph_with_valid_checksums_is_rejected_by_a_server(
    root, publish, server, stub, files, reason
):
    good = bundle.load(root / "toy" / "1").files
    if files == "encoder":
        files = {"decoder_onnx": good[bundle.ENCODER]}
    elif files == "levels":  # version 1's decoder with the golden vectors of another
        files = {"decoder_onnx": good[bundle.DECODER], "levels": 200}
    publish(root, **files)
    server.scan()
    assert stub.answering() == 1
    assert refused(server, reason) == 1
    assert list(stub.failed()) == [2]


def test_bundle_copied_in_place_is_served_when_complete(
    root, publish, server, stub, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    publish(elsewhere)
    source = publish(elsewhere)
    target = root / "toy" / "2"
    target.mkdir()
    names = [bundle.MANIFEST, bundle.LIKELIHOOD, *bundle.FILES]
    for name in sorted(names, reverse=True):  # the manifest is not last
        data = (source / name).read_bytes()
        with (target / name).open("wb") as file:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                server.scan()
                assert stub.answering() == 1
                file.write(half)
                file.flush()
    server.scan()
    assert stub.answering() == 2
    assert not stub.failed()


def test_fixed_version_is_retried_with_same_size_and_mtime(root, publish, server, stub):
    path = publish(root) / bundle.DECODER
    good, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=times)
    server.scan()
    assert stub.answering() == 1
    path.write_bytes(good)
    os.utime(path, ns=times)
    server.scan()
    assert stub.answering() == 2


def test_copied_version_is_rejected_with_advice(root, server, stub):
    shutil.copytree(root / "toy" / "1", root / "toy" / "2")
    shutil.copytree(root / "toy" / "1", root / "other" / "1")
    server.scan()
    assert stub.answering() == 1
    reasons = [refused.reason for refused in server.server.repository.rejected()]
    assert reasons == [
        "The manifest in other/1 is that of the model toy, version 1. Copy it to toy/1, or export "
        "it under another name.",
        "The manifest in toy/2 is that of version 1. Publish a new version with export; to serve "
        "an old one again, write its number into toy/pinned.",
    ]


def scatter(root: Path) -> None:
    """Create files as file managers, rsync and people leave them."""
    for folder in (root, root / "toy", root / "toy" / "1"):
        for name in (".DS_Store", "._manifest.json", ".decoder.onnx.x3f", "notes.txt", "7.bak"):
            (folder / name).write_bytes(b"\0")
        (folder / ".rsync-partial").mkdir()
        (folder / "old").mkdir()
    (root / "toy" / "9").write_text("a file, not a version")
    (root / "toy" / "1" / os.fsdecode(b"\xff")).touch()  # no text at all


def test_stray_files_are_ignored_and_logged(root, start_server, open_stub, caplog):
    scatter(root)
    server = start_server(root, poll_seconds=0)
    stub = open_stub(server)
    assert stub.answering() == 1
    assert not stub.failed()
    (message,) = [r.getMessage() for r in caplog.records if "ignored" in r.getMessage()]
    assert message == (
        "toy version 1: its folder holds files that its manifest does not name; they are ignored: "
        "'7.bak', 'notes.txt', 'old', '\\udcff'."
    )


def test_dot_files_cause_no_reload(root, publish, server, stub, monkeypatch):
    damage(publish(root), "a flipped bit")
    server.scan()
    read: list[Path] = []
    load = bundle.load
    monkeypatch.setattr(bundle, "load", lambda path, *more: read.append(path) or load(path, *more))
    for version in ("1", "2"):
        (root / "toy" / version / ".decoder.onnx.x3f").write_bytes(b"half")
    server.scan()
    assert not read
    assert refused(server, "checksum") == 1
    (root / "toy" / "1" / "decoder.onnx").touch()
    server.scan()
    assert read == [root / "toy" / "1"]
    assert stub.answering() == 1


@pytest.mark.parametrize("what", [bundle.MANIFEST, bundle.DECODER, "."])
def test_unreadable_version_is_served_once_readable(root, publish, server, stub, caplog, what):
    path = publish(root)
    mode = (path / what).stat().st_mode
    with permissions.enforced():
        (path / what).chmod(0)
        for _ in range(2):
            server.scan()
            assert stub.answering() == 1
        name = bundle.MANIFEST if what == "." else what
        assert stub.failed()[2] == (
            f"toy/2/{name} cannot be read: Permission denied. Give read permission to "
            f"uid {os.geteuid()}, the user of this process."
        )
        assert refused(server, "unreadable") == 1
        assert not [record for record in caplog.records if record.exc_info]
        (path / what).chmod(mode)
        server.scan()
    assert stub.answering() == 2


def test_unreadable_model_does_not_affect_others(root, publish, start_server, open_stub):
    publish(root, model="secret")
    (root / "link").symlink_to(root / "secret" / "1")
    (root / "secret").chmod(0)
    try:
        with permissions.enforced():
            server = start_server(root, poll_seconds=0)
            assert open_stub(server).answering() == 1
        reasons = {r.name: r.reason for r in server.server.repository.rejected()}
        assert list(reasons) == ["link", "secret"]
        for name, reason in reasons.items():
            assert reason.startswith(f"{name} cannot be read: Permission denied. Give read")
    finally:
        (root / "secret").chmod(0o755)


@pytest.mark.parametrize("closed", ["volume", "volume/models"])
def test_unreadable_root_fails_the_start(tmp_path, publish, start_server, closed):
    root = tmp_path / "volume" / "models"
    publish(root)
    (tmp_path / closed).chmod(0)
    try:
        with permissions.enforced(), pytest.raises(ConfigError) as error:
            start_server(root)
    finally:
        (tmp_path / closed).chmod(0o755)
    assert "The bundle directory cannot be read: Permission denied. Give read" in str(error.value)


def test_unreadable_root_keeps_served_models(root, server, stub):
    with permissions.enforced():
        root.chmod(0)
        try:
            server.scan()
            assert stub.answering() == 1
            (rejected,) = server.server.repository.rejected()
            assert (rejected.name, rejected.reason.count("Permission denied")) == (
                "the bundle directory",
                1,
            )
        finally:
            root.chmod(0o755)
        for _ in range(2):  # the first still knows of it
            server.scan()
    assert not server.server.repository.rejected()


@pytest.mark.parametrize("content", [b"two", b"1\n2", b"", b"\xff"])
def test_invalid_pin_is_reported(root, publish, server, stub, content):
    (root / "toy" / "pinned").write_bytes(content)
    publish(root)
    server.scan()
    assert stub.answering() == 1
    (rejected,) = server.server.repository.rejected()
    assert rejected.name == "toy"
    assert rejected.reason.startswith("toy/pinned holds '")


@pytest.mark.parametrize("name", ["T" * 100_000, "\udcff" * 10])
def test_reasons_are_short_and_valid_utf8(root, publish, server, stub, name):
    server.server.repository._rejected.add(
        "toy", 2, BundleError("engine", f"{name} is no operator.")
    )
    (reason,) = stub.failed().values()
    assert len(reason) <= MAX_REASON
    assert reason.startswith(ascii(name)[1:60])
