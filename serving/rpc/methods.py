"""The methods of the contract in one table: the scope that each needs, and the graphs it runs.

Authorization, admission, help texts and capacity planning read the table with []: a method without
an entry stops the server when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODELS: Final = "models"
"""The scope for describing and listing models."""
GENERATE: Final = "generate"
"""The scope for generating new data."""
INFER: Final = "infer"
"""The scope for sending data x, in any method."""
SCOPES: Final = (MODELS, GENERATE, INFER)

ENCODER: Final = "encoder"
DECODER: Final = "decoder"


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs.

    scope:    the scope that a call's token must have
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
    "Interpolate": _SAMPLE,  # an anchor given as x also needs INFER, and the encoder for one row
    "Score": Method(INFER, (ENCODER, DECODER), per_draw=True),
}


def of_scope(scope: str) -> list[str]:
    """The names of the methods that need a scope."""
    return [name for name, method in METHODS.items() if method.scope == scope]
