"""vae.v1 over HTTP as the Connect protocol defines it: on the server's port, and beside it."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import error_details_pb2

from latentd.client import Client
from latentd.explorer import connect
from latentd.pb import vae_pb2 as pb
from latentd.transport.tokens import new_token
from tests.support.processes import running
from tests.support.server import RunningServer, StartServer

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def http_server(toy_bundles: Path, module_servers: StartServer) -> RunningServer:
    return module_servers(toy_bundles, http_port=0)


@pytest.fixture(scope="module", params=["on its port", "beside it"])
def address(request: Any, http_server: RunningServer) -> Iterator[str]:
    if request.param == "on its port":
        yield f"http://127.0.0.1:{http_server.server.http_port}"
        return
    command = (Path(sys.executable).parent / "latentd", "explore", "--server", http_server.target)
    with running([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(" at ")[1].split("/explore/")[0]


def post(
    address: str, method: str, body: bytes, headers: dict[str, str] = JSON
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"{address}/vae.v1.VaeService/{method}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_json_has_the_same_rows_as_grpc(address, http_server):
    status, headers, body = post(address, "Sample", b'{"count": 3, "seed": "7"}')
    tensor = json.loads(body)["x"]["tensor"]
    pixels = np.frombuffer(base64.b64decode(tensor["data"]), np.uint8)
    with Client(http_server.target) as client:
        wanted = client.sample(3, seed=7).x
    assert status == 200
    np.testing.assert_array_equal(pixels.reshape(3, 4, 4), wanted)
    assert headers["trailer-server-timing"].startswith("queue;dur=")


def test_protobuf_has_the_same_rows_as_json(address):
    headers = {"content-type": "application/proto"}
    message = pb.SampleRequest(count=2, seed=7).SerializeToString()
    _, _, binary = post(address, "Sample", message, headers)
    _, _, text = post(address, "Sample", b'{"count": 2, "seed": "7"}')
    data = json.loads(text)["x"]["tensor"]["data"]
    assert pb.SampleResponse.FromString(binary).x.tensor.data == base64.b64decode(data)


@pytest.mark.parametrize("method", ["GetModel", "ListModels", "Encode", "Decode", "Interpolate"])
def test_every_unary_method_has_a_route(address, method):
    status, _, body = post(address, method, b"{}")
    assert status in (200, 400)
    assert status == 200 or json.loads(body)["code"] == "invalid_argument"


@pytest.mark.parametrize("method", ["StreamSamples", "StreamReconstruct", "NoSuchMethod"])
def test_streams_and_unknown_methods_are_not_found(address, method):
    status, _, body = post(address, method, b"{}")
    assert (status, json.loads(body)["code"]) == (404, "unimplemented")


def test_error_names_the_field_in_details(address):
    status, _, body = post(address, "Sample", b'{"count": 0}')
    error = json.loads(body)
    assert (status, error["code"]) == (400, "invalid_argument")
    assert error["message"].startswith("count: 0 rows requested")
    [detail] = error["details"]
    assert detail["type"] == "google.rpc.BadRequest"
    value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    bad = error_details_pb2.BadRequest.FromString(value)
    assert bad.field_violations[0].field == "count"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Failed to load JSON"),
        (b"\xff", "can't decode byte"),
        (b'{"counts": 1}', 'no field named "counts"'),
        (b'{"count": -1}', "out of range"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_bodies_that_are_no_request_are_refused(address, body, said):
    status, _, answer = post(address, "Sample", body)
    error = json.loads(answer)
    assert (status, error["code"]) == (400, "invalid_argument")
    assert said in error["message"]


def test_json_is_bounded_and_protobuf_is_not(address):
    large = b'{"model": "%s"}' % (b"a" * connect.MAX_JSON)
    status, _, body = post(address, "GetModel", large)
    assert (status, json.loads(body)["code"]) == (400, "invalid_argument")
    assert json.loads(body)["message"].endswith("Send application/proto.")
    message = pb.GetModelRequest(model="a" * connect.MAX_JSON).SerializeToString()
    headers = {"content-type": "application/proto"}
    assert post(address, "GetModel", message, headers)[0] == 404


def test_other_content_types_are_refused(address):
    status, headers, body = post(address, "Sample", b"{}", {"content-type": "text/plain"})
    assert status == 415
    assert headers["accept-post"] == "application/json, application/proto"
    assert b"application/json" in body


def test_deadline_is_the_calls(address):
    late = JSON | {"connect-timeout-ms": "0"}
    status, _, body = post(address, "Sample", b'{"count": 1}', late)
    assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
    status, _, body = post(
        address, "Sample", b'{"count": 1}', JSON | {"connect-timeout-ms": "soon"}
    )
    assert status == 400
    assert json.loads(body)["message"].startswith("connect-timeout-ms: must be an integer")


def test_unknown_model_is_not_found(address):
    status, _, body = post(address, "GetModel", b'{"model": "none"}')
    assert (status, json.loads(body)["code"]) == (404, "not_found")


def test_tokens_are_the_servers(start_server, toy_bundles, tmp_path):
    token, line = new_token("page", ["generate"])
    (tmp_path / "tokens").write_text(line)
    server = start_server(toy_bundles, http_port=0, tokens=tmp_path / "tokens")
    address = f"http://127.0.0.1:{server.server.http_port}"
    status, _, body = post(address, "Sample", b'{"count": 1}')
    assert (status, json.loads(body)["code"]) == (401, "unauthenticated")
    allowed = JSON | {"authorization": f"Bearer {token}"}
    assert post(address, "Sample", b'{"count": 1}', allowed)[0] == 200
    status, _, body = post(address, "GetModel", b"{}", allowed)
    assert (status, json.loads(body)["code"]) == (403, "permission_denied")
    assert server.calls("Sample") == 2


def test_other_host_names_are_refused(http_server):
    """A page of another host that resolves to this machine must not use the command's token."""
    command = (Path(sys.executable).parent / "latentd", "explore", "--server", http_server.target)
    with running([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split("/explore/")[0]
        assert post(address, "Sample", b'{"count": 1}', JSON | {"host": "evil.example"})[0] == 400
        assert post(address, "Sample", b'{"count": 1}', JSON | {"host": "localhost"})[0] == 200


def test_page_listens_on_ipv6(http_server):
    command = (Path(sys.executable).parent / "latentd", "explore", "--server", http_server.target)
    flags = ("--host", "::1", "--port", "0")
    with running([*command, *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split("/explore/")[0]
        assert address.startswith("http://[::1]:")
        assert post(address, "Sample", b'{"count": 1}')[0] == 200


def test_command_says_what_it_cannot_do(tmp_path):
    def said(*flags: object) -> str:
        command = [Path(sys.executable).parent / "latentd", "explore", "--port", "0", *flags]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert run.returncode == 78
        return run.stderr

    assert "No such file" in said("--token-file", tmp_path / "none")
    (tmp_path / "token").write_text("secret")
    assert "in plain text" in said("--server", "far:1", "--token-file", tmp_path / "token")
    assert "--host 203.0.113.1 --port 0: cannot listen" in said("--host", "203.0.113.1")
    assert "--port 99999: must be from 0 to 65535." in said("--port", "99999")


def test_command_is_stopped_by_ctrl_c_without_a_word():
    command = (Path(sys.executable).parent / "latentd", "explore", "--port", "0")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with running(command, text=True, **pipes) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].split()[0]
        with urllib.request.urlopen(address):  # it serves, so it handles signals
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
