"""One served version of a model: encode, decode, reconstruct, score.

Each operation uses one or both of two batchers. Sample, Decode, Interpolate, Score and the second
half of Reconstruct share the decoder's batcher.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from latentd import latent_map, ranges
from latentd.batching.batcher import Batcher
from latentd.batching.rowqueue import RowQueue
from latentd.batching.runner import Outputs, RunFn
from latentd.bundle import Manifest, RowShapes
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future, run_in_executor
from latentd.calls.in_flight import InFlight
from latentd.codec import Array
from latentd.decoding import DecodeAndScore, Decoding, Greedy, Sampled, TeacherForced
from latentd.errors import BundleError, Unavailable
from latentd.latent_map import LatentMap
from latentd.latents import NoiseRange
from latentd.metrics import Metrics
from latentd.models import scoring
from latentd.models.loading import (
    LoadedModel,
    ProfiledGraph,
    max_run_bytes,
    release_to_workers,
)
from latentd.models.payloads import DecodePayload, decode_batch, encode_batch
from latentd.models.profile import MeasuredProfile
from latentd.models.scoring import ScoreOutputs, Scoring
from latentd.models.sources import GivenLatents, PosteriorSamples, Source
from latentd.pb import vae_pb2 as pb
from latentd.runtime import profiling
from latentd.runtime.likelihood import LikelihoodGraph
from latentd.settings import Settings
from latentd.tiles import TiledRows


@dataclass(slots=True)  # not frozen: one is made for each call, and frozen ones are slower
class ReconstructionOutputs:
    """x' of some rows, their encodings, and on request their scores."""

    x: Array | None  # (rows, *shape); None: the rows were only encoded
    mean: Array  # float32, (rows, *shape of one latent)
    log_var: Array | None  # None: the posterior is a point
    scores: ScoreOutputs | None
    score_output: Array | None = None  # only if the model `checks_score_output`
    contributions: Array | None = None  # float32, (rows, *terms); with scores only

    def __iter__(self) -> Iterator[Array | None]:
        """All arrays to check; None for those that were not requested. Scores are sums of the
        contributions."""
        return itertools.chain(self.encoded, self.decoded)

    @property
    def encoded(self) -> tuple[Array | None, ...]:
        """What the encoder computed."""
        return self.mean, self.log_var, self.scores.kl if self.scores else None

    @property
    def decoded(self) -> tuple[Array | None, ...]:
        """What the decoder computed, and the likelihood from that."""
        scores = (self.scores.elbo, self.scores.reconstruction_error) if self.scores else ()
        return self.x, self.score_output, *scores


_MAX_SIZES: Final = 4096  # whose costs and limits are remembered


