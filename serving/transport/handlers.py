"""From bytes to the service's methods and back: parsing, serving, refusing.

A `Handler` takes a Stream of bytes and returns the Status to end it with; how streams come off the
network is the business of `listener`.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import Message

from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.calls.stats import HEADERS
from latentd.errors import InvalidArgument, Overloaded
from latentd.metrics import Metrics
from latentd.pb import vae_pb2 as pb
from latentd.rpc.methods import METHODS
from latentd.rpc.service import VaeService
from latentd.transport.admission import AdmissionController
from latentd.transport.call_recorder import CallRecorder
from latentd.transport.messages import parse
from latentd.transport.status import Metadata, Status, refused, status

SERVICE: Final = pb.DESCRIPTOR.services_by_name["VaeService"].full_name
PRIORITY: Final = "latentd-priority"
BACKGROUND: Final = "background"

MAX_METADATA_BYTES: Final = 16_384
"""Of one call. gRPC is told of it too and (1.85) refuses by chance what is a little larger."""


class Stream(Protocol):
    """One call as a handler sees it."""

    @property
    def caller(self) -> CallContext: ...

    @property
    def peer(self) -> str:
        """The other end of the connection, as gRPC names it: its address and port."""

    def read(self, small: bool = False) -> Future[bytes | None]:
        """The next message; None: the caller has sent its last.

        small: it has to come at once, and is given up before any other where memory is short
        """

    def write(self, message: bytes) -> Future[None]:
        """Send a message; answered when the caller's flow control has room for the next."""


_TOO_MANY_HEADERS: Final = Status(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    f"The call's metadata is larger than {MAX_METADATA_BYTES} bytes.",
    (("grpc-retry-pushback-ms", "-1"),),  # the next attempt would be as large
)

Run = Callable[[Stream], Coroutine[Any, Any, Status]]


