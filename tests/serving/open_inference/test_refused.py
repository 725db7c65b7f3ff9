"""What ModelInfer refuses: each error names what is at fault, and nothing is ignored."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from latentd.pb import open_inference_pb2 as oi
from latentd.transport.handlers import OPEN_INFERENCE
from tests.support.open_inference import infer_request, set_parameter

Codes = grpc.StatusCode
X = np.zeros((2, 4, 4), np.uint8)
PARAMETERS = ("seed", "offset", "draws", "temperature", "threshold", "format", "float_dtype")


@pytest.fixture(scope="module")
def listener() -> str:
    return "core"


def encode(*outputs: str, **parameters) -> oi.ModelInferRequest:
    return infer_request("toy:encode", {"x": ("UINT8", X)}, outputs, **parameters)


def refused(oip, request, code=Codes.INVALID_ARGUMENT) -> str:
    with pytest.raises(grpc.RpcError) as error:
        oip.ModelInfer(request)
    assert error.value.code() is code
    return error.value.details()


@pytest.mark.parametrize(
    "name", ["shared_memory_region", "classification", "nonsense", "x", "sizes"]
)
def test_parameter_is_refused_by_name(oip, name):
    assert name in refused(oip, encode(**{name: "value"}))


@pytest.mark.parametrize("name", ["shared_memory_region", "classification", "nonsense"])
def test_parameter_of_a_tensor_is_refused_by_name(oip, name):
    request = encode("mean")
    set_parameter(request.inputs[0], name, "region")
    assert name in refused(oip, request)
    request = encode("mean")
    set_parameter(request.outputs[0], name, "region")
    assert name in refused(oip, request)


def test_size_of_contents_must_be_true(oip):
    request = encode()
    request.inputs[0].parameters["binary_data_size"].int64_param = 32
    oip.ModelInfer(request)
    request.inputs[0].parameters["binary_data_size"].int64_param = 33
    assert "binary_data_size is 33" in refused(oip, request)


def test_sequences_are_refused(oip):
    assert "sequence_id" in refused(oip, encode(sequence_id=4))
    oip.ModelInfer(encode(sequence_id=0, sequence_start=False))


def test_parameters_about_the_form_of_responses_change_nothing(oip):
    expected = oip.ModelInfer(encode()).raw_output_contents
    answer = oip.ModelInfer(
        encode(triton_enable_empty_final_response=True, binary_data_output=False)
    )
    assert answer.raw_output_contents == expected


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [
        ("seed", -1, "0 or more"),
        ("seed", True, "0 or more"),
        ("seed", str(2**64), "too large"),
        ("seed", 1.5, "0 or more"),
        ("float_dtype", "FP64", "FP16, BF16"),
        ("tiling", "sometimes", "when_needed, always"),
        ("timeout", -5, "0 or more"),
        ("priority", "high", "0 or more"),
        ("sizes.h", 16, "unknown parameter"),
    ],
)
def test_value_of_a_parameter_is_refused(oip, parameter, value, said):
    details = refused(oip, encode("z", **{parameter: value}))
    assert details.startswith(f'parameters["{parameter}"]')
    assert said in details


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("draw", 1), ("threshold", "3"), ("format", "gif"), ("fit", "refuse"), ("fit", "squeeze")],
)
def test_type_of_a_parameter_is_refused(oip, parameter, value):
    request = infer_request("toy:reconstruct", {"x": ("UINT8", X)}, **{parameter: value})
    assert f'parameters["{parameter}"]' in refused(oip, request)


def test_unknown_size_is_refused(oip):
    one = ("UINT64", [[1]])
    request = infer_request("spatial:sample", {"seed": one, "index": one}, sizes_d=16, sizes_h=17)
    assert "sizes.d" in refused(oip, request)
    set_parameter(request, "sizes.d", 2**40)
    assert "too large" in refused(oip, request)


@pytest.mark.parametrize("outputs", [["mean", "mean"], ["nonsense"], ["x"]])
def test_output_is_refused_by_name(oip, outputs):
    details = refused(oip, encode(*outputs))
    assert details.startswith(f'outputs["{outputs[-1]}"]')
    assert "mean, log_var, z" in details or "twice" in details


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ("toy:reconstruct", ["is_outlier"]),  # no threshold
        ("toy:score", ["reconstruction_error"]),  # likewise
        ("point:reconstruct", ["kl"]),
        ("point:encode", ["log_var"]),
        ("spatial:reconstruct", ["contributions"]),
    ],
)
def test_output_that_a_model_cannot_give_is_refused(oip, model, outputs):
    shape = (1, 16, 16, 3) if "spatial" in model else (1, 4, 4)
    request = infer_request(model, {"x": ("UINT8", np.zeros(shape, np.uint8))}, outputs)
    assert refused(oip, request).startswith(f'outputs["{outputs[0]}"]')


def test_x_and_params_are_refused_together(oip):
    z = np.zeros((1, 16), np.float32)
    request = infer_request("toy", {"z": ("FP32", z)}, ["x", "params"])
    assert "params" in refused(oip, request)


def test_operation_that_a_model_lacks_is_refused(oip):
    one = ("UINT64", [[1]])
    assert "prior" in refused(oip, infer_request("point:sample", {"seed": one, "index": one}))
    assert "encode, decode" in refused(oip, infer_request("toy:embed", {}))


def test_unknown_model_and_version_are_not_found(oip):
    unknown = infer_request("missing:encode", {"x": ("UINT8", X)})
    assert "missing" in refused(oip, unknown, Codes.NOT_FOUND)
    other = infer_request("toy:encode", {"x": ("UINT8", X)}, version="7")
    assert "7" in refused(oip, other, Codes.NOT_FOUND)
    for version in ("latest", "-1", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 30):
        other = infer_request("toy:encode", {"x": ("UINT8", X)}, version=version)
        assert refused(oip, other).startswith("model_version")


def changed(**inputs) -> oi.ModelInferRequest:
    return infer_request("toy:encode", inputs)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (changed(), 'inputs["x"]: missing'),
        (changed(y=("UINT8", X)), 'inputs["y"]'),
        (changed(x=("UINT8", X), z=("UINT8", X)), 'inputs["z"]'),
        (changed(x=("UINT8", X[0])), "x.shape: expected [rows, 4, 4]"),
        (changed(x=("FP32", X)), "x.datatype: expected uint8"),
        (changed(x=("INT64", X)), "x.datatype: expected one of UINT8"),
        (changed(x=("BYTES", [b"no image"])), "x[0]"),
    ],
)
def test_inputs_are_refused(oip, request_, said):
    assert refused(oip, request_).startswith(said)


def test_contents_are_refused_unless_they_fit_the_shape(oip):
    request = encode()
    request.raw_input_contents[0] = bytes(31)
    assert refused(oip, request).startswith("x: expected 32 bytes")
    request.raw_input_contents.append(b"")
    assert refused(oip, request).startswith("raw_input_contents: 2 contents")
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend([0] * 31)
    assert "expected 32 elements" in refused(oip, request)
    request.inputs[0].contents.uint_contents.append(256)
    assert "beyond UINT8" in refused(oip, request)
    request.raw_input_contents.append(bytes(32))
    assert "typed contents" in refused(oip, request)


def test_two_inputs_of_one_name_are_refused(oip):
    request = encode()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    assert "twice" in refused(oip, request)


@pytest.mark.parametrize("raw", [b"", b"\1", b"\5\0\0\0abc", b"\1\0\0\0ab", b"\xff" * 8])
def test_elements_of_bytes_are_refused_unless_they_fill_the_contents(oip, raw):
    request = infer_request("text:encode", {"x": ("BYTES", [b"a"])})
    request.raw_input_contents[0] = raw
    assert refused(oip, request).startswith("x: ")


def test_text_that_is_not_utf8_is_refused(oip):
    request = infer_request("text:encode", {"x": ("BYTES", [b"a", b"\xff"])})
    assert refused(oip, request).startswith("x[1]: the text is not UTF-8")


def sample(seed, index) -> oi.ModelInferRequest:
    return infer_request("toy:sample", {"seed": seed, "index": index})


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (sample(("UINT64", [[1], [2]]), ("UINT64", [[1]])), "index: 1 rows sent"),
        (sample(("UINT64", [[1, 2]]), ("UINT64", [[1, 2]])), "seed.shape"),
        (sample(("FP32", [[1]]), ("UINT64", [[1]])), "seed.datatype: expected UINT64"),
        (sample(("INT64", [[-1]]), ("UINT64", [[1]])), "seed: -1 is negative"),
        (sample(("UINT64", [[1]] * 5000), ("UINT64", [[1]] * 5000)), "seed.shape: 5000 rows"),
        (sample(("UINT64", np.zeros((0, 1))), ("UINT64", np.zeros((0, 1)))), "seed.shape: 0 rows"),
    ],
)
def test_seeds_are_refused(oip, request_, said):
    assert refused(oip, request_).startswith(said)


def test_shape_of_many_lengths_is_refused(oip):
    request = encode()
    request.inputs[0].shape.extend([2**62] * 100_000)
    assert refused(oip, request).startswith("x.shape")
    request = sample(("UINT64", [[1]]), ("UINT64", [[1]]))
    request.inputs[0].shape.extend([2**62] * 100_000)
    assert refused(oip, request).startswith("seed.shape")


def test_timeout_that_has_passed_is_a_deadline(oip, server):
    rejected = server.metric("latentd_requests_total", method="ModelInfer", model="", code="OK")
    assert "not run" in refused(oip, encode(timeout=1), Codes.DEADLINE_EXCEEDED)
    oip.ModelInfer(encode(timeout=60_000_000))
    oip.ModelInfer(encode(timeout=0))
    assert rejected == 0


def test_compressed_request_is_refused(server):
    with grpc.insecure_channel(server.target, compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary(f"/{OPEN_INFERENCE.full_name}/ModelInfer")
        with pytest.raises(grpc.RpcError) as error:
            call(encode().SerializeToString() * 20)
    assert error.value.code() is Codes.UNIMPLEMENTED
