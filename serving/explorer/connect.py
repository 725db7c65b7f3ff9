"""The methods of vae.v1 over HTTP: unary calls as the Connect protocol defines them.

https://connectrpc.com/docs/protocol: POST /vae.v1.VaeService/METHOD with a request in JSON or in
protobuf's binary format. Browsers, curl and Connect's own clients can call it.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentd.errors import InvalidArgument
from latentd.pb import vae_pb2 as pb

SERVICE: Final = pb.DESCRIPTOR.services_by_name["VaeService"]
_DETAILS: Final = "grpc-status-details-bin"
_JSON: Final = "application/json"
_PROTO: Final = "application/proto"
MAX_JSON: Final = 16 << 20
"""Bytes of JSON in a request: an image file of 12 MiB. All other calls wait for a part of the time
in which Python reads it; requests in protobuf cost nothing of that kind."""
_QUICK: Final = 64 << 10  # bytes of a response that the event loop itself writes as JSON

_HTTP_STATUS: Final = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
"""By the name of gRPC's code: the protocol maps them as google/rpc/code.proto does."""


def http_status_of(code: str) -> int:
    """The HTTP status of an error with the code of this name."""
    return _HTTP_STATUS.get(code, 500)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended.

    code:     the name of gRPC's status code
    message:  the response's bytes, with code OK
    trailers: the trailing metadata
    """

    code: str
    details: str = ""
    message: bytes = b""
    trailers: tuple[tuple[str, str | bytes], ...] = ()


Convert = Callable[[bytes], bytes]
"""Makes the request's bytes from the body. Raises InvalidArgument."""


class Caller(Protocol):
    """Makes a call of gRPC."""

    def __call__(
        self, path: str, request: Request, convert: Convert, seconds: float | None
    ) -> Awaitable[Answer]:
        """Call the method at `path` with what `convert` makes of the request's body.

        seconds: until the deadline; None: there is none
        """


PATH: Final = f"/{SERVICE.full_name}/{{method}}"


def endpoint(call: Caller) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of PATH: every unary method of vae.v1."""
    methods = {
        method.name: method
        for method in SERVICE.methods
        if not (method.client_streaming or method.server_streaming)
    }

    async def answer(request: Request) -> Response:
        name = request.path_params["method"]
        if name not in methods:
            what = f"{name[:80]} is not served over HTTP. The methods are: {', '.join(methods)}."
            return _error(Answer("UNIMPLEMENTED", what), 404)
        return await _call(methods[name], call, request)

    return answer


async def _call(method: Any, call: Caller, request: Request) -> Response:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _PROTO):
        accepted = {"accept-post": f"{_JSON}, {_PROTO}"}
        return Response(f"Content-Type: send {_JSON} or {_PROTO}.\n", 415, accepted)
    is_json = kind == _JSON
    timeout = request.headers.get("connect-timeout-ms", "")
    if timeout and not re.fullmatch(r"[0-9]{1,10}", timeout):
        return _error(_invalid("connect-timeout-ms", "must be an integer of 1 to 10 digits"))
    if timeout and not int(timeout):  # gRPC may still answer a call that has no time at all
        return _error(Answer("DEADLINE_EXCEEDED", "connect-timeout-ms is 0."))
    request_type: type[Message] = getattr(pb, method.input_type.name)
    response_type: type[Message] = getattr(pb, method.output_type.name)

    def convert(body: bytes) -> bytes:
        return _to_binary(body, request_type) if is_json else body

    path = PATH.format(method=method.name)
    try:
        answer = await call(path, request, convert, int(timeout) / 1000 if timeout else None)
    except InvalidArgument as error:
        answer = _invalid(error.field, error.reason)
    if answer.code != "OK":
        return _error(answer)
    content: str | bytes = answer.message
    if is_json and len(answer.message) > _QUICK:
        content = await asyncio.to_thread(_to_json, answer.message, response_type)
    elif is_json:
        content = _to_json(answer.message, response_type)
    return Response(content, headers=_trailer_headers(answer), media_type=kind)


def _to_binary(body: bytes, kind: type[Message]) -> bytes:
    if len(body) > MAX_JSON:
        what = f"{len(body)} bytes of JSON; the limit is {MAX_JSON}"
        raise InvalidArgument("request", what, f"Send {_PROTO}")
    try:
        return json_format.Parse(body.decode(), kind()).SerializeToString()
    except (json_format.ParseError, UnicodeDecodeError) as error:
        what = f"the body is not a {kind.DESCRIPTOR.full_name} in JSON: {error}"
        raise InvalidArgument("request", what.rstrip(".")) from None


def _to_json(message: bytes, kind: type[Message]) -> str:
    return json_format.MessageToJson(kind.FromString(message), indent=None)


def _invalid(field: str, what: str) -> Answer:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=what)
    rich = status_pb2.Status()
    rich.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return Answer(
        "INVALID_ARGUMENT", f"{field}: {what}.", b"", ((_DETAILS, rich.SerializeToString()),)
    )


def _error(answer: Answer, http_status: int = 0) -> Response:
    code = "canceled" if answer.code == "CANCELLED" else answer.code.lower()
    document: dict[str, Any] = {"code": code, "message": answer.details}
    headers = _trailer_headers(answer)
    for key, value in answer.trailers:
        if key != _DETAILS or not isinstance(value, bytes):
            continue
        rich = status_pb2.Status.FromString(value)
        document["details"] = [
            {
                "type": detail.TypeName(),
                "value": base64.b64encode(detail.value).decode().rstrip("="),
            }
            for detail in rich.details
        ]
        headers |= _retry_after(rich)
    return JSONResponse(document, http_status or http_status_of(answer.code), headers)


def _retry_after(rich: status_pb2.Status) -> Mapping[str, str]:
    info = error_details_pb2.RetryInfo()
    for detail in rich.details:
        if detail.Unpack(info):
            return {"retry-after": str(-(-info.retry_delay.ToMilliseconds() // 1000))}
    return {}


def _trailer_headers(answer: Answer) -> dict[str, str]:
    return {f"trailer-{key}": value for key, value in answer.trailers if isinstance(value, str)}
