"""The order of an epoch's rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from latentd.texts import to_rows
from latentd.training import batch_order

SIZE = 8


def texts(rows: int) -> Tensor:
    lengths = np.random.default_rng(0).integers(1, 31, rows)
    return torch.from_numpy(to_rows([b"a" * length for length in lengths], 32))


def draw(x: Tensor, text: bool, seed: int = 0) -> Tensor:
    return batch_order.draw(x, SIZE, text, torch.Generator().manual_seed(seed))


def test_every_row_comes_once_in_another_order_each_time() -> None:
    for rows in (3, 8, 803):
        x = texts(rows)
        orders = [draw(x, text, seed) for text in (False, True) for seed in (0, 1)]
        for order in orders:
            assert order.sort().values.tolist() == list(range(rows))
        if rows > SIZE:
            assert not torch.equal(orders[2], orders[3])


def test_texts_of_similar_lengths_share_a_batch() -> None:
    x = texts(800)
    lengths = (x != 0).sum(1)

    def read(order: Tensor) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in torch.split(order, SIZE))

    assert read(draw(x, text=True)) < 1.1 * int(lengths.sum()) < read(draw(x, text=False))


def test_lengths_are_counted_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = texts(70_000)
    expected, sizes = draw(x, text=True), []
    mask = batch_order.text_mask
    monkeypatch.setattr(batch_order, "text_mask", lambda x: (sizes.append(len(x)), mask(x))[1])
    assert torch.equal(draw(x, text=True), expected)
    assert sizes == [65_536, 70_000 - 65_536]
