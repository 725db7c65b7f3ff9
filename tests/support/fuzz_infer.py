"""Requests of the Open Inference Protocol: valid, at a limit, invalid."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import Message
from hypothesis import strategies as st

from latentd.pb import open_inference_pb2 as oi
from tests.support.fuzz_inputs import edges, files, requests, wide
from tests.support.open_inference import byte_elements, infer_request, set_parameter

OPERATIONS = ("", ":encode", ":decode", ":reconstruct", ":score", ":sample", ":embed", ":")
INPUTS = ("x", "z", "seed", "index", "y")
DATATYPES = ("UINT8", "FP32", "FP16", "BF16", "UINT64", "INT64", "BYTES", "BOOL", "")
OUTPUTS = ("x", "z", "mean", "log_var", "params", "elbo", "kl", "log_likelihood", "is_outlier")
OUTPUTS += ("contributions", "reconstruction_error", "values_outside_range", "nonsense")
PARAMETERS = ("seed", "offset", "draw", "draws", "temperature", "threshold", "format", "tiling")
PARAMETERS += ("float_dtype", "draw_x", "fit", "sizes.h", "sizes.w", "sizes", "timeout", "priority")
PARAMETERS += ("sequence_id", "shared_memory_region", "binary_data_size", "nonsense")

FIELDS = {
    "name": st.sampled_from(["", "toy", "toy:score", "spatial:sample", "missing", ":", "x" * 5000]),
    "version": st.sampled_from(["", "1", "2", "-1", "9" * 30, "newest"]),
    "repository_name": st.sampled_from(["", "models"]),
    "ready": st.booleans(),
}
"""Of the other methods' requests."""

numbers = st.one_of(edges, st.integers(-(2**63), 2**63 - 1))
values = st.one_of(
    st.booleans(),
    numbers.filter(lambda number: number < 2**63),
    st.floats(),
    st.sampled_from(["png", "jpeg", "text", "raw", "FP16", "BF16", "always", "resize", "7", "no"]),
)
_images = st.sampled_from([(1, 4, 4), (2, 4, 4), (1, 16, 24, 3)])


@st.composite
def whole(draw: st.DrawFn) -> oi.ModelInferRequest:
    """A request that succeeds, if its parameters and outputs are right for the operation."""
    operation = draw(st.sampled_from(OPERATIONS[:-2]))
    inputs: dict[str, tuple[str, Any]] = {}
    if operation == ":sample":
        rows = draw(st.integers(1, 4))
        pairs = draw(st.lists(st.tuples(wide, wide), min_size=rows, max_size=rows))
        columns = np.array(pairs, np.uint64).reshape(rows, 2)
        inputs = {"seed": ("UINT64", columns[:, :1]), "index": ("UINT64", columns[:, 1:])}
    elif operation in ("", ":decode"):
        inputs = {"z": ("FP32", np.zeros((draw(st.integers(1, 3)), 16)))}
    elif draw(st.booleans()):
        inputs = {"x": ("UINT8", np.zeros(draw(_images)))}
    else:
        inputs = {"x": ("BYTES", draw(st.lists(files, min_size=1, max_size=3)))}
    model = draw(st.sampled_from(["", "toy", "spatial"]))
    return infer_request(model + operation, inputs)


def _tensor(request: oi.ModelInferRequest, drawn: dict[str, Any], raw: bool) -> None:
    tensor = request.inputs.add(
        name=drawn["name"], datatype=drawn["datatype"], shape=drawn["shape"]
    )
    if raw:
        request.raw_input_contents.append(drawn["raw"])
        return
    contents = tensor.contents
    contents.uint_contents.extend(drawn["numbers"])
    contents.fp32_contents.extend(drawn["numbers"])
    contents.uint64_contents.extend(drawn["numbers"])
    contents.bytes_contents.extend(drawn["elements"])


@st.composite
def pieces(draw: st.DrawFn) -> oi.ModelInferRequest:
    """A request of any inputs."""
    elements = st.lists(files, max_size=3)
    tensor = st.fixed_dictionaries(
        {
            "name": st.sampled_from(INPUTS),
            "datatype": st.sampled_from(DATATYPES),
            "shape": st.one_of(
                st.sampled_from([[1, 4, 4], [2, 16], [1, 1], [3], [2, 1], [1, 16, 24, 3]]),
                st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 17), max_size=4),
            ),
            "raw": st.one_of(
                st.sampled_from([bytes(n) for n in (8, 16, 32, 64, 128, 1152)]),
                st.binary(max_size=80),
                elements.map(lambda drawn: byte_elements(*drawn)),
            ),
            "numbers": st.lists(st.integers(0, 300), max_size=20),
            "elements": elements,
        }
    )
    request = oi.ModelInferRequest(
        model_name=draw(st.sampled_from(["", "toy", "spatial", "missing"]))
        + draw(st.sampled_from(OPERATIONS)),
        model_version=draw(st.sampled_from(["", "1", "2", "x"])),
    )
    raw = draw(st.booleans())
    for drawn in draw(st.lists(tensor, max_size=3)):
        _tensor(request, drawn, raw)
    return request


@st.composite
def infer_requests(draw: st.DrawFn) -> bytes:
    """Either of ModelInfer, with some outputs and parameters."""
    request = draw(st.one_of(whole(), pieces()))
    for name in draw(st.lists(st.sampled_from(OUTPUTS), max_size=2)):
        request.outputs.add(name=name)
    chosen = st.dictionaries(st.sampled_from(PARAMETERS), values, max_size=2)
    for name, value in draw(chosen).items():
        set_parameter(request, name, value)
    return request.SerializeToString()


def open_inference_requests(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """Of any method."""
    return infer_requests() if kind is oi.ModelInferRequest else requests(kind, FIELDS)
