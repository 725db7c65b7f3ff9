"""Adopt a model that was trained elsewhere: check it, publish it as a bundle.

    from latentd.training.adopt import adopt, sources

    adopt(sources.onnx("encoder.onnx", "decoder.onnx"), "card.toml", "models", "mine")

    card = {"range": [-1, 1], "scale": 1, "shift": 0, "prior": "none", "sizes": {"h": 64, "w": 64}}
    card |= {"license": "MIT", "source": "my thesis"}
    adopt(sources.module(vae), card, "models", "mine")  # vae.encode(x), vae.decode(z)

`sources` has a function for each place that a model may come from. No module of this package
imports PyTorch when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentd.training.adopt.card import Card
    from latentd.training.adopt.source import Route


def adopt(
    source: Route,
    card: Card | Mapping[str, Any] | Path | str | None,
    bundles: Path | str,
    name: str,
    images: Path | str | None = None,
    expected: Path | str | None = None,
    rows: Path | str | None = None,
    threshold_percentile: float | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Publish a model as the next version of model `name` under `bundles`.

    source: where it comes from: `sources.onnx(...)` and its like
    card:   what the source does not say: a card.toml, its keys, or None where the source says all
            (`card.TEMPLATE` has every key)
    images: a folder of pictures for the checks; None: photographs that scikit-learn has
    expected: an .npz file with inputs of the owner's and what the model gives for them
    rows:   a .npy or .npz file of real rows, as clients send them: for the checks, and for the
            percentiles of scores
    threshold_percentile: of the reconstruction errors of `rows`: larger ones are outliers
    report: gets a line for each check

    Returns the version's folder. Raises TrainingError for input that is wrong or not enough, and
    AdmissionError for a model that fails a check. On an error, nothing is published.
    """
    from latentd.training.adopt import adoption  # heavy, and --help must be fast
    from latentd.training.adopt.card import Card

    match card:
        case None:
            known = Card()
        case Path() | str():
            known = Card.read(Path(card))
        case Card():
            known = card
        case _:
            known = Card.of(card)
    pictures = None if images is None else Path(images)
    owners = None if expected is None else Path(expected)
    real = None if rows is None else Path(rows)
    return adoption.adopt(
        source,
        known,
        Path(bundles),
        name,
        pictures,
        owners,
        real,
        threshold_percentile,
        report,
    )