class ServedModel:
    """One served version of a model."""

    def __init__(self, loaded: LoadedModel, settings: Settings, metrics: Metrics) -> None:
        self.loaded = loaded
        self.manifest: Manifest = loaded.manifest
        self.digest = loaded.digest
        # A field of every response.
        self.served_by = pb.ModelVersion(
            model=self.manifest.model, version=self.manifest.version, digest=self.digest
        )
        self.in_flight = InFlight()
        # Bytes hide NaN, which is not rare in float16, and so do categorical columns, whose
        # rows may be far from any data: only the score output shows it.
        x = self.manifest.x
        in_bytes = x.dtype == "uint8" and self.manifest.precision != "float32"
        hidden = in_bytes or any(column.is_categorical for column in x.columns)
        self.checks_score_output = hidden and self.manifest.likelihood is not None
        self._settings = settings

        def batcher(name: str, profiled: ProfiledGraph, run: RunFn) -> Batcher:
            profile = profiled.profile
            queue = RowQueue(
                profile.batch_rows,
                settings.queue_rows,
                settings.queue_mib << 20,
                profile.batch_seconds,
                min(profile.batch_rows, profiling.background_batch_rows(profile.timings)),
            )
            version = (self.manifest.model, self.manifest.version)
            initializer = release_to_workers(profiled)
            threads = 2 if initializer else 1  # the second copies to and from a GPU meanwhile
            return Batcher(
                name, version, queue, run, metrics, initializer=initializer, threads=threads
            )

        encode = functools.partial(
            encode_batch, loaded.encoder.graph, self.manifest.encoder_outputs
        )
        decode = functools.partial(decode_batch, loaded.decoder.graph)
        self.max_elements = _max_elements(loaded, settings)
        self._scales: dict[tuple[int, ...], tuple[int, int]] = {(): (1, 1)}
        self._max_rows: dict[tuple[tuple[int, ...], bool], int] = {}
        self.encoder = batcher("encoder", loaded.encoder, encode)
        self.decoder = batcher("decoder", loaded.decoder, decode)
        self._scoring_seconds = scoring.measure(loaded.likelihood, self.manifest.default)

    def max_rows(self, shapes: RowShapes, contributions: bool = False) -> int:
        """How many rows of this size a request may have: any response fits into one message.
        contributions: also one with contributions."""
        limit = self._max_rows.get((shapes.key, contributions))
        if limit is None:
            in_message = shapes.rows_in(self._settings.max_message_bytes, contributions)
            limit = min(self._settings.max_rows, in_message)
            if len(self._max_rows) < _MAX_SIZES:
                self._max_rows[shapes.key, contributions] = limit
        return limit

    def too_large(self, shapes: RowShapes) -> tuple[str, str] | None:
        """Why a run of one row of this size would not fit into memory, and what to do; None: it
        fits."""
        elements, limit = shapes.x.size, self.max_elements
        if not limit or elements <= limit:
            return None
        return (
            f"a row of {elements:,} numbers needs more memory than this server allows one run; the "
            f"limit is {limit:,} numbers",
            "Send smaller rows, or raise --run-memory-mib"
            + (
                "; methods with the field tiling can run it in tiles" if self.manifest.tiles else ""
            ),
        )

    def beyond_message(self, nbytes: int) -> tuple[str, str] | None:
        """Why a row of so many bytes cannot be sent, and what to do; None: it can."""
        limit = self._settings.max_message_bytes
        if nbytes <= limit:
            return None
        return (
            f"a row of {nbytes:,} bytes is larger than a message; the limit is {limit:,} bytes",
            "Use a smaller size, or raise --max-message-mib",
        )

    def read_map(self) -> LatentMap:
        """The map of training rows, read from the bundle's folder; blocks. Only if the bundle has
        one. Raises Unavailable."""
        m = self.manifest
        try:
            return latent_map.load(Path(self._settings.bundles) / m.model / str(m.version), m)
        except BundleError as error:  # its files were changed or removed after it was loaded
            raise Unavailable(f"{m.model} version {m.version}: {error}") from error

    def wait_until_ready(self) -> None:
        """Block until both batchers are ready. Raises BundleError if one fails to start."""
        self.encoder.wait_until_ready()
        self.decoder.wait_until_ready()

    def close(self) -> None:
        """Run what is queued, then free the memory of the graphs; blocks."""
        self.encoder.close()  # first, because its results feed the decoder
        self.decoder.close()
        self.loaded.close()

    def self_test(self) -> None:
        """Run the graphs on zeros, without the batchers; blocks. Raises what they raise."""
        shapes = self.manifest.default
        x = np.zeros((1, *shapes.x.shape), shapes.x.dtype)
        z = np.zeros((1, *self.manifest.decoder_row(shapes)), np.float32)
        self.loaded.encoder.graph.run(x, self.manifest.encoder_outputs)
        self.loaded.decoder.graph.run(z, ["x"])

    def batchers(self) -> list[tuple[Batcher, MeasuredProfile]]:
        """Each batcher with the profile of its graph."""
        profile = self.loaded.profile
        return [(self.encoder, profile.encoder), (self.decoder, profile.decoder)]

    # work: if the call is a stream of parts, the rows of the whole call, as far as known.

    def encode(self, x: Array | TiledRows, caller: CallContext, work: int = 0) -> Future[Outputs]:
        """mean and log_var (None if the posterior is a point) of each row: float32
        (rows, *shape of one latent)."""
        shapes = self.manifest.shapes_of_x(x.shape[1:])
        scale, _ = self._scale(shapes)
        return self.encoder.submit(
            x, len(x), x.nbytes, caller, work=work, shape=shapes.key, scale=scale
        )

    def decode(
        self,
        source: Source,
        shapes: RowShapes,
        caller: CallContext,
        *,
        score_output: bool = False,
        work: int = 0,
        decoding: Decoding | None = None,
    ) -> Future[Outputs]:
        """For each latent of the source: x (rows, *shape), on request the score output (see
        Manifest.score_output), and z itself.

        decoding: how texts and rows with columns are decoded; None: greedily
        """
        if self.manifest.takes_choices and decoding is None:
            decoding = Greedy(shapes.x.size)
        name = self.manifest.score_output if score_output else None
        payload = DecodePayload(source, shapes.z, name, decoding=decoding)
        nbytes = source.rows * shapes.z_size * 4
        _, scale = self._scale(shapes)
        return self.decoder.submit(
            payload, source.rows, nbytes, caller, work=work, shape=shapes.key, scale=scale
        )

    async def reconstruct(
        self,
        x: Array,
        draw: NoiseRange | None,
        scores: bool,
        caller: CallContext,
        work: int = 0,
        decoding: Sampled | TeacherForced | None = None,
        contributions: bool = False,
    ) -> ReconstructionOutputs:
        """x -> x' from each row's mean, or from `draw` around it; scores on request.

        decoding: how texts and rows with columns are decoded; None: greedily. TeacherForced: only
                  the scores of texts x are wanted
        contributions: also give them, with scores
        """
        mean, log_var = await self.encode(x, caller, work)
        source = GivenLatents(mean) if draw is None else PosteriorSamples(mean, log_var, draw)
        shapes = self.manifest.shapes_of_x(x.shape[1:])
        wants_score_output = scores or self.checks_score_output
        decoded: Any
        if scores and shapes.x.is_text and not isinstance(decoding, TeacherForced):
            decoded, score_output = await self._decode_and_score(
                x, source, shapes, caller, work, decoding
            )
        else:
            decoded, score_output, _ = await self.decode(
                source,
                shapes,
                caller,
                score_output=wants_score_output,
                work=work,
                decoding=decoding,
            )
        if not scores:
            score_output = score_output if self.checks_score_output else None
            return ReconstructionOutputs(decoded, mean, log_var, None, score_output)
        likelihood = self._likelihood()
        score = functools.partial(
            scoring.score_reconstructions, x, mean, log_var, score_output, likelihood
        )
        result = ReconstructionOutputs(decoded, mean, log_var, await run_in_executor(score))
        if not contributions:
            return result
        assert likelihood is not None
        terms = await run_in_executor(likelihood.contributions, x, score_output)
        return dataclasses.replace(result, contributions=terms)

    async def _decode_and_score(
        self,
        x: Array,
        source: GivenLatents | PosteriorSamples,
        shapes: RowShapes,
        caller: CallContext,
        work: int,
        decoding: Sampled | None,
    ) -> tuple[Any, Any]:
        """What the latents of texts are decoded to, and log p(x | z) of the texts x themselves."""
        if isinstance(source, PosteriorSamples):
            z = await run_in_executor(source.latents)
        else:
            z = source.z[:]
        both = DecodeAndScore(decoding or Greedy(shapes.x.size), TeacherForced(x))
        twice = GivenLatents(np.concatenate((z, z)))
        decoded, log_p, _ = await self.decode(
            twice, shapes, caller, score_output=True, work=2 * work, decoding=both
        )
        return decoded[: len(x)], log_p[len(x) :]

    async def score(
        self, x: Array, draws: int, draw: NoiseRange, caller: CallContext
    ) -> ScoreOutputs:
        """ELBO and importance-weighted bound of each row with `draws` draws: the first is `draw`,
        each other is from the next stream.

        All draws of all rows are one request in the queue, so that admission, the queue's limits
        and its shares count the whole work. Memory holds two numbers for each draw.
        """
        shapes = self.manifest.shapes_of_x(x.shape[1:])
        if self.manifest.likelihood and self.manifest.likelihood.binary:
            x = ranges.binarize(x, shapes.x)
        rows = len(x) * draws
        nbytes = x.nbytes + len(x) * shapes.z_size * 8 + rows * 16
        _, scale = self._scale(shapes)
        weight = self._score_weight(len(x), shapes)
        # Reject before the encoder runs.
        self.decoder.check(rows, nbytes, caller, weight, shape=shapes.key, scale=scale)
        mean, log_var = await self.encode(x, caller)
        source = PosteriorSamples(mean, log_var, draw, draws)
        scores = Scoring(x, source, self._likelihood())
        decoding: Decoding | None = None
        if self.manifest.takes_choices:
            decoding = TeacherForced(x) if shapes.x.is_text else Greedy(shapes.x.size)
        name = self.manifest.score_output
        payload = DecodePayload(source, shapes.z, name, scores, decoding)
        await self.decoder.submit(
            payload,
            rows,
            nbytes,
            caller,
            weight=weight,
            keep_outputs=False,
            shape=shapes.key,
            scale=scale,
        )
        return await run_in_executor(scores.scores)

    def _likelihood(self) -> LikelihoodGraph | None:
        """The likelihood's graph; None for texts, whose decoder computes it. Requests for scores
        are rejected before if there is no likelihood."""
        assert self.manifest.likelihood
        return self.loaded.likelihood

    def _scale(self, shapes: RowShapes) -> tuple[int, int]:
        """What a row of this size costs the encoder and the decoder, in rows of the smallest."""
        scales = self._scales.get(shapes.key)
        if scales is None:
            profile, elements = self.loaded.profile, shapes.x.size
            scales = profile.encoder.scale(elements), profile.decoder.scale(elements)
            if len(self._scales) < _MAX_SIZES:
                self._scales[shapes.key] = scales
        return scales

    def _score_weight(self, rows: int, shapes: RowShapes) -> int:
        """What one draw costs in a call of `rows` rows; the unit is one decoded row of its size."""
        profile, seconds = self.loaded.decoder.profile, self._scoring_seconds
        _, scale = self._scale(shapes)
        row_seconds = profile.batch_seconds / profile.batch_rows * scale
        larger = shapes.x.size / self.manifest.default.x.size  # than the rows that were measured
        weight = 1 + larger * (seconds.likelihood + seconds.draw / rows) / row_seconds
        return min(math.ceil(weight), profile.batch_rows)


def _max_elements(loaded: LoadedModel, settings: Settings) -> int:
    """The most elements that a row of x may have, for its runs to fit into memory; 0: no limit."""
    if not loaded.manifest.axes:
        return 0
    max_bytes, profile = max_run_bytes(settings), loaded.profile
    limits = profile.encoder.max_elements(max_bytes), profile.decoder.max_elements(max_bytes)
    limit = min(filter(None, limits), default=0)
    return 0 if limit >= loaded.manifest.largest.x.size else limit
