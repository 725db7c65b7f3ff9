"""CUDA graphs: GPU work is captured once and then launched in one call.

A step of a small net is about a hundred short kernels. Launching them one by one takes longer than
running them. A replay runs the captured kernels with the same memory and the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

WARMUP_CALLS: Final = 3
"""Normal runs before the capture. They load kernels, compile the nets and allocate Adam's averages.
A capture must not contain that work."""

Work = Callable[[], None]


class GraphBackend(Protocol):
    """Runs and captures work: CudaBackend, or a fake in tests without a GPU."""

    def run(self, work: Work) -> None:
        """Run the work now."""

    def capture(self, work: Work) -> Work:
        """Capture it without running it; returns the replay. Raises RuntimeError on failure."""


class CudaBackend:
    """Normal runs and captures share one stream, because autograd remembers each tensor's stream.
    All captures share one memory pool: they are replayed one after the other, and nothing reads
    what a replay leaves in the pool."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """As GraphBackend.run. The work keeps its order with the device's other work."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work: Work) -> Work:
        """As GraphBackend.capture."""
        graph = torch.cuda.CUDAGraph()
        # The outer `with` restores the stream even if the capture raises.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            work()
        return graph.replay


class GraphedStep:
    """Calls `work(rows, *tensors, *numbers)`. For each number of rows, the first few calls run it
    normally and later calls replay it.

    `work` gets every number as a float32 tensor (), because a capture would freeze a float's first
    value. `work` must not read from the device or draw random numbers. It may change only tensors
    that existed before it, in place. It may allocate gradients before it uses them.
    """

    def __init__(self, work: Callable[..., None], backend: GraphBackend) -> None:
        self.work, self.backend = work, backend
        self.inputs: dict[int, list[Tensor]] = {}  # rows -> the tensors that replays read
        self.calls: dict[int, int] = {}
        self.replays: dict[int, Work] = {}
        self.failed = False

    def __call__(self, rows: int, tensors: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """tensors: on the GPU; equal `rows` must mean equal shapes. numbers: any values."""
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
        except RuntimeError as error:  # CUDA and its allocator raise this
            self.failed = True
            reason = str(error.__context__ or error).partition("\n")[0]
            tqdm.write(
                f"CUDA graph capture of a step failed ({reason}); running without CUDA graphs.",
                file=sys.stderr,
            )
