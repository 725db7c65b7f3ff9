"""Shapes of rows: fixed lengths, and named free axes.

A shape such as ("h", "w", 3) or (4, "h/8", "w/8") has a number for a fixed length. A name stands
for the length of a free axis, "h/8" for an eighth of it. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Sizes = Mapping[str, int]
"""The length of each free axis, by its name; empty if all lengths are fixed."""

AXIS_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_DIM: Final = re.compile(rf"({AXIS_NAME.pattern})(?:/([1-9][0-9]{{0,5}}))?")


class SizeError(ValueError):
    """Lengths that a model does not take.

    axis: the first free axis at fault; "": the shape as a whole
    what: what is wrong, in words that follow the field's name
    hint: what to do
    """

    def __init__(self, axis: str, what: str, hint: str = "") -> None:
        super().__init__(f"{what}. {hint}." if hint else f"{what}.")
        self.axis, self.what, self.hint = axis, what, hint


@dataclass(frozen=True, slots=True)
class Axis:
    """A free axis: the lengths that it can have.

    default: the length for a request that names none
    """

    name: str
    multiple_of: int
    min: int
    max: int
    default: int

    def check(self, length: int) -> None:
        """Raises SizeError, which names the bounds and the nearest valid length."""
        if self.min <= length <= self.max and length % self.multiple_of == 0:
            return
        raise SizeError(
            self.name,
            f"{self.name} is {length}; expected {self.expected}",
            f"The nearest valid length is {self.nearest(length)}",
        )

    @property
    def expected(self) -> str:
        """The valid lengths, in words that follow "expected"."""
        multiple = f"a multiple of {self.multiple_of} " if self.multiple_of > 1 else ""
        return f"{multiple}from {self.min} to {self.max}"

    def nearest(self, length: int) -> int:
        """The valid length that is nearest to another; of two, the larger one."""
        multiples = (length + self.multiple_of // 2) // self.multiple_of * self.multiple_of
        return max(self.min, min(self.max, multiples))


@dataclass(frozen=True, slots=True)
class Dim:
    """One length of a shape: `length`, or the length of `axis` divided by `divisor`."""

    length: int = 0
    axis: str = ""
    divisor: int = 1

    @classmethod
    def parse(cls, value: int | str) -> Dim:
        """From its JSON: 3, "h" or "h/8". Raises ValueError."""
        if isinstance(value, int):
            return cls(value)
        match = _DIM.fullmatch(value)
        if not match:
            raise ValueError(value)
        return cls(axis=match[1], divisor=int(match[2] or 1))

    def at(self, sizes: Sizes) -> int:
        """The length at these sizes."""
        return sizes[self.axis] // self.divisor if self.axis else self.length

    @property
    def json(self) -> int | str:
        """As `parse` takes it."""
        if not self.axis:
            return self.length
        return self.axis if self.divisor == 1 else f"{self.axis}/{self.divisor}"


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of one row."""

    dims: tuple[Dim, ...]

    @classmethod
    def parse(cls, values: Iterable[int | str]) -> Shape:
        """From its JSON, a list. Raises ValueError."""
        return cls(tuple(map(Dim.parse, values)))

    @property
    def json(self) -> list[int | str]:
        """As `parse` takes it."""
        return [dim.json for dim in self.dims]

    @property
    def fixed(self) -> bool:
        """Whether it has no free axis."""
        return not any(dim.axis for dim in self.dims)

    def at(self, sizes: Sizes) -> tuple[int, ...]:
        """The lengths at these sizes."""
        return tuple(dim.at(sizes) for dim in self.dims)

    def sizes_of(self, lengths: Sequence[int]) -> dict[str, int]:
        """The sizes at which this shape has these lengths, not checked against the axes' bounds.

        Raises SizeError if it never has them.
        """
        sizes: dict[str, int] = {}
        if len(lengths) != len(self.dims):
            raise SizeError("", f"expected shape {self}, got {list(lengths)}")
        for dim, length in zip(self.dims, lengths, strict=True):
            expected = sizes.setdefault(dim.axis, length * dim.divisor) if dim.axis else dim.length
            if length * dim.divisor != expected:
                raise SizeError("", f"expected shape {self}, got {list(lengths)}")
        return sizes

    def __str__(self) -> str:
        return f"[{', '.join(str(dim.json) for dim in self.dims)}]"


def format_lengths(lengths: Iterable[int | str]) -> str:
    """A shape in words: 28 x 28, or h x w x 3."""
    return " x ".join(map(str, lengths))


def check_sizes(sizes: Sizes, axes: Mapping[str, Axis]) -> None:
    """Raises SizeError, which names every length at fault, unless `sizes` gives each of the axes a
    valid length, and no other."""
    for name in sizes:
        if name not in axes:
            known = f"it has {', '.join(axes)}" if axes else "all of its lengths are fixed"
            raise SizeError(name, f"the model has no free axis {name!r}; {known}")
    faults = []
    for name, axis in axes.items():
        if name not in sizes:
            raise SizeError(name, f"{name} is missing; expected {axis.expected}")
        try:
            axis.check(sizes[name])
        except SizeError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        nearest = " and ".join(f"{e.axis} {axes[e.axis].nearest(sizes[e.axis])}" for e in faults)
        what = ". ".join(error.what for error in faults)
        raise SizeError(faults[0].axis, what, f"The nearest valid lengths are {nearest}")
