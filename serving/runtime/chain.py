"""Two graphs on a GPU, run one after the other: what the one makes stays there for the other.

The one buffer is bound twice, as an output of the first graph and as the input of the second. So a
batch that passes through both is copied to the device once and from it once, and there is nothing
to be done on the host in between.

As with a bound graph, batches are padded to powers of two, and each thread has buckets of its own,
in pairs. A pair gives whatever its graphs give: a graph computes all of its outputs, whichever are
asked of it, and only those that are asked for are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from serving.runtime.bound import Array, BoundGraph, Bucket, Buffer, bucket_rows, give_back
from serving.runtime.gpu import GPU


@dataclass(frozen=True, slots=True)
class Pair:
    """One size of batch: where it lies in either graph, and all outputs by their names."""

    first: Bucket
    second: Bucket
    outputs: dict[str, Buffer]


class Chain:
    """Takes what the first graph takes, and gives what either gives.

    passed: the first graph's output that is the second's input, of the same dtype and shape. Both
    graphs may be run beside it, too.
    """

    def __init__(self, first: BoundGraph, second: BoundGraph, passed: str) -> None:
        self._first, self._second, self._passed = first, second, passed
        self._pairs: dict[tuple[threading.Thread, int], Pair] = {}

    def sizes(self, most_rows: int) -> list[int]:
        """As Graph.sizes."""
        return self._first.sizes(most_rows)

    def run(self, array: Array, outputs: Sequence[str]) -> list[Array]:
        """As Graph.run; `array` and `outputs` as the chain takes and gives them."""
        rows = len(array)
        pair = self._pair(bucket_rows(rows))
        with GPU.use():
            pair.first.input.upload(array)
            self._first.step(pair.first)
            self._second.step(pair.second)
            return [pair.outputs[output].download(rows) for output in outputs]

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's pairs of up to so many rows. Raises what the runtime raises."""
        for rows in self.sizes(most_rows):
            self._pair(rows)

    def leave(self) -> None:
        """Give back this thread's pairs: it is not going to run the chain again."""
        give_back(self._pairs)

    def close(self) -> None:
        """Give the memory back now; before the graphs are closed, whose sessions it holds."""
        with GPU.use():
            self._pairs.clear()

    def _pair(self, rows: int) -> Pair:
        key = threading.current_thread(), rows
        if key not in self._pairs:
            with GPU.record():
                self._pairs[key] = self._made(rows)
        return self._pairs[key]

    def _made(self, rows: int) -> Pair:
        first, second = self._first, self._second
        one = first.make(rows, first.outputs)
        given = dict(zip(first.outputs, one.outputs, strict=True))
        two = second.make(rows, second.outputs, takes=given[self._passed])
        return Pair(one, two, given | dict(zip(second.outputs, two.outputs, strict=True)))
