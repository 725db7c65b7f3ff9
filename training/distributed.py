"""Several processes, one run: `torchrun --nproc-per-node N -m latentd train ...`.

Every process draws the same order and the same noise for the whole batch and works on its share of
the rows, so that a run does not depend on how many there are, but for rounding.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # If imported while a group exists, it holds the group for good.
from torch import Tensor

T = TypeVar("T")


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes torchrun has started, if it has; gives this one's device.

    Its threads are gone at the end: one that is left when Python ends may abort the process.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    """How many processes share this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that logs, draws and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def notice(text: str) -> None:
    """Tell the person who trains something, on standard error, once for all processes."""
    if is_main_process():
        print(text, file=sys.stderr)


def shard(rows: Tensor, axis: int = 0) -> Tensor:
    """This process's part of a batch: every count()-th row from its rank on."""
    if process_count() == 1:
        return rows
    return rows[(slice(None),) * axis + (slice(dist.get_rank(), None, process_count()),)]


def all_reduce_(tensors: list[Tensor]) -> None:
    """Replace each tensor, of one dtype and device, by its sum over the processes."""
    if process_count() == 1:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    parts = torch.split(together, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def broadcast(value: T) -> T:
    """The first process's value, in all of them: what decides must be one thing."""
    if process_count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
