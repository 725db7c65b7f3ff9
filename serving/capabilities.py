"""What some models cannot do: the error that says why, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from latentd.errors import InvalidArgument

HINTS: Final = {
    "sample": "Use Decode with latents of your own, or Interpolate between rows",
    "draw": "Leave draw out to use that point",
    "score": "Use a model with a prior, a gaussian posterior and a likelihood",
    "params": "Use DECODE_OUTPUT_X",
    "contributions": "Leave include_contributions out",
    "images": "Use FORMAT_RAW",
    "tiles": "Leave tiling out",
    "map": "Export it again with --map-rows 2000",
}
"""What to do instead, by the capability that a model lacks."""


def require(model: str, unavailable: Mapping[str, str], capability: str, field: str) -> None:
    """Raise InvalidArgument naming `field` if the model cannot do this.

    unavailable: capability -> why the model lacks it, in words that follow its name
    """
    if reason := unavailable.get(capability):
        raise InvalidArgument(field, f"{model} {reason}", HINTS[capability])
