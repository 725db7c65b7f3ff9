"""One StreamReconstruct call: each message of rows gets a response, which lists its bad rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentd import codec
from latentd.batching.runner import EngineError
from latentd.calls.context import CallContext
from latentd.calls.coroutines import run_in_executor
from latentd.codec import Array
from latentd.latents import POSTERIOR
from latentd.models.inference import ReconstructionOutputs, ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.ranges import Counts
from latentd.rpc import fields, finite


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a message from `start` on. result: None for a single row on which the model fails."""

    start: int
    result: ReconstructionOutputs | None


class ReconstructStream:
    """The options of a stream, which its first message sets for all of its messages."""

    def __init__(
        self, model: ServedModel, first: pb.StreamReconstructRequest, context: CallContext
    ) -> None:
        self._model, self._context = model, context
        self._png = codec.read_format(first.format, model.manifest.default.x)
        if first.draw:
            fields.require(model, "draw", "draw")
        if first.include_scores:
            fields.require(model, "score", "include_scores")
        self._draw, self._seed = first.draw, fields.seed(first) if first.draw else 0
        self._include_scores = first.include_scores
        self._include_latents = first.include_latents
        self._include_x = first.include_x or not first.HasField("include_x")
        self._rows = 0  # of all messages so far

    async def handle(self, request: pb.StreamReconstructRequest) -> pb.StreamReconstructResponse:
        """The response to a message. These errors end the stream: InvalidArgument for a fault of
        the whole message, Overloaded, DeadlineExceeded, Unavailable."""
        x, out_of_range, errors = await self._read(request.x)
        self._rows += len(x)
        parts = await self._run(x, request.offset, 0)
        for part in parts:
            if part.result is None:
                errors.setdefault(part.start, "the model fails on this row")
            elif finite.bad_row(*part.result) is not None:
                for row in np.flatnonzero(~finite.good_rows(*part.result)).tolist():
                    errors.setdefault(part.start + row, finite.REASON)
        results = [part.result for part in parts if part.result is not None]
        response = pb.StreamReconstructResponse(
            served_by=fields.served_by(self._model),
            offset=request.offset,
            seed=self._seed,
            errors=[pb.RowError(row=r, description=errors[r]) for r in sorted(errors)],
        )
        if results:
            failed = {part.start for part in parts if part.result is None}
            rows = [row for row in range(len(x)) if row not in failed]
            await self._fill(response, results, np.array([row not in errors for row in rows], bool))
            if out_of_range is not None:
                kept = [row for row in rows if row not in errors]
                response.values_outside_range.extend(out_of_range[kept])
        return response

    async def _fill(
        self,
        response: pb.StreamReconstructResponse,
        results: list[ReconstructionOutputs],
        keep: NDArray[np.bool_],
    ) -> None:
        def column(parts: list[Array]) -> Array:
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            kept: Array = whole if keep.all() else whole[keep]
            return kept

        if self._include_x:
            await fields.write_rows(column([part.x for part in results]), self._png, response)
        if self._include_latents:
            codec.write_tensor(column([part.mean for part in results]), response.mean)
            log_vars = [part.log_var for part in results if part.log_var is not None]
            if log_vars:
                codec.write_tensor(column(log_vars), response.log_var)
        scores = [part.scores for part in results if part.scores is not None]
        if scores:
            error = [s.reconstruction_error for s in scores if s.reconstruction_error is not None]
            response.reconstruction_error.extend(column(error))
            response.kl.extend(column([s.kl for s in scores]))
            response.elbo.extend(column([s.elbo for s in scores]))

    async def _run(self, x: Array, offset: int, start: int) -> list[_Part]:
        """Run all rows. If the model fails, run each half alone, down to the rows that fail."""
        noise = None
        if self._draw:
            noise = fields.noise_range(self._seed, offset, len(x), "offset", POSTERIOR)
        try:
            result = await self._model.reconstruct(
                x, noise, self._include_scores, self._context, work=self._rows
            )
        except EngineError:
            if len(x) == 1:
                return [_Part(start, None)]
            half = len(x) // 2
            first = await self._run(x[:half], offset, start)
            return first + await self._run(x[half:], offset + half, start + half)
        return [_Part(start, result)]

    async def _read(self, rows: pb.Rows) -> tuple[Array, Counts | None, dict[int, str]]:
        """x, how many values of each row lie outside the range, and why a row cannot be used, by
        row. Such rows keep their places, so that the other rows keep their noise."""
        shapes = self._model.manifest.default
        max_rows = self._model.max_rows(shapes)
        read = functools.partial(codec.decode_rows_lenient, rows, shapes.x, max_rows, "x")
        return await run_in_executor(read) if rows.WhichOneof("content") == "png" else read()
