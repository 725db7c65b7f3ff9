"""--size: the lengths of a model's free axes."""

from __future__ import annotations

import dataclasses
import re

from latentd.client.results import ModelInfo
from latentd.errors import InvalidArgument
from latentd.shapes import SizeError


def at_size(info: ModelInfo, text: str) -> ModelInfo:
    """The model with these lengths as its defaults.

    text: "96x160", in the order of x's shape, or "h=96,w=160"; "": as it is
    Raises InvalidArgument.
    """
    if not text:
        return info
    names = [dim.axis for dim in info.x.shape.dims if dim.axis]
    if not names:
        raise InvalidArgument("--size", f"all lengths of {info.served_by.model} are fixed")
    try:
        shapes = info.at(_parse(text, names))
    except SizeError as error:
        raise InvalidArgument("--size", error.what, error.hint) from None
    lengths = dict(zip(info.axes, shapes.key, strict=True))
    axes = {
        name: dataclasses.replace(axis, default=lengths[name]) for name, axis in info.axes.items()
    }
    return dataclasses.replace(info, axes=axes)


def sizes(info: ModelInfo) -> dict[str, int]:
    """The default length of each free axis."""
    return {name: axis.default for name, axis in info.axes.items()}


def _parse(text: str, names: list[str]) -> dict[str, int]:
    if re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
        lengths = list(map(int, text.split("x")))
        if len(lengths) == len(names):
            return dict(zip(names, lengths, strict=True))
    elif re.fullmatch(r"\w+=\d{1,9}(,\w+=\d{1,9})*", text):
        pairs = [part.split("=") for part in text.split(",")]
        return {name: int(length) for name, length in pairs}
    numbers = "x".join(str(96 + 64 * index) for index in range(len(names)))
    named = ",".join(f"{name}={96 + 64 * index}" for index, name in enumerate(names))
    raise InvalidArgument("--size", f"invalid size {text!r}", f"Use {numbers} or {named}")
