"""What a route found of a model that was trained elsewhere. Everything after it is common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentd.training.adopt.candidate import Reference
from latentd.training.adopt.card import Card
from latentd.training.adopt.onnx_pair import OnnxPair

Report = Callable[[str], None]
"""Gets a line for people."""


@dataclass(frozen=True)
class Source:
    """A model, and all that is known of it.

    pair:      the owner's two graphs; a route of PyTorch exports them
    card:      what the owner's card and the source say together, as `Card.filled` merges them; it
               may still lack keys that the graphs answer
    reference: makes the owner's own implementation, from the complete card
    origin:    for the manifest: `route`, `files` (a digest for each name), and what else is known
    """

    pair: OnnxPair
    card: Card
    reference: Callable[[Card], Reference]
    origin: Mapping[str, Any]


Route = Callable[[Card, Report], Source]
"""Opens a model, given its owner's card. Raises TrainingError."""
