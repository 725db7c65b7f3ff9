"""The listener on grpc.aio's published interface: every method as a stream of bytes both ways.

On the wire a unary call is a stream of one message, so one kind of handler serves all.
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
from latentd.transport.response_memory import STREAMED, UNARY, PendingResponses
from latentd.transport.status import Status, status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


def _worth_logging(record: logging.LogRecord) -> bool:
    """Not that a call was over before its answer: its caller had gone, or gRPC had refused it."""
    kind = record.exc_info and record.exc_info[0]
    return not kind or kind.__name__ != "ExecuteBatchError"


class AioListener(grpc.GenericRpcHandler):
    """See listener.Listener."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        options: list[tuple[str, int]],
        answers: PendingResponses,
        arrivals: PartialRequests,
    ) -> None:
        self.handlers, self._answers, self._arrivals = handlers, answers, arrivals
        self._options = options
        self._stopping = False
        # grpc.aio's own, which tells of such calls with a traceback.
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
        self._revival = asyncio.create_task(self._revive())

    async def stop(self, grace: float) -> None:
        self._stopping = True
        await self._server.stop(grace)
        await self._revival

    async def _revive(self) -> None:
        # grpc.aio (1.85) gives up its server, port and all, on a call whose path is no UTF-8.
        while True:
            with contextlib.suppress(Exception):  # the log has it from grpc.aio
                await self._server.wait_for_termination()
            if self._stopping:
                return
            log.error("grpc.aio gave up its server. Another takes over the port.")
            if not self.bind(self._address, self._credentials):
                log.error("%s cannot be opened again.", self._address)
                return
            await self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The method handler for a call, as grpc.aio asks for it."""
        handler = self.handlers.get(details.method)
        if handler is None:
            return None
        return grpc.stream_stream_rpc_method_handler(_run(handler, self._answers, self._arrivals))


def _run(
    handler: Handler, answers: PendingResponses, arrivals: PartialRequests
) -> Callable[[Any, Context], Coroutine[Any, Any, None]]:
    async def run(requests: Any, context: Context) -> None:
        stream = _AioStream(context, answers, arrivals)
        refusal = handler.refusal(stream.caller)
        if refusal is not None:
            return _end(context, refusal)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Status] = loop.create_future()

        def end(how: Status) -> None:
            if ended.done():
                stream.let_go()
            else:
                ended.set_result(how)

        async def life() -> None:
            loop.call_soon_threadsafe(end, stream.hold(await handlers.finish(handler, stream)))

        coroutines.run_coroutine(life())
        try:
            how = await ended
            if how.message is not None:
                await context.write(how.message)
        except asyncio.CancelledError:
            stream.caller.cancel()
            raise
        finally:
            stream.let_go()
        _end(context, how)

    return run


def _end(context: Context, how: Status) -> None:
    """Say how the call ends. Abort would do it with an exception, which costs more than the refusal
    of a call and leaves a cycle of all that the call held."""
    context.set_trailing_metadata(how.trailers)
    context.set_code(how.code)
    context.set_details(how.text)


class _AioStream:
    """One call, for handlers that run in any thread."""

    def __init__(
        self, context: Context, answers: PendingResponses, arrivals: PartialRequests
    ) -> None:
        self._context, self._answers, self._arrivals = context, answers, arrivals
        self._held: int | None = None
        # Now: asked for when the call is over, grpc.aio (1.85) ends the process.
        self.peer: str = context.peer()
        self._loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        metadata: Any = context.invocation_metadata() or ()
        self.caller: CallContext = handlers.call_context(
            metadata, math.inf if remaining is None else remaining
        )

    def read(self, small: bool = False) -> Future[bytes | None]:
        reply: Future[bytes | None] = Future()
        number = self._arrivals.expect(reply, small)

        async def read() -> bytes | None:
            try:
                message = await self._context.read()
            finally:
                self._arrivals.came(number)
            return message if isinstance(message, bytes) else None  # grpc.aio.EOF

        return self._in_loop(read(), reply)

    def write(self, message: bytes) -> Future[None]:
        # Counted here and not in the loop, for which answers may have to wait too.
        try:
            number = self._answers.hold(STREAMED * len(message), None)
        except Overloaded as refusal:
            reply: Future[None] = Future()
            reply.set_exception(refusal.with_traceback(None))  # which would hold the message
            return reply
        return self._in_loop(self._send(message, number), Future())

    def hold(self, how: Status) -> Status:
        """Count the last message in, if there is one; a refusal where it has no room, for grpc.aio
        ends no call before its time, whatever becomes of its handler."""
        if how.message is None:
            return how
        try:
            self._held = self._answers.hold(UNARY * len(how.message), None)
        except Overloaded as refusal:
            return status(refusal, "A call", self.caller.stats.request_id)
        return how

    def let_go(self) -> None:
        """Count the last message out."""
        if self._held is not None:
            self._answers.release(self._held)

    async def _send(self, message: bytes, number: int) -> None:
        try:
            await self._context.write(message)
        finally:
            self._answers.release(number)
            del message  # the traceback of an error, which may live for a while, holds this frame

    def _in_loop(self, work: Any, reply: Future[Any]) -> Future[Any]:
        async def run() -> None:
            try:
                reply.set_result(await work)
            except (Exception, asyncio.CancelledError):  # the call is over
                reply.set_exception(Cancelled())

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        return reply
