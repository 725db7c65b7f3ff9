"""Two graphs on a GPU, run one after the other: what the one makes stays there for the other.

The one buffer is bound twice, as an output of the first graph and as the input of the second. So a
batch that passes through both is copied to the device once and from it once, and there is nothing
to be done on the host in between.

As with a bound graph, batches are padded to powers of two, and each thread has buckets of its own,
in pairs. A pair gives whatever its graphs give, and only what is asked for is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.runtime.bound import BoundGraph, Bucket
from serving.runtime.buffers import Array, Buffer, Stream, through
from serving.runtime.gpu import GPU
from serving.runtime.hands import Hands, bucket_rows, sizes


@dataclass(frozen=True, slots=True)
class Pair:
    """One size of batch in either graph."""

    first: Bucket
    second: Bucket

    @property
    def outputs(self) -> dict[str, Buffer]:
        """All that either gives."""
        return self.first.outputs | self.second.outputs

    def close(self) -> None:
        """Give the memory back; no run may follow."""
        self.second.close()
        self.first.close()


class Chain:
    """Takes what the first graph takes, and gives what either gives.

    passed: the first graph's output that is the second's input, of the same dtype and shape. Both
    graphs may be run beside it, too.
    """

    def __init__(self, first: BoundGraph, second: BoundGraph, passed: str) -> None:
        self._first, self._second, self._passed = first, second, passed
        self._hands = Hands(first.device, self._made)

    def sizes(self, most_rows: int) -> list[int]:
        """As Graph.sizes."""
        return sizes(most_rows)

    def run(self, array: Array, outputs: Sequence[str]) -> list[Array]:
        """As Graph.run; `array` and `outputs` as the chain takes and gives them."""
        pair, copies = self._hands.bucket(bucket_rows(len(array)))

        def compute() -> None:
            self._first.compute(pair.first, copies)
            self._second.compute(pair.second, copies)

        gives = [pair.outputs[output] for output in outputs]
        return through(array, pair.first.input, compute, gives, copies)

    def warm_up(self, most_rows: int) -> None:
        """Make this thread's pairs of up to so many rows. Raises what the runtime raises."""
        self._hands.warm_up(most_rows)

    def leave(self) -> None:
        """Give back this thread's pairs: it is not going to run the chain again."""
        self._hands.leave()

    def close(self) -> None:
        """Give the memory back now; before the graphs are closed, whose sessions it holds."""
        with GPU.use():
            self._hands.close()

    def _made(self, rows: int, copies: Stream) -> Pair:
        first = self._first.make(rows, copies)
        try:
            second = self._second.make(rows, copies, takes=first.outputs[self._passed])
        except BaseException:
            first.close()
            raise
        return Pair(first, second)
