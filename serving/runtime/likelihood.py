"""log p(x | z) of rows: likelihood.onnx, which alone has the formula.

It always runs on the CPU with one thread, in the thread that needs it: next to a decoder it costs
little, and what it takes and gives is in the CPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from latentd.errors import BundleError
from latentd.posterior import Nats
from latentd.runtime import external_data
from latentd.runtime.engine import new_session
from latentd.runtime.provider import CPU
from latentd.runtime.signature import check_value
from latentd.shapes import Shape

Params = NDArray[np.float32]
Prepare = Callable[[NDArray[Any], Params], tuple[NDArray[Any], Params]]

_BLOCK: Final = 1 << 17
"""Elements of x in one run. So its arrays stay in the processor's cache, whatever the batch, and
their memory is bounded."""
_OUTPUT: Final = "log_likelihood"
_CONTRIBUTIONS: Final = "contributions"


class LikelihoodGraph:
    """log p(x | z) of rows. Threads may share it."""

    def __init__(
        self,
        session: ort.InferenceSession,
        prepare: Prepare | None = None,
        has_contributions: bool = False,
    ) -> None:
        """prepare: makes the graph's inputs from x and params."""
        self._session, self._prepare = session, prepare
        self.has_contributions = has_contributions

    def log_prob(self, x: NDArray[Any], params: Params) -> Nats:
        """log p(x | z) of each row. x: (rows, *shape), as clients send it; params: from the
        decoder, (rows, parameters, *shape)."""
        if x.size <= _BLOCK:
            whole: Nats = self._run([_OUTPUT], x, params)[0]
            return whole
        log_prob, rows = np.empty(len(x)), self.rows_of_run(x)
        for start in range(0, len(x), rows):
            stop = start + rows
            log_prob[start:stop] = self._run([_OUTPUT], x[start:stop], params[start:stop])[0]
        return log_prob

    def contributions(self, x: NDArray[Any], params: Params) -> NDArray[np.float32]:
        """The terms of -log p(x | z) of each row, which sum to it: (rows, *terms). x, params: as
        `log_prob` takes them. Only if it has_contributions."""
        rows = self.rows_of_run(x)
        parts = [
            self._run([_CONTRIBUTIONS], x[start : start + rows], params[start : start + rows])[0]
            for start in range(0, len(x), rows)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @staticmethod
    def rows_of_run(x: NDArray[Any]) -> int:
        """The most rows like those of x in one run."""
        return max(1, _BLOCK // max(1, x[:1].size))

    def close(self) -> None:
        """Free the session's memory now; no run may follow."""
        del self._session

    def _run(self, names: list[str], x: NDArray[Any], params: Params) -> list[Any]:
        if self._prepare:
            x, params = self._prepare(x, params)
        outputs: list[Any] = self._session.run(names, {"x": x, "params": params})
        return outputs


def load(
    model: bytes,
    dtype: str,
    x: Shape,
    parameters: int,
    prepare: Prepare | None = None,
    contributions: Shape | None = None,
) -> LikelihoodGraph:
    """Make a session of the graph's bytes. dtype, x: of the rows that it takes. prepare: as
    LikelihoodGraph takes it. contributions: their shape; None: the graph need not give them.

    Raises BundleError(external | engine | signature).
    """
    external_data.reject(model)
    session = new_session(model, [CPU], threads=1, fixed=x.fixed)
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    expected = {_OUTPUT} if contributions is None else {_OUTPUT, _CONTRIBUTIONS}
    if set(inputs) != {"x", "params"} or not expected <= set(outputs):
        raise BundleError(
            "signature",
            f"The likelihood's graph takes {sorted(inputs)} and gives {sorted(outputs)}; expected "
            f"['params', 'x'] and {sorted(expected)}.",
        )
    check_value(inputs["x"], dtype, x)
    check_value(inputs["params"], "float32", Shape.parse([parameters, *x.json]))
    check_value(outputs[_OUTPUT], "float64", Shape(()))
    if contributions is not None:
        check_value(outputs[_CONTRIBUTIONS], "float32", contributions)
    return LikelihoodGraph(session, prepare, contributions is not None)
