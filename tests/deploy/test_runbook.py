"""deploy/README.md's steps, on the manifests' pod in podman and under load: `make test-images`."""

from __future__ import annotations

import hashlib
import http.server
import os
import ssl
import tarfile
import threading
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from latentd.__main__ import main
from latentd.client import Client
from latentd.client.retry import ServiceError
from latentd.errors import LatentdError
from tests.deploy.conftest import let_read
from tests.support import podman as engine
from tests.support.manifests import pod_of
from tests.support.podman import Pod, podman

SECONDS = 180  # only broken code makes a test wait so long
CALLERS = 4
STREAMED = 3_000

engine.require()


@pytest.fixture(scope="module")
def image() -> str:
    return engine.image("serving")


class Load:
    """Calls of one client, all the time: single rows, and streams from beginning to end."""

    def __init__(self, client: Client) -> None:
        self.calls, self.streams = 0, 0
        self.lost: Counter[str] = Counter()
        self.seen: defaultdict[int, set[bytes]] = defaultdict(set)
        """Version -> what it sampled: one seed, so one row, if each answer is of one version."""
        self.streamed: set[bytes] = set()
        self._client, self._changed = client, threading.Condition()
        self._stopping = threading.Event()

    def call(self) -> None:
        while not self._stopping.is_set():
            try:
                found = self._client.sample(1, seed=7)
                self._count(found.served_by.version, found.x.tobytes())
            except LatentdError as error:
                self.lost[f"Sample: {error}"] += 1

    def stream(self) -> None:
        while not self._stopping.is_set():
            try:
                chunks = list(self._client.stream_samples(STREAMED, seed=7))
                self.streamed.add(b"".join(chunk.x.tobytes() for chunk in chunks))
                self.streams += 1
            except LatentdError as error:
                self.lost[f"StreamSamples: {error}"] += 1

    def _count(self, version: int, row: bytes) -> None:
        with self._changed:
            self.calls += 1
            self.seen[version].add(row)
            self._changed.notify_all()

    def go_on_until(self, done: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(done, SECONDS), (self.calls, self.lost)

    def go_on(self, calls: int = 100) -> None:
        """Until so many more calls are answered."""
        enough = self.calls + calls
        self.go_on_until(lambda: self.calls >= enough)

    def stop(self) -> None:
        self._stopping.set()

    def check(self) -> None:
        """No call was lost, and every answer is of one version, whole."""
        assert not self.lost
        assert all(len(rows) == 1 for rows in self.seen.values())
        assert len(self.streamed) <= 1


@contextmanager
def load(target: str, *, streams: bool = True) -> Iterator[Load]:
    with Client(target, timeout=SECONDS) as client:
        running = Load(client)
        threads = [threading.Thread(target=running.call) for _ in range(CALLERS)]
        if streams:
            threads.append(threading.Thread(target=running.stream))
        for thread in threads:
            thread.start()
        try:
            running.go_on()
            yield running
        finally:
            running.stop()
            for thread in threads:
                thread.join()
    running.check()


def metric(pod: Pod, name: str, **labels: str) -> float:
    with urllib.request.urlopen(pod.metrics, timeout=SECONDS) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def until(done: Callable[[], bool]) -> None:
    """Poll a state that sends no event."""
    pause = threading.Event()
    for _ in range(SECONDS * 5):
        if done():
            return
        pause.wait(0.2)
    pytest.fail("not in time")


def test_roll_out_of_a_server_loses_no_call(build, image, models, names, tmp_path, record_property):
    documents, volumes = build("cpu", ["bundles-volume"]), {"models": models}
    names.addresses = ("127.0.0.1", "127.0.0.2")
    with Pod(documents, image, volumes, tmp_path) as old:
        port = int(old.target.rpartition(":")[2])
        target = f"dns://127.0.0.1:{names.port}/latentd.latentd.svc:{port}"
        with (
            load(target) as calls,
            Pod(documents, image, volumes, tmp_path, "127.0.0.2", port) as new,
        ):
            until(lambda: metric(new, "latentd_requests_total", code="OK") > 0)
            calls.go_on()
            assert old.stop() == 0
            served = metric(new, "latentd_requests_total", code="OK")
            calls.go_on()
            assert metric(new, "latentd_requests_total", code="OK") >= served + 100
            streams = calls.streams
            until(lambda: calls.streams > streams + 1)
            calls.stop()
    record_property("figures", {"calls": calls.calls, "streams": calls.streams, "lost": 0})


def test_drained_pod_finishes_its_calls_and_exits_0(build, image, models, tmp_path):
    documents = build("cpu", ["bundles-volume"])
    with Pod(documents, image, {"models": models}, tmp_path) as pod:
        chunks, more = [], threading.Event()

        def stream() -> None:
            with Client(pod.target, timeout=SECONDS) as client:
                for chunk in client.stream_samples(200_000, seed=7):
                    chunks.append(len(chunk.x))
                    more.set()

        streaming = threading.Thread(target=stream)
        streaming.start()
        assert more.wait(SECONDS)
        assert pod.stop() == 0
        streaming.join()
        assert sum(chunks) == 200_000
        assert "Stopped." in pod.log()


def test_roll_out_and_back_of_a_model_on_a_volume(
    build, image, models, publish_toy, tmp_path, record_property
):
    documents = build("cpu", ["bundles-volume"])
    with (
        Pod(documents, image, {"models": models}, tmp_path) as pod,
        load(pod.target, streams=False) as calls,
    ):
        publish_toy(models, levels=100)
        calls.go_on_until(lambda: 2 in calls.seen)
        calls.go_on()
        publish_toy(models, decoder_onnx=b"no graph")
        until(lambda: rejected(pod) == 2)  # by each worker
        calls.go_on()
        assert calls.seen.keys() == {1, 2}
        # Roll back.
        (models / "toy/pinned").write_text("1\n")
        with Client(pod.target, timeout=SECONDS) as client:
            until(lambda: client.get_model().served_by.version == 1)
        before = calls.calls
        calls.go_on()
        assert calls.calls > before
    assert len(set.union(*calls.seen.values())) == 2
    record_property("figures", {"calls": calls.calls, "lost": 0})


def rejected(pod: Pod) -> float:
    """What LatentdReloadRejected reads."""
    return metric(pod, "latentd_reloads_total", result="rejected")


class Secret:
    """A folder that changes as the kubelet changes a Secret's: all files at once."""

    def __init__(self, folder: Path, **files: bytes) -> None:
        self.folder, self._files, self._version = folder, dict(files), 0
        folder.mkdir()
        for name in files:
            (folder / name.replace("_", ".")).symlink_to(Path("..data", name.replace("_", ".")))
        self.update()

    def update(self, **files: bytes) -> None:
        self._files |= files
        self._version += 1
        content = self.folder / f"..{self._version}"
        content.mkdir()
        for name, data in self._files.items():
            (content / name.replace("_", ".")).write_bytes(data)
        let_read(self.folder)
        (self.folder / "..data_tmp").symlink_to(content.name)
        os.replace(self.folder / "..data_tmp", self.folder / "..data")


@pytest.fixture
def secrets(models) -> Path:
    """Where Secrets' folders can be made that any user can read."""
    return models


class Authority:
    """A certificate authority of servers and of clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()

    def server(self) -> dict[str, bytes]:
        """A new pair, as in the Secret."""
        issued = self._ca.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return {"tls_crt": chain, "tls_key": issued.private_key_pem.bytes()}

    def client(self, *trusted: Authority) -> grpc.ChannelCredentials:
        issued = self._ca.issue_cert("job@example.org")
        return grpc.ssl_channel_credentials(
            b"".join(one.pem for one in trusted),
            issued.private_key_pem.bytes(),
            issued.cert_chain_pems[0].bytes(),
        )


def token(capsys: pytest.CaptureFixture[str], name: str) -> tuple[str, bytes]:
    """What `latentd token` prints: the token, and the line of the tokens' file."""
    assert main(["token", name, "--scopes", "infer,generate,models"]) == 0
    printed = capsys.readouterr()
    return printed.out.strip(), printed.err.encode()


def test_certificates_and_tokens_rotate_without_a_restart(
    build, image, models, secrets, tmp_path, capsys
):
    old, new = Authority(), Authority()
    first, second = token(capsys, "first"), token(capsys, "second")
    tls = Secret(secrets / "tls", ca_crt=old.pem, **old.server())
    tokens = Secret(secrets / "tokens", tokens_txt=first[1])
    volumes = {"models": models, "tls": tls.folder, "tokens": tokens.folder}

    def sample(credentials: grpc.ChannelCredentials, of: str) -> bool:
        """One call over a connection of its own; False: its token was refused."""
        with Client(pod.target, credentials=credentials, token=of, timeout=SECONDS) as client:
            try:
                return len(client.sample(1).x) == 1
            except ServiceError as error:
                if error.code != "UNAUTHENTICATED":
                    raise
                return False

    def certificate() -> bytes:
        host, _, port = pod.target.rpartition(":")
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))

    with Pod(build("cpu", ["bundles-volume", "tls"]), image, volumes, tmp_path) as pod:
        # A token: both are valid, then only the new one.
        ours = old.client(old)
        assert sample(ours, first[0])
        assert not sample(ours, second[0])
        tokens.update(tokens_txt=first[1] + second[1])
        until(lambda: sample(ours, second[0]))
        assert sample(ours, first[0])
        tokens.update(tokens_txt=second[1])
        until(lambda: not sample(ours, first[0]))
        assert sample(ours, second[0])

        # A certificate; a pair that does not match changes nothing, and the log says so.
        renewed = old.server()
        tls.update(**renewed)
        until(lambda: certificate() == der(renewed))
        other = old.server()
        tls.update(tls_crt=other["tls_crt"])
        until(lambda: sample(ours, second[0]) and "previous" in pod.log())
        assert certificate() != der(other)

        # The authority: both are trusted, certificates are renewed, the old one goes.
        tls.update(ca_crt=old.pem + new.pem, **new.server())
        trusting_both = old.client(old, new)
        until(lambda: _accepts(pod, trusting_both, second[0]))
        assert sample(new.client(new), second[0])
        tls.update(ca_crt=new.pem)
        until(lambda: not _accepts(pod, trusting_both, second[0]))
        assert sample(new.client(new), second[0])
        assert engine.state(pod.container)["Running"]


