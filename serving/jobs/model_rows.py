"""The rows that a job's model takes and gives, as its plan stores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from latentd.bundle import LatentFormat, Manifest, RowFormat, RowShapes
from latentd.columns import Column
from latentd.model_description import ModelDescription
from latentd.shapes import Axis, Shape

if TYPE_CHECKING:  # importing the client is slow, and --help must be fast
    from latentd.client.results import ModelInfo


@dataclass(frozen=True)
class ModelRows(ModelDescription):
    """Rows and latents of every size. A bundle and a server with the same model give the same."""

    x: RowFormat
    z: LatentFormat
    axes: Mapping[str, Axis] = field(default_factory=dict)
    x_bounded: bool = True
    parameters: tuple[str, ...] = ()
    posterior: str = "gaussian"  # gaussian | point
    contributions: Shape | None = None  # as ModelDescription.contributions

    @classmethod
    def of(cls, model: Manifest | ModelInfo) -> Self:
        """The rows of a bundle's or a server's model."""
        return cls(
            x=model.x,
            z=LatentFormat(model.z.shape),
            axes=dict(model.axes),
            x_bounded=model.x_bounded,
            parameters=model.parameters,
            posterior=model.posterior,
            contributions=model.contributions,
        )

    def of_size(self, size: tuple[int, ...]) -> RowShapes:
        """The rows of this size: the length of each free axis; () or zeros: the default."""
        return self.at(dict(zip(self.axes, size, strict=True))) if any(size) else self.default

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        x = self.x
        return {
            "x": {
                "kind": x.kind,
                "shape": x.shape.json,
                "dtype": x.dtype,
                "range": list(x.range),
                "sample_rate": x.sample_rate,
                **({"columns": [c.to_json() for c in x.columns]} if x.columns else {}),
            },
            "z": {"shape": self.z.shape.json},
            "axes": [dataclasses.asdict(axis) for axis in self.axes.values()],
            "x_bounded": self.x_bounded,
            "parameters": list(self.parameters),
            "posterior": self.posterior,
            **({"contributions": self.contributions.json} if self.contributions else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned. Raises KeyError, TypeError or ValueError for anything
        else."""
        x = raw["x"]
        return cls(
            RowFormat(
                x["kind"],
                Shape.parse(x["shape"]),
                x["dtype"],
                tuple(x["range"]),
                x.get("sample_rate", 0),
                tuple(map(Column.from_json, x.get("columns", ()))),
            ),
            LatentFormat(Shape.parse(raw["z"]["shape"])),
            {axis["name"]: Axis(**axis) for axis in raw["axes"]},
            raw["x_bounded"],
            tuple(raw["parameters"]),
            raw["posterior"],
            Shape.parse(raw["contributions"]) if "contributions" in raw else None,
        )
