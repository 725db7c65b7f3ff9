"""HTTP/2 frames, for input that no correct client sends and for the load generator of bench/.

HTTP/2: RFC 9113. Header compression: RFC 7541, of which the settings below allow only literals
and the static table. gRPC over HTTP/2: the protocol document of grpc.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from google.rpc import status_pb2

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
GOAWAY, WINDOW_UPDATE, CONTINUATION = 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PIECE: Final = 16384  # bytes that a frame may hold unless the peer allows more
FIRST_WINDOW: Final = 65535  # bytes; of each stream and of the connection at the start
SECONDS: Final = 120  # timeout for a silent server

HEADER_TABLE_SIZE, INITIAL_WINDOW, MAX_FRAME_SIZE, TRUE_BINARY = 1, 4, 5, 0xFE03
_CLIENT_SETTINGS: Final = {
    HEADER_TABLE_SIZE: 0,  # no dynamic table: each header block can be read alone
    INITIAL_WINDOW: (1 << 31) - 1,
    TRUE_BINARY: 1,  # gRPC's own: "-bin" headers are sent as they are, not in base64
}
_STATIC: Final = {
    **{8 + i: (b":status", code) for i, code in enumerate((b"200", b"204", b"206", b"304"))},
    **{12 + i: (b":status", code) for i, code in enumerate((b"400", b"404", b"500"))},
    31: (b"content-type", b""),
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
    return head + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


def block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as literals outside the dynamic table."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def call(
    stream: int,
    path: str,
    *more: tuple[bytes, bytes],
    without: bytes = b"",
    end: bool = False,
    **changed: bytes,
) -> bytes:
    """The HEADERS frame that starts a gRPC call; `changed` replaces pseudo-headers by name."""
    pseudo = {"method": b"POST", "scheme": b"http", "path": path.encode("latin-1")} | changed
    headers = [(b":" + name.encode(), value) for name, value in pseudo.items()]
    headers += [
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    headers = list({name: (name, value) for name, value in headers}.values())
    packed = block(header for header in headers if header[0] != without)
    flags = END_HEADERS | (END_STREAM if end else 0)
    if len(packed) <= PIECE:
        return frame(HEADERS, flags, stream, packed)
    pieces = [packed[i : i + PIECE] for i in range(0, len(packed), PIECE)]
    return (
        frame(HEADERS, flags & END_STREAM, stream, pieces[0])
        + b"".join(frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1])
        + frame(CONTINUATION, END_HEADERS, stream, pieces[-1])
    )


def message(payload: bytes, *, compressed: bool = False, length: int | None = None) -> bytes:
    """A gRPC message with its prefix; `length` is what the prefix claims."""
    claimed = len(payload) if length is None else length
    return struct.pack(">BI", compressed, claimed) + payload


def body(stream: int, data: bytes, *, end: bool = True) -> bytes:
    """DATA frames. A connection's first 64 KiB need no WINDOW_UPDATE from the server."""
    pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)] or [b""]
    last = [0] * (len(pieces) - 1) + [END_STREAM if end else 0]
    return b"".join(frame(DATA, flag, stream, p) for p, flag in zip(pieces, last, strict=True))


@dataclass
class Answer:
    """The response on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)  # including the trailers
    data: bytes = b""
    reset: int | None = None  # the error code, if the stream was reset
    ended: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status code; None: there was none."""
        code = self.headers.get(b"grpc-status")
        return None if code is None else int(code)

    @property
    def rich(self) -> status_pb2.Status:
        return status_pb2.Status.FromString(self.headers[b"grpc-status-details-bin"][1:])


