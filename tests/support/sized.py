"""Models that take given rows, for the readers."""

from __future__ import annotations

from latentd.bundle import DataSpec, LatentFormat, Manifest, RowFormat
from latentd.shapes import Axis, Shape


def takes(x: DataSpec) -> Manifest:
    """A model of rows of one size."""
    return _model(RowFormat.of(x))


def takes_pictures() -> Manifest:
    """A model of color pictures whose sides are multiples of 4, from 4 to 32; 8 by default."""
    axes = {name: Axis(name, 4, 4, 32, 8) for name in ("h", "w")}
    return _model(RowFormat("image", Shape.parse(["h", "w", 3]), "uint8", (0.0, 255.0)), axes)


def _model(x: RowFormat, axes: dict[str, Axis] | None = None) -> Manifest:
    return Manifest(
        model="m",
        x=x,
        z=LatentFormat(Shape.parse(["h/4", "w/4"] if axes else [2])),
        likelihood=None,
        opset=18,
        preprocessing="none",
        parity={},
        axes=axes or {},
    )
