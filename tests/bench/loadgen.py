"""A cheap load generator: gRPC calls as raw HTTP/2 frames over one connection.

A Python gRPC client spends more CPU on a call than the server under test, so on two cores it would
measure itself. This one sends prepared frames and reads only frame headers. It counts a call as
answered when data and then trailers came, and as refused when the stream ended without data.

HTTP/2: RFC 9113. Header compression: RFC 7541. gRPC over HTTP/2: the protocol document of grpc.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.support.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME_SIZE,
    PIECE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    message,
    settings,
    window,
)

WINDOW = 1 << 30
_HEADER = struct.Struct(">HBBBI")  # of a frame
_STREAM = struct.Struct(">I")


def _literal(name: bytes, value: bytes) -> bytes:
    """A header for the dynamic table; `name` is an index byte or a whole name."""
    key = name if len(name) == 1 else b"\x40" + bytes((len(name),)) + name
    return key + bytes((len(value),)) + value


@dataclass
class Result:
    """The results of one run of load."""

    seconds: float = 0.0
    answered: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)  # seconds, of the answered
    ends: list[float] = field(default_factory=list)  # when each of these ended

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Connection(asyncio.Protocol):
    """One HTTP/2 connection on which one method is called again and again."""

    def __init__(self, path: str, messages: list[bytes], deadline: str = "30S") -> None:
        """messages: serialized requests, sent in turn; deadline: the calls' grpc-timeout."""
        self._bodies = [message(m) for m in messages]
        self._first = b"\x83\x86" + b"".join(
            (
                _literal(b"\x44", path.encode()),
                _literal(b"\x41", b"localhost"),
                _literal(b"te", b"trailers"),
                _literal(b"\x5f", b"application/grpc"),
                _literal(b"grpc-timeout", deadline.encode()),
            )
        )
        # From the second call on: the same headers, from the dynamic table.
        again = b"\x83\x86\xc2\xc1\xc0\xbf\xbe"
        self._again = frame(HEADERS, END_HEADERS, 0, again)[:5], again
        self._small = [
            frame(DATA, END_STREAM, 0, body)[:5] if len(body) <= PIECE else b""
            for body in self._bodies
        ]
        self._buffer = b""
        self._next = 1
        self._window = FIRST_WINDOW  # bytes that the server accepts on the connection
        self._stream_window = FIRST_WINDOW
        self._started: dict[int, float] = {}
        self._got_data: set[int] = set()
        self._unacknowledged = 0
        self._waiting: deque[tuple[int, bytes]] = deque()  # bodies that wait for the window
        self.ready = asyncio.get_running_loop().create_future()
        self.result = Result()
        self.on_end = lambda: None

    # Used by the loops below.

    def call(self) -> None:
        """Start one call."""
        stream, self._next = self._next, self._next + 2
        which = (stream >> 1) % len(self._bodies)
        body, prefix = self._bodies[which], self._small[which]
        self._started[stream] = time.perf_counter()
        if stream == 1:
            self._out.append(frame(HEADERS, END_HEADERS, stream, self._first))
        elif prefix and not self._waiting and len(body) <= self._window:
            # The usual case: all in one piece, without a function call.
            number = _STREAM.pack(stream)
            self._out += (self._again[0], number, self._again[1], prefix, number, body)
            self._window -= len(body)
            return
        else:
            self._out.append(frame(HEADERS, END_HEADERS, stream, self._again[1]))
        self._waiting.append((stream, body))
        self._send_bodies()

    def flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        self._transport.close()

    @property
    def in_flight(self) -> int:
        return len(self._started)

    # asyncio.Protocol.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._out: list[bytes] = [PREFACE]
        self._out.append(settings({INITIAL_WINDOW: WINDOW, MAX_FRAME_SIZE: 1 << 20}))
        self._out.append(window(0, WINDOW - FIRST_WINDOW))
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(error or ConnectionError("closed"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, at)
            length = high << 8 | low
            if end - at < 9 + length:
                break
            if kind == DATA:
                self._got_data.add(stream)
                self._unacknowledged += length
                if flags & END_STREAM:
                    self._ended(stream)
            elif kind == HEADERS:
                if flags & END_STREAM:
                    self._ended(stream)
            else:
                self._control(kind, flags, stream, buffer[at + 9 : at + 9 + length])
            at += 9 + length
        self._buffer = buffer[at:]
        if self._unacknowledged > 1 << 20:
            self._out.append(window(0, self._unacknowledged))
            self._unacknowledged = 0
        self.flush()

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == INITIAL_WINDOW:
                    self._stream_window = value
            self._out.append(frame(SETTINGS, ACK, 0))
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._send_bodies()
        elif kind == RST_STREAM:
            self._ended(stream)
        elif kind == GOAWAY:
            raise ConnectionError(f"the server sent GOAWAY: {payload!r}")

    def _send_bodies(self) -> None:
        while self._waiting and len(self._waiting[0][1]) <= self._window:
            stream, body = self._waiting.popleft()
            assert len(body) <= self._stream_window, "a message larger than the stream's window"
            self._window -= len(body)
            for start in range(0, len(body), PIECE):
                piece = body[start : start + PIECE]
                last = END_STREAM if start + PIECE >= len(body) else 0
                self._out.append(frame(DATA, last, stream, piece))

    def _ended(self, stream: int) -> None:
        started = self._started.pop(stream, None)
        if started is None:
            return
        if stream in self._got_data:
            self._got_data.discard(stream)
            self.result.answered += 1
            now = time.perf_counter()
            self.result.latencies.append(now - started)
            self.result.ends.append(now)
        else:
            self.result.refused += 1
        self.on_end()


async def connect(port: int, path: str, messages: list[bytes], deadline: str = "30S") -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection(path, messages, deadline), "127.0.0.1", port
    )
    await connection.ready
    return connection


async def closed_loop(connection: Connection, in_flight: int, seconds: float) -> Result:
    """Keep `in_flight` calls in flight for `seconds`: each answer starts the next call."""
    done = asyncio.get_running_loop().create_future()
    end = time.perf_counter() + seconds
    connection.result = Result()

    def again() -> None:
        if time.perf_counter() < end:
            connection.call()
        elif not connection.in_flight and not done.done():
            done.set_result(None)

    connection.on_end = again
    started = time.perf_counter()
    for _ in range(in_flight):
        connection.call()
    connection.flush()
    await done
    connection.result.seconds = time.perf_counter() - started
    return connection.result


async def open_loop(connection: Connection, rate: float, seconds: float) -> Result:
    """Start `rate` calls a second, whether or not earlier ones have ended."""
    connection.result, connection.on_end = Result(), lambda: None
    started, sent = time.perf_counter(), 0
    while (now := time.perf_counter()) < started + seconds:
        while sent < (now - started) * rate:
            connection.call()
            sent += 1
        connection.flush()
        await asyncio.sleep(0.002)
    connection.result.seconds = time.perf_counter() - started
    await _drained(connection)
    return connection.result


async def _drained(connection: Connection) -> None:
    empty = asyncio.get_running_loop().create_future()

    def check() -> None:
        if not connection.in_flight and not empty.done():
            empty.set_result(None)

    connection.on_end = check
    check()
    await empty
