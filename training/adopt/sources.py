"""The places that a model may come from: each function returns a route for `adopt`.

adopt(sources.onnx("encoder.onnx", "decoder.onnx"), "card.toml", "models", "mine")
"""

from __future__ import annotations

from pathlib import Path

from latentd.training.adopt import onnx_pair
from latentd.training.adopt.card import Card
from latentd.training.adopt.reference import NetReference
from latentd.training.adopt.source import Report, Route, Source


def onnx(encoder: Path | str, decoder: Path | str) -> Route:
    """Two ONNX graphs."""

    def open_(card: Card, _: Report) -> Source:
        pair = onnx_pair.load(Path(encoder), Path(decoder), card.tensors)
        return Source(
            pair,
            card,
            lambda full: NetReference(pair, full),
            {"route": "onnx", "files": pair.files},
        )

    return open_
