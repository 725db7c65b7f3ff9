"""From bytes to the service's methods and back: parsing, statuses, metrics, the log of failures.

The one place where errors become gRPC statuses. Handlers take and give bytes: grpc's own
deserialiser would answer a malformed message with UNKNOWN and the parser's text.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from serving.batcher import Urgency
from serving.errors import (
    DeadlineExpired,
    InvalidInput,
    LatentdError,
    ModelNotFound,
    NotReady,
    Overloaded,
)
from serving.metrics import Metrics
from serving.pb import vae_pb2 as pb
from serving.service import VaeService

log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["VaeService"].full_name
PRIORITY: Final = "latentd-priority"
BACKGROUND: Final = "background"

STATUSES: Final[dict[type[LatentdError], grpc.StatusCode]] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExpired: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
}
"""Everything else is INTERNAL: one fixed sentence for the caller, the whole story in the log."""

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Urgency], Awaitable[Message]]
StreamMethod = Callable[[Any, Urgency], AsyncIterator[Message]]


def handlers(service: VaeService, metrics: Metrics) -> grpc.GenericRpcHandler:
    """All methods of the contract, ready for `server.add_generic_rpc_handlers`."""
    descriptor = pb.DESCRIPTOR.services_by_name["VaeService"]
    table: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
    for method in descriptor.methods:
        request: type[Message] = getattr(pb, method.input_type.name)
        call = _Call(method.name, request, metrics)
        implementation = getattr(service, _snake_case(method.name))
        if method.server_streaming:
            table[method.name] = grpc.unary_stream_rpc_method_handler(call.stream(implementation))
        else:
            table[method.name] = grpc.unary_unary_rpc_method_handler(call.unary(implementation))
    return grpc.method_handlers_generic_handler(SERVICE, table)


class _Call:
    """One RPC's way from bytes to its method and back."""

    def __init__(self, name: str, request: type[Message], metrics: Metrics) -> None:
        self._name, self._request, self._metrics = name, request, metrics
        self._seconds = metrics.request_seconds.labels(name)

    def unary(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            began, model = time.perf_counter(), ""
            code = grpc.StatusCode.OK
            try:
                request = self._parse(data)
                response = await method(request, _urgency(context))
                model = _model(response)
                return response.SerializeToString()
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                code, text, trailers = status(error, self._name)
                await context.abort(code, text, trailers)
            finally:
                self._count(began, model, code)

        return handle

    def stream(self, method: StreamMethod) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
        async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
            began, model = time.perf_counter(), ""
            code = grpc.StatusCode.OK
            try:
                request = self._parse(data)
                async for response in method(request, _urgency(context)):
                    model = model or _model(response)
                    yield response.SerializeToString()
            except (asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                code, text, trailers = status(error, self._name)
                await context.abort(code, text, trailers)
            finally:
                self._count(began, model, code)

        return handle

    def _parse(self, data: bytes) -> Message:
        try:
            return self._request.FromString(data)
        except DecodeError:
            raise InvalidInput(
                "request",
                f"the bytes are no {self._request.DESCRIPTOR.full_name} message",
                "Generate the client from this server's vae.proto",
            ) from None

    def _count(self, began: float, model: str, code: grpc.StatusCode) -> None:
        self._metrics.requests.labels(self._name, model, code.name).inc()
        self._seconds.observe(time.perf_counter() - began)


def status(error: Exception, method: str) -> tuple[grpc.StatusCode, str, tuple[Any, ...]]:
    """The code, the sentence and the trailing metadata that an error becomes."""
    code = STATUSES.get(type(error))  # type: ignore[arg-type]
    if code is None:
        request_id = secrets.token_hex(6)
        log.error("%s failed, request id %s.", method, request_id, exc_info=error)
        text = f"The server failed on this request. Its log has more under request id {request_id}."
        return grpc.StatusCode.INTERNAL, text, ()
    text = str(error)
    details: list[Message] = []
    pushback: tuple[Any, ...] = ()
    if isinstance(error, InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=text.removeprefix(f"{error.field}: ")
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        # What grpc clients with a retry policy obey by themselves.
        pushback = (("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000))),)
    if not details:
        return code, text, pushback
    rich = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    return code, text, (("grpc-status-details-bin", rich.SerializeToString()), *pushback)


def _urgency(context: Context) -> Urgency:
    remaining = context.time_remaining()
    deadline = math.inf if remaining is None else time.monotonic() + remaining
    metadata = context.invocation_metadata() or ()
    return Urgency(deadline, any(k == PRIORITY and v == BACKGROUND for k, v in metadata))


def _model(response: Any) -> str:
    """The model that answered, for the metric: never the caller's words, which are unbounded."""
    return response.served_by.model if "served_by" in response.DESCRIPTOR.fields_by_name else ""


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).removeprefix("_")
