"""The methods of the contract in one table: whose tokens may call them, and what they run.

Authorization, admission, help texts and capacity planning read the table with []: a method without
an entry stops the server when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODELS: Final = "models"
"""The scope of those who may ask what is served."""
GENERATE: Final = "generate"
"""The scope of those who may have new data made."""
INFER: Final = "infer"
"""The scope of those who may have their own data x read, in whichever method it is sent."""
SCOPES: Final = (MODELS, GENERATE, INFER)

ENCODER: Final = "encoder"
DECODER: Final = "decoder"


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs.

    scope:    the scope that a caller's token must have
    graphs:   each row of a call runs once through each of these, in this order
    per_draw: a row runs through the last of them once for each of the call's draws
    """

    scope: str
    graphs: tuple[str, ...] = ()
    per_draw: bool = False

    @property
    def first_graph(self) -> str:
        """The graph whose queue every call enters first; "": none."""
        return self.graphs[0] if self.graphs else ""


_SAMPLE: Final = Method(GENERATE, (DECODER,))
_RECONSTRUCT: Final = Method(INFER, (ENCODER, DECODER))

METHODS: Final[dict[str, Method]] = {
    "GetModel": Method(MODELS),
    "ListModels": Method(MODELS),
    "Encode": Method(INFER, (ENCODER,)),
    "Decode": _SAMPLE,
    "Sample": _SAMPLE,
    "StreamSamples": _SAMPLE,
    "Reconstruct": _RECONSTRUCT,
    "StreamReconstruct": _RECONSTRUCT,
    "Interpolate": _SAMPLE,  # an end point given as x needs INFER too, and the encoder for one row
    "Score": Method(INFER, (ENCODER, DECODER), per_draw=True),
}


def of_scope(scope: str) -> list[str]:
    """The names of the methods that a scope is for."""
    return [name for name, method in METHODS.items() if method.scope == scope]
