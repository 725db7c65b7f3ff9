"""Tiles of two small nets: convolutions alone are exact, a group norm is approximate."""

from __future__ import annotations

import dataclasses
import io
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentd.bundle import FILES, LatentFormat, Manifest, RowFormat, Tile
from latentd.shapes import Axis, Shape
from latentd.training import tiles
from latentd.training.tolerances import TOLERANCES

FLOAT32 = TOLERANCES["float32"]
X, Z = Shape.parse(["h", "w", 3]), Shape.parse([2, "h/4", "w/4"])


def layers(kind: type[nn.Module], before: int, after: int, norm: bool) -> nn.Sequential:
    """A convolution, then two of stride 2 of this kind. norm: a group norm after the first."""
    return nn.Sequential(
        nn.Conv2d(before, 8, 3, padding=1),
        nn.GroupNorm(2, 8) if norm else nn.Identity(),
        nn.ReLU(),
        kind(8, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        kind(8, after, 4, stride=2, padding=1),
    )


class Encoder(nn.Module):
    """x in bytes -> mean, log_var, each a quarter as high and wide."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layers = layers(nn.Conv2d, 3, 4, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.layers(x.float().permute(0, 3, 1, 2) / 255).chunk(2, dim=1)
        return mean, log_var


class Decoder(nn.Module):
    """z -> x in bytes."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layers = layers(nn.ConvTranspose2d, 2, 3, norm)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.sigmoid(self.layers(z) * 4).permute(0, 2, 3, 1) * 255
        return x.round().to(torch.uint8)


def exported(net: nn.Module, example: Tensor, name: str, outputs: list[str]) -> bytes:
    file = io.BytesIO()
    free = {0: "batch", 1: "a", 2: "b", 3: "c"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (example,),
            file,
            dynamo=False,
            input_names=[name],
            output_names=outputs,
            dynamic_axes={key: free for key in (name, *outputs)},
        )
    return file.getvalue()


@pytest.fixture(scope="module", params=[False, True], ids=["convolutions", "group norm"])
def graphs(request: pytest.FixtureRequest) -> tuple[bool, bytes, bytes]:
    torch.manual_seed(0)
    norm = bool(request.param)
    x = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    encoder = exported(Encoder(norm), x, "x", ["mean", "log_var"])
    return norm, encoder, exported(Decoder(norm), torch.zeros(1, 2, 8, 8), "z", ["x"])


def manifest(**axes: Axis) -> Manifest:
    axes = {name: Axis(name, 4, min=8, max=512, default=32) for name in ("h", "w")} | axes
    return Manifest(
        model="net",
        x=RowFormat("image", X, "uint8", (0.0, 255.0)),
        z=LatentFormat(Z),
        axes=MappingProxyType(axes),
        likelihood=None,
        opset=17,
        preprocessing="inside the graph",
        parity={},
    )


def rows() -> np.ndarray:
    """Pictures: smooth, with an edge, and not alike everywhere."""
    y, x = np.mgrid[0:32, 0:32] / 32
    waves = 0.5 + 0.4 * np.sin(9 * x[..., None] * np.array([1, 2, 3])) * y[..., None]
    waves[y > x] *= 0.3
    first: np.ndarray = np.round(255 * waves).astype(np.uint8)
    return np.stack([first, first[::-1, :, ::-1]])


def test_convolutions_are_exact_and_group_norm_is_not(graphs):
    norm, encoder, decoder = graphs
    found = tiles.measure(manifest(), encoder, decoder, rows(), FLOAT32)
    assert list(found) == ["encoder", "decoder"]
    for tile in found.values():
        assert tile.exact is not norm
    if norm:
        assert all(tile.size == {"h": 256, "w": 256} for tile in found.values())
        assert all(tile.overlap == {"h": 64, "w": 64} for tile in found.values())
        assert 5 < found["encoder"].decibels < 50
        assert 20 < found["decoder"].decibels < 60
    else:
        # A latent sees 4 pixels beyond its own 4 x 4; a pixel sees latents up to 8 pixels away.
        assert found["encoder"].size == {"h": 32, "w": 32}
        assert found["encoder"].overlap == {"h": 8, "w": 8}
        assert found["decoder"].size == {"h": 64, "w": 64}
        assert found["decoder"].overlap == {"h": 16, "w": 16}
        assert found["encoder"].max_abs_difference < 1e-5
    checked = dataclasses.replace(manifest(), tiles=found)
    assert Manifest.from_json(complete(checked)).tiles == found


def complete(manifest: Manifest) -> bytes:
    """The manifest's JSON with what publishing adds."""
    files = {name: {"sha256": "0" * 64, "bytes": 1} for name in FILES}
    return dataclasses.replace(
        manifest, version=1, created="2026-11-27T12:00:00+00:00", files=files
    ).to_json()


def test_smaller_overlap_than_the_net_sees_is_not_exact(graphs):
    norm, encoder, _ = graphs
    graph = tiles._Graph(
        *(manifest(), tiles._load(encoder, 1), X),
        dict.fromkeys(("mean", "log_var"), Z),
        lambda sizes: tiles._large_rows(rows(), X, sizes),
        lambda mean: 1.0,
    )
    for overlap, exact in ((0, False), (8, not norm), (16, not norm)):
        tile = Tile({"h": 64, "w": 64}, {"h": overlap, "w": overlap}, exact=True)
        error, _ = graph._compare(tile, FLOAT32)
        assert (error <= 1) is exact


class Coarse(nn.Module):
    """Its grid has steps of 8 pixels, although rows may have any multiple of 4."""

    def forward(self, x: Tensor) -> Tensor:
        coarse = nn.functional.avg_pool2d(x.float().permute(0, 3, 1, 2)[:, :2], 8)
        return nn.functional.interpolate(coarse, scale_factor=2.0)


def test_net_with_a_coarser_grid_than_its_rows_is_not_exact(graphs):
    _, _, decoder = graphs
    x = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    encoder = exported(Coarse(), x, "x", ["mean"])
    found = tiles.measure(manifest(), encoder, decoder, rows(), FLOAT32)
    assert not found["encoder"].exact


def test_model_without_room_for_two_tiles_has_none(graphs):
    _, encoder, decoder = graphs
    small = {name: Axis(name, 4, min=32, max=32, default=32) for name in ("h", "w")}
    assert tiles.measure(manifest(**small), encoder, decoder, rows(), FLOAT32) == {}


def test_tiles_are_smaller_where_rows_of_two_are_too_large(graphs):
    _, encoder, decoder = graphs
    limit = 48 * 48 * 3
    found = tiles.measure(manifest(), encoder, decoder, rows(), FLOAT32, max_elements=limit)
    assert found["encoder"].size == {"h": 16, "w": 16}


def test_one_long_axis_is_enough(graphs):
    norm, encoder, decoder = graphs
    low = manifest(h=Axis("h", 4, min=32, max=32, default=32))
    found = tiles.measure(low, encoder, decoder, rows(), FLOAT32)
    assert found["decoder"].size["h"] == 32
    assert found["decoder"].exact is not norm


def test_rows_are_mirrored_or_stretched_to_any_size():
    row = rows()[0]
    mirrored = tiles.mirrored(row, (80, 16, 3))
    assert mirrored.shape == (80, 16, 3)
    np.testing.assert_array_equal(mirrored[:32], row[:, :16])
    np.testing.assert_array_equal(mirrored[32:64], row[::-1, :16])
    stretched = tiles.enlarged(row, (64, 96, 3), [0, 1])
    assert (stretched.shape, stretched.dtype) == ((64, 96, 3), np.uint8)
    again = stretched.reshape(32, 2, 32, 3, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(again - row).mean() < 5
