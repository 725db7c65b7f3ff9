"""Adopt a model that was trained elsewhere: check it, publish it as a bundle. No module of this
package imports PyTorch when it is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentd.training.adopt.card import Card


def adopt(
    encoder: Path | str,
    decoder: Path | str,
    card: Card | Path | str,
    bundles: Path | str,
    name: str,
    images: Path | str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Publish two ONNX graphs as the next version of model `name` under `bundles`.

    card: what the graphs do not say, or a card.toml (`card.TEMPLATE` has every key)
    images: a folder of pictures for the checks; None: photographs that scikit-learn has
    report: gets a line for each check

    Returns the version's folder. Raises TrainingError for input that is wrong or not enough, and
    AdmissionError for a model that fails a check. On an error, nothing is published.
    """
    from latentd.training.adopt.adoption import adopt_onnx  # heavy, and --help must be fast
    from latentd.training.adopt.card import Card

    known = card if isinstance(card, Card) else Card.read(Path(card))
    return adopt_onnx(
        Path(encoder),
        Path(decoder),
        known,
        Path(bundles),
        name,
        None if images is None else Path(images),
        report,
    )
