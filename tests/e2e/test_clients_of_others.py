"""Clients of Triton and KServe, unchanged, from an environment of their own: build/clients.

`make test-e2e` makes it. Without it these tests are skipped, and say so.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool

from latentd.pb import open_inference_pb2 as oi
from latentd.pb import vae_pb2 as pb
from latentd.pb.vae_pb2_grpc import VaeServiceStub

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "build/clients/bin/python"
SECONDS = 240

pytestmark = pytest.mark.skipif(
    not (ROOT / "build/clients/installed").exists(), reason="make build/clients/installed"
)


@pytest.mark.parametrize("kind", ["core", "aio"])
@pytest.mark.parametrize("script", ["triton.py", "triton_asyncio.py", "kserve_client.py"])
def test_client_works_unchanged(start_server, start_process, toy_bundles, script, kind):
    server = start_server(toy_bundles, listener=kind)
    command = [PYTHON, "-W", "ignore", Path(__file__).parent / "clients" / script, server.target]
    process = start_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


def test_tritons_client_over_http_works_unchanged(start_server, start_process, toy_bundles):
    server = start_server(toy_bundles, http_port=0)
    script = Path(__file__).parent / "clients" / "triton_http.py"
    command = [PYTHON, "-W", "ignore", script, f"127.0.0.1:{server.server.http_port}"]
    process = start_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


@pytest.mark.filterwarnings("ignore:Protobuf gencode version")
def test_server_and_the_stubs_of_kserve_live_in_one_process(start_server, toy_bundles):
    """Both define inference.ModelInferRequest, of which one pool of descriptors takes one."""
    (file,) = (ROOT / "build/clients").glob("lib/*/site-packages/kserve/**/grpc_predict_v2_pb2.py")
    spec = importlib.util.spec_from_file_location("grpc_predict_v2_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    symbol = "inference.ModelInferRequest"
    default = descriptor_pool.Default().FindMessageTypeByName(symbol)
    assert default is theirs.ModelInferRequest.DESCRIPTOR
    assert default is not oi.ModelInferRequest.DESCRIPTOR
    request = theirs.ModelInferRequest(model_name="toy")
    request.inputs.add(name="z", datatype="FP32", shape=[1, 16]).contents.fp32_contents[:] = [
        0
    ] * 16
    server = start_server(toy_bundles)
    with grpc.insecure_channel(server.target) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            theirs.ModelInferRequest.SerializeToString,
            theirs.ModelInferResponse.FromString,
        )
        assert infer(request).raw_output_contents == [bytes(16)]
        assert VaeServiceStub(channel).Sample(pb.SampleRequest(count=1)).x.tensor.shape[0] == 1
