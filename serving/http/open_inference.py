"""The Open Inference Protocol over HTTP: JSON, and the extension for binary tensors.

Each request becomes one of the gRPC protocol, which `latentd.open_inference` answers. Here only the
encoding differs: JSON in place of protobuf. Tensors go to it as raw contents, whatever they were.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from starlette.requests import Request

from latentd import narrow_floats
from latentd.codec import MAX_DIMENSIONS, Array
from latentd.errors import InvalidArgument
from latentd.http.adapters import Content
from latentd.http.queries import Query
from latentd.pb import open_inference_pb2 as pb

HEADER_LENGTH: Final = "inference-header-content-length"
MAX_JSON: Final = 4 << 20
"""Bytes of JSON in a request, and of tensors that become JSON in a response. All other calls wait
while Python reads JSON; binary tensors cost nothing of that kind."""

_SERVICE: Final = "/inference.GRPCInferenceService/"
_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_INTEGERS: Final = {"UINT8": "u1", "UINT32": "<u4", "UINT64": "<u8", "INT64": "<i8"}
_FLOATS: Final = {"FP16": "<f2", "FP32": "<f4"}
_DTYPES: Final = {**_INTEGERS, **_FLOATS, "BOOL": "?", "BF16": "<u2"}
_CHUNK: Final = 4096  # numbers that are written to JSON without other threads in between
_USE_BINARY: Final = "Use the extension for binary tensors"


class Describe:
    """A request without tensors: its response's fields become JSON.

    make: the method's request, of the path's parameters and the body's JSON
    part: what of the response is returned
    """

    def __init__(
        self,
        name: str,
        make: Callable[[Mapping[str, str], Any], Message],
        response: type[Message],
        part: Callable[[Any], Any] = lambda found: found,
    ) -> None:
        self._name, self._make, self._response, self._part = name, make, response, part

    def __call__(self, request: Request) -> _Described:
        return _Described(self, request)

    @property
    def method(self) -> str:
        """The path of the gRPC method."""
        return _SERVICE + self._name

    def message(self, request: Request, body: bytes) -> bytes:
        Query(request).finish()
        asked = _parse(body) if body else {}
        return self._make(request.path_params, asked).SerializeToString()

    def content(self, message: bytes) -> Content:
        response = self._response.FromString(message)
        body = json.dumps(_to_json(self._part(response)), ensure_ascii=False).encode()
        ready = getattr(response, "ready", True)  # clients look at the status only
        return Content(body, _JSON, status=200 if ready else 404)


class _Described:
    """One request of a Describe, as adapters.Adapter."""

    def __init__(self, kind: Describe, request: Request) -> None:
        self._kind, self._request, self.method = kind, request, kind.method

    def message(self, body: bytes) -> bytes:
        return self._kind.message(self._request, body)

    def content(self, message: bytes) -> Content:
        return self._kind.content(message)


def _named(request: type[Message]) -> Callable[[Mapping[str, str], Any], Message]:
    return lambda path, body: request(
        name=path.get("name", ""),
        version=path.get("version", ""),
    )


def _index(path: Mapping[str, str], body: Any) -> Message:
    _only(body, ("ready",), "")
    ready = body.get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidArgument("ready", f"expected true or false, got {_short(ready)}")
    return pb.RepositoryIndexRequest(ready=ready)


SERVER: Final = Describe(
    "ServerMetadata", lambda path, body: pb.ServerMetadataRequest(), pb.ServerMetadataResponse
)
METADATA: Final = Describe(
    "ModelMetadata", _named(pb.ModelMetadataRequest), pb.ModelMetadataResponse
)
CONFIG: Final = Describe(
    "ModelConfig", _named(pb.ModelConfigRequest), pb.ModelConfigResponse, lambda r: r.config
)
STATISTICS: Final = Describe(
    "ModelStatistics", _named(pb.ModelStatisticsRequest), pb.ModelStatisticsResponse
)
READY: Final = Describe("ModelReady", _named(pb.ModelReadyRequest), pb.ModelReadyResponse)
INDEX: Final = Describe(
    "RepositoryIndex", _index, pb.RepositoryIndexResponse, lambda r: list(r.models)
)


class Infer:
    """One request of ModelInfer."""

    method: Final = _SERVICE + "ModelInfer"

    def __init__(self, request: Request) -> None:
        self._request = request

    def message(self, body: bytes) -> bytes:
        Query(self._request).finish()
        header, binary = _split(body, self._request.headers.get(HEADER_LENGTH))
        document = _parse(header)
        _only(document, ("id", "parameters", "inputs", "outputs"), "")
        path = self._request.path_params
        request = pb.ModelInferRequest(
            model_name=path["name"],
            model_version=path.get("version", ""),
            id=_text(document.get("id", ""), "id"),
        )
        parameters = dict(_mapping(document.get("parameters", {}), "parameters"))
        self._all_binary = _flag(parameters, "binary_data_output", "parameters")
        self._binary: dict[str, bool] = {}
        _set_parameters(parameters, request.parameters, "parameters")
        for given in _list(document.get("inputs", []), "inputs"):
            binary = self._add_input(given, request, binary)
        if binary:
            raise InvalidArgument("body", f"{len(binary)} bytes are left after the last tensor")
        for asked in _list(document.get("outputs", []), "outputs"):
            self._add_output(asked, request)
        return request.SerializeToString()

    def _add_input(self, given: Any, request: pb.ModelInferRequest, binary: bytes) -> bytes:
        """Add an input; returns the binary tensors after it."""
        _only(given, ("name", "shape", "datatype", "parameters", "data"), "inputs")
        name = _text(given.get("name", ""), "inputs.name")
        field = f'inputs["{name[:100]}"]'
        parameters = dict(_mapping(given.get("parameters", {}), f"{field}.parameters"))
        size = parameters.pop("binary_data_size", None)
        if (size is None) == ("data" not in given):
            raise InvalidArgument(field, "needs data, or binary_data_size among its parameters")
        datatype = _text(given.get("datatype", ""), f"{field}.datatype")
        shape = _list(given.get("shape"), f"{field}.shape")
        if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise InvalidArgument(f"{field}.shape", f"expected lengths, got {_short(shape)}")
        if len(shape) > MAX_DIMENSIONS:
            raise InvalidArgument(f"{field}.shape", f"{len(shape)} lengths sent, too many")
        tensor = request.inputs.add(name=name, datatype=datatype)
        tensor.shape.extend(shape)
        _set_parameters(parameters, tensor.parameters, f"{field}.parameters")
        if size is None:
            request.raw_input_contents.append(_raw(given["data"], datatype, shape, field))
            return binary
        if type(size) is not int or not 0 <= size <= len(binary):
            what = f"binary_data_size is {_short(size)}, and {len(binary)} bytes are left"
            raise InvalidArgument(field, what)
        request.raw_input_contents.append(binary[:size])
        return binary[size:]

    def _add_output(self, asked: Any, request: pb.ModelInferRequest) -> None:
        _only(asked, ("name", "parameters"), "outputs")
        name = _text(asked.get("name", ""), "outputs.name")
        field = f'outputs["{name[:100]}"]'
        parameters = dict(_mapping(asked.get("parameters", {}), f"{field}.parameters"))
        if "binary_data" in parameters:
            self._binary[name] = _flag(parameters, "binary_data", field)
        output = request.outputs.add(name=name)
        _set_parameters(parameters, output.parameters, f"{field}.parameters")

    def content(self, message: bytes) -> Content:
        response = pb.ModelInferResponse.FromString(message)
        head = {"model_name": response.model_name, "model_version": response.model_version}
        if response.id:
            head["id"] = response.id
        parts = [json.dumps(head, ensure_ascii=False)[:-1]]
        parts.append(', "parameters": ' + json.dumps(_parameters(response.parameters)))
        binary: list[bytes] = []
        separator = ', "outputs": ['
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            described: dict[str, Any] = {
                "name": output.name,
                "datatype": output.datatype,
                "shape": list(output.shape),
            }
            if self._binary.get(output.name, self._all_binary):
                described["parameters"] = {"binary_data_size": len(raw)}
                binary.append(raw)
                parts.append(separator + json.dumps(described))
            else:
                parts.append(separator + json.dumps(described)[:-1] + ', "data": ')
                parts += _json_data(output.name, output.datatype, raw)
                parts.append("}")
            separator = ", "
        header = ("".join(parts) + ("]}" if separator == ", " else "}")).encode()
        if not binary:
            return Content(header, _JSON)
        return Content(b"".join((header, *binary)), _BINARY, {HEADER_LENGTH: str(len(header))})


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a body, and the binary tensors after it. Raises InvalidArgument."""
    if length is None:
        header = len(body)
    elif length.isascii() and length.isdecimal() and len(length) <= 20 and int(length) <= len(body):
        header = int(length)
    else:
        what = f"expected a number up to the {len(body)} bytes of the body, got {length[:40]!r}"
        raise InvalidArgument(HEADER_LENGTH, what)
    if header > MAX_JSON:
        what = f"{header} bytes of JSON; the limit is {MAX_JSON}"
        raise InvalidArgument("body", what, _USE_BINARY)
    return body[:header], body[header:]


