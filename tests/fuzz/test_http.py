"""Arbitrary and mutated HTTP requests, sent to the port."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzz_inputs import mutated
from tests.support.fuzz_loop import once, run_repeatedly
from tests.support.spatial_bundle import publish_spatial
from tests.support.web import connected, port
from tests.support.web import request as send

INFER = {
    "id": "one",
    "parameters": {"seed": 7},
    "inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}],
    "outputs": [{"name": "x", "parameters": {"binary_data": True}}],
}


def http(head: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [head + " HTTP/1.1", "host: x", *headers, f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


WHOLE = [
    http("GET /sample/toy.png?seed=7&count=3&temperature=0.5&columns=2"),
    http("GET /sample/spatial.png?seed=7&h=32&w=16"),
    http("POST /vae/toy/decode?shape=1&shape=16&dtype=float16&output_type=pt", bytes(32)),
    http("POST /vae/spatial/encode?scaling_factor=0.5&shift_factor=1", b"\x89PNG\r\n\x1a\n"),
    http("POST /v2/models/toy/infer", json.dumps(INFER).encode()),
    http(
        "POST /v2/models/toy:encode/infer", b"{}" + bytes(16), "inference-header-content-length: 2"
    ),
    http("POST /v2/repository/index", b'{"ready": true}'),
    http("GET /v2/models/toy/versions/1/config"),
    http("GET /v2/health/ready", b"", "grpc-timeout: 1S", "expect: 100-continue"),
]
CHUNKED = (
    b"POST /v2/models/toy/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n"
)


@pytest.fixture(scope="module")
def web(tmp_path_factory, publish_toy, module_servers):
    root = tmp_path_factory.mktemp("bundles")
    publish_toy(root)
    publish_spatial(root)
    return module_servers(root, default_model="toy", http_port=0)


def test_server_keeps_serving_after_any_request(web, request, caplog):
    number = port(web)
    wholes = st.sampled_from([*WHOLE, CHUNKED])

    @once
    @given(
        st.one_of(
            *map(mutated, [*WHOLE, CHUNKED]),
            st.lists(wholes, max_size=4).map(b"".join),
            st.binary(max_size=256),
        )
    )
    def property_(data: bytes) -> None:
        with connected(number) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # until the server closes it
                    pass
            except OSError:  # the server has closed it already
                return

    run_repeatedly(property_, request)
    assert not [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    assert send(web, "/sample/toy.png?seed=7").status == 200


@pytest.mark.parametrize("path", ["/sample/toy.png", "/vae/toy/decode", "/v2/models/toy/infer"])
def test_any_query_and_body_get_a_response(web, request, path, caplog):
    method = "GET" if path.startswith("/sample") else "POST"
    names = st.sampled_from(["seed", "count", "shape", "dtype", "scaling_factor", "h", "version"])
    values = st.one_of(st.integers().map(str), st.text(max_size=8), st.floats().map(str))
    bodies = st.one_of(st.binary(max_size=64), json_like().map(lambda v: json.dumps(v).encode()))

    @once
    @given(st.lists(st.tuples(names, values), max_size=5), bodies)
    def property_(query: list[tuple[str, str]], body: bytes) -> None:
        given_path = f"{path}?{urlencode(query, errors='replace')}"
        sent = body if method == "POST" else None
        found = send(web, given_path, sent)
        assert found.status in (200, 400, 404), found

    run_repeatedly(property_, request)
    assert not [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]


def json_like() -> st.SearchStrategy[object]:
    keys = st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "shape", "data"])
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["FP32", "z", "x", "BYTES"]),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)
        ),
        max_leaves=20,
    )
