"""The Open Inference Protocol over HTTP, in JSON and with binary tensors."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest

from latentd.pb import open_inference_pb2 as oi
from tests.support.web import Answer, request

X = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
Z = X.reshape(2, 16).astype(np.float32) / np.float32(255)


def infer(server: Any, model: str, document: Any, binary: bytes = b"", **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    if binary:
        headers["Inference_Header_Content_Length"] = str(len(body))
    return request(server, f"/v2/models/{model}/infer", body + binary, **headers)


def of_x(**more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 4, 4], "datatype": "UINT8", "data": X.tolist(), **more}


def outputs(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {one["name"]: one for one in answer.json["outputs"]}


@pytest.mark.parametrize("data", [X.tolist(), X.ravel().tolist(), X.reshape(4, 8).tolist()])
def test_json_nested_or_flat(server, data):
    found = outputs(infer(server, "toy:encode", {"inputs": [of_x(data=data)]}))
    assert list(found) == ["mean", "log_var"]
    assert found["mean"]["shape"] == [2, 16]
    assert found["mean"]["datatype"] == "FP32"
    np.testing.assert_array_equal(np.float32(found["mean"]["data"]), Z.ravel())
    assert found["log_var"]["data"] == [-2.0] * 32


def test_what_json_sends_is_what_grpc_sends(server):
    document = {
        "id": "one",
        "parameters": {"draw": True, "seed": 2**64 - 1},
        "inputs": [of_x()],
        "outputs": [{"name": "x"}, {"name": "elbo"}],
    }
    answer = infer(server, "toy:reconstruct", document)
    asked = oi.ModelInferRequest(model_name="toy:reconstruct", id="one")
    asked.parameters["draw"].bool_param = True
    asked.parameters["seed"].uint64_param = 2**64 - 1
    asked.inputs.add(name="x", datatype="UINT8", shape=X.shape)
    asked.raw_input_contents.append(X.tobytes())
    asked.outputs.add(name="x")
    asked.outputs.add(name="elbo")
    with grpc.insecure_channel(server.target) as channel:
        expected = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            oi.ModelInferRequest.SerializeToString,
            oi.ModelInferResponse.FromString,
        )(asked)
    assert answer.json["id"] == "one"
    assert (answer.json["model_name"], answer.json["model_version"]) == ("toy:reconstruct", "1")
    assert answer.json["parameters"]["seed"] == str(2**64 - 1)
    x, elbo = expected.raw_output_contents
    found = outputs(answer)
    assert bytes(found["x"]["data"]) == x
    np.testing.assert_array_equal(np.float32(found["elbo"]["data"]), np.frombuffer(elbo, "<f4"))


def test_binary_tensors(server):
    given = {
        "name": "z",
        "shape": [2, 16],
        "datatype": "FP32",
        "parameters": {"binary_data_size": Z.nbytes},
    }
    document = {"inputs": [given], "parameters": {"binary_data_output": True}}
    answer = infer(server, "toy", document, Z.tobytes())
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    (described,) = json.loads(answer.body[:length])["outputs"]
    assert described["parameters"] == {"binary_data_size": 32}
    assert answer.body[length:] == X.tobytes()


def test_each_output_may_be_binary_or_json(server):
    asked = [{"name": "mean", "parameters": {"binary_data": True}}, {"name": "log_var"}]
    answer = infer(server, "toy:encode", {"inputs": [of_x()], "outputs": asked})
    length = int(answer.headers["inference-header-content-length"])
    mean, log_var = json.loads(answer.body[:length])["outputs"]
    assert "data" not in mean
    assert log_var["data"] == [-2.0] * 32
    np.testing.assert_array_equal(np.frombuffer(answer.body[length:], "<f4"), Z.ravel())


def test_seeds_of_64_bits_are_exact(server):
    def sample(seed: int) -> list[int]:
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": "UINT64", "data": [value]}
            for name, value in (("seed", seed), ("index", 2**63 + 1))
        ]
        data: list[int] = outputs(infer(server, "toy:sample", {"inputs": inputs}))["x"]["data"]
        return data

    assert sample(2**64 - 1) == sample(2**64 - 1)
    assert sample(2**64 - 1) != sample(2**64 - 2)


def test_files_are_binary(server):
    given = {"name": "z", "shape": [2, 16], "datatype": "FP32", "data": Z.tolist()}
    document = {"inputs": [given], "parameters": {"format": "png"}}
    refused = infer(server, "toy", document)
    assert (refused.status, "holds files, which JSON cannot" in refused.error) == (400, True)
    document["parameters"] = {"format": "png", "binary_data_output": True}
    assert b"\x89PNG" in infer(server, "toy", document).body


def test_descriptions(server):
    assert request(server, "/v2").json["name"] == "latentd"
    metadata = request(server, "/v2/models/toy%3Aencode").json
    assert metadata["name"] == "toy:encode"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1, 4, 4]}]
    assert request(server, "/v2/models/toy:encode/versions/1").json == metadata
    assert request(server, "/v2/models/toy/config").json["max_batch_size"] > 1
    assert request(server, "/v2/models/toy/config").json["input"][0]["data_type"] == "TYPE_FP32"
    assert request(server, "/v2/models/toy/ready").status == 200
    assert request(server, "/v2/models/other/ready").status == 404
    statistics = request(server, "/v2/models/toy/stats").json["model_stats"]
    assert statistics[0]["name"] == "toy"
    assert len(request(server, "/v2/models/stats").json["model_stats"]) > 1
    index = request(server, "/v2/repository/index", b'{"ready": true}').json
    assert {"name": "toy", "version": "1", "state": "READY", "reason": ""} in index
    assert request(server, "/v2/repository/index", b"").json == index


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"inputs": [{"name": "x", "data": [NaN]}]}', "NaN is not a number of JSON"),
        (b'{"inputs": {}}', "inputs: expected a list"),
        (b'{"inputs": [], "x": 1}', "x: unknown field"),
        (b'{"inputs": [1]}', "inputs: expected an object"),
        (b'{"\\ud800": 1}', "body: expected a string of Unicode"),
        (b'{"inputs": [{"\\ud800": 1}]}', "inputs: expected a string of Unicode"),
        (b'{"id": "\\ud800"}', "id: expected a string of Unicode"),
        (b'{"parameters": {"seed": []}}', "parameters.seed: expected a boolean"),
        (b'{"parameters": {"seed": 1e999}}', "parameters.seed: expected a boolean"),
        (b'{"parameters": {"binary_data_output": 1}}', "expected true or false"),
    ],
)
def test_bodies_that_are_no_request(server, body, words):
    answer = infer(server, "toy:encode", body)
    assert answer.status == 400
    assert words in answer.error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": X.tolist()[:1]}, "16 elements; its shape [2, 4, 4] has 32"),
        ({"data": [256] * 32}, "holds a number beyond UINT8"),
        ({"data": [-1] * 32}, "holds a number beyond UINT8"),
        ({"data": [1.5] * 32}, "expected UINT8, got 1.5"),
        ({"data": [True] * 32}, "expected UINT8, got True"),
        ({"data": ["1"] * 32}, "expected UINT8, got '1'"),
        ({"data": [[1], 2]}, "lists and elements side by side"),
        ({"data": 7}, "expected a list"),
        ({"shape": [-1]}, "expected lengths"),
        ({"shape": [2**62] * 300}, 'inputs["x"].shape: 300 lengths sent, too many'),
        ({"shape": None}, "expected a list"),
        ({"datatype": "FP64"}, "no 'FP64' in JSON"),
        ({"datatype": "BF16"}, "no 'BF16' in JSON"),
        ({"datatype": "FP32", "data": [1e39] * 32}, "holds a number beyond FP32"),
        ({"datatype": "FP16", "data": [10**400] * 32}, "holds a number beyond FP16"),
        ({"parameters": {"binary_data_size": 3}}, "needs data, or binary_data_size"),
        ({"name": 3}, "inputs.name: expected a string"),
    ],
)
def test_tensors_that_are_wrong(server, change, words):
    answer = infer(server, "toy:encode", {"inputs": [of_x(**change)]})
    assert answer.status == 400
    assert words in answer.error


@pytest.mark.parametrize("size", [-1, 33, "32", 31])
def test_binary_sizes_that_are_wrong(server, size):
    given = {"name": "x", "shape": [2, 4, 4], "datatype": "UINT8"}
    document = {"inputs": [{**given, "parameters": {"binary_data_size": size}}]}
    answer = infer(server, "toy:encode", document, X.tobytes())
    assert answer.status == 400
    assert "binary_data_size is" in answer.error or "1 bytes are left" in answer.error


@pytest.mark.parametrize("length", ["x", "-1", "99999", "9" * 40, "0" * 20 + "9", "0" * 5000])
def test_header_lengths_that_are_wrong(server, length):
    answer = infer(server, "toy", b"{}", Inference_Header_Content_Length=length)
    assert answer.status == 400
    assert "inference-header-content-length: expected a number" in answer.error


def test_long_json_is_refused(server):
    answer = infer(server, "toy:encode", b'{"id": "' + b"x" * (4 << 20) + b'"}')
    assert answer.status == 400
    assert "Use the extension for binary tensors" in answer.error


def test_other_errors_are_those_of_the_protocol(server):
    assert infer(server, "other", {"inputs": [of_x()]}).status == 404
    assert "unknown operation" in infer(server, "toy:train", {"inputs": [of_x()]}).error
    assert infer(server, "toy:encode", {"inputs": [of_x()]}, grpc_timeout="0m").status == 504
    zipped = infer(server, "toy:encode", {"inputs": [of_x()]}, Content_Encoding="gzip")
    assert (zipped.status, "content-encoding: gzip" in zipped.error) == (415, True)
