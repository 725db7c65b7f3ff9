"""What a manifest and GetModel's response both tell of a model: its rows, at each of its sizes.

Standard library only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentd.columns import Column
from latentd.shapes import Axis, Shape, Sizes, check_sizes

UNBOUNDED: Final = (-math.inf, math.inf)
"""The range of x without bounds: every finite number is valid."""

_ITEM_BYTES: Final = {"uint8": 1, "float32": 4}


@dataclass(frozen=True)
class DataSpec:
    """One row of data of one size, as clients send and receive it."""

    kind: str  # image | vector | audio | text
    shape: tuple[int, ...]  # of one row; as RowFormat.shape
    dtype: str  # uint8 | float32
    range: tuple[float, float]  # lowest and highest value; infinite: every finite number is valid
    bounded: bool = True  # values outside the range are rejected
    columns: tuple[Column, ...] = ()  # as RowFormat.columns

    @functools.cached_property
    def size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def plural(self) -> str:
        """What several rows are called."""
        return {"audio": "audio", "text": "texts"}.get(self.kind) or f"{self.kind}s"

    @property
    def is_text(self) -> bool:
        """Whether rows are texts: bytes of UTF-8, then zeros."""
        return self.kind == "text"

    @property
    def nbytes(self) -> int:
        """Bytes of one row on the wire."""
        return self.size * _ITEM_BYTES[self.dtype]

    @property
    def is_8bit_image(self) -> bool:
        """Whether rows can be sent as PNG files: 8-bit images, gray or RGB."""
        channels = self.shape[2:] or (1,)
        return self.kind == "image" and self.dtype == "uint8" and channels in ((1,), (3,))


@dataclass(frozen=True)
class RowFormat:
    """Rows of data of every size that a model takes.

    shape: height, width[, channels] of an image; samples, channels of audio; of a text one
           number, the bytes of a text in UTF-8 and its end
    """

    kind: str  # image | vector | audio | text
    shape: Shape
    dtype: str  # uint8 | float32
    range: tuple[float, float] = UNBOUNDED  # as DataSpec.range
    sample_rate: int = 0  # of audio: samples in a second; 0: it is not audio
    columns: tuple[Column, ...] = ()  # of vectors in units of their own; (): x is scaled already

    @property
    def is_text(self) -> bool:
        """As DataSpec.is_text."""
        return self.kind == "text"

    @classmethod
    def of(cls, x: DataSpec) -> RowFormat:
        """The format of rows that have one size."""
        return cls(x.kind, Shape.parse(x.shape), x.dtype, x.range, columns=x.columns)


@dataclass(frozen=True)
class LatentFormat:
    """Latents of every size, as clients send and receive them.

    scale, shift: z = (z' - shift) * scale, with the z' of the net before its export; one number for
                  all channels, or one for each. The graphs apply them. (): unknown
    """

    shape: Shape
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()


@dataclass(frozen=True)
class RowShapes:
    """The rows of a model at one size.

    key: rows of the same key can be in one batch
    """

    key: tuple[int, ...]  # the length of each free axis
    x: DataSpec
    z: tuple[int, ...]
    params: tuple[int, ...] | None  # None: the model has no likelihood
    contributions: tuple[int, ...] | None = None  # None: the bundle cannot give them

    @functools.cached_property
    def z_size(self) -> int:
        """Numbers in one latent."""
        return math.prod(self.z)

    def rows_in(self, message_bytes: int, contributions: bool = False) -> int:
        """How many rows any response can hold whose message has so many bytes; at least 1.
        contributions: with those of each row."""
        x, z = self.x.size, self.z_size
        params = math.prod(self.params) if self.params else 0
        # Encode sends mean, log_var and a draw; StreamReconstruct x, mean and log_var.
        numbers = max(params, x, z) + 2 * z
        if contributions and self.contributions:
            numbers += math.prod(self.contributions)
        return max(1, message_bytes // (4 * numbers + 64))


class ModelDescription:
    """What a manifest and GetModel's response both tell: a model's rows at each of its sizes.

    x_bounded:  values outside x's range are rejected
    parameters: the name of each parameter of p(x | z); (): the model has no likelihood
    contributions: as Likelihood.contributions; None: the bundle cannot give them
    posterior:  gaussian, or point: x has a single latent, which is not drawn
    """

    x: RowFormat
    z: LatentFormat
    axes: Mapping[str, Axis]
    posterior: str

    if TYPE_CHECKING:  # a property in one subclass, a field in the other

        @property
        def x_bounded(self) -> bool: ...

        @property
        def parameters(self) -> tuple[str, ...]: ...

        @property
        def contributions(self) -> Shape | None: ...

    @property
    def encoder_outputs(self) -> tuple[str, ...]:
        """The names of the encoder's outputs: mean, and log_var if the posterior has one."""
        return ("mean", "log_var") if self.posterior == "gaussian" else ("mean",)

    @functools.cached_property
    def takes_choices(self) -> bool:
        """Whether the decoder also takes a choice for each element of x, which may draw it."""
        return self.x.is_text or bool(self.x.columns)

    @property
    def score_output(self) -> str:
        """The decoder's output from which scores are computed: params, or of texts log p(x | z)."""
        return "log_likelihood" if self.x.is_text else "params"

    @property
    def decoder_shape(self) -> Shape:
        """A row of the decoder's input: a latent. A choice for each element of x follows it if
        the decoder takes choices."""
        if not self.takes_choices:
            return self.z.shape
        return Shape.parse([self.z.shape.dims[0].length + self.x.shape.dims[0].length])

    def decoder_row(self, shapes: RowShapes) -> tuple[int, ...]:
        """The shape of a row of the decoder's input at the size of `shapes`."""
        return (shapes.z_size + shapes.x.size,) if self.takes_choices else shapes.z

    @functools.cached_property
    def default(self) -> RowShapes:
        """The rows at the default sizes; of a model without free axes, all rows."""
        return self._at({name: axis.default for name, axis in self.axes.items()})

    def at(self, sizes: Sizes) -> RowShapes:
        """The rows at these sizes; a free axis that is not named has its default. Raises
        SizeError."""
        if not sizes:
            return self.default
        complete = {name: axis.default for name, axis in self.axes.items()} | dict(sizes)
        check_sizes(complete, self.axes)
        return self._at(complete)

    def shapes_of_x(self, lengths: Sequence[int]) -> RowShapes:
        """The rows at the size of an x with these lengths. Raises SizeError."""
        if tuple(lengths) == self.default.x.shape:
            return self.default
        return self.at(self.x.shape.sizes_of(lengths))

    def shapes_near(self, lengths: Sequence[int]) -> RowShapes:
        """The rows at the size nearest to these lengths of x, one for each of its dimensions. Fixed
        lengths stay."""
        pairs = zip(self.x.shape.dims, lengths, strict=True)
        sizes = {dim.axis: self.axes[dim.axis].nearest(length) for dim, length in pairs if dim.axis}
        return self.at(sizes)

    def shapes_of_z(self, lengths: Sequence[int]) -> RowShapes:
        """The rows at the size of a latent with these lengths. Raises SizeError."""
        if tuple(lengths) == self.default.z:
            return self.default
        return self.at(self.z.shape.sizes_of(lengths))

    @functools.cached_property
    def largest(self) -> RowShapes:
        """The rows at the largest sizes."""
        return self._at({name: axis.max for name, axis in self.axes.items()})

    @functools.cached_property
    def smallest(self) -> RowShapes:
        """The rows at the smallest sizes."""
        return self._at({name: axis.min for name, axis in self.axes.items()})

    def _at(self, sizes: Sizes) -> RowShapes:
        x = DataSpec(
            self.x.kind,
            self.x.shape.at(sizes),
            self.x.dtype,
            self.x.range,
            self.x_bounded,
            self.x.columns,
        )
        params = (len(self.parameters), *x.shape) if self.parameters else None
        terms = self.contributions.at(sizes) if self.contributions else None
        return RowShapes(tuple(sizes.values()), x, self.z.shape.at(sizes), params, terms)