class Connection:
    """A TCP connection to a server. `read` and `wait_for` read frames and add to `answers`."""

    def __init__(self, port: int, *, preface: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers: dict[int, Answer] = {}
        self.heard = b""  # the last million bytes received
        self.goaway: int | None = None  # the error code
        self.pongs = 0
        self.room = {0: FIRST_WINDOW}  # bytes that may be sent, by stream; 0: the connection
        self._first_window = FIRST_WINDOW
        self._rest = b""
        if preface:
            self.socket.sendall(PREFACE + settings(_CLIENT_SETTINGS) + window(0, 1 << 30))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> bool:
        """Send frames; returns whether the connection was open."""
        try:
            self.socket.sendall(b"".join(frames))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def pour(self, bodies: dict[int, bytes]) -> None:
        """Send these bodies on their streams, a piece of each in turn, as the windows allow.

        Ends no stream, and skips a stream that the server has ended.
        """
        rests = {stream: memoryview(data) for stream, data in bodies.items()}
        while rests := {s: r for s, r in rests.items() if r and not self._ended(s)}:
            sent = 0
            for stream, rest in rests.items():
                room = min(PIECE, self.room[0], self._room_of(stream))
                piece, rests[stream] = rest[:room], rest[room:]
                if piece:
                    self.room[0] -= len(piece)
                    self.room[stream] = self._room_of(stream) - len(piece)
                    sent += len(piece)
                    assert self.send(frame(DATA, 0, stream, bytes(piece)))
            readable, _, _ = select.select([self.socket], [], [], 0 if sent else SECONDS)
            assert readable or sent, "the server opens no window"
            if readable:
                assert self.read(), f"closed, GOAWAY {self.goaway}"

    def _ended(self, stream: int) -> bool:
        return stream in self.answers and self.answers[stream].ended

    def _room_of(self, stream: int) -> int:
        return self.room.setdefault(stream, self._first_window)

    def wait_for(self, *streams: int) -> list[Answer]:
        """Wait until all have ended; returns their answers. Fails if the server closes first."""
        while not all(map(self._ended, streams)):
            assert self.read(), f"closed after {self.answers}, GOAWAY {self.goaway}"
        return [self.answers[stream] for stream in streams]

    def drain(self) -> bytes:
        """Read until the server closes; returns `heard`."""
        while self.read():
            pass
        return self.heard

    def read(self) -> bool:
        """Read the next bytes; False: the server has closed the connection."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        self.heard = (self.heard + data)[-1_000_000:]
        self._rest += data
        while len(self._rest) >= 9:
            length = int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < 9 + length:
                break
            kind, flags = self._rest[3], self._rest[4]
            stream = int.from_bytes(self._rest[5:9], "big") & 0x7FFFFFFF
            payload, self._rest = self._rest[9 : 9 + length], self._rest[9 + length :]
            self._on_frame(kind, flags, stream, payload)
        return bool(data)

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._on_settings(payload)
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == WINDOW_UPDATE:
            self.room[stream] = self._room_of(stream) + int.from_bytes(payload, "big")
        elif kind == PING and flags & ACK:
            self.pongs += 1
        elif kind == PING:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind in (DATA, HEADERS, RST_STREAM):
            answer = self.answers.setdefault(stream, Answer())
            if kind == DATA:
                answer.data += payload
            elif kind == HEADERS:
                assert flags & END_HEADERS
                answer.headers.update(_decode_headers(payload))
            else:
                answer.reset = int.from_bytes(payload, "big")
            answer.ended |= kind == RST_STREAM or bool(flags & END_STREAM)

    def _on_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW:
                for stream in set(self.room) - {0}:
                    self.room[stream] += value - self._first_window
                self._first_window = value


def window(stream: int, more: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", more))


def _string(text: bytes) -> bytes:
    return _number(len(text), 7) + text


def _number(value: int, bits: int) -> bytes:
    """An integer of RFC 7541, 5.1, with no other bits in its first byte."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes((value,))
    value, out = value - limit, bytes((limit,))
    while value >= 128:
        value, out = value >> 7, out + bytes((value & 127 | 128,))
    return out + bytes((value,))


def _decode_headers(packed: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The headers of a block that uses neither the dynamic table nor Huffman's code."""
    at = 0

    def number(bits: int) -> int:
        nonlocal at
        value, at = packed[at] & ((1 << bits) - 1), at + 1
        if value < (1 << bits) - 1:
            return value
        shift = 0
        while True:
            byte, at = packed[at], at + 1
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def string() -> bytes:
        nonlocal at
        assert packed[at] < 128, "Huffman's code"
        length = number(7)
        at += length
        return packed[at - length : at]

    while at < len(packed):
        first = packed[at]
        if first & 0x80:
            yield _STATIC[number(7)]
        elif first & 0xE0 == 0x20:  # the size of the dynamic table
            number(5)
        else:
            index = number(6 if first & 0x40 else 4)
            yield (_STATIC[index][0] if index else string()), string()
