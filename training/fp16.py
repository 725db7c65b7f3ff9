"""A model whose nets compute in float16: half the memory, and a GPU's fastest products.

Only the nets: scaling, exp, the likelihood's parameters and what is rendered from them stay in
float32, and so do the graphs' inputs and outputs, so other code need not know.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from latentd.training.model import AE, Model


class HalfNet(nn.Module):
    """A net in float16, for float32 inputs; the model makes its outputs float32 itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.half())  # type: ignore[no-any-return]


def to_half(model: Model) -> Model:
    """A copy of `model` for export."""
    model = copy.deepcopy(model)
    vae = model.net if isinstance(model, AE) else model
    vae.encoder, vae.decoder = HalfNet(vae.encoder), HalfNet(vae.decoder)
    return model