def _admit(caller: CallContext) -> Status | None:
    return None


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers a method's calls.

    run:     takes one call to its end
    refusal: the status to refuse a call with before anything of it is read; None: run it
    """

    run: Run
    refusal: Callable[[CallContext], Status | None] = _admit


Unary = Callable[[Any, CallContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, CallContext], AsyncIterator[Message]]
"""The first argument is the request; or, where requests are a stream, an iterator over them."""


def handlers(
    service: VaeService,
    door: AdmissionController,
    metrics: Metrics,
    ledger: Callable[[str], CallRecorder],
) -> dict[str, Handler]:
    """The handler of each method of the contract, by its path; `ledger` makes a method's. Raises
    KeyError for a method that is not in METHODS."""
    table: dict[str, Handler] = {}
    for method in pb.DESCRIPTOR.services_by_name["VaeService"].methods:
        request = getattr(pb, method.input_type.name)
        call = _Method(method.name, request, door, metrics, ledger(method.name))
        implementation = getattr(service, _snake_case(method.name))
        table[f"/{SERVICE}/{method.name}"] = Handler(call.run(method, implementation), call.refusal)
    return table


async def finish(handler: Handler, stream: Stream) -> Status:
    """Run a handler to its end, whatever that is."""
    try:
        return await handler.run(stream)
    except (Exception, Cancelled) as error:
        return status(error, "A call", stream.caller.stats.request_id)
    finally:
        stream.caller.finish()


def not_ready() -> dict[str, Handler]:
    """What stands for `handlers` until the models are loaded."""

    async def handle(stream: Stream) -> Status:
        return Status(grpc.StatusCode.UNAVAILABLE, "The server is loading its models.")

    methods = pb.DESCRIPTOR.services_by_name["VaeService"].methods
    return {f"/{SERVICE}/{method.name}": Handler(handle) for method in methods}


class _Method:
    """One method's way from bytes to the service and back."""

    def __init__(
        self,
        name: str,
        request: type[Message],
        door: AdmissionController,
        metrics: Metrics,
        ledger: CallRecorder,
    ) -> None:
        self._name, self._request, self._door, self._metrics = name, request, door, metrics
        self._ledger = ledger
        self._lane = METHODS[name].first_graph
        if self._lane:
            self._exhausted = metrics.requests.labels(name, "", "RESOURCE_EXHAUSTED")

    def refusal(self, caller: CallContext) -> Status | None:
        """See Handler."""
        if caller.header_bytes > MAX_METADATA_BYTES:
            self._metrics.requests.labels(self._name, "", "RESOURCE_EXHAUSTED").inc()
            return _TOO_MANY_HEADERS
        if not self._lane or caller.deadline == math.inf:
            return None
        wait = self._door.wait(self._lane, caller.deadline)
        if wait is None:
            return None
        self._metrics.shed.labels(self._lane, "admission").inc()
        self._exhausted.inc()
        return refused(math.ceil(wait * 100) / 100)

    def run(self, method: Any, implementation: Any) -> Run:
        """How the service's `implementation` of a method is called, by what of it is a stream."""
        if not method.server_streaming:
            return self.unary(implementation)
        return (self.bidi_streaming if method.client_streaming else self.streaming)(implementation)

    def unary(self, method: Unary) -> Run:
        async def handle(stream: Stream) -> Status:
            caller, began, served_by = stream.caller, time.monotonic(), None
            self._ledger.open(caller.stats)
            try:
                message = await stream.read()
                began = time.monotonic()  # the call is complete only with its message
                request = self._parse(message, caller)
                response = await method(request, caller)
                served_by = _served_by(response)
                ended = Status(message=response.SerializeToString())
                self._door.on_admitted()
            except (Exception, Cancelled) as error:
                ended = status(error, self._name, caller.stats.request_id)
                if isinstance(error, Overloaded) and self._lane:
                    self._door.on_rejected(self._lane, caller.deadline)
            return self._ledger.enter(caller.stats, began, served_by, ended)

        return handle

    def streaming(self, method: Streaming) -> Run:
        async def handle(stream: Stream) -> Status:
            stats, began = stream.caller.stats, time.monotonic()
            self._ledger.open(stats)
            try:
                request = self._parse(await stream.read(), stream.caller)
            except (Exception, Cancelled) as error:
                ended = status(error, self._name, stats.request_id)
                return self._ledger.enter(stats, began, None, ended)
            return await self._send(began, method(request, stream.caller), stream)

        return handle

    def bidi_streaming(self, method: Streaming) -> Run:
        async def handle(stream: Stream) -> Status:
            began = time.monotonic()
            self._ledger.open(stream.caller.stats)
            return await self._send(began, method(self._requests(stream), stream.caller), stream)

        return handle

    async def _requests(self, stream: Stream) -> AsyncIterator[Message]:
        while (message := await stream.read()) is not None:
            yield self._parse(message, stream.caller)
        if stream.caller.cancelled:
            raise Cancelled  # nobody said that this was all

    async def _send(
        self, began: float, responses: AsyncIterator[Message], stream: Stream
    ) -> Status:
        stats, served_by, ended = stream.caller.stats, None, Status()
        response: Message | None
        try:
            async for response in responses:
                served_by = served_by or _served_by(response)
                await stream.write(response.SerializeToString())
                response = None  # the next may be long in coming
        except (Exception, Cancelled) as error:
            ended = status(error, self._name, stats.request_id)
        finally:
            # An error's traceback holds this frame, and so would all of the stream.
            del responses
            response = None
        return self._ledger.enter(stats, began, served_by, ended)

    def _parse(self, data: bytes | None, caller: CallContext) -> Message:
        if data is None:
            if caller.cancelled:
                raise Cancelled  # it went before its message came
            raise InvalidArgument("request", "the call ended before its message had come whole")
        return parse(self._request, data)


def call_context(metadata: Metadata, seconds_left: float) -> CallContext:
    """The caller that a call's deadline and metadata describe."""
    caller = CallContext(time.monotonic() + seconds_left)
    for key, value in metadata:
        caller.header_bytes += len(key) + len(value)
        if key == PRIORITY:
            caller.background = value == BACKGROUND
        elif key == "authorization":
            caller.authorization = str(value)
        elif key in HEADERS:
            caller.stats.set_header(key, value)
    return caller


def _served_by(response: Any) -> pb.ModelVersion | None:
    """The model that answered, for the metric: never the caller's words, which are unbounded."""
    return getattr(response, "served_by", None)


def _snake_case(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).removeprefix("_")
