"""One run on several processes: `torchrun --nproc-per-node N -m latentd train ...`.

Every process draws the same order and noise for the whole batch and computes its shard of the rows.
So the number of processes changes only the rounding of a run.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # Imported now: if a group exists at import, it keeps it.
from torch import Tensor

T = TypeVar("T")


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if torchrun started this process. Yields this process's device.

    Ends the group's threads on exit: a thread that still runs when Python exits may abort the
    process.
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
    """The number of processes in this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that logs, draws and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def notice(text: str) -> None:
    """Print a notice to the user on standard error. Only the main process prints it."""
    if is_main_process():
        print(text, file=sys.stderr)


def shard(rows: Tensor, axis: int = 0) -> Tensor:
    """This process's part of a batch: every process_count()-th row, starting at its rank."""
    if process_count() == 1:
        return rows
    return rows[(slice(None),) * axis + (slice(dist.get_rank(), None, process_count()),)]


def all_reduce_(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over the processes. All have one dtype and one device."""
    if process_count() == 1:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    parts = torch.split(together, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def broadcast(value: T) -> T:
    """The first process's value, in every process, so that all make the same decision."""
    if process_count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