def _parse(text: bytes) -> Any:
    """The JSON object. Raises InvalidArgument, for NaN and infinity too."""

    def refuse(constant: str) -> Any:
        raise InvalidArgument("body", f"{constant} is not a number of JSON", "Send finite numbers")

    try:
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        what = str(error)[:200] if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise InvalidArgument("body", f"not JSON: {what}") from None
    if not isinstance(found, dict):
        raise InvalidArgument("body", f"expected a JSON object, got {_short(found)}")
    return found


def _only(given: Any, known: tuple[str, ...], field: str) -> None:
    """Raises InvalidArgument unless it is an object with no other keys."""
    _mapping(given, field or "body")
    for key in given.keys() - set(known):
        _text(key, field or "body")
        name = f"{field}.{key}" if field else key
        raise InvalidArgument(name[:100], "unknown field", f"Known are: {', '.join(known)}")


def _mapping(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"expected an object, got {_short(value)}")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgument(field, f"expected a list, got {_short(value)}")
    return value


def _text(value: Any, field: str) -> str:
    try:
        if isinstance(value, str) and value.encode() is not None:
            return value
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise InvalidArgument(field, f"expected a string of Unicode, got {_short(value)}")


def _flag(parameters: dict[str, Any], name: str, field: str) -> bool:
    value = parameters.pop(name, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{field}.{name}", f"expected true or false, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    return repr(value)[:60].encode("ascii", "replace").decode()


def _set_parameters(given: Mapping[str, Any], into: Any, field: str) -> None:
    for name, value in given.items():
        _text(name, field)
        parameter = into[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            parameter.int64_param = value
        elif isinstance(value, int) and 0 <= value < 2**64:
            parameter.uint64_param = value
        elif isinstance(value, float) and math.isfinite(value):
            parameter.double_param = value
        elif isinstance(value, str):
            parameter.string_param = _text(value, f"{field}.{name}"[:100])
        else:
            what = f"expected a boolean, number or string, got {_short(value)}"
            raise InvalidArgument(f"{field}.{name}"[:100], what)


def _parameters(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in sorted(parameters.items())
    }


def _raw(data: Any, datatype: str, shape: list[int], field: str) -> bytes:
    """A tensor's elements, nested or flat, as raw contents. Raises InvalidArgument."""
    flat = _flat(_list(data, f"{field}.data"), field)
    if len(flat) != math.prod(shape):
        what = f"{len(flat)} elements; its shape {_short(shape)} has {math.prod(shape)}"
        raise InvalidArgument(f"{field}.data", what)
    if datatype == "BYTES":
        texts = [_text(one, f"{field}.data").encode() for one in flat]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    kinds = (int,) if datatype in _INTEGERS else (int, float)
    dtype = _INTEGERS.get(datatype) or _FLOATS.get(datatype)
    if dtype is None:
        raise InvalidArgument(f"{field}.datatype", f"no {datatype[:20]!r} in JSON", _USE_BINARY)
    wrong = next((one for one in flat if type(one) not in kinds), None)
    if wrong is not None:
        raise InvalidArgument(f"{field}.data", f"expected {datatype}, got {_short(wrong)}")
    array: Array | None
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype if datatype in _INTEGERS else "<f8").astype(dtype)
    except OverflowError:
        array = None
    if array is None or not np.isfinite(array).all():
        raise InvalidArgument(f"{field}.data", f"holds a number beyond {datatype}")
    return array.tobytes()


def _flat(data: list[Any], field: str) -> list[Any]:
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise InvalidArgument(f"{field}.data", "lists and elements side by side")
        data = list(itertools.chain.from_iterable(data))
    return data


def _json_data(name: str, datatype: str, raw: bytes) -> Iterator[str]:
    """A flat list of a tensor's elements. Raises InvalidArgument."""
    if len(raw) > MAX_JSON:
        what = f"{len(raw)} bytes as JSON; the limit is {MAX_JSON}"
        raise InvalidArgument(f'outputs["{name}"]', what, _USE_BINARY)
    if datatype == "BYTES":
        try:
            yield json.dumps([one.decode() for one in _elements(raw)], ensure_ascii=False)
        except UnicodeDecodeError:
            what = "holds files, which JSON cannot"
            raise InvalidArgument(f'outputs["{name}"]', what, _USE_BINARY) from None
        return
    values: Array = np.frombuffer(raw, _DTYPES[datatype])
    if datatype == "BF16":
        values = narrow_floats.widened(values)
    yield "["
    for start in range(0, len(values), _CHUNK):
        part = json.dumps(values[start : start + _CHUNK].tolist())[1:-1]
        yield f", {part}" if start else part
    yield "]"


def _elements(raw: bytes) -> Iterable[bytes]:
    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
        yield raw[start + 4 : end]
        start = end


def _to_json(value: Any) -> Any:
    """A message as a dictionary of all its fields: integers remain numbers, enums are names."""
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    if not isinstance(value, Message):
        return value
    return {field.name: _field_to_json(field, value) for field in value.DESCRIPTOR.fields}


def _field_to_json(field: Any, message: Message) -> Any:
    value = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    return _to_json(list(value) if field.is_repeated else value)
