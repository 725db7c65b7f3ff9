"""Requests from bytes: what is compressed or too long is refused before anything is made of it.

gRPC's own decompression is off: 60 KB may unpack to 60 MB, and gRPC (1.85) would unpack them before
anybody could look. Its own refusal, an empty set of algorithms, is no better: it refuses faster
than calls are taken from its queue, and the calls of others wait behind the refused or are lost.
So compressed messages come as they are, are known by their first bytes, and are refused here.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from latentd.errors import InvalidArgument, Unsupported

M = TypeVar("M", bound=Message)

SMALL: Final = 1024
"""Bytes of a request that only names something, as Health's and reflection's."""

_GZIP: Final = b"\x1f\x8b"
_ZLIB: Final = 0x78
"""The first byte of what gRPC calls deflate. As protobuf it begins field 15, which no request has;
as gzip's first would, had it a type that exists."""


def parse(kind: type[M], data: bytes, most: int | None = None) -> M:
    """The message of this kind.

    most: bytes that it may have; None: as many as gRPC takes
    Raises Unsupported for a compressed one, InvalidArgument for bytes that are no such message.
    """
    if data[:1] in (b"\x1f", b"\x78") and _compressed(data):
        raise Unsupported(
            "The request is compressed, and this server takes no compressed messages: "
            "send it without compression (grpc-encoding: identity)."
        )
    if most is not None and len(data) > most:
        what = f"it has {len(data)} bytes and {most} are the most that this method takes"
        raise InvalidArgument("request", what)
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            "request",
            f"the bytes are no {kind.DESCRIPTOR.full_name} message",
            "Generate the client from this server's .proto file",
        ) from None


def _compressed(data: bytes) -> bool:
    # RFC 1952, 2.3.1; RFC 1950, 2.2: a zlib header is a multiple of 31.
    return data[:2] == _GZIP or (data[0] == _ZLIB and int.from_bytes(data[:2]) % 31 == 0)