def _accepts(pod: Pod, credentials: grpc.ChannelCredentials, of: str) -> bool:
    """Whether a new connection gets through TLS, in both directions."""
    with Client(
        pod.target, credentials=credentials, token=of, timeout=5, attempts=1, healthy_only=False
    ) as client:
        try:
            client.sample(1)
        except LatentdError:
            return False
        return True


def der(pair: dict[str, bytes]) -> bytes:
    first, end, _ = pair["tls_crt"].decode().partition("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(first + end)


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_init_container_fetches_only_the_archive_of_the_digest(
    build, image, models, secrets, right
):
    archive = secrets / "store/bundles.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(models / "toy", "./toy")
    authority, volume = trustme.CA(), secrets / "volume"
    authority.cert_pem.write_to_path(str(secrets / "ca.pem"))
    volume.mkdir()
    documents = build("cpu")
    scripts = next(d for d in documents if "fetch_bundles.py" in d.get("data", {}))["data"]
    (secrets / "fetch_bundles.py").write_text(scripts["fetch_bundles.py"])
    let_read(secrets)
    volume.chmod(0o777)
    (container,) = pod_of(documents)["initContainers"]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest() if right else "0" * 64
    with web_server(archive.parent, authority) as url:
        ran = podman(
            *("run", "--rm", "--network=host", "--read-only", "--tmpfs", "/tmp"),
            *("--cap-drop", "ALL", "-v", f"{volume}:/models", "-v", f"{secrets}:/scripts:ro"),
            *("-e", f"BUNDLES_URL={url}/{archive.name}", "-e", f"BUNDLES_SHA256={digest}"),
            *("-e", "SSL_CERT_FILE=/scripts/ca.pem", "--entrypoint", container["command"][0]),
            *(image, *container["command"][1:]),
            check=False,
        )
    assert ran.returncode == (0 if right else 65), ran.stderr
    assert (volume / "toy/1/manifest.json").exists() == right


@contextmanager
def web_server(folder: Path, authority: trustme.CA) -> Iterator[str]:
    """The URL of a folder over HTTPS."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
