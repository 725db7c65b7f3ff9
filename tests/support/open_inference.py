"""A raw client of the Open Inference Protocol, on messages of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass

from latentd.pb import open_inference_pb2 as oi
from latentd.transport.handlers import OPEN_INFERENCE

DTYPES = {"UINT8": "u1", "FP32": "<f4", "FP16": "<f2", "BF16": "<u2", "UINT64": "<u8"}
DTYPES |= {"INT64": "<i8", "UINT32": "<u4", "BOOL": "?"}


def byte_elements(*elements: bytes) -> bytes:
    """Raw contents of BYTES."""
    return b"".join(len(one).to_bytes(4, "little") + one for one in elements)


def elements(raw: bytes) -> list[bytes]:
    """The elements of raw contents of BYTES."""
    found = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


def infer_request(
    model: str,
    inputs: Mapping[str, tuple[str, Any]],
    outputs: Sequence[str] = (),
    version: str = "",
    **parameters: bool | int | float | str,
) -> oi.ModelInferRequest:
    """A request with raw contents. inputs: (datatype, array), or (BYTES, elements). A parameter
    sizes_h is sizes.h."""
    request = oi.ModelInferRequest(model_name=model, model_version=version, id="a request")
    for name, (datatype, values) in inputs.items():
        if datatype == "BYTES":
            request.inputs.add(name=name, datatype=datatype, shape=(len(values), 1))
            request.raw_input_contents.append(byte_elements(*values))
        else:
            array = np.asarray(values, DTYPES[datatype])
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        set_parameter(request, name.replace("sizes_", "sizes."), value)
    return request


def set_parameter(request: Any, name: str, value: bool | int | float | str) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(request.parameters[name], kinds[type(value)], value)


def outputs_of(response: oi.ModelInferResponse) -> dict[str, Any]:
    """The outputs by their names: arrays, or lists of bytes."""
    assert not any(output.HasField("contents") for output in response.outputs)
    found: dict[str, Any] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            found[output.name] = elements(raw)
            assert list(output.shape) == [len(found[output.name]), 1]
        else:
            array = np.frombuffer(raw, DTYPES[output.datatype])
            found[output.name] = array.reshape(list(output.shape))
    return found


class OpenInference:
    """Calls each method by its name."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls = {
            method.name: channel.unary_unary(
                f"/{OPEN_INFERENCE.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            for method in OPEN_INFERENCE.methods
        }

    def __getattr__(self, name: str) -> Any:
        return self._calls[name]

    def infer(
        self, model: str, inputs: Mapping[str, Any], *outputs: str, **parameters: Any
    ) -> dict[str, Any]:
        """The outputs of a request."""
        return outputs_of(self.ModelInfer(infer_request(model, inputs, outputs, **parameters)))
