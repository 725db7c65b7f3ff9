"""The features of rows with columns: how many numbers the nets have for each column, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentd.columns import Column


class Features(nn.Module):
    """The features of a row, which are what the nets see: tensors that move with the model.

    A numeric column is one feature. A categorical column is one feature for each level, and one for
    other values. width: the number of features
    """

    mean: Tensor  # (columns,), as the next two: 0 and 1 of categorical columns
    std: Tensor
    log_std: Tensor
    is_numeric: Tensor  # (columns,)
    last: Tensor  # (columns,): the number of the last level
    source: Tensor  # (width,): the column of each feature
    level: Tensor  # (width,): the number of each feature's level; -1: it is a number
    slots: Tensor  # (parameters * columns,): the feature of each parameter; width: none
    used: Tensor  # (parameters, columns): whether it has one
    numbers: Tensor  # (parameters, 1): 0, 1, 2, ...

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        widths = [column.cardinality or 1 for column in columns]
        self.width = sum(widths)
        self.has_categorical = any(column.is_categorical for column in columns)
        count = max(2, *widths)
        slots = torch.full((count, len(columns)), self.width)
        sources: list[int] = []
        levels: list[int] = []
        for place, (column, width) in enumerate(zip(columns, widths, strict=True)):
            slots[:width, place] = torch.arange(len(sources), len(sources) + width)
            sources += [place] * width
            levels += range(width) if column.is_categorical else [-1]
        for name, tensor in {
            "mean": torch.tensor([column.mean for column in columns]),
            "std": torch.tensor([column.std for column in columns]),
            "log_std": torch.tensor([math.log(column.std) for column in columns]),
            "is_numeric": torch.tensor([not column.is_categorical for column in columns]),
            "last": torch.tensor([float(max(0, column.cardinality - 1)) for column in columns]),
            "source": torch.tensor(sources),
            "level": torch.tensor(levels, dtype=torch.float32),
            "slots": slots.flatten(),
            "used": slots < self.width,
            "numbers": torch.arange(count, dtype=torch.float32)[:, None],
        }.items():
            self.register_buffer(name, tensor, persistent=False)  # RowSpec has what makes them

    def by_column(self, features: Tensor) -> Tensor:
        """Numbers of features (rows, width) by parameter: (rows, parameters, columns)."""
        padded = torch.cat((features, torch.zeros_like(features[:, :1])), dim=1)
        return padded.index_select(1, self.slots).view(-1, *self.used.shape)
