"""One version of a model in service: encode, decode, reconstruct, score.

Each operation is composed over two lanes. The decoder lane is fed by Sample, Decode, Interpolate,
Score and the second half of Reconstruct together.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentd import likelihood
from latentd.batching.batcher import Batcher
from latentd.batching.rowqueue import RowQueue
from latentd.batching.runner import Outputs, RunFn
from latentd.bundle import LIKELIHOODS, Manifest
from latentd.calls.context import CallContext
from latentd.calls.coroutines import Future, run_in_executor
from latentd.calls.in_flight import InFlight
from latentd.errors import InvalidArgument
from latentd.latents import NoiseRange
from latentd.metrics import Metrics
from latentd.models import scoring
from latentd.models.loading import LoadedModel, ProfiledGraph, release_to_workers
from latentd.models.payloads import DecodePayload, decode_batch, encode_batch
from latentd.models.scoring import Scores, Scoring
from latentd.models.sources import GivenLatents, PosteriorSamples, Source
from latentd.runtime import profiling
from latentd.settings import Settings

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """x' of some rows, the encoding it was made from, and on request what it is worth."""

    x: Array  # (rows, *shape)
    mean: Array  # float32, (rows, latent size)
    log_var: Array
    scores: Scores | None

    def __iter__(self) -> Iterator[Array | None]:
        """All of its arrays, and None for those that were not asked for."""
        return itertools.chain((self.x, self.mean, self.log_var), self.scores or ())


