"""The listener on grpc.aio's published interface. Every method is a stream of bytes both ways.

On the wire a unary call is a stream of one message, so one kind of handler is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import grpc

from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.errors import Overloaded
from latentd.transport import handlers
from latentd.transport.handlers import Handler
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import STREAM_COPIES, UNARY_COPIES, PendingResponses
from latentd.transport.status import Status, status

log = logging.getLogger(__name__)

ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


def _worth_logging(record: logging.LogRecord) -> bool:
    """Drop the error of a call that ended before its response: the client has left, or gRPC has
    rejected the call."""
    kind = record.exc_info and record.exc_info[0]
    return not kind or kind.__name__ != "ExecuteBatchError"


class AioListener(grpc.GenericRpcHandler):
    """See listener.Listener."""

    turns = 0

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        options: list[tuple[str, int]],
        responses: PendingResponses,
        requests: PartialRequests,
    ) -> None:
        self.handlers, self._responses, self._requests = handlers, responses, requests
        self._options = options
        self._stopping = False
        # grpc.aio's own logger, which logs such calls with a traceback.
        logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_logging)

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((self,))
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            return 0
        self._address = f"{address.rpartition(':')[0]}:{port}"
        self._credentials = credentials
        return port

    async def start(self) -> None:
        await self._server.start()
        self._restarts = asyncio.create_task(self._restart_if_terminated())

    async def stop(self, grace: float) -> None:
        self._stopping = True
        await self._server.stop(grace)
        await self._restarts

    async def _restart_if_terminated(self) -> None:
        # A call whose path is not UTF-8 makes grpc.aio (1.85) stop its server and close its port.
        while True:
            with contextlib.suppress(Exception):  # grpc.aio logs it
                await self._server.wait_for_termination()
            if self._stopping:
                return
            log.error("grpc.aio server terminated unexpectedly; restarting it.")
            if not self.bind(self._address, self._credentials):
                log.error("Cannot rebind %s.", self._address)
                return
            await self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The method handler for a call; grpc.aio calls this."""
        handler = self.handlers.get(details.method)
        if handler is None:
            return None
        return grpc.stream_stream_rpc_method_handler(
            _method(handler, self._responses, self._requests)
        )


def _method(
    handler: Handler, responses: PendingResponses, requests: PartialRequests
) -> Callable[[Any, ServicerContext], Coroutine[Any, Any, None]]:
    async def run(_: Any, servicer: ServicerContext) -> None:
        stream = _AioStream(servicer, responses, requests)
        rejected = handler.reject(stream.context)
        if rejected is not None:
            return _set_status(servicer, rejected)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Status] = loop.create_future()

        def end(status: Status) -> None:
            if ended.done():
                stream.release()
            else:
                ended.set_result(status)

        async def handle() -> None:
            loop.call_soon_threadsafe(end, stream.reserve(await handlers.finish(handler, stream)))

        coroutines.run_coroutine(handle())
        try:
            status = await ended
            if status.message is not None:
                await servicer.write(status.message)
        except asyncio.CancelledError:
            stream.context.cancel()
            raise
        finally:
            stream.release()
        _set_status(servicer, status)

    return run


def _set_status(servicer: ServicerContext, status: Status) -> None:
    """Set the call's status. `abort` would raise an exception, which costs more than rejecting the
    call and leaves a reference cycle with all that the call holds."""
    servicer.set_trailing_metadata(status.trailers)
    servicer.set_code(status.code)
    servicer.set_details(status.details)


class _AioStream:
    """One call. Thread-safe."""

    def __init__(
        self, servicer: ServicerContext, responses: PendingResponses, requests: PartialRequests
    ) -> None:
        self._servicer, self._responses, self._requests = servicer, responses, requests
        self._reserved: int | None = None
        # Read now: after the call has ended, grpc.aio (1.85) would end the process.
        self.peer: str = servicer.peer()
        self._loop = asyncio.get_running_loop()
        remaining = servicer.time_remaining()
        metadata: Any = servicer.invocation_metadata() or ()
        self.context: CallContext = handlers.call_context(
            metadata, math.inf if remaining is None else remaining
        )

    def read(self, small: bool = False) -> Future[bytes | None]:
        future: Future[bytes | None] = Future()
        number = self._requests.begin(future, small)

        async def read() -> bytes | None:
            try:
                message = await self._servicer.read()
            finally:
                self._requests.complete(number)
            return message if isinstance(message, bytes) else None  # grpc.aio.EOF

        return self._in_loop(read(), future)

    def write(self, message: bytes) -> Future[None]:
        # Counted here, not in the loop: the response may have to wait for the loop too.
        try:
            number = self._responses.reserve(STREAM_COPIES * len(message), None)
        except Overloaded as error:
            future: Future[None] = Future()
            future.set_exception(error.with_traceback(None))  # it would keep the message alive
            return future
        return self._in_loop(self._send(message, number), Future())

    def reserve(self, ending: Status) -> Status:
        """Reserve memory for the last message, if there is one. If memory is full, returns a status
        that rejects the call: grpc.aio cannot end the call later, from outside its handler."""
        if ending.message is None:
            return ending
        try:
            self._reserved = self._responses.reserve(UNARY_COPIES * len(ending.message), None)
        except Overloaded as error:
            return status(error, "A call", self.context.stats.request_id)
        return ending

    def release(self) -> None:
        """Release the memory of the last message."""
        if self._reserved is not None:
            self._responses.release(self._reserved)

    async def _send(self, message: bytes, number: int) -> None:
        try:
            await self._servicer.write(message)
        finally:
            self._responses.release(number)
            del message  # an error's traceback holds this frame, and may live for a while

    def _in_loop(self, work: Any, future: Future[Any]) -> Future[Any]:
        async def run() -> None:
            try:
                future.set_result(await work)
            except (Exception, asyncio.CancelledError):  # the call has ended
                future.set_exception(Cancelled())

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        return future
