"""A server with the manifests' variables responds to the manifests' probes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentd import settings
from latentd.transport import tokens

ROOT = Path(__file__).resolve().parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING


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


def test_probes_reach_the_server(build, toy_bundles, start_server):
    documents = build("cpu")
    variables_given = variables(documents) | {"LATENTD_BUNDLES": str(toy_bundles)}
    chosen = settings.load_settings({}, variables_given)
    server = start_server(**{name: getattr(chosen, name) for name in vars(chosen)})
    with grpc.insecure_channel(server.target) as channel:
        for name, probe in probes(documents).items():
            request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=60)
            assert answer.status == SERVING, name


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
    server = start_server(**{name: getattr(chosen, name) for name in vars(chosen)})
    port = server.target.rpartition(":")[2]
    for name, probe in probes(documents).items():
        _, *command = probe["exec"]["command"]
        here = [w.replace("/tls/", f"{secret}/").replace(":50051", f":{port}") for w in command]
        asked = [sys.executable, "-m", "latentd", *here]
        ran = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT)
        assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"
        # Without the certificate it fails: the server does ask for one.
        bare = [word for word in asked if not word.startswith(("--tls-cert", "--tls-key"))]
        assert subprocess.run(bare, capture_output=True, cwd=ROOT).returncode == 1
