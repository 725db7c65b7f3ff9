"""What the protocol tells of server and models; who may ask; what is counted."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2

import latentd
from latentd.pb import open_inference_pb2 as oi
from latentd.pb import vae_pb2 as pb
from latentd.transport.handlers import OPEN_INFERENCE, not_ready
from latentd.transport.health import Health
from latentd.transport.tokens import new_token
from tests.support.open_inference import OpenInference, infer_request, outputs_of

Codes = grpc.StatusCode
X = {"x": ("UINT8", np.zeros((2, 4, 4), np.uint8))}
SEEDS = {"seed": ("UINT64", [[1], [2]]), "index": ("UINT64", [[1], [2]])}
Z = {"z": ("FP32", np.zeros((2, 16), np.float32))}
INPUTS = {"encode": X, "decode": Z, "reconstruct": X, "score": X, "sample": SEEDS}


def tensors(described) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in described}


@pytest.mark.parametrize("operation", INPUTS)
def test_metadata_says_what_a_request_needs_and_gets(oip, operation):
    name = f"toy:{operation}"
    metadata = oip.ModelMetadata(oi.ModelMetadataRequest(name=name))
    assert (metadata.name, list(metadata.versions), metadata.platform) == (name, ["1"], "latentd")
    found, sent = tensors(metadata.inputs), INPUTS[operation]
    assert list(found) == list(sent)
    for tensor, (datatype, values) in sent.items():
        assert found[tensor] == (datatype, [-1, *np.shape(values)[1:]])
    response = oip.ModelInfer(infer_request(name, sent))
    answered = {
        tensor.name: (tensor.datatype, [-1, *tensor.shape[1:]]) for tensor in response.outputs
    }
    assert tensors(metadata.outputs) == answered


@pytest.mark.parametrize("operation", INPUTS)
def test_config_is_the_metadata_without_the_axis_of_rows(oip, operation):
    request = oi.ModelConfigRequest(name=f"toy:{operation}")
    config = oip.ModelConfig(request).config
    metadata = oip.ModelMetadata(oi.ModelMetadataRequest(name=request.name))
    assert config.name == request.name
    assert config.max_batch_size == 4096
    for listed, described in ((config.input, metadata.inputs), (config.output, metadata.outputs)):
        found = {
            one.name: (oi.DataType.Name(one.data_type).removeprefix("TYPE_"), [-1, *one.dims])
            for one in listed
        }
        assert found == tensors(described)


def test_free_axes_and_texts_are_described(oip):
    spatial = oip.ModelMetadata(oi.ModelMetadataRequest(name="spatial:encode"))
    assert tensors(spatial.inputs) == {"x": ("UINT8", [-1, -1, -1, 3])}
    text = oip.ModelMetadata(oi.ModelMetadataRequest(name="text:reconstruct"))
    assert tensors(text.inputs) == {"x": ("BYTES", [-1, 1])}
    assert tensors(text.outputs)["x"] == ("BYTES", [-1, 1])
    config = oip.ModelConfig(oi.ModelConfigRequest(name="text:reconstruct")).config
    assert config.input[0].data_type == oi.TYPE_STRING


def test_server_tells_its_version(oip):
    metadata = oip.ServerMetadata(oi.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("latentd", latentd.__version__)
    assert "statistics" in metadata.extensions


def test_model_is_ready_if_it_would_answer(oip):
    def ready(name: str, version: str = "") -> bool:
        return oip.ModelReady(oi.ModelReadyRequest(name=name, version=version)).ready

    assert ready("toy")
    assert ready("toy:sample", "1")
    assert not ready("point:sample")
    assert not ready("toy", "2")
    assert not ready("toy:embed")
    assert not ready("missing")


def test_index_lists_every_operation_that_a_model_has(oip):
    index = oip.RepositoryIndex(oi.RepositoryIndexRequest(ready=True)).models
    listed = {model.name for model in index}
    assert {f"toy:{operation}" for operation in INPUTS} | {"toy", "point"} <= listed
    assert "point:sample" not in listed
    assert {(model.version, model.state) for model in index} == {("1", "READY")}
    with pytest.raises(grpc.RpcError, match="repository_name"):
        oip.RepositoryIndex(oi.RepositoryIndexRequest(repository_name="other"))


def test_index_tells_why_a_version_is_not_served(start_server, publish_toy, tmp_path):
    publish_toy(tmp_path)
    (publish_toy(tmp_path) / "decoder.onnx").write_bytes(b"")
    server = start_server(tmp_path)
    with grpc.insecure_channel(server.target) as channel:
        index = OpenInference(channel).RepositoryIndex(oi.RepositoryIndexRequest()).models
        (broken,) = (model for model in index if model.version == "2")
        assert (broken.name, broken.state) == ("toy", "UNAVAILABLE")
        assert "decoder.onnx" in broken.reason


def test_statistics_count_rows_and_times_of_an_operation(oip):
    request = oi.ModelStatisticsRequest(name="strict:encode")

    def statistics() -> oi.ModelStatistics:
        (found,) = oip.ModelStatistics(request).model_stats
        return found

    before = statistics()
    for _ in range(3):
        oip.ModelInfer(infer_request("strict:encode", X))
    with pytest.raises(grpc.RpcError):
        oip.ModelInfer(infer_request("strict:encode", {"x": ("UINT8", [[1]])}))
    after = statistics()
    assert (after.name, after.version) == ("strict:encode", "1")
    assert after.inference_count - before.inference_count == 6
    assert after.execution_count - before.execution_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.last_inference >= before.last_inference > -1
    of = after.inference_stats
    assert 0 < of.compute_infer.ns < of.success.ns
    everything = oip.ModelStatistics(oi.ModelStatisticsRequest()).model_stats
    assert {"strict:encode", "toy:sample"} <= {one.name for one in everything}


def test_calls_are_counted_and_report_their_cost(oip, server):
    before = server.metric("latentd_requests_total", method="ModelInfer", model="toy", code="OK")
    call = oip.ModelInfer.with_call(
        infer_request("toy:encode", X), metadata=(("x-request-id", "mine"),)
    )[1]
    trailers = dict(call.trailing_metadata())
    assert trailers["x-request-id"] == "mine"
    assert 'rows;desc="2", model;desc="toy/1"' in trailers["server-timing"]
    counted = server.metric("latentd_requests_total", method="ModelInfer", model="toy", code="OK")
    assert counted == before + 1


@pytest.mark.parametrize("kind", ["core", "aio"])
def test_operation_decides_which_scope_a_token_needs(start_server, toy_bundles, tmp_path, kind):
    file, tokens = tmp_path / "tokens.txt", {}
    for scope in ("models", "generate", "infer"):
        tokens[scope], line = new_token(scope, [scope])
        with file.open("a") as lines:
            lines.write(line + "\n")
    server = start_server(toy_bundles, tokens=file, listener=kind)

    def code(call, request, scope: str = "") -> Codes:
        metadata = (("authorization", f"Bearer {tokens[scope]}"),) if scope else ()
        try:
            call(request, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
        return Codes.OK

    with grpc.insecure_channel(server.target) as channel:
        oip = OpenInference(channel)
        for operation, inputs in INPUTS.items():
            request = infer_request(f"toy:{operation}", inputs)
            needed = "generate" if operation in ("decode", "sample") else "infer"
            for scope in tokens:
                expected = Codes.OK if scope == needed else Codes.PERMISSION_DENIED
                assert code(oip.ModelInfer, request, scope) is expected
            assert code(oip.ModelInfer, request) is Codes.UNAUTHENTICATED
        for probe in ("ServerLive", "ServerReady"):
            assert code(getattr(oip, probe), getattr(oi, f"{probe}Request")()) is Codes.OK
        ready = oi.ModelReadyRequest(name="toy")
        assert code(oip.ModelReady, ready, "infer") is Codes.OK
        assert code(oip.ModelReady, ready) is Codes.UNAUTHENTICATED
        metadata = oi.ModelMetadataRequest(name="toy")
        assert code(oip.ModelMetadata, metadata, "infer") is Codes.PERMISSION_DENIED
        assert code(oip.ModelMetadata, metadata, "models") is Codes.OK


def test_probes_answer_as_health_does(oip, server):
    assert oip.ServerLive(oi.ServerLiveRequest()).live
    assert oip.ServerReady(oi.ServerReadyRequest()).ready
    server.server._health.set("readiness", False)
    try:
        assert not oip.ServerReady(oi.ServerReadyRequest()).ready
        assert oip.ServerLive(oi.ServerLiveRequest()).live
    finally:
        server.server._health.set("readiness", True)


def test_probes_answer_while_models_load():
    loading, probes = not_ready(OPEN_INFERENCE), Health().handlers()
    methods = {f"/{OPEN_INFERENCE.full_name}/{method.name}" for method in OPEN_INFERENCE.methods}
    assert methods - set(loading) == {path for path in probes if "inference" in path}


def test_reflection_describes_both_protocols(channel):
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    names = [OPEN_INFERENCE.full_name, "inference.ModelInferRequest", "vae.v1.VaeService"]
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    requests += [reflection_pb2.ServerReflectionRequest(file_containing_symbol=n) for n in names]
    listed, *files = ask(iter(requests))
    services = {service.name for service in listed.list_services_response.service}
    assert {OPEN_INFERENCE.full_name, "vae.v1.VaeService", "grpc.health.v1.Health"} <= services
    ours, _, vaes = (one.file_descriptor_response.file_descriptor_proto for one in files)
    assert list(ours) == [OPEN_INFERENCE.file.serialized_pb]
    assert list(vaes) == [pb.DESCRIPTOR.serialized_pb]


def test_background_priority_is_honoured(oip, server, monkeypatch):
    seen = []
    find = server.server.repository.find

    def spy(name, version, caller):
        seen.append(caller.background)
        return find(name, version, caller)

    monkeypatch.setattr(server.server.repository, "find", spy)
    for priority in (0, 1, 2):
        assert outputs_of(oip.ModelInfer(infer_request("toy:encode", X, priority=priority)))
    oip.ModelInfer(infer_request("toy:encode", X), metadata=(("latentd-priority", "background"),))
    assert seen == [False, False, True, True]
