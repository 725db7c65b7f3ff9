"""The methods of both contracts, vae.v1 and Open Inference: the scope that each needs, and the
graphs it runs.

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
"""The scope for data x: sent in any method, or kept of the training rows."""
SCOPES: Final = (MODELS, GENERATE, INFER)
ANY: Final = ""
"""Any known token, whatever its scopes."""

ENCODER: Final = "encoder"
DECODER: Final = "decoder"


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs.

    scope:     the scope that a call's token must have
    graphs:    each row of a call runs once through each of these, in this order
    per_draw:  a row runs through the last of them once for each of the call's draws
    any_order: a row runs through some of these, as the call says; any may be the first
    """

    scope: str
    graphs: tuple[str, ...] = ()
    per_draw: bool = False
    any_order: bool = False

    @property
    def first_graphs(self) -> tuple[str, ...]:
        """The graphs of which every call enters the queue of one first; (): it runs none."""
        return self.graphs if self.any_order else self.graphs[:1]


PROBE: Final = Method(ANY)
"""Of methods that tell whether the server is up: they need no token and no model.
`transport.health` answers them."""


_SAMPLE: Final = Method(GENERATE, (DECODER,))
_RECONSTRUCT: Final = Method(INFER, (ENCODER, DECODER))

METHODS: Final[dict[str, Method]] = {
    "GetModel": Method(MODELS),
    "ListModels": Method(MODELS),
    "GetMap": Method(INFER),  # it returns training rows
    "Encode": Method(INFER, (ENCODER,)),
    "Decode": _SAMPLE,
    "Sample": _SAMPLE,
    "StreamSamples": _SAMPLE,
    "Reconstruct": _RECONSTRUCT,
    "StreamReconstruct": _RECONSTRUCT,
    "Interpolate": _SAMPLE,  # an anchor given as x also needs INFER, and the encoder for one row
    "Score": Method(INFER, (ENCODER, DECODER), per_draw=True),
    "ServerLive": PROBE,
    "ServerReady": PROBE,
    "ServerMetadata": Method(ANY),
    "ModelReady": Method(ANY),
    "ModelMetadata": Method(MODELS),
    "ModelConfig": Method(MODELS),
    "ModelStatistics": Method(MODELS),
    "RepositoryIndex": Method(MODELS),
    # The operation's scope is checked when the request has been read, as that names the operation.
    "ModelInfer": Method(ANY, (ENCODER, DECODER), any_order=True),
}


def of_scope(scope: str) -> list[str]:
    """The names of the methods that need a scope."""
    return [name for name, method in METHODS.items() if method.scope == scope]
