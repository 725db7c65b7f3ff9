"""The listener on gRPC's core: one thread takes its events and runs the handlers' first steps.

It uses names that grpcio does not publish (grpc._cython.cygrpc, on which grpcio's own blocking
server is built). No other file of this project uses them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from latentd.batching import batcher
from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.calls.in_flight import InFlight
from latentd.transport import handlers
from latentd.transport.handlers import Handler
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import (
    DROPPED,
    STREAM_COPIES,
    UNARY_COPIES,
    PendingResponses,
)
from latentd.transport.status import Status

log = logging.getLogger(__name__)

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # a grpcio that is built otherwise
    cygrpc = None

OUTSTANDING_ACCEPTS: Final = 64
"""Calls that gRPC may hand over before the first has been taken. With one, each call would wait for
the previous one."""
MAX_EVENTS_BEFORE_BATCH: Final = 256
"""Events taken before a batch that waits for this thread is run."""
MAX_HANDLER_SECONDS: Final = 30
"""How long handlers of calls that have ended may compute when the listener stops."""
_NO_FLAGS: Final = 0


async def _unimplemented(stream: handlers.CallStream) -> Status:
    return Status(grpc.StatusCode.UNIMPLEMENTED, "Unknown method.")


UNIMPLEMENTED: Final = Handler(_unimplemented)


def available() -> bool:
    """Whether this grpcio has the core's names."""
    return cygrpc is not None


