"""The convolutional nets: their levels, how z enters them, and how they start."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional

from latentd.training import networks, onnx_graphs, parity
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import TrainingError
from latentd.training.fp16 import to_half
from latentd.training.model import Model, build
from latentd.training.networks.resnet import Doubling, levels


def resolved(shape: tuple[int, ...], **settings: object) -> Config:
    return networks.resolve_architecture(
        Config(**{"architecture": "resnet", **settings}),  # type: ignore[arg-type]
        shape,
    )


def model(shape: tuple[int, ...], **settings: object) -> Model:
    return build(resolved(shape, **settings), RowSpec(shape, "float32")).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("side", "sides", "channels"),
    [
        (8, [4], [16]),
        (28, [14, 7, 4], [16, 32, 64]),
        (64, [32, 16, 8, 4], [16, 32, 64, 128]),
        (256, [128, 64, 32, 16, 8, 4], [8, 16, 32, 64, 128, 256]),
    ],
)
def test_depth_and_width_follow_the_size(side: int, sides: list[int], channels: list[int]) -> None:
    found = levels(resolved((side, side + 3, 3)), (side, side + 3, 3))
    assert [level.height for level in found] == sides
    assert [level.channels for level in found] == channels


@torch.no_grad()
def test_doubling_equals_upsampling_and_a_convolution() -> None:
    layer, h = Doubling(5, 3), noise(2, 5, 6, 7)
    wanted = functional.conv2d(
        functional.interpolate(h, scale_factor=2.0, mode="nearest"),
        layer.weight,
        layer.bias,
        padding=2,
    )
    torch.testing.assert_close(layer(h), wanted)
    torch.testing.assert_close(layer.plain()(h), wanted)


@torch.no_grad()
def test_doubling_leaves_no_grid_on_equal_pixels() -> None:
    flat = Doubling(4, 3)(torch.ones(1, 4, 8, 8))[:, :, 4:-4, 4:-4]
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_served_decoder_holds_plain_convolutions(tmp_path: object, precision: str) -> None:
    """ONNX Runtime computes the kernels of `Doubling` once, when it loads the graph, but would not
    in float16."""
    net = model((64, 64, 3))
    net = to_half(net) if precision == "float16" else net
    options = ort.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    ort.InferenceSession(onnx_graphs.decoder(net, "m"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    assert "Einsum" not in {node.op_type for node in graph.node}


@torch.no_grad()
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("architecture", ["resnet", "ladder"])
@pytest.mark.parametrize(
    ("latents", "shape", "latent_shape"),
    [
        ("flat", (33, 17, 3), (8,)),
        ("flat", (28, 28), (8,)),
        ("spatial", (16, 24, 3), (8, 4, 6)),
    ],
)
def test_graphs_equal_the_net(
    architecture: str,
    latents: str,
    shape: tuple[int, ...],
    latent_shape: tuple[int, ...],
    attention: bool,
) -> None:
    net = model(
        shape, architecture=architecture, latents=latents, latent_size=8, attention=attention
    )
    assert net.latent_shape == latent_shape
    x = torch.rand((4, *shape), generator=torch.Generator().manual_seed(0))
    measured = parity.measure(
        net,
        onnx_graphs.encoder(net, "m"),
        onnx_graphs.decoder(net, "m"),
        x,
        sizes=((24, 40),) if latents == "spatial" else (),
    )
    assert measured["max_abs_difference"]["params"] < 1e-5
    assert net.decode(noise(3, *latent_shape)).shape == (3, 2, *shape)


@torch.no_grad()
def test_finer_latents_of_a_ladder_reach_fewer_pixels() -> None:
    """With spatial latents, what a latent changes is bounded: less for the finer part."""
    net = model(
        (64, 64), architecture="ladder", latents="spatial", latent_size=8, likelihood="bernoulli"
    )
    z = noise(1, 8, 16, 16)
    before, reach = net.decode(z)[0, 0], []
    for channel in (0, 7):  # of the coarse part and of the fine part
        moved = z.clone()
        moved[0, channel, 8, 8] += 3
        rows = (net.decode(moved)[0, 0] != before).any(1).nonzero()
        reach.append(int(rows.max() - rows.min()) + 1)
    assert 0 < reach[1] < reach[0] < 64


@torch.no_grad()
def test_attention_reads_every_position() -> None:
    plain, attentive = (
        model((64, 64), latents="spatial", likelihood="bernoulli", attention=on)
        for on in (False, True)
    )
    z = noise(1, 16, 16, 16)
    moved = z.clone()
    moved[..., 0, 0] += 3
    far = (slice(None), slice(None), slice(60, None), slice(60, None))
    assert torch.equal(plain.decode(z)[far], plain.decode(moved)[far])
    assert not torch.equal(attentive.decode(z)[far], attentive.decode(moved)[far])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "ladder", "latent_size": 5}, "must be a multiple of 2"),
        (
            {"architecture": "ladder", "latents": "spatial", "latent_size": 4},
            "must be a multiple of 8",
        ),
        ({"architecture": "ladder", "depth": 1}, "--stochastic-layers 2 needs as many levels"),
        (
            {"stochastic_layers": 2},
            "--stochastic-layers above 1 applies only to --architecture ladder",
        ),
        ({"architecture": "mlp", "attention": True}, "--attention and --blocks apply only to"),
        ({"architecture": "mlp", "linear_path": "pca"}, "--linear-path pca applies only to"),
        ({"latents": "spatial", "linear_path": "pca"}, "--linear-path pca applies only to"),
    ],
)
def test_unfitting_settings_are_rejected(settings: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        resolved((32, 32), **settings)


def test_units_that_are_negative_for_all_inputs_still_learn() -> None:
    """A first step that is too long makes such units. A net of them would stay the linear start."""
    net = model((16, 16), likelihood="gaussian").train()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(-9)
            elif not parameter.any():  # what the linear path silences
                parameter.fill_(0.01)
    x = noise(4, 16, 16).sigmoid()
    mean, log_var = net.encode(x)
    (mean.sum() + log_var.sum() + net.decode(mean).sum()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not still


@pytest.mark.parametrize("architecture", ["resnet", "ladder"])
def test_every_weight_learns_from_a_silent_start(architecture: str) -> None:
    """Outputs of 0 need one layer of zeros. With two in a row, neither has a gradient."""
    net = model((16, 16), architecture=architecture, likelihood="gaussian").train()
    net.encoder.silence()
    net.decoder.silence()
    x = noise(4, 16, 16).sigmoid()
    for _ in range(3):  # the decoder's last layer learns first, then the encoder's, then the rest
        net.zero_grad()
        mean, log_var = net.encode(x)
        z = mean + noise(*mean.shape) * (0.5 * log_var).exp()
        loss = (mean.square() + log_var.exp() - log_var).sum() + (
            net.decode(z)[:, 0] - x
        ).square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)
    nets = [*net.encoder.named_parameters(), *net.decoder.named_parameters()]
    assert not [name for name, p in nets if p.grad is not None and not p.grad.any()]
