"""A version that cannot be served is refused with the reason, while the one before serves on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from serving import bundle


def refused(server, reason: str) -> float:
    return server.metric("latentd_reloads_total", result="refused", reason=reason)


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
        assert stub.answering() == 1
        assert list(stub.failed()) == [2]
        assert stub.failed()[2].endswith(".")
        assert refused(server, reason) == 1, "the same content was tried again"
    publish(root)
    server.look()
    assert stub.answering() == 3
    assert not stub.failed(), "what lies behind the versions served is nobody's concern"


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
    assert stub.answering() == 1
    assert refused(server, reason) == 1
    assert list(stub.failed()) == [2]


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
                assert stub.answering() == 1
                file.write(half)
                file.flush()
    server.look()
    assert stub.answering() == 2
    assert not stub.failed()


def test_a_mended_version_is_tried_again_even_if_size_and_mtime_are_the_same(
    root, publish, server, stub
):
    path = publish(root) / bundle.DECODER
    good, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=times)
    server.look()
    assert stub.answering() == 1
    path.write_bytes(good)
    os.utime(path, ns=times)
    server.look()
    assert stub.answering() == 2
