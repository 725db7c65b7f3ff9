"""Parse requests; compressed and too long ones are rejected first.

gRPC's own decompression is off: 60 KB may unpack to 60 MB, and gRPC (1.85) would unpack them before
this server can check them. Nor is its own rejection used, an empty set of algorithms: it rejects
calls faster than they are taken from its queue, and other calls wait behind them or are lost. So
compressed messages arrive as they are, are recognized by their first bytes, and are rejected here.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from latentd.errors import InvalidArgument, Unsupported

M = TypeVar("M", bound=Message)

SMALL: Final = 1024
"""Limit in bytes for requests that only name something: health's and reflection's."""

_GZIP: Final = b"\x1f\x8b"
_ZLIB: Final = 0x78
"""The first byte of what gRPC calls deflate. In protobuf it starts field 15, which no request has.
Gzip's first byte has a field type that does not exist."""


def parse(kind: type[M], data: bytes, max_bytes: int | None = None) -> M:
    """Parse a message of this kind.

    max_bytes: None: only gRPC's limit holds
    Raises Unsupported for a compressed message, InvalidArgument for a long or invalid one.
    """
    if data[:1] in (b"\x1f", b"\x78") and _compressed(data):
        raise Unsupported(
            "The request is compressed; this server accepts uncompressed messages only. "
            "Send it without compression (grpc-encoding: identity)."
        )
    if max_bytes is not None and len(data) > max_bytes:
        what = f"{len(data)} bytes; the limit of this method is {max_bytes} bytes"
        raise InvalidArgument("request", what)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            "request",
            f"the request is not a valid {kind.DESCRIPTOR.full_name} message",
            "Generate the client from this server's .proto file",
        ) from None


def _compressed(data: bytes) -> bool:
    # RFC 1952, 2.3.1; RFC 1950, 2.2: a zlib header is a multiple of 31.
    return data[:2] == _GZIP or (data[0] == _ZLIB and int.from_bytes(data[:2]) % 31 == 0)
