"""Where calls come off the network. Two ways to the same handlers, chosen at start-up:

    core   gRPC's core driven directly: one thread takes its events and runs the handlers' first
           steps. It rests on names that grpcio does not publish (grpc._cython.cygrpc, what its own
           blocking server is made of), so it is used only where a rehearsal of it works.
    aio    grpc.aio, published and stable, at several times the cost of a call: `listener_aio`.

Nothing but this file knows the unpublished names.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import grpc

from latentd.batching import batcher
from latentd.calls import coroutines
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Cancelled, Future
from latentd.errors import ConfigError
from latentd.transport import handlers
from latentd.transport.handlers import Handler
from latentd.transport.listener_aio import AioListener
from latentd.transport.request_memory import PartialRequests
from latentd.transport.response_memory import GIVEN_UP, STREAMED, UNARY, PendingResponses
from latentd.transport.status import Status

log = logging.getLogger(__name__)

try:
    from grpc._cython import cygrpc  # type: ignore[attr-defined]
except ImportError:  # a grpcio that is built otherwise
    cygrpc = None

Option = tuple[str, int]

_ACCEPTS: Final = 64
"""Calls that gRPC may hand over before we have looked at the first: with one, each would wait for
the one before it."""
_PATIENCE: Final = 256
"""Events that are taken at the most before a batch that waits for this thread is run."""
_NO_FLAGS: Final = 0


async def _unknown(stream: handlers.Stream) -> Status:
    return Status(grpc.StatusCode.UNIMPLEMENTED, "This server has no such method.")


_NOT_OURS: Final = Handler(_unknown)


class Listener(Protocol):
    """What the server needs of either way.

    handlers: by path; may be replaced at any time, for calls that come after.
    """

    handlers: Mapping[str, Handler]

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Open a port, with TLS if credentials are given; returns its number, 0 when it cannot be
        had."""

    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None:
        """Accept no more, let calls finish for `grace` seconds, then cancel the rest."""


def choose(
    kind: str, options: list[Option], answers: PendingResponses, arrivals: PartialRequests
) -> Listener:
    """The listener for `kind`, auto | core | aio. Raises ConfigError where core cannot be had."""
    problem = "" if kind == "aio" else _rehearse(answers, arrivals)
    if kind == "core" and problem:
        raise ConfigError(f"--listener core cannot be had: {problem}. Use auto or aio.")
    if kind == "aio" or problem:
        log.warning("Listener: grpc.aio, %s.", problem or "as asked")
        return AioListener({}, options, answers, arrivals)
    return CoreListener({}, options, answers, arrivals)


def _rehearse(answers: PendingResponses, arrivals: PartialRequests) -> str:
    """Make one call through a listener of our own; returns what went wrong, empty if nothing."""
    if cygrpc is None:
        return "this grpcio has no core to drive"

    async def echo(stream: handlers.Stream) -> Status:
        return Status(message=await stream.read())

    async def attempt() -> None:
        listener = CoreListener({"/rehearsal": Handler(echo)}, [], answers, arrivals)
        port = listener.bind("127.0.0.1:0")
        await listener.start()
        try:
            options = [("grpc.enable_http_proxy", 0)]  # the call must not leave this machine
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                call: Any = channel.unary_unary("/rehearsal")
                answer = await call(b"once", timeout=2)
            if answer != b"once":
                raise ValueError(f"the answer was {answer!r}")
        finally:
            await listener.stop(0)

    try:
        asyncio.run(attempt())
    except Exception as error:
        return f"a rehearsal with grpcio {grpc.__version__} failed ({type(error).__name__})"
    return ""


