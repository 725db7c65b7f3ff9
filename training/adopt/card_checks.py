"""The card beside the graphs: keys that are missing, and keys that mean nothing for them."""

from __future__ import annotations

from latentd.training.adopt.card import Card
from latentd.training.adopt.onnx_pair import OnnxPair
from latentd.training.errors import TrainingError


def missing_keys(card: Card, pair: OnnxPair) -> list[str]:
    """The card's keys that neither the card nor the graphs answer."""
    keys = []
    if pair.axes:
        keys += ["layout"] if card.layout is None else []
        if len(pair.decoder.dims) > 2 and card.z_layout is None:
            keys += ["z_layout"] if card.layout is None or card.is_channels_last else []
        floats = pair.encoder.dtype != "uint8" or _gives_floats(pair)
        if floats and card.range is None and card.mean is None:
            keys.append("range (or mean and std)")
        keys += [f"sizes.{axis}" for axis in pair.axes if axis not in card.sizes and card.layout]
        keys += ["sample_rate"] if pair.kind == "audio" and card.sample_rate is None else []
    names = ("posterior", "scale", "shift", "prior", "license", "source")
    return keys + [name for name in names if getattr(card, name) is None]


def _gives_floats(pair: OnnxPair) -> bool:
    value = next(iter(pair.decoder.session.get_outputs()))
    return bool(value.type != "tensor(uint8)")


def check_kind(card: Card, pair: OnnxPair) -> None:
    """Raise TrainingError for a key that has no meaning for images, for audio or for vectors."""
    what = f"{pair.encoder.name} takes {len(pair.encoder.dims)} axes, as for {pair.kind}"
    for axis in card.sizes:
        if axis not in pair.axes:
            raise TrainingError(f"The card has sizes.{axis}, but {what}. Leave it out.")
    for key in ("layout", "z_layout"):
        layout = getattr(card, key)
        if layout is not None and len(layout) != len(pair.encoder.dims):
            raise TrainingError(f"The card says {key} = {layout!r}, but {what}. Correct it.")
    if card.sample_rate is not None and pair.kind != "audio":
        raise TrainingError(f"The card has sample_rate, but {what}. Leave it out.")


def check_card(card: Card, pair: OnnxPair) -> None:
    """Raise TrainingError for a key that has no meaning for this pair. The card has all keys that
    `missing_keys` asks for."""
    if pair.kind == "vector" and card.range is not None:
        raise TrainingError(
            "The card has range, which is of images; this x is a vector. Leave it out, or give "
            "mean and std."
        )
    if pair.kind == "audio" and (pair.encoder.dtype == "uint8" or not _gives_floats(pair)):
        raise TrainingError(
            "A graph has audio as bytes; expected floats. Export both graphs with floats."
        )
    bytes_only = pair.encoder.dtype == "uint8" and not _gives_floats(pair)
    if bytes_only and (card.range is not None or card.mean is not None):
        raise TrainingError(
            "The card has range, or mean and std, but both graphs have bytes. Leave these keys out."
        )
    if card.posterior == "point" and card.clip_log_var is not None:
        raise TrainingError("The card has clip_log_var, but a point has no log-variance.")
