"""Handlers: parse a request's bytes, call the service's method, serialize its response.

A `Handler` takes a CallStream of bytes and returns the Status that ends it. `listener` makes the
streams from the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.calls.stats import HEADERS
from latentd.errors import InvalidArgument, Overloaded
from latentd.metrics import Metrics
from latentd.pb import open_inference_pb2, vae_pb2
from latentd.rpc.methods import METHODS, PROBE
from latentd.transport.admission import AdmissionController
from latentd.transport.call_recorder import CallRecorder
from latentd.transport.messages import parse
from latentd.transport.status import Metadata, Status, overloaded, status

VAE: Final = vae_pb2.DESCRIPTOR.services_by_name["VaeService"]
OPEN_INFERENCE: Final = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE: Final = VAE.full_name
PRIORITY: Final = "latentd-priority"
BACKGROUND: Final = "background"

MAX_METADATA_BYTES: Final = 16_384
"""Limit for one call. gRPC has the same setting, but gRPC 1.85 rejects what is slightly larger only
at random."""


class CallStream(Protocol):
    """One call as a handler sees it."""

    @property
    def context(self) -> CallContext: ...

    @property
    def peer(self) -> str:
        """The client's address and port, as gRPC writes them."""

    def read(self, small: bool = False) -> Future[bytes | None]:
        """The next message; None: the client has sent its last.

        small: the message must arrive at once; it is dropped first if memory runs short
        """

    def write(self, message: bytes) -> Future[None]:
        """Send a message; done when the client's flow control has room for the next one."""


_TOO_MANY_HEADERS: Final = Status(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    f"The call's metadata is larger than {MAX_METADATA_BYTES} bytes.",
    (("grpc-retry-pushback-ms", "-1"),),  # the next attempt would be as large
)

Run = Callable[[CallStream], Coroutine[Any, Any, Status]]


def _never(context: CallContext) -> Status | None:
    return None


@dataclass(frozen=True, slots=True)
class Handler:
    """Answers the calls of one method.

    run:    runs one call to its end
    reject: the status that rejects a call before its message is read; None: run the call
    """

    run: Run
    reject: Callable[[CallContext], Status | None] = _never


Unary = Callable[[Any, CallContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, CallContext], AsyncIterator[Message]]
"""The first argument is the request; or, if requests are a stream, an iterator over them."""


def handlers(
    service: ServiceDescriptor,
    implementation: object,
    admission: AdmissionController,
    metrics: Metrics,
    recorder: Callable[[str], CallRecorder],
) -> dict[str, Handler]:
    """The handler of each method of a service but its probes, by path.

    implementation: has a method for each, with its name in snake case
    recorder:       makes the recorder of a method, by the method's name
    Raises KeyError for a method that is not in METHODS.
    """
    table: dict[str, Handler] = {}
    for method in _methods(service):
        request = GetMessageClass(method.input_type)
        call = _Method(method.name, request, admission, metrics, recorder(method.name))
        answer = getattr(implementation, _snake_case(method.name))
        table[f"/{service.full_name}/{method.name}"] = Handler(
            call.run(method, answer), call.reject
        )
    return table


async def finish(handler: Handler, stream: CallStream) -> Status:
    """Run a handler; every error it raises becomes a status."""
    try:
        return await handler.run(stream)
    except (Exception, Cancelled) as error:
        return status(error, "A call", stream.context.stats.request_id)
    finally:
        stream.context.finish()


def not_ready(*services: ServiceDescriptor) -> dict[str, Handler]:
    """Handlers for the same methods until the models are loaded: all answer UNAVAILABLE."""

    loading = Status(grpc.StatusCode.UNAVAILABLE, "The server is loading its models.")

    async def handle(stream: CallStream) -> Status:
        return loading

    return {
        f"/{service.full_name}/{method.name}": Handler(handle, lambda _: loading)
        for service in services
        for method in _methods(service)
    }


def _methods(service: ServiceDescriptor) -> list[Any]:
    return [method for method in service.methods if METHODS[method.name] is not PROBE]