class CoreListener:
    """See listener.Listener."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        options: list[tuple[str, int]],
        responses: PendingResponses,
        requests: PartialRequests,
    ) -> None:
        self.handlers, self._responses, self._requests = handlers, responses, requests
        self._server = cygrpc.Server([(k.encode(), v) for k, v in options], False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self.turns = 0
        self._stopping = False
        self._stopped = threading.Event()
        self._running = InFlight()

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        tls: tuple[Any, ...] = ()
        if credentials is not None:
            tls = (credentials._credentials,)  # type: ignore[attr-defined]
        try:
            return int(self._server.add_http2_port(address.encode(), *tls))
        except RuntimeError:
            return 0

    async def start(self) -> None:
        self._server.start()
        for _ in range(OUTSTANDING_ACCEPTS):
            self._accept()
        self._thread.start()

    async def stop(self, grace: float) -> None:
        self._stopping = True
        self._server.shutdown(self._queue, self._on_shutdown)
        if not await asyncio.to_thread(self._stopped.wait, grace):
            self._server.cancel_all_calls()
            await asyncio.to_thread(self._stopped.wait)
        # The handler of a call that has ended may still compute. What it starts in a queue that has
        # shut down would abort the process.
        if not await asyncio.to_thread(self._running.drain, MAX_HANDLER_SECONDS):
            log.error("A handler has not returned; the listener's queue stays open.")
            return
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)

    # In the listener's thread. The tag of each event is the function that handles it.

    def _run(self) -> None:
        scheduled = batcher.enable_inline_execution()
        events_left = MAX_EVENTS_BEFORE_BATCH
        poll, queue_shutdown = self._queue.poll, cygrpc.CompletionType.queue_shutdown
        while True:
            event = poll(0 if scheduled else None)
            self.turns += 1
            tag = event.tag  # None: there was no event in time, or the queue has shut down
            try:
                if scheduled and (tag is None or events_left <= 0):
                    # The calls that have arrived meanwhile are the next batch.
                    events_left = MAX_EVENTS_BEFORE_BATCH
                    scheduled.pop(0).run_next()
                if tag is not None:
                    events_left -= 1
                    tag(event)
                elif event.completion_type == queue_shutdown and not scheduled:
                    return
            except Exception:  # a bug of this server: it must not end all calls
                log.exception("Unhandled error in the listener thread.")
            finally:
                self.turns += 1

    def _accept(self) -> None:
        self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not self._stopping:
            self._accept()
        if not event.success or event.call is None:
            return
        details = event.call_details
        path = details.method.decode(errors="replace")  # it may be any bytes
        handler = self.handlers.get(path, UNIMPLEMENTED)
        context = handlers.call_context(event.invocation_metadata, details.deadline - time.time())
        rejected = handler.reject(context)
        if rejected is None:
            stream = _CoreStream(event.call, context, self._responses, self._requests)
            self._running.add(stream)
            coroutines.run_coroutine(stream.run(handler, self._running))
        else:
            # The whole call in one batch: cheap rejections leave time to serve the others.
            operations = (
                cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
                cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                _status_operation(rejected),
            )
            event.call.start_server_batch(operations, _ignore)

    def _on_shutdown(self, event: Any) -> None:
        self._stopped.set()


class _CoreStream:
    """One call. Thread-safe."""

    __slots__ = ("_call", "_metadata_sent", "_requests", "_responses", "context")

    def __init__(
        self,
        call: Any,
        context: CallContext,
        responses: PendingResponses,
        requests: PartialRequests,
    ) -> None:
        self._call, self.context = call, context
        self._responses, self._requests = responses, requests
        self._metadata_sent = False
        self._start_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close)

    async def run(self, handler: Handler, running: InFlight) -> None:
        """Run the handler and send its status. The call is in `running` until then."""
        try:
            self._end(await handlers.finish(handler, self))
        finally:
            running.remove(self)

    def _end(self, status: Status) -> None:
        operations = self._initial_metadata()
        on_sent: Callable[[Any], None] = _ignore
        if status.message is not None:
            operations += (cygrpc.SendMessageOperation(status.message, _NO_FLAGS),)
            on_sent = self._reserve(UNARY_COPIES * len(status.message))
        if not self._start_batch((*operations, _status_operation(status)), on_sent):
            on_sent(None)

    @property
    def peer(self) -> str:
        name: bytes = self._call.peer()
        return name.decode(errors="replace")

    def read(self, small: bool = False) -> Future[bytes | None]:
        future: Future[bytes | None] = Future()
        number = self._requests.begin(future, small)

        def on_message(event: Any) -> None:
            self._requests.complete(number)
            future.set_result(event.batch_operations[0].message())

        if not self._start_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), on_message):
            self._requests.complete(number)
            future.set_exception(Cancelled())
        return future

    def write(self, message: bytes) -> Future[None]:
        future: Future[None] = Future()
        release = self._reserve(STREAM_COPIES * len(message))

        def on_sent(event: Any) -> None:
            release(event)
            if event.success:
                future.set_result(None)
            else:
                future.set_exception(Cancelled())

        send = cygrpc.SendMessageOperation(message, _NO_FLAGS)
        if not self._start_batch((*self._initial_metadata(), send), on_sent):
            release(None)
            future.set_exception(Cancelled())
        return future

    def _reserve(self, nbytes: int) -> Callable[[Any], None]:
        """Reserve memory for a response; returns what releases it when its event arrives."""
        number = self._responses.reserve(nbytes, self._drop)
        return lambda event: self._responses.release(number)

    def _drop(self) -> None:
        self._call.cancel(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], DROPPED)

    def _initial_metadata(self) -> tuple[Any, ...]:
        """The operation that sends it, the first time; nothing after that."""
        if self._metadata_sent:
            return ()
        self._metadata_sent = True
        return (cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _start_batch(self, operations: tuple[Any, ...], tag: Callable[[Any], None]) -> bool:
        """Start a batch of operations; `tag` gets its event. False: the call has ended."""
        started: int = self._call.start_server_batch(operations, tag)
        return started == 0

    def _on_close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self.context.cancel()


def _status_operation(status: Status) -> Any:
    code: int = 0 if status.code is grpc.StatusCode.OK else status.code.value[0]
    return cygrpc.SendStatusFromServerOperation(
        status.trailers, code, status.details.encode(), _NO_FLAGS
    )


def _ignore(event: Any) -> None:
    """The status is being sent: nothing is left to do."""