class CoreListener:
    """gRPC's core, its events taken by one thread."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        options: list[Option],
        answers: PendingResponses,
        arrivals: PartialRequests,
    ) -> None:
        self.handlers, self._answers, self._arrivals = handlers, answers, arrivals
        self._server = cygrpc.Server([(k.encode(), v) for k, v in options], False)
        self._queue = cygrpc.CompletionQueue()
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._work, name="listener", daemon=True)
        self._stopping = False
        self._stopped = threading.Event()

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
        for _ in range(_ACCEPTS):
            self._accept()
        self._thread.start()

    async def stop(self, grace: float) -> None:
        self._stopping = True
        self._server.shutdown(self._queue, self._on_shutdown)
        if not await asyncio.to_thread(self._stopped.wait, grace):
            self._server.cancel_all_calls()
            await asyncio.to_thread(self._stopped.wait)
        self._queue.shutdown()
        await asyncio.to_thread(self._thread.join)

    # In the listener's thread. Every event carries the function that takes it.

    def _work(self) -> None:
        lanes = batcher.enable_inline_execution()
        patience = _PATIENCE
        kind = cygrpc.CompletionType
        while True:
            event = self._queue.poll(0 if lanes else None)
            nothing_new = event.completion_type in (kind.queue_timeout, kind.queue_shutdown)
            try:
                if lanes and (nothing_new or patience == 0):
                    # What came in meanwhile is the next batch.
                    patience = _PATIENCE
                    lanes.pop(0).run_next()
                if not nothing_new:
                    patience = max(patience - 1, 0)
                    event.tag(event)
            except Exception:  # of our own making: no call may end the others'
                log.exception("The listener failed on an event.")
            if event.completion_type == kind.queue_shutdown and not lanes:
                return

    def _accept(self) -> None:
        self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not self._stopping:
            self._accept()
        if not event.success or event.call is None:
            return
        details = event.call_details
        path = details.method.decode(errors="replace")  # it need not be text at all
        handler = self.handlers.get(path, _NOT_OURS)
        caller = handlers.call_context(event.invocation_metadata, details.deadline - time.time())
        refusal = handler.refusal(caller)
        if refusal is None:
            stream = _CoreStream(event.call, caller, self._answers, self._arrivals)
            coroutines.run_coroutine(stream.run(handler))
        else:
            # All of the call in one go: what is cheap to refuse leaves time to serve the others.
            operations = (
                cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),
                cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                _end(refusal),
            )
            event.call.start_server_batch(operations, _ignore)

    def _on_shutdown(self, event: Any) -> None:
        self._stopped.set()


class _CoreStream:
    """One call; its methods may be used from any thread."""

    __slots__ = ("_answers", "_arrivals", "_begun", "_call", "caller")

    def __init__(
        self, call: Any, caller: CallContext, answers: PendingResponses, arrivals: PartialRequests
    ) -> None:
        self._call, self.caller = call, caller
        self._answers, self._arrivals = answers, arrivals
        self._begun = False
        self._do([cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)], self._on_close)

    async def run(self, handler: Handler) -> None:
        status = await handlers.finish(handler, self)
        operations = self._begin()
        taken: Callable[[Any], None] = _ignore
        if status.message is not None:
            operations.append(cygrpc.SendMessageOperation(status.message, _NO_FLAGS))
            taken = self._hold(UNARY * len(status.message))
        operations.append(_end(status))
        if not self._do(operations, taken):
            taken(None)

    @property
    def peer(self) -> str:
        name: bytes = self._call.peer()
        return name.decode(errors="replace")

    def read(self, small: bool = False) -> Future[bytes | None]:
        reply: Future[bytes | None] = Future()
        number = self._arrivals.expect(reply, small)

        def on_message(event: Any) -> None:
            self._arrivals.came(number)
            reply.set_result(event.batch_operations[0].message())

        if not self._do([cygrpc.ReceiveMessageOperation(_NO_FLAGS)], on_message):
            self._arrivals.came(number)
        return reply

    def write(self, message: bytes) -> Future[None]:
        reply: Future[None] = Future()
        taken = self._hold(STREAMED * len(message))

        def on_sent(event: Any) -> None:
            taken(event)
            if event.success:
                reply.set_result(None)
            else:
                reply.set_exception(Cancelled())

        operations = self._begin()
        operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
        if not self._do(operations, on_sent):
            taken(None)
            reply.set_exception(Cancelled())
        return reply

    def _hold(self, nbytes: int) -> Callable[[Any], None]:
        """Count an answer in, and give back what counts it out when its event comes."""
        number = self._answers.hold(nbytes, self._give_up)
        return lambda event: self._answers.release(number)

    def _give_up(self) -> None:
        self._call.cancel(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], GIVEN_UP)

    def _begin(self) -> list[Any]:
        if self._begun:
            return []
        self._begun = True
        return [cygrpc.SendInitialMetadataOperation((), _NO_FLAGS)]

    def _do(self, operations: list[Any], tag: Callable[[Any], None]) -> bool:
        """Start a batch of operations; `tag` gets its event. False: the call is over."""
        started: int = self._call.start_server_batch(tuple(operations), tag)
        return started == 0

    def _on_close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self.caller.cancel()


def _end(status: Status) -> Any:
    return cygrpc.SendStatusFromServerOperation(
        status.trailers, status.code.value[0], status.text.encode(), _NO_FLAGS
    )


def _ignore(event: Any) -> None:
    """The status is on its way: nothing is left to do."""
