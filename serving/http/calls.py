"""HTTP requests as calls of gRPC methods: the same handlers, so the same tokens, limits, deadlines
and records. Each call is a stream of one message, which an adapter makes from the request's body.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc
from starlette.requests import Request

from latentd.calls import coroutines
from latentd.calls.coroutines import Cancelled, Future
from latentd.errors import DeadlineExceeded, InvalidArgument, Unsupported
from latentd.transport import handlers
from latentd.transport.call_recorder import TIMING
from latentd.transport.handlers import Handler
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import PendingResponses
from latentd.transport.status import Status

DEADLINE: Final = "grpc-timeout"
"""The header of a request's deadline, as gRPC writes it: at most 8 digits and a unit."""
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")

BODY_SECONDS: Final = 300.0
"""The time that a request's body may take, whatever the deadline."""
_QUICK: Final = 64 << 10  # bytes of a body from which a message is made in the event loop

TOO_LARGE: Final = 413
TOO_SLOW: Final = 408
ENCODED: Final = 415

Convert = Callable[[bytes], bytes]
"""Makes a method's serialized request from a body. Raises InvalidArgument. It may run in a thread
of the event loop's executor."""


@dataclass
class Failed(Exception):
    """A request that gets an error.

    http_status: instead of the one that the status's code means; 0: that one
    """

    status: Status
    headers: Mapping[str, str] = field(default_factory=dict)
    http_status: int = 0


@dataclass(frozen=True)
class Response:
    """A method's serialized response, and the headers that tell what it cost."""

    message: bytes
    headers: Mapping[str, str]


class Calls:
    """Makes calls of requests.

    handlers: returns the handler of each method, by path
    max_bytes: of a body
    """

    def __init__(
        self,
        handlers: Callable[[], Mapping[str, Handler]],
        requests: PartialRequests,
        responses: PendingResponses,
        max_bytes: int,
    ) -> None:
        self._handlers, self.requests, self.responses = handlers, requests, responses
        self.max_bytes = max_bytes

    def call(self, path: str, request: Request, seconds: float = math.inf) -> Call:
        """A call of the method with this path. Raises Failed if it is rejected: for its token, or
        because its deadline cannot be met.

        seconds: until its deadline, unless its header names an earlier one
        """
        handler = self._handlers().get(path)
        if handler is None:
            raise Failed(Status(grpc.StatusCode.UNIMPLEMENTED, f"{path} is not served."))
        call = Call(handler, request, self, seconds)
        rejected = handler.reject(call.context)
        if rejected is not None:
            raise Failed(rejected, call.headers(rejected))
        return call


class Call:
    """One call, a CallStream of its only message."""

    def __init__(self, handler: Handler, request: Request, calls: Calls, seconds: float) -> None:
        metadata = tuple(request.headers.items())
        self._timeout = min(seconds, _timeout(request.headers.get(DEADLINE)))
        self.context = handlers.call_context(metadata, self._timeout)
        client = request.client
        self.peer = f"http:{client.host}:{client.port}" if client else "http:"
        self._handler, self._request, self._calls = handler, request, calls
        self._loop = asyncio.get_running_loop()
        self._receiving: asyncio.Task[None] | None = None
        self._http_status = 0

    async def run(self, convert: Convert) -> Response:
        """Run it to its end. Raises Failed."""
        self._convert = convert
        ended: asyncio.Future[Status] = self._loop.create_future()

        def end(status: Status) -> None:
            if not ended.done():
                ended.set_result(status)

        async def handle() -> None:
            status = await handlers.finish(self._handler, self)
            self._loop.call_soon_threadsafe(end, status)

        coroutines.run_coroutine(handle())
        try:
            async with asyncio.timeout(None if self._timeout == math.inf else self._timeout):
                status = await ended
        except TimeoutError:
            self.context.cancel()
            late = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline exceeded.")
            raise Failed(late, self.headers(late)) from None
        except asyncio.CancelledError:  # the server stops
            self.context.cancel()
            raise
        finally:
            if self._receiving is not None:
                self._receiving.cancel()
        if status.code is not grpc.StatusCode.OK:
            raise Failed(status, self.headers(status), self._http_status)
        return Response(status.message or b"", self.headers(status))

    def headers(self, status: Status) -> dict[str, str]:
        """The response's headers: the request's id, and what the call cost."""
        headers = {"x-request-id": self.context.stats.request_id}
        headers |= {name: str(value) for name, value in status.trailers if name == TIMING}
        return headers

    def read(self, small: bool = False) -> Future[bytes | None]:
        """See CallStream. Called once, by the coroutine's first step."""
        future: Future[bytes | None] = Future()
        if self._receiving is not None:
            future.set_result(None)
        else:
            self.context.on_cancel(future)
            self._receiving = self._loop.create_task(self._receive(future, small))
        return future

    def write(self, message: bytes) -> Future[None]:
        """See CallStream. Only methods without a stream of responses are called."""
        raise Unsupported("Over HTTP a method has one response.")

    async def _receive(self, future: Future[bytes | None], small: bool) -> None:
        """Read the body and make the message; then watch for the client's leaving."""
        number = self._calls.requests.begin(future, small)
        try:
            body = await self._body()
            quick = len(body) <= _QUICK
            message = self._convert(body) if quick else await asyncio.to_thread(self._convert, body)
            del body
        except (Exception, Cancelled) as error:
            self._calls.requests.complete(number)
            future.set_exception(error)
            return
        except asyncio.CancelledError:
            self._calls.requests.complete(number)
            future.set_exception(Cancelled())
            raise
        self._calls.requests.complete(number)
        future.set_result(message)
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.context.cancel()

    async def _body(self) -> bytes:
        """All of the body. Raises InvalidArgument or DeadlineExceeded; Cancelled if the client has
        gone."""
        headers, limit = self._request.headers, self._calls.max_bytes
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            self._http_status = ENCODED
            raise InvalidArgument(
                "content-encoding", f"{encoding[:20]} is not read", "Send it plain"
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise self._too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    event = await self._request.receive()
                    if event["type"] == "http.disconnect":
                        raise Cancelled
                    body += event.get("body", b"")
                    if len(body) > limit:
                        raise self._too_large(limit)
                    if not event.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            self._http_status = TOO_SLOW
            what = f"The body did not arrive within {BODY_SECONDS:.0f} s."
            raise DeadlineExceeded(what) from None

    def _too_large(self, limit: int) -> InvalidArgument:
        self._http_status = TOO_LARGE
        return InvalidArgument("body", f"larger than {limit >> 20} MiB", "Send fewer rows")


def _timeout(header: str | None) -> float:
    """The seconds that a deadline header leaves; inf without one. Raises InvalidArgument."""
    if header is None:
        return math.inf
    found = _TIMEOUT.fullmatch(header)
    if not found:
        raise InvalidArgument(
            DEADLINE,
            f"expected a duration, got {header[:20]!r}",
            "Send digits and a unit, such as 500m or 2S",
        )
    return int(found[1]) * _UNITS[found[2]]
