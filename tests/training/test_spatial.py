"""Models with spatial latents: any size of image, and the same objective as other models."""

from __future__ import annotations

import onnx
import pytest
import torch

from latentd.training import graph_checks, networks, onnx_graphs, parity
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.errors import RunFailed, TrainingError
from latentd.training.model import VAE, Model, build, gaussian_kl, to_data
from latentd.training.objective import importance_weighted, kl_with_free_bits

SIZES = ((64, 64), (96, 160), (256, 128))


def spatial(shape: tuple[int, ...] = (32, 48, 3), **settings: object) -> Model:
    tiny = {"latents": "spatial", "latent_size": 4, "depth": 3, "hidden_size": 8, **settings}
    config = networks.resolve_architecture(Config(**tiny), shape)
    return build(config, RowSpec(shape, "uint8")).eval()


def images(count: int, height: int, width: int, *colors: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(height * width)
    return torch.randint(
        0, 256, (count, height, width, *colors), dtype=torch.uint8, generator=draws
    )


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({"architecture": "mlp"}, (32, 32), "needs --architecture resnet or ladder, not mlp"),
        (
            {},
            (28, 36),
            r"--depth 3 needs images whose height and width are multiples of 8; .*28, 36",
        ),
        ({}, (64,), "Use --architecture mlp and --latents flat"),
        ({"depth": 4}, (16, 64), "halves images of shape .* below 2 pixels"),
    ],
)
def test_unfitting_rows_and_nets_are_rejected(
    settings: dict[str, object], shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        spatial(shape, **settings)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 48, 3), (16, 16)])
def test_every_size_encodes_and_decodes(shape: tuple[int, ...]) -> None:
    model = spatial(shape, likelihood="discretized-logistic")
    assert model.latent_shape == (4, shape[0] // 8, shape[1] // 8)
    for height, width in (*SIZES, (8, 40)):
        x = images(2, height, width, *shape[2:])
        mean, log_var = model.encode(x)
        assert mean.shape == log_var.shape == (2, 4, height // 8, width // 8)
        params = model.decode(mean)
        assert params.shape == (2, 2, *x.shape[1:])
        assert to_data(model, params).shape == x.shape


@torch.no_grad()
def test_pixels_depend_on_bounded_surroundings() -> None:
    """Tiles with enough overlap are then exact."""
    model = spatial()
    z = torch.randn((1, 4, 24, 24), generator=torch.Generator().manual_seed(0))
    margin = 7  # latents: 4 + 3/2 + 3/4 + ... of the convolutions at each level
    whole = model.decode(z)
    tile = model.decode(z[:, :, :12, :12])
    edge = 8 * (12 - margin)
    torch.testing.assert_close(whole[:, :, :edge, :edge], tile[:, :, :edge, :edge])
    assert not torch.allclose(whole[:, :, : 8 * 12, : 8 * 12], tile)


@torch.no_grad()
def test_terms_are_sums_over_all_latents() -> None:
    model = spatial()
    assert isinstance(model, VAE)
    draws = model.draw(
        images(3, 32, 48, 3) / 255, torch.randn((5, 3, 4, 4, 6), generator=torch.Generator())
    )
    flat = draws._replace(
        mean=draws.mean.flatten(1), log_var=draws.log_var.flatten(1), z=draws.z.flatten(2)
    )
    assert flat.mean.shape == (3, 96)
    torch.testing.assert_close(gaussian_kl(draws.mean, draws.log_var), gaussian_kl(*flat[:2]))
    torch.testing.assert_close(importance_weighted(draws), importance_weighted(flat))
    torch.testing.assert_close(kl_with_free_bits(draws, 0.1), kl_with_free_bits(flat, 0.1))


@pytest.mark.parametrize(
    ("likelihood", "shape"), [("discretized-logistic", (64, 64, 3)), ("bernoulli", (16, 16))]
)
def test_graphs_have_named_axes_and_no_size_inside(likelihood: str, shape: tuple[int, ...]) -> None:
    model = spatial(shape, likelihood=likelihood)
    encoder, decoder = onnx_graphs.encoder(model, "m"), onnx_graphs.decoder(model, "m")
    x, z = ["batch", "h", "w", *shape[2:]], ["batch", 4, "h/8", "w/8"]
    params = ["batch", len(model.likelihood.parameters), *x[1:]]
    assert axes(encoder) == {"x": x, "mean": z, "log_var": z}
    assert axes(decoder) == {"z": z, "x": x, "params": params}
    measured = parity.measure(model, encoder, decoder, images(4, *shape), sizes=SIZES[1:])
    assert measured["other_sizes"] == [[96, 160], [256, 128]]
    assert measured["max_abs_difference"]["params"] < 1e-5


def axes(graph: bytes) -> dict[str, list[int | str]]:
    loaded = onnx.load_from_string(graph).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*loaded.input, *loaded.output)
    }


@pytest.mark.parametrize(("value", "axis", "name"), [("input", 2, "w"), ("output", 2, "h/8")])
def test_graph_of_one_size_is_rejected(value: str, axis: int, name: str) -> None:
    graph = onnx.load_from_string(onnx_graphs.encoder(spatial(), "m"))
    axes = onnx_graphs.free(8).axes
    graph_checks.check(graph, axes)
    dimension = getattr(graph.graph, value)[0].type.tensor_type.shape.dim[axis]
    dimension.dim_value = 64
    with pytest.raises(RunFailed, match=f"frozen to one size of {name}"):
        graph_checks.check(graph, axes)


def test_parity_finds_a_graph_that_is_right_at_the_trained_size_only() -> None:
    """Its outputs depend on the mean over the image, which has another value at another size."""
    model = spatial(likelihood="bernoulli")
    encoder, decoder = onnx_graphs.encoder(model, "m"), onnx_graphs.decoder(model, "m")
    x = images(2, 32, 48, 3)
    right = parity.measure(model, encoder, decoder, x, sizes=((16, 24),))
    assert right["max_abs_difference"]["mean"] < 1e-5

    class Sized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * (x.shape[1] / 32)

    model.encoder = Sized()
    wrong = onnx_graphs.encoder(model, "m")
    model.encoder = model.encoder.net
    with pytest.raises(RunFailed, match=r"at batch 1, mean \(4, 2, 3\) from ONNX Runtime differs"):
        parity.measure(model, wrong, decoder, x, sizes=((16, 24),))


def test_graphs_name_no_file_of_the_exporter() -> None:
    assert b".py" not in onnx_graphs.decoder(spatial(), "m")
