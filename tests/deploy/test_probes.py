"""A server with the manifests' variables responds to the manifests' probes."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import settings
from latentd.transport import tokens


def deployment(documents):
    return next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]


def variables(documents):
    """The manifests' variables, except those that depend on the machine."""
    name = deployment(documents)["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    (found,) = [d["data"] for d in documents if d["metadata"]["name"] == name]
    here = {"LATENTD_HOST": "127.0.0.1", "LATENTD_PORT": "0", "LATENTD_METRICS_PORT": "0"}
    return found | here


def probes(documents):
    container = deployment(documents)["containers"][0]
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


def given(chosen):
    """The settings that have a value, by name."""
    return {name: value for name, value in vars(chosen).items() if value is not None}


def assert_probes_succeed(documents, server):
    for name, probe in probes(documents).items():
        assert probe["httpGet"]["port"] == "metrics"
        url = f"http://127.0.0.1:{server.server.metrics_port}{probe['httpGet']['path']}"
        with urllib.request.urlopen(url, timeout=60) as response:
            assert response.status == 200, name


def test_probes_reach_the_server(build, toy_bundles, start_server):
    documents = build("cpu")
    variables_given = variables(documents) | {"LATENTD_BUNDLES": str(toy_bundles)}
    chosen = settings.load_settings({}, variables_given)
    server = start_server(**given(chosen))
    assert_probes_succeed(documents, server)


def certify(folder: Path) -> None:
    """Write the content of the tls component's Secret to a folder."""
    authority = trustme.CA()
    pair = authority.issue_cert("latentd.latentd.svc", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    pair.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))


def test_probes_succeed_with_tls_and_tokens(build, toy_bundles, start_server, tmp_path):
    documents = build("cpu", ["tls"])
    secret = tmp_path
    certify(secret)
    _, line = tokens.new_token("caller", ["models"])
    (secret / "tokens.txt").write_text(line + "\n")
    variables_given = variables(documents) | {"LATENTD_BUNDLES": str(toy_bundles)}
    for mount in ("/tls/", "/tokens/"):
        variables_given = {k: v.replace(mount, f"{secret}/") for k, v in variables_given.items()}
    chosen = settings.load_settings({}, variables_given)
    server = start_server(**given(chosen))
    assert_probes_succeed(documents, server)
    # The calls' port does have TLS.
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