class _Method:
    """Bytes to the service and back, for one method."""

    def __init__(
        self,
        name: str,
        request: type[Message],
        admission: AdmissionController,
        metrics: Metrics,
        recorder: CallRecorder,
    ) -> None:
        self._name, self._request, self._metrics = name, request, metrics
        self._admission, self._recorder = admission, recorder
        self._graphs = METHODS[name].first_graphs
        if self._graphs:
            self._shed = metrics.shed.labels(" or ".join(self._graphs), "admission")
            self._exhausted = metrics.requests.labels(name, "", "RESOURCE_EXHAUSTED")

    def reject(self, context: CallContext) -> Status | None:
        """See Handler."""
        if context.header_bytes > MAX_METADATA_BYTES:
            self._metrics.requests.labels(self._name, "", "RESOURCE_EXHAUSTED").inc()
            return _TOO_MANY_HEADERS
        if not self._graphs or context.deadline == math.inf:
            return None
        wait = self._admission.excess_wait(self._graphs, context.deadline)
        if wait is None:
            return None
        self._shed.inc()
        self._exhausted.inc()
        return overloaded(math.ceil(wait * 100) / 100)

    def run(self, method: Any, implementation: Any) -> Run:
        """The handler of the service's `implementation`, by which of its sides are streams."""
        if not method.server_streaming:
            return self.unary(implementation)
        return (self.bidi_streaming if method.client_streaming else self.streaming)(implementation)

    def unary(self, method: Unary) -> Run:
        async def handle(stream: CallStream) -> Status:
            context, started_at, served_by = stream.context, time.monotonic(), None
            self._recorder.start(context.stats)
            try:
                message = await stream.read()
                started_at = time.monotonic()  # a call counts from when its message is complete
                request = self._parse(message, context)
                response = await method(request, context)
                served_by = context.stats.served_by
                ended = Status(message=response.SerializeToString())
                self._admission.on_admitted()
            except (Exception, Cancelled) as error:
                ended = status(error, self._name, context.stats.request_id)
                if isinstance(error, Overloaded) and self._graphs:
                    self._admission.on_rejected(self._graphs, context.deadline)
            return self._recorder.finish(context.stats, started_at, served_by, ended)

        return handle

    def streaming(self, method: Streaming) -> Run:
        async def handle(stream: CallStream) -> Status:
            stats, started_at = stream.context.stats, time.monotonic()
            self._recorder.start(stats)
            try:
                request = self._parse(await stream.read(), stream.context)
            except (Exception, Cancelled) as error:
                ended = status(error, self._name, stats.request_id)
                return self._recorder.finish(stats, started_at, None, ended)
            return await self._send(started_at, method(request, stream.context), stream)

        return handle

    def bidi_streaming(self, method: Streaming) -> Run:
        async def handle(stream: CallStream) -> Status:
            started_at = time.monotonic()
            self._recorder.start(stream.context.stats)
            return await self._send(
                started_at, method(self._requests(stream), stream.context), stream
            )

        return handle

    async def _requests(self, stream: CallStream) -> AsyncIterator[Message]:
        while (message := await stream.read()) is not None:
            yield self._parse(message, stream.context)
        if stream.context.cancelled:
            raise Cancelled  # the client has not ended its requests: some may be missing

    async def _send(
        self, started_at: float, responses: AsyncIterator[Message], stream: CallStream
    ) -> Status:
        stats, served_by, ended = stream.context.stats, None, Status()
        response: Message | None
        try:
            async for response in responses:
                served_by = stats.served_by
                await stream.write(response.SerializeToString())
                response = None  # free it now: the next one may take long
        except (Exception, Cancelled) as error:
            ended = status(error, self._name, stats.request_id)
        finally:
            # An error's traceback holds this frame, which would keep all of the stream alive.
            del responses
            response = None
        return self._recorder.finish(stats, started_at, served_by, ended)

    def _parse(self, data: bytes | None, context: CallContext) -> Message:
        if data is None:
            if context.cancelled:
                raise Cancelled  # the client left before its message arrived
            raise InvalidArgument(
                "request", "the stream ended before the full message was received"
            )
        return parse(self._request, data)


def call_context(metadata: Metadata, seconds_left: float) -> CallContext:
    """The context of a call with this metadata, whose deadline is `seconds_left` from now."""
    context = CallContext(time.monotonic() + seconds_left)
    for key, value in metadata:
        context.header_bytes += len(key) + len(value)
        if key == PRIORITY:
            context.background = value == BACKGROUND
        elif key == "authorization":
            context.authorization = str(value)
        elif key in HEADERS:
            context.stats.set_header(key, value)
    return context


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).removeprefix("_")