class Model:
    """One version of a model in service."""

    def __init__(self, prepared: LoadedModel, settings: Settings, metrics: Metrics) -> None:
        self.prepared = prepared
        self.manifest: Manifest = prepared.manifest
        self.digest = prepared.digest
        self.in_flight = InFlight()
        self.params_per_element = LIKELIHOODS[self.manifest.likelihood]
        # Any answer to a request of this many rows fits into one message.
        largest = 4 * (self.params_per_element * self.manifest.x.size + self.manifest.latent_size)
        self.max_rows = max(1, min(settings.max_rows, settings.max_message_bytes // (largest + 64)))

        def batcher(name: str, tuned: ProfiledGraph, run: RunFn) -> Batcher:
            queue = RowQueue(
                tuned.batch_rows,
                settings.queue_rows,
                settings.queue_mib << 20,
                profiling.seconds_of(tuned.batch_rows, tuned.costs),
                min(tuned.batch_rows, profiling.background_batch_rows(tuned.costs)),
            )
            version = (self.manifest.model, self.manifest.version)
            initializer = release_to_workers(tuned)
            threads = (
                2 if initializer else 1
            )  # on a GPU copying is worth a thread, on a CPU it is not
            return Batcher(
                name, version, queue, run, metrics, initializer=initializer, threads=threads
            )

        encode = functools.partial(encode_batch, prepared.encoder.graph)
        decode = functools.partial(decode_batch, prepared.decoder.graph, self.manifest.latent_size)
        self.encoder = batcher("encoder", prepared.encoder, encode)
        self.decoder = batcher("decoder", prepared.decoder, decode)
        self._score_seconds = scoring.measure(self.manifest)
        self._batchers = [(self.encoder, prepared.encoder), (self.decoder, prepared.decoder)]

    def wait_until_ready(self) -> None:
        """Block until all lanes are ready for batches. Raises BundleError when one will not be."""
        for batcher, _ in self._batchers:
            batcher.wait_until_ready()

    def close(self) -> None:
        """Finish what waits in the lanes, the encoder's before the decoder's, which it feeds, then
        give back the memory of the graphs; blocks."""
        for batcher, _ in self._batchers:
            batcher.close()
        for _, tuned in self._batchers:
            tuned.graph.close()

    def self_test(self) -> None:
        """Run the graphs on a row of zeros, past the lanes; blocks. Raises what they raise."""
        m = self.manifest
        x, z = np.zeros((1, *m.x.shape), m.x.dtype), np.zeros((1, m.latent_size), np.float32)
        self.prepared.encoder.graph.run(x, ["mean", "log_var"])
        self.prepared.decoder.graph.run(z, ["x"])

    def batchers(self) -> list[tuple[Batcher, ProfiledGraph]]:
        """Each lane with what its graph was found to cost."""
        return self._batchers

    # work: rows of the whole call, as far as known, where the call is a stream of parts.

    def encode(self, x: Array, caller: CallContext, work: int = 0) -> Future[Outputs]:
        """mean and log_var of each row, float32 (rows, latent size)."""
        return self.encoder.submit(x, len(x), x.nbytes, caller, work=work)

    def decode(
        self, source: Source, caller: CallContext, *, params: bool = False, work: int = 0
    ) -> Future[Outputs]:
        """For each latent of the source: x (rows, *shape), params if asked for, and z itself."""
        rows, nbytes = source.rows, source.rows * self.manifest.latent_size * 4
        return self.decoder.submit(DecodePayload(source, params), rows, nbytes, caller, work=work)

    async def reconstruct(
        self, x: Array, draw: NoiseRange | None, scores: bool, caller: CallContext, work: int = 0
    ) -> Reconstruction:
        """x -> x' through each row's mean, or through `draw` around it; scores on request."""
        if scores:
            self._check_scores("scores")
        mean, log_var = await self.encode(x, caller, work)
        source = GivenLatents(mean) if draw is None else PosteriorSamples(mean, log_var, draw)
        decoded, params, _ = await self.decode(source, caller, params=scores, work=work)
        if not scores:
            return Reconstruction(decoded, mean, log_var, None)
        distortion = await self._distortion(x, params)
        kl = likelihood.kl_to_standard_normal(mean, log_var)
        known = Scores(kl, -distortion - kl, reconstruction_error=distortion)
        return Reconstruction(decoded, mean, log_var, known)

    async def score(self, x: Array, draws: int, draw: NoiseRange, caller: CallContext) -> Scores:
        """ELBO and importance-weighted bound of each row with `draws` draws, the first of them
        `draw`, each other of the next stream.

        All draws of all rows wait as one request, so that admission, the queue's bounds and its
        shares count the whole work; memory holds two numbers for each of them.
        """
        self._check_scores("model")
        if self.manifest.likelihood == "bernoulli":
            x = likelihood.binarize(x, self.manifest.x)
        rows = len(x) * draws
        nbytes = x.nbytes + len(x) * self.manifest.latent_size * 8 + rows * 16
        weight = self._score_weight(len(x))
        self.decoder.check(rows, nbytes, caller, weight)  # before the encoder works in vain
        mean, log_var = await self.encode(x, caller)
        source = PosteriorSamples(mean, log_var, draw, draws)
        scores = Scoring(x, source, self.manifest)
        decoding = DecodePayload(source, params=True, scoring=scores)
        await self.decoder.submit(decoding, rows, nbytes, caller, weight=weight, keep_outputs=False)
        return await run_in_executor(scores.scores)

    def _score_weight(self, rows: int) -> int:
        """What a draw of a call of so many rows costs a batch, in rows that are only decoded."""
        decoder, seconds = self.prepared.decoder, self._score_seconds
        decoding = profiling.seconds_of(decoder.batch_rows, decoder.costs) / decoder.batch_rows
        weight = 1 + (seconds.density + seconds.draw / rows) / decoding
        return min(math.ceil(weight), decoder.batch_rows)

    def _distortion(self, x: Array, params: Array) -> Future[likelihood.Nats]:
        """-log p(x | z) of each row."""

        def compute() -> likelihood.Nats:
            scaled = likelihood.to_unit_interval(x, self.manifest.x)
            return -likelihood.log_prob(scaled, params, self.manifest.likelihood)

        return run_in_executor(compute)

    def _check_scores(self, field: str) -> None:
        if self.manifest.family != "vae":
            raise InvalidArgument(
                field,
                f"{self.manifest.model} is a plain autoencoder, which defines no likelihood to "
                "score with",
                "Score with a VAE",
            )
