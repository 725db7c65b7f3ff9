"""A server with scripted failures: real gRPC, a real port, the service's statuses."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2_grpc

from latentd import codec
from latentd.errors import (
    Unavailable,
)
from latentd.pb import vae_pb2 as pb
from latentd.pb import vae_pb2_grpc
from latentd.transport import status

CHUNK = 4
DRAINING = Unavailable("The server is draining.")


def sampled(seed: int, start: int, stop: int) -> np.ndarray:
    """Rows start..stop of a seed, 2 x 3 images. As in the service, they depend on seed and row."""
    return (np.arange(start * 6, stop * 6) * 7 + seed % 251).astype(np.uint8).reshape(-1, 2, 3)


class ScriptedService(vae_pb2_grpc.VaeServiceServicer):
    """Each call takes one entry of `faults`; calls succeed when there are no more.

    An exception is raised at once; (n, exception) after n chunks; (n, None) ends the stream there;
    a function is called with the call's context, and then the call succeeds.
    """

    def __init__(self) -> None:
        self.faults: deque[Any] = deque()
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.version = 3
        self.call_ended = threading.Event()  # set when a call ends in any way

    def Sample(self, request: Any, context: Any) -> Any:  # noqa: N802 (the RPC's own name)
        self._start(request, context)
        return self._rows(pb.SampleResponse, request, request.offset, request.count)

    def StreamSamples(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        chunks, fault = self._start(request, context)
        end = request.offset + request.count
        for start in range(request.offset, end, CHUNK):
            if chunks == 0:
                if fault is not None:
                    _abort(context, fault)
                return
            chunks -= 1
            yield self._rows(pb.StreamSamplesResponse, request, start, min(CHUNK, end - start))

    def _start(self, request: Any, context: Any) -> tuple[int, Exception | None]:
        copy = type(request)()
        copy.CopyFrom(request)
        self.requests.append(copy)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self.call_ended.set)
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Exception):
            _abort(context, fault)
        if callable(fault):
            fault(context)
        return fault if isinstance(fault, tuple) else (-1, None)

    def _rows(self, kind: Any, request: Any, start: int, count: int) -> Any:
        return kind(
            served_by=pb.ModelVersion(
                model="toy", version=self.version, digest=f"sha256:{self.version:064x}"
            ),
            x=codec.to_rows(sampled(request.seed, start, start + count)),
            seed=request.seed,
            offset=start,
        )


def _abort(context: Any, error: Exception) -> None:
    ended = status.status(error, "Sample", "ab12")
    context.set_trailing_metadata(ended.trailers)
    context.abort(ended.code, ended.details)


class FakeServer:
    """A running server: `script` sets its failures, `health` its health status."""

    def __init__(self, port: int = 0) -> None:
        self.script = ScriptedService()
        self.health = health.HealthServicer(experimental_non_blocking=False)
        options = [("grpc.max_receive_message_length", 1 << 20)]
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        vae_pb2_grpc.add_VaeServiceServicer_to_server(self.script, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.target = f"localhost:{self._server.add_insecure_port(f'localhost:{port}')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
