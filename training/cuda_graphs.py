"""GPU work captured once as a CUDA graph and then launched in one call.

A step of a small net is about a hundred short kernels; launching them one by one takes longer than
running them. A replay repeats them as captured: on the same memory, with the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

WARMUP_CALLS: Final = 3
"""Ordinary runs before the capture. They load kernels, compile the nets and allocate Adam's
averages, which a capture must not contain."""

Work = Callable[[], None]


class GraphBackend(Protocol):
    """How work is run and captured: CudaBackend, or a fake in tests without a GPU."""

    def run(self, work: Work) -> None:
        """Do it."""

    def capture(self, work: Work) -> Work:
        """Capture it without running it; returns the replay. Raises RuntimeError on failure."""


class CudaBackend:
    """One stream for ordinary runs and recordings, as autograd keeps the stream of what it has met,
    and one pool of memory for all recordings: they are replayed one after the other, and nothing
    they leave in it is read afterwards."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """As GraphBackend.run, in order with the device's other work."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Work) -> Work:
        """As GraphBackend.capture."""
        graph = torch.cuda.CUDAGraph()
        # The outer `with` restores the stream even if the capture fails.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            work()
        return graph.replay


class GraphedStep:
    """Calls `work(rows, *tensors, *numbers)`, for each number of rows a few times as it is and then
    by replay.

    In a call every number is a float32 tensor (): a capture would freeze a float's first value.
    `work` must read nothing from the device, draw nothing at random, and change nothing but tensors
    that existed before it, in place. It may allocate gradients if it does so before it uses them.
    """

    def __init__(self, work: Callable[..., None], backend: GraphBackend) -> None:
        self.work, self.backend = work, backend
        self.inputs: dict[int, list[Tensor]] = {}  # by rows: where replays read their input
        self.calls: dict[int, int] = {}
        self.replays: dict[int, Work] = {}
        self.failed = False

    def __call__(self, rows: int, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """tensors: on the GPU, of the same shapes whenever there are as many rows. numbers: any."""
        if rows not in self.inputs:
            scalars = [tensors[0].new_empty((), dtype=torch.float32) for _ in numbers]
            self.inputs[rows] = [*map(torch.empty_like, tensors), *scalars]
            self.calls[rows] = 0
        inputs = self.inputs[rows]
        for slot, tensor in zip(inputs, tensors, strict=False):
            slot.copy_(tensor)
        for slot, number in zip(inputs[len(tensors) :], numbers, strict=True):
            slot.fill_(number)

        def work() -> None:
            self.work(rows, *inputs)

        if self.calls[rows] == WARMUP_CALLS and not self.failed:
            self._capture(rows, work)
        self.calls[rows] += 1
        if rows in self.replays:
            self.replays[rows]()
        else:
            self.backend.run(work)

    def _capture(self, rows: int, work: Work) -> None:
        try:
            self.replays[rows] = self.backend.capture(work)
        except RuntimeError as error:  # CUDA's errors and those of its memory are of this kind
            self.failed = True
            reason = str(error.__context__ or error).partition("\n")[0]
            tqdm.write(
                f"CUDA graph capture of a step failed ({reason}); running without CUDA graphs.",
                file=sys.stderr,
            )
