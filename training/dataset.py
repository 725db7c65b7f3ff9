"""A data set in memory: its three parts as whole tensors, and the form of its rows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from latentd.columns import Column

MAX_VALUES: Final = 1 << 22
"""The maximum number of x's values in one batch outside training. It bounds memory."""


@dataclass(frozen=True)
class RowSpec:
    """The form of one row. The model is built for it, and a bundle's clients send it."""

    shape: tuple[int, ...]  # (height, width[, channels]) or (values,)
    dtype: str  # uint8 (0..255) | float32 (0..1, or in units of their own if there are columns)
    text: bool = False  # uint8 of shape (length,): see latentd.texts
    columns: tuple[Column, ...] = ()  # of float32 of shape (columns,): see latentd.columns

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> RowSpec:
        """The inverse of dataclasses.asdict."""
        columns = (Column(**c | {"levels": tuple(c["levels"])}) for c in raw.get("columns", ()))
        return cls(**raw | {"shape": tuple(raw["shape"]), "columns": tuple(columns)})

    def __str__(self) -> str:
        """The form in words, for messages."""
        if self.text:
            return f"texts of up to {self.shape[0] - 1} bytes"
        if self.columns:
            return f"rows of {len(self.columns)} columns"
        return f"{self.dtype} rows of shape {self.shape}"

    @property
    def kind(self) -> str:
        """image | vector | text"""
        if self.text:
            return "text"
        return "vector" if len(self.shape) == 1 else "image"

    @property
    def highest(self) -> float:
        """The largest value allowed; the smallest is 0."""
        return 255.0 if self.dtype == "uint8" else 1.0

    @property
    def size(self) -> int:
        """Values in one row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Rows:
    """One part of a data set. x: uint8 or float32 (rows, *shape); y: int64 (rows,) or None."""

    x: Tensor
    y: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Rows:
        """The same rows on `device`."""
        return Rows(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Disjoint parts: train to learn from, validation to choose the best epoch, test to report."""

    train: Rows
    validation: Rows
    test: Rows
    own_test: bool  # the source has test rows; if False, they were drawn by seed
    digest: str  # sha256 of x and the split: must match on resume
    classes: tuple[str, ...] = ()  # the name of each label, if labels have names
    text: bool = False  # whether the rows are texts
    columns: tuple[Column, ...] = ()  # of rows in units of their own

    @property
    def spec(self) -> RowSpec:
        """The form of its rows."""
        x = self.train.x
        dtype = str(x.dtype).removeprefix("torch.")
        return RowSpec(tuple(x.shape[1:]), dtype, self.text, self.columns)

    def to(self, device: torch.device) -> Dataset:
        """The same data set with its tensors on `device`."""
        parts = (self.train, self.validation, self.test)
        train, validation, test = (part.to(device) for part in parts)
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    def summary(self) -> dict[str, Any]:
        """The record of the split for the log, the checkpoint and the manifest."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "test_rows": "the source's own" if self.own_test else "drawn by seed",
            "digest": self.digest,
            **({"classes": list(self.classes)} if self.classes else {}),
        }


def max_batch_rows(shape: tuple[int, ...], limit: int) -> int:
    """The number of rows of `shape` in one batch: `limit`, or fewer if the rows are large."""
    return max(1, min(limit, MAX_VALUES // math.prod(shape)))
