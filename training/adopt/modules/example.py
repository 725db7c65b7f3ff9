"""Example rows to export a model in PyTorch with: such as its own code takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from latentd.training.adopt.card import Card
from latentd.training.adopt.modules import halves
from latentd.training.adopt.modules.halves import Half
from latentd.training.errors import AdmissionError, TrainingError

ROWS: Final = 2
_UNITS: Final = {"h": 5, "w": 3, "t": 5}
"""Lengths, in the least ones: an exporter takes equal lengths for one."""
_CHANNELS: Final = (3, 1, 4)  # of images, where the card does not say
_AUDIO_CHANNELS: Final = (2, 1)  # likewise


def find(encoder: Half, card: Card) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rows of x as the net has them, and what the encoder gives for them.

    The number of channels, or of values, is the only usual one that the encoder takes. Raises
    TrainingError if it takes several or none.
    """
    counts = _counts(encoder, card)
    found, failures = _tried(encoder, card, counts, lengths(card))
    what = "channels" if card.sizes else "values"
    if not counts:
        raise TrainingError(
            "The card has no sizes, so x is a vector; but the model does not show how many values "
            "it has. Give sizes.h and sizes.w if x is an image, sizes.t if it is audio, or "
            "channels, the number of values."
        )
    if not found and any(map(is_free, card.sizes.values())):
        _refuse_frozen(encoder, card, counts, failures[0])
    if not found and _takes_bytes(card):
        raise TrainingError(
            "The model does not say, and the card must: range (or mean and std). Without them x is "
            f"bytes, and encode(x) fails {failures[0]}."
        )
    if not found:
        raise TrainingError(
            f"encode(x) fails {failures[0]}. Correct sizes, layout and channels in the card; "
            f"numbers of {what} that were tried: {', '.join(map(str, counts))}."
        )
    if len(found) > 1:
        raise TrainingError(
            f"encode(x) takes several numbers of {what}, of {', '.join(map(str, counts))}; give "
            "channels in the card."
        )
    return found[0]


def _tried(
    encoder: Half, card: Card, counts: Sequence[int], sides: Mapping[str, int]
) -> tuple[list[tuple[Tensor, tuple[Tensor, ...]]], list[str]]:
    """Rows of each number of channels, with what the encoder gives; the failures in words."""
    found, failures = [], []
    for count in counts:
        x = _rows(encoder, card, count, sides)
        try:
            with encoder.evaluation():
                found.append((x, encoder(x)))
        except TrainingError:
            raise
        except Exception as error:  # of the owner's code
            failures.append(f"for rows of shape {list(x.shape[1:])}: {halves.in_words(error)}")
    return found, failures


def _refuse_frozen(encoder: Half, card: Card, counts: Sequence[int], failure: str) -> None:
    """Raise AdmissionError if rows of the default lengths do not fail."""
    sizes = card.sizes.items()
    sides = {axis: n if isinstance(n, int) else n["default"] for axis, n in sizes}
    found, _ = _tried(encoder, card, counts, sides)
    if found:
        shape = list(found[0][0].shape[1:])
        raise AdmissionError(
            f"encode(x) is frozen to one size: it takes rows of {shape}, but fails {failure}. "
            "Expected it to take every size of the card: remove what fixes the size in the model's "
            "code, or give the card fixed sizes."
        )


def lengths(card: Card) -> dict[str, int]:
    """Of each axis in the card's sizes."""
    found = {axis: _length(size, _UNITS.get(axis, 5)) for axis, size in card.sizes.items()}
    free = {axis for axis, size in card.sizes.items() if is_free(size)}
    if free == {"h", "w"} and found["h"] == found["w"]:
        for axis in "wh":
            least, most = (card.sizes[axis][key] for key in ("min", "max"))  # type: ignore[index]
            found[axis] = least if found[axis] != least else most
            if found["h"] != found["w"]:
                break
    return found


def is_free(size: int | Mapping[str, int]) -> bool:
    """Whether a length of the card's sizes is free."""
    return not isinstance(size, int) and size["min"] < size["max"]


def _length(size: int | Mapping[str, int], units: int) -> int:
    """So many of the least length, within the bounds."""
    if isinstance(size, int):
        return size
    unit = size.get("multiple_of", size["min"])
    least = -(-size["min"] // unit)
    return min(unit * max(units, least), size["max"])


def _counts(encoder: Half, card: Card) -> Sequence[int]:
    """Numbers of channels, or of a vector's values, that may be the encoder's."""
    if card.channels is not None:
        return (card.channels,)
    if card.sizes:
        return _AUDIO_CHANNELS if "t" in card.sizes else _CHANNELS
    return list(dict.fromkeys(p.shape[1] for p in encoder.parameters() if p.ndim == 2))


def _rows(encoder: Half, card: Card, count: int, sides: Mapping[str, int]) -> Tensor:
    like, inner = encoder.like, [sides[axis] for axis in sorted(card.sizes)]
    shape = [*inner, count] if card.is_channels_last else [count, *inner]
    values = torch.rand(ROWS, *shape, generator=torch.Generator().manual_seed(0))
    if _takes_bytes(card):
        return (255 * values).to(like.device, torch.uint8)
    return values.to(like.device, like.dtype)


def _takes_bytes(card: Card) -> bool:
    return "h" in card.sizes and card.range is None and card.mean is None
