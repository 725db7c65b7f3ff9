"""A model that was trained elsewhere, before the checks that admit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from latentd.bundle import Manifest
from latentd.training.adopt.expected import Expected
from latentd.training.array import Array


class Reference(Protocol):
    """The owner's own implementation, on arrays as clients send and receive them."""

    def encode(self, x: Array) -> tuple[Array, Array | None]:
        """Rows of x -> mean, and log_var unless the latent is a point."""

    def decode(self, z: Array) -> Array:
        """Latents -> rows of x."""

    def params(self, z: Array) -> Array:
        """Latents -> parameters of p(x | z), (rows, parameters, *x's shape): only if there is a
        likelihood."""


class NetRange(NamedTuple):
    """What the net takes for the lowest and for the highest value of x: one number for all
    channels, or one for each."""

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A pair of graphs, what its owner says of it, and what it must agree with.

    manifest:    as it would be published, without what the checks find
    encoder, decoder: the graphs as they would be published, from x as clients send it
    images:      real ones, uint8 (height, width, channels), of any size; (): photographs that
                 scikit-learn has
    net_range:   that the graphs convert x to and from; None: they convert nothing
    color_order: of the net's channels, RGB or BGR; the graphs convert x from RGB
    expected:    what the owner found for rows of the owner's own
    likelihood:  the third graph; None: the model has no likelihood
    rows:        real ones of x at the default size; None: none were named
    readings:    decoders that read the owner's tensors in another way, by what to correct in the
                 card if one of them is right
    """

    manifest: Manifest
    encoder: bytes
    decoder: bytes
    reference: Reference
    images: Sequence[Array] = ()
    net_range: NetRange | None = None
    color_order: str = "RGB"
    expected: Sequence[Expected] = ()
    likelihood: bytes | None = None
    rows: Array | None = None
    readings: Mapping[str, bytes] = field(default_factory=dict)
