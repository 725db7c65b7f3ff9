"""Models with float16 nets: they need half the memory and use a GPU's fastest products.

Only the nets are float16. Scaling, exp, the likelihood's parameters and the output rows stay
float32. The graphs' inputs and outputs do too, so other code does not change.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from latentd.training.model import AE, Model
from latentd.training.networks.resnet import Doubling


class HalfNet(nn.Module):
    """A float16 net for float32 inputs. The model itself converts its outputs to float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = _with_plain_doublings(net).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.half())  # type: ignore[no-any-return]


def to_half(model: Model) -> Model:
    """A copy of `model` with float16 nets, for export."""
    model = copy.deepcopy(model)
    vae = model.net if isinstance(model, AE) else model
    vae.encoder, vae.decoder = HalfNet(vae.encoder), HalfNet(vae.decoder)
    return model


def _with_plain_doublings(net: nn.Module) -> nn.Module:
    """The net with kernels that are computed once, and before they are rounded: ONNX Runtime would
    compute float16 ones for every batch."""
    for parent in list(net.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Doubling):
                setattr(parent, name, part.plain())
    return net
