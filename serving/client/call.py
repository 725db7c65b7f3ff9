"""A call before it is sent: its method, its request, and how its response is read."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from latentd.client import arguments
from latentd.codec import Array
from latentd.pb import vae_pb2 as pb

T_co = TypeVar("T_co", covariant=True)
Chunks = TypeVar("Chunks", bound=Iterable[Array] | AsyncIterable[Array])


class Default(enum.Enum):
    """The type of CLIENT_TIMEOUT. None cannot serve: it means no deadline."""

    CLIENT_TIMEOUT = "the client's own timeout"


CLIENT_TIMEOUT: Final = Default.CLIENT_TIMEOUT
Timeout: TypeAlias = float | Default | None
"""Seconds until the call's deadline; None: no deadline."""

Needs: TypeAlias = tuple[tuple[str, str], ...]
"""What the model must be able to do: capabilities, each with the field that asks for it."""


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One RPC: `method` as in the .proto file; `read` turns its response into the result."""

    method: str
    request: Any  # the method's own request message
    read: Callable[[Any], T_co]
    timeout: Timeout
    needs: Needs = ()


@dataclass(frozen=True)
class ChunkedCall(Generic[Chunks]):
    """StreamReconstruct of `chunks`; `request`: the options that its first message carries."""

    request: pb.StreamReconstructRequest
    chunks: Chunks
    in_flight: int
    timeout: float | None
    needs: Needs = ()
    fit: str = ""  # of image files


def set_model(request: Message, model: str, version: int) -> None:
    """Write the client's model and version into a request that names neither.

    A request with only a version means that version of the client's model. A request with only a
    model means the newest version of that model. ListModels is about all models.
    """
    if "model" not in request.DESCRIPTOR.fields_by_name or request.model:  # type: ignore[attr-defined]
        return
    request.model = model  # type: ignore[attr-defined]
    if not request.version:  # type: ignore[attr-defined]
        request.version = arguments.version(version)  # type: ignore[attr-defined]
