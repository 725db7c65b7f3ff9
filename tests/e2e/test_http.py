"""The HTTP port of a server as operators run it: TLS, tokens, workers, drain, curl, floods."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import ssl
import subprocess
import threading

import pytest
import trustme

from latentd.client import Client
from latentd.transport import tokens
from tests.support.web import answer, connected, port, read_all, request

GOOD = "/sample/toy.png?seed=7"
MIB = 1 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def curl(*words: object) -> tuple[int, bytes]:
    """The HTTP status and the body."""
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "120",
        "--write-out",
        "\n%{http_code}",
    ]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def test_curl(start_server, toy_bundles, tmp_path):
    server = start_server(toy_bundles, http_port=0)
    url = f"http://127.0.0.1:{port(server)}"
    assert curl(f"{url}/v2/health/ready") == (200, b'{"ready": true}')
    status, picture = curl(f"{url}/sample/toy.png?seed=7&count=16")
    assert (status, picture[:4]) == (200, b"\x89PNG")
    z = tmp_path / "z"
    z.write_bytes(bytes(64))
    status, picture = curl(
        "--data-binary", f"@{z}", f"{url}/vae/toy/decode?shape=1&shape=16&image_format=png"
    )
    assert (status, picture[:4]) == (200, b"\x89PNG")
    large = tmp_path / "large"
    large.write_bytes(bytes(65 * MIB))
    status, error = curl("--data-binary", f"@{large}", f"{url}/vae/toy/decode?shape=1")
    assert (status, b"body: larger than 64 MiB" in error) == (413, True)


def test_tokens(start_server, toy_bundles, tmp_path):
    token, line = tokens.new_token("artist", ["generate"])
    file = tmp_path / "tokens"
    file.write_text(line + "\n")
    server = start_server(toy_bundles, http_port=0, tokens=file)
    missing = request(server, GOOD)
    assert (missing.status, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert request(server, GOOD, Authorization="Bearer wrong").status == 401
    mine = {"Authorization": f"Bearer {token}"}
    first = request(server, GOOD, **mine)
    assert first.status == 200
    etag = first.headers["etag"]
    assert request(server, GOOD, If_None_Match=etag).status == 401
    assert request(server, GOOD, If_None_Match=etag, **mine).status == 304
    refused = request(server, "/vae/toy/encode", b"", **mine)
    assert (refused.status, 'Scope "infer" required' in refused.error) == (403, True)
    assert request(server, "/v2/models/toy", **mine).status == 403
    for open_path in ("/v2/health/ready", "/docs", "/openapi.json"):
        assert request(server, open_path).status == 200


def test_tls_with_renewed_files(start_server, toy_bundles, tmp_path, authority):
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def renew() -> bytes:
        issued = authority.issue_cert("127.0.0.1")
        key.write_bytes(issued.private_key_pem.bytes())
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    renew()
    server = start_server(toy_bundles, http_port=0, tls_cert=certificate, tls_key=key)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def seen() -> bytes:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port(server), context=context, timeout=120
        )
        connection.request("GET", GOOD)
        assert answer(connection.getresponse()).status == 200
        found = connection.sock.getpeercert(binary_form=True)
        connection.close()
        return found

    seen()
    new = renew()
    assert seen() == new
    with connected(port(server)) as plain:
        plain.sendall(f"GET {GOOD} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert b"200" not in read_all(plain)


def test_mutual_tls(start_server, toy_bundles, tmp_path, authority):
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / name for name in ("cert", "key", "ca")}
    paths["cert"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    paths["key"].write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(paths["ca"]))
    server = start_server(
        toy_bundles,
        http_port=0,
        tls_cert=paths["cert"],
        tls_key=paths["key"],
        tls_client_ca=paths["ca"],
    )
    url = f"https://127.0.0.1:{port(server)}{GOOD}"
    with pytest.raises(subprocess.CalledProcessError):
        curl("--cacert", paths["ca"], url)
    mine = ("--cert", paths["cert"], "--key", paths["key"])
    assert curl("--cacert", paths["ca"], *mine, url)[0] == 200


def test_workers_share_the_port_and_a_drain_lets_requests_finish(serve, toy_bundles):
    process = serve("--bundles", str(toy_bundles), "--workers", "2", "--http-port", "0")
    number = int(process.wait_for(r"HTTP on port (\d+)")[1])
    process.ready()
    pictures = {request(number, GOOD).body for _ in range(16)}
    assert len(pictures) == 1
    with socket.create_connection(("127.0.0.1", number), timeout=120) as slow:
        path = b"/vae/toy/decode?shape=1&shape=16"
        head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 64\r\n\r\n"
        slow.sendall(head + bytes(32))
        process.signal(signal.SIGTERM)
        process.wait_for("draining in-flight calls")
        slow.sendall(bytes(32))
        assert read_all(slow).startswith(b"HTTP/1.1 200 ")
    assert process.exit_status() == 0


def test_the_port_is_taken(serve, toy_bundles):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        for workers in ("1", "2"):
            process = serve(
                "--bundles", str(toy_bundles), "--workers", workers, "--http-port", str(taken)
            )
            assert process.exit_status() == 78
            assert "--http-port (0: any free port)" in "".join(process.log)


def test_partial_and_unread_requests_take_bounded_memory_and_grpc_goes_on(serve, toy_bundles):
    process = serve(
        *("--bundles", str(toy_bundles), "--workers", "1", "--http-port", "0"),
        *("--max-partial-request-mib", "32", "--max-unsent-response-mib", "32"),
    )
    number = int(process.wait_for(r"HTTP on port (\d+)")[1])
    target, _ = process.ready()
    before = process.memory("VmRSS")
    head = b"POST /vae/toy/decode?shape=1 HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (
        8 * MIB
    )
    unread = b"GET /sample/toy.png?seed=1&count=4096 HTTP/1.1\r\nhost: x\r\n\r\n"
    sockets = [socket.create_connection(("127.0.0.1", number), timeout=120) for _ in range(64)]

    def send(one: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):  # dropped, as it should be
            one.sendall(data)

    threads = [
        threading.Thread(target=send, args=(one, head + bytes(7 * MIB) if i % 2 else unread * 50))
        for i, one in enumerate(sockets)
    ]
    for thread in threads:
        thread.start()
    with Client(target) as client:
        while any(thread.is_alive() for thread in threads):
            assert len(client.sample(1, seed=7)) == 1
    for thread in threads:
        thread.join()
    process.answer()
    assert process.memory("VmHWM") - before < 256 * MIB
    for one in sockets:
        one.close()
    assert request(number, GOOD).status == 200
