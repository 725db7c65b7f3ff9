"""One StreamReconstruct call: messages of rows, each answered whole, bad rows told of."""

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
from latentd.models.inference import Reconstruction, ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.ranges import Counts
from latentd.rpc import fields, finite


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows start.. of a message; made: None where the model fails on this one row."""

    start: int
    made: Reconstruction | None


class ReconstructStream:
    """What a stream's first message asks for, of all its messages."""

    def __init__(
        self, model: ServedModel, first: pb.StreamReconstructRequest, caller: CallContext
    ) -> None:
        self._model, self._caller = model, caller
        self._png = codec.read_format(first.format, model.manifest.x)
        self._draw, self._seed = first.draw, fields.seed(first) if first.draw else 0
        self._scores, self._latents = first.include_scores, first.include_latents
        self._with_x = first.include_x or not first.HasField("include_x")
        self._rows = 0  # of all messages so far

    async def answer(self, request: pb.StreamReconstructRequest) -> pb.StreamReconstructResponse:
        """The message's answer. Raises what ends the stream: InvalidArgument for a fault of the
        whole message, Overloaded, DeadlineExceeded, Unavailable."""
        x, outside, errors = await self._read(request.x)
        self._rows += len(x)
        parts = await self._run(x, request.offset, 0)
        for part in parts:
            if part.made is None:
                errors.setdefault(part.start, "the model fails on it")
            elif finite.bad_row(*part.made) is not None:
                for row in np.flatnonzero(~finite.good_rows(*part.made)).tolist():
                    errors.setdefault(part.start + row, finite.REASON)
        made = [part.made for part in parts if part.made is not None]
        response = pb.StreamReconstructResponse(
            served_by=fields.served_by(self._model),
            offset=request.offset,
            seed=self._seed,
            errors=[pb.RowError(row=r, description=errors[r]) for r in sorted(errors)],
        )
        if made:
            failed = {part.start for part in parts if part.made is None}
            rows = [row for row in range(len(x)) if row not in failed]
            await self._fill(response, made, np.array([row not in errors for row in rows], bool))
            if outside is not None:
                kept = [row for row in rows if row not in errors]
                response.values_outside_range.extend(outside[kept])
        return response

    async def _fill(
        self,
        response: pb.StreamReconstructResponse,
        made: list[Reconstruction],
        keep: NDArray[np.bool_],
    ) -> None:
        def column(parts: list[Array]) -> Array:
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            kept: Array = whole if keep.all() else whole[keep]
            return kept

        if self._with_x:
            await fields.write_rows(column([part.x for part in made]), self._png, response)
        if self._latents:
            codec.write_tensor(column([part.mean for part in made]), response.mean)
            codec.write_tensor(column([part.log_var for part in made]), response.log_var)
        scores = [part.scores for part in made if part.scores is not None]
        if scores:
            error = [s.reconstruction_error for s in scores if s.reconstruction_error is not None]
            response.reconstruction_error.extend(column(error))
            response.kl.extend(column([s.kl for s in scores]))
            response.elbo.extend(column([s.elbo for s in scores]))

    async def _run(self, x: Array, offset: int, start: int) -> list[_Part]:
        """All rows, halved where the model fails until it is one row that it fails on."""
        draw = None
        if self._draw:
            draw = fields.draw(self._seed, offset, len(x), "offset", POSTERIOR)
        try:
            made = await self._model.reconstruct(
                x, draw, self._scores, self._caller, work=self._rows
            )
        except EngineError:
            if len(x) == 1:
                return [_Part(start, None)]
            half = len(x) // 2
            first = await self._run(x[:half], offset, start)
            return first + await self._run(x[half:], offset + half, start + half)
        return [_Part(start, made)]

    async def _read(self, rows: pb.Rows) -> tuple[Array, Counts | None, dict[int, str]]:
        """x, how many values of each row lie outside the range, and the rows that cannot be taken
        with the reason: they keep their places, so that the others keep their draws."""
        m, most = self._model.manifest, self._model.max_rows
        read = functools.partial(codec.decode_rows_lenient, rows, m.x, m.likelihood, most, "x")
        return await run_in_executor(read) if rows.WhichOneof("content") == "png" else read()
