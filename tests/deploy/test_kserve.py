"""The manifests for KServe: against its own models, and against the server."""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest

from latentd import settings
from latentd.errors import EXIT_CONFIG
from latentd.pb import open_inference_pb2 as oip
from latentd.process.cli import add_serve_parser
from latentd.process.metrics_server import HEALTH_PATHS
from latentd.process.server import HEALTH_NAMES
from tests.support.openapi_models import Models

ROOT = Path(__file__).resolve().parents[2]
KSERVE = ROOT / "build/kserve"
MODELS = {
    "ServingRuntime": "V1alpha1ServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}


@pytest.fixture(scope="module")
def documents():
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which has kustomize in it, is not here")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: make install brings it")
    command = ["kubectl", "kustomize", ROOT / "deploy/k8s/kserve"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return {document["kind"]: document for document in yaml.safe_load_all(ran.stdout)}


@pytest.fixture
def container(documents):
    (one,) = documents["ServingRuntime"]["spec"]["containers"]
    return one


@pytest.fixture
def flags(container):
    """The settings that the container's arguments choose."""
    parser = argparse.ArgumentParser()
    add_serve_parser(parser.add_subparsers(dest="command"))
    args = parser.parse_args(container["args"])
    assert args.command == "serve"
    return vars(args)


def unfit(document):
    if not KSERVE.exists():
        pytest.skip("KServe's models are not here: make test-operate installs them")
    kind = document["kind"]
    return list(
        Models(KSERVE / "kserve", KSERVE / "kubernetes").errors(document, MODELS[kind], kind)
    )


def test_manifests_fit_the_models_of_kserve(documents):
    assert documents.keys() == MODELS.keys()
    for document in documents.values():
        assert unfit(document) == []


@pytest.mark.parametrize(
    ("kind", "spoil", "error"),
    [
        ("ServingRuntime", lambda s: s.update(protocolVersion="v2"), "no field protocolVersion"),
        ("ServingRuntime", lambda s: s.pop("containers"), "lacks containers"),
        (
            "ServingRuntime",
            lambda s: s["containers"][0]["ports"][0].update(containerPort="x"),
            "int",
        ),
        ("InferenceService", lambda s: s["predictor"].update(minReplica=2), "no field minReplica"),
        ("InferenceService", lambda s: s["predictor"]["model"].pop("modelFormat"), "lacks"),
    ],
)
def test_unfit_manifest_is_found(documents, kind, spoil, error):
    document = copy.deepcopy(documents[kind])
    spoil(document["spec"])
    assert any(error in each for each in unfit(document))


def test_runtime_matches_the_service(documents, container):
    runtime, service = documents["ServingRuntime"]["spec"], documents["InferenceService"]["spec"]
    model = service["predictor"]["model"]
    assert model["runtime"] == documents["ServingRuntime"]["metadata"]["name"]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    formats = [(each["name"], each["version"]) for each in runtime["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert container["name"] == "kserve-container"
    assert container["image"].startswith("registry.example.com/latentd:")


def test_runtime_matches_the_server(documents, container, flags):
    server = settings.load_settings(flags, {"LATENTD_HOST": "0.0.0.0"})
    assert server.bundles == "/mnt/models"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "h2c": server.port,
        "http": server.http_port,
        "metrics": server.metrics_port,
    }
    assert next(iter(ports)) == "h2c", "the first one gets the Service's port 80"
    annotations = documents["ServingRuntime"]["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == str(server.metrics_port)
    assert "inference.GRPCInferenceService" in HEALTH_NAMES, "what grpc-v2 stands for"
    assert server.workers == int(container["resources"]["requests"]["cpu"])
    grace = documents["InferenceService"]["spec"]["predictor"]["terminationGracePeriodSeconds"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace >= before + server.lame_duck_seconds + server.drain_seconds + 5 + 5


def test_runtime_serves_a_folder_as_kserve_mounts_it(
    documents, container, flags, publish_toy, start_server, tmp_path
):
    mounted = tmp_path / "mnt/models"  # the content of storageUri: NAME/VERSION
    publish_toy(mounted)
    here = {"bundles": mounted, "workers": 1, "lame_duck_seconds": 0}
    given = {name: value for name, value in flags.items() if hasattr(settings.Settings, name)}
    given = {name: value for name, value in given.items() if value is not None} | here
    given.pop("http_port")
    server = start_server(**given, port=0, metrics_port=0, http_port=0)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]["httpGet"]
        assert probe["port"] == 9464
        assert probe["path"] in HEALTH_PATHS
        url = f"http://127.0.0.1:{server.server.metrics_port}{probe['path']}"
        with urllib.request.urlopen(url, timeout=60) as response:
            assert response.status == 200
    v2 = f"http://127.0.0.1:{server.server.http_port}/v2/models/toy/ready"
    with urllib.request.urlopen(v2, timeout=60) as response:
        assert response.status == 200
    with grpc.insecure_channel(server.target) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            oip.ModelReadyRequest.SerializeToString,
            oip.ModelReadyResponse.FromString,
        )
        for name in ("toy", *(f"toy:{op}" for op in ("encode", "reconstruct", "score", "sample"))):
            assert ready(oip.ModelReadyRequest(name=name), timeout=60).ready, name


def test_uri_of_the_model_itself_is_refused(publish_toy, tmp_path):
    publish_toy(tmp_path)
    mounted = tmp_path / "toy"  # /mnt/models would hold versions
    command = [sys.executable, "-m", "latentd", "serve", "--bundles", mounted, "--metrics-port=0"]
    ran = subprocess.run([*command, "--port=0"], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == EXIT_CONFIG
    assert "is the folder of one model or version" in ran.stderr
