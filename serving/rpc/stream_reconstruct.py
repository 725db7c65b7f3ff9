"""One StreamReconstruct call: each message of rows gets a response, which lists its bad rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentd import codec
from latentd.batching.runner import EngineError
from latentd.calls.context import CallContext
from latentd.codec import Array
from latentd.decoding import Sampled, TeacherForced
from latentd.latents import POSTERIOR, NoiseRange
from latentd.models.inference import ReconstructionOutputs, ServedModel
from latentd.pb import vae_pb2 as pb
from latentd.rpc import fields, finite, outliers


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a message from `start` on. result: None for a single row on which the model fails."""

    start: int
    result: ReconstructionOutputs | None


class ReconstructStream:
    """The options of a stream, which its first message sets for all of its messages."""

    def __init__(
        self,
        model: ServedModel,
        first: pb.StreamReconstructRequest,
        context: CallContext,
        nonfinite: finite.NonfiniteRows,
    ) -> None:
        self._model, self._context, self._nonfinite = model, context, nonfinite
        self._form = codec.read_format(first.format, model.manifest.default.x)
        if first.draw:
            fields.require(model, "draw", "draw")
        if first.include_scores:
            fields.require(model, "score", "include_scores")
        self._contributions = outliers.require_contributions(first, model)
        self._threshold = outliers.threshold(first, model, first.include_scores)
        self._draw, self._first = first.draw, first
        self._seed = fields.seed(first) if first.draw or first.draw_x else 0
        fields.sampled(first, model, NoiseRange(self._seed, 0, 0, POSTERIOR))  # may be refused
        self._include_scores = first.include_scores
        self._include_latents = first.include_latents
        self._include_x = first.include_x or not first.HasField("include_x")
        self._float_dtype = codec.read_float_dtype(first.float_dtype)
        self._rows = 0  # of all messages so far

    async def handle(self, request: pb.StreamReconstructRequest) -> pb.StreamReconstructResponse:
        """The response to a message. These errors end the stream: InvalidArgument for a fault of
        the whole message, Overloaded, DeadlineExceeded, Unavailable."""
        # The rows that cannot be used keep their places, so that the others keep their noise.
        x, out_of_range, errors = await fields.read_rows_lenient(
            request.x, self._model, "x", self._contributions
        )
        self._rows += len(x)
        parts = await self._run(x, request.offset, 0)
        for part in parts:
            if part.result is None:
                errors.setdefault(part.start, "the model fails on this row")
            elif finite.bad_row(*part.result) is not None:
                found = part.result
                self._nonfinite.add(self._model, encoder=found.encoded, decoder=found.decoded)
                for row in np.flatnonzero(~finite.good_rows(*part.result)).tolist():
                    errors.setdefault(part.start + row, finite.REASON)
            if self._float_dtype and part.result is not None:
                for row, reason in self._too_large(part.result).items():
                    errors.setdefault(part.start + row, reason)
        results = [part.result for part in parts if part.result is not None]
        response = pb.StreamReconstructResponse(
            served_by=self._model.served_by,
            offset=request.offset,
            seed=self._seed,
            errors=[pb.RowError(row=r, description=errors[r]) for r in sorted(errors)],
        )
        if results:
            failed = {part.start for part in parts if part.result is None}
            rows = [row for row in range(len(x)) if row not in failed]
            threshold = outliers.for_size(self._threshold, self._first, self._model, x)
            keep = np.array([row not in errors for row in rows], bool)
            await self._fill(response, results, keep, threshold)
            if out_of_range is not None:
                kept = [row for row in rows if row not in errors]
                response.values_outside_range.extend(out_of_range[kept])
        return response

    async def _fill(
        self,
        response: pb.StreamReconstructResponse,
        results: list[ReconstructionOutputs],
        keep: NDArray[np.bool_],
        threshold: float | None,
    ) -> None:
        def column(parts: list[Array]) -> Array:
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            kept: Array = whole if keep.all() else whole[keep]
            return kept

        decoded = [part.x for part in results if part.x is not None]
        x = column(decoded) if self._include_x else None
        mean = column([part.mean for part in results]) if self._include_latents else None
        log_vars = [part.log_var for part in results if part.log_var is not None]
        log_var = column(log_vars) if self._include_latents and log_vars else None
        terms = [part.contributions for part in results if part.contributions is not None]
        contributions = column(terms) if terms else None
        if self._float_dtype:
            x, mean, log_var, contributions = await fields.narrowed(
                self._float_dtype, x, mean, log_var, contributions
            )
        if x is not None:
            await fields.write_rows(x, self._form, response)
        if mean is not None:
            codec.write_tensor(mean, response.mean)
        if log_var is not None:
            codec.write_tensor(log_var, response.log_var)
        scores = [part.scores for part in results if part.scores is not None]
        if scores:
            error = column(
                [s.reconstruction_error for s in scores if s.reconstruction_error is not None]
            )
            if self._include_scores:
                response.reconstruction_error.extend(error)
                response.kl.extend(column([s.kl for s in scores]))
                response.elbo.extend(column([s.elbo for s in scores]))
            outliers.write(threshold, error, contributions, response)

    def _too_large(self, result: ReconstructionOutputs) -> dict[int, str]:
        """The rows that the response's 16-bit format cannot hold, and why."""
        x = (result.x,) if self._include_x and result.x is not None else ()
        latents = (result.mean, result.log_var) if self._include_latents else ()
        return codec.rows_too_large(self._float_dtype, *x, *latents, result.contributions)

    async def _run(self, x: Array, offset: int, start: int) -> list[_Part]:
        """Run all rows. If the model fails, run each half alone, down to the rows that fail."""
        random = fields.noise_range(self._seed, offset, len(x), "offset", POSTERIOR)
        noise = random if self._draw else None
        decoding: Sampled | TeacherForced | None = fields.sampled(self._first, self._model, random)
        if not self._include_x and self._model.manifest.default.x.is_text:
            decoding = TeacherForced(x)  # nothing else is decoded
        try:
            scores = self._include_scores or self._contributions
            if self._include_x or scores:
                result = await self._model.reconstruct(
                    x, noise, scores, self._context, self._rows, decoding, self._contributions
                )
            else:
                mean, log_var = await self._model.encode(x, self._context, work=self._rows)
                result = ReconstructionOutputs(None, mean, log_var, None)
        except EngineError:
            if len(x) == 1:
                return [_Part(start, None)]
            half = len(x) // 2
            first = await self._run(x[:half], offset, start)
            return first + await self._run(x[half:], offset + half, start + half)
        return [_Part(start, result)]
