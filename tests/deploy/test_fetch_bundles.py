"""The init container's script: what it fetches over HTTP, and what it rejects."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentd import bundle

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"),
    reason="this Python's tarfile cannot unpack safely: 3.11.4 or newer can, and images have it",
)
SCRIPT = ROOT / "deploy/k8s/base/fetch_bundles.py"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def store(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL that serves its files."""
    folder = tmp_path / "store"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pack(archive: Path, root: Path) -> str:
    """What the README says to do; returns the sha256."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, ".")
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def fetch(folder: Path, url: str, digest: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, SCRIPT, folder],
        env={"BUNDLES_URL": url, "BUNDLES_SHA256": digest, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_bundles_are_fetched_and_replaced(store, publish_toy, tmp_path):
    folder, address = store
    publish_toy(tmp_path / "root")
    publish_toy(tmp_path / "root")
    digest = pack(folder / "toy.tar.gz", tmp_path / "root")
    for _ in range(2):  # a pod that is set up anew keeps its volume
        run = fetch(tmp_path / "models", f"{address}/toy.tar.gz", digest)
        assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("toy version 1 (sha256:")
    assert bundle.load(tmp_path / "models/toy/2").manifest.version == 2


def test_wrong_digest_is_rejected(store, publish_toy, tmp_path):
    folder, address = store
    publish_toy(tmp_path / "root")
    pack(folder / "toy.tar.gz", tmp_path / "root")
    run = fetch(tmp_path / "models", f"{address}/toy.tar.gz", "0" * 64)
    assert run.returncode == 65
    assert "not 0000" in run.stderr
    assert not list((tmp_path / "models").iterdir())


def test_damaged_bundle_is_rejected(store, publish_toy, tmp_path):
    folder, address = store
    path = publish_toy(tmp_path / "root")
    (path / bundle.DECODER).write_bytes(b"not the file that was published")
    digest = pack(folder / "toy.tar.gz", tmp_path / "root")
    run = fetch(tmp_path / "models", f"{address}/toy.tar.gz", digest)
    assert run.returncode == 65
    assert "decoder.onnx" in run.stderr


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_no_archive_writes_outside_its_folder(store, tmp_path, name):
    folder, address = store
    with tarfile.open(folder / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    digest = hashlib.sha256((folder / "evil.tar").read_bytes()).hexdigest()
    run = fetch(tmp_path / "models", f"{address}/evil.tar", digest)
    assert run.returncode == 65
    assert not (tmp_path / "outside").exists()
    assert not Path("/outside").exists()


@pytest.mark.parametrize(
    ("status", "url", "digest", "message"),
    [
        (1, "{}/nothing.tar", "0" * 64, "404"),
        (78, "file:///etc/passwd", "0" * 64, "BUNDLES_URL=file:///etc/passwd"),
        (78, "{}/toy.tar", "latest", "BUNDLES_SHA256=latest"),
    ],
)
def test_fetch_errors_are_reported(store, tmp_path, status, url, digest, message):
    run = fetch(tmp_path / "models", url.format(store[1]), digest)
    assert run.returncode == status
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_response_that_is_no_archive_is_rejected(store, tmp_path):
    folder, address = store
    (folder / "toy.tar").write_bytes(b"<html>come back later</html>")
    digest = hashlib.sha256((folder / "toy.tar").read_bytes()).hexdigest()
    run = fetch(tmp_path / "models", f"{address}/toy.tar", digest)
    assert run.returncode == 65
    assert "Traceback" not in run.stderr
