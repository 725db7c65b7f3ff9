"""One version of a model in service: encode, decode, sample, reconstruct, interpolate, score.

Each operation is composed over two lanes. The decoder lane is fed by Sample, Decode, Interpolate,
Score and the second half of Reconstruct together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving import golden, likelihood, sources, tuning
from serving.batcher import Lane, Outputs, Run
from serving.bundle import DECODER, ENCODER, LIKELIHOODS, Bundle, Manifest
from serving.engine import Engine, Graph, Signature, available_cpus
from serving.errors import InvalidInput
from serving.latents import POSTERIOR, Draw
from serving.metrics import Metrics
from serving.rowqueue import RowQueue, Share, whole
from serving.settings import Settings
from serving.sources import Decoding, Points, Posterior, Prior, Source
from serving.tasks import Caller, Reply, offload

Array = NDArray[Any]

ENCODED: Final = ("mean", "log_var")


@dataclass(frozen=True, slots=True)
class Scores:
    """Each in nats, float64, shape (rows,)."""

    kl: likelihood.Nats
    elbo: likelihood.Nats
    reconstruction_error: likelihood.Nats | None = None
    log_likelihood: likelihood.Nats | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle's graphs: loaded, checked against the golden vectors, warm, their cost measured."""

    bundle: Bundle
    encoder: Graph
    decoder: Graph
    encoder_costs: list[tuning.Cost]
    decoder_costs: list[tuning.Cost]


def prepare(bundle: Bundle, engine: Engine, settings: Settings) -> Prepared:
    """The slow part of opening a model; blocks, for a worker thread. Raises BundleError."""
    m = bundle.manifest
    latent, params = (m.latent_size,), (LIKELIHOODS[m.likelihood], *m.x.shape)
    takes_x = Signature(("x", m.x.dtype, m.x.shape), dict.fromkeys(ENCODED, ("float32", latent)))
    takes_z = Signature(
        ("z", "float32", latent), {"x": (m.x.dtype, m.x.shape), "params": ("float32", params)}
    )
    budget, row_bytes = settings.batch_budget_ms / 1000, m.x.nbytes + m.latent_size * 4

    def encoder_batch(graph: Graph, rows: int) -> Outputs:
        return encode_batch(graph, whole(np.zeros((rows, *m.x.shape), m.x.dtype), rows))

    def decoder_batch(graph: Graph, rows: int) -> Outputs:
        decoding = Decoding(Prior(Draw(seed=0, offset=0, rows=rows)), params=False)
        return decode_batch(graph, m.latent_size, whole(decoding, rows))

    def load(
        file: str, signature: Signature, run: Callable[[Graph, int], Outputs]
    ) -> tuple[Graph, list[tuning.Cost]]:
        graph = engine.load(bundle.files[file], signature, settings.threads or 1)
        costs = tuning.measure(functools.partial(run, graph), row_bytes, budget)
        if not settings.threads and costs[0].seconds > tuning.ONE_THREAD_SECONDS:
            graph = engine.load(bundle.files[file], signature, available_cpus())
            costs = tuning.measure(functools.partial(run, graph), row_bytes, budget)
        return graph, costs

    encoder, encoder_costs = load(ENCODER, takes_x, encoder_batch)
    decoder, decoder_costs = load(DECODER, takes_z, decoder_batch)
    golden.check(bundle, encoder, decoder)
    return Prepared(bundle, encoder, decoder, encoder_costs, decoder_costs)


def encode_batch(graph: Graph, batch: Sequence[Share]) -> Outputs:
    """mean and log_var for the rows of a batch whose payloads are x."""
    rows = [share.payload[share.start : share.stop] for share in batch]
    return tuple(graph.run(rows[0] if len(rows) == 1 else np.concatenate(rows), ENCODED))


def decode_batch(graph: Graph, latent_size: int, batch: Sequence[Share]) -> Outputs:
    """x, params (None if nobody wants them) and z for a batch whose payloads are decodings."""
    z = sources.gather(batch, latent_size)
    if any(share.payload.params for share in batch):
        return *graph.run(z, ["x", "params"]), z
    return *graph.run(z, ["x"]), None, z


class Model:
    """One version of a model in service."""

    def __init__(self, prepared: Prepared, settings: Settings, metrics: Metrics) -> None:
        self.manifest: Manifest = prepared.bundle.manifest
        self.digest = prepared.bundle.digest
        self.costs = {"encoder": prepared.encoder_costs, "decoder": prepared.decoder_costs}
        self.params_per_element = LIKELIHOODS[self.manifest.likelihood]
        # Any answer to a request of this many rows fits into one message.
        largest = 4 * (self.params_per_element * self.manifest.x.size + self.manifest.latent_size)
        self.max_rows = max(1, min(settings.max_rows, settings.max_message_bytes // (largest + 64)))

        def lane(name: str, costs: list[tuning.Cost], run: Run) -> Lane:
            budget = settings.batch_budget_ms / 1000
            batch_rows = settings.max_batch_rows or tuning.best_rows(costs, budget)
            queue = RowQueue(
                batch_rows,
                settings.queue_rows,
                settings.queue_mib << 20,
                tuning.seconds_of(batch_rows, costs),
            )
            version = (self.manifest.model, self.manifest.version)
            return Lane(name, version, queue, run, metrics)

        encode = functools.partial(encode_batch, prepared.encoder)
        decode = functools.partial(decode_batch, prepared.decoder, self.manifest.latent_size)
        self.encoder = lane("encoder", prepared.encoder_costs, encode)
        self.decoder = lane("decoder", prepared.decoder_costs, decode)

    def close(self) -> None:
        """Finish what waits in both lanes, first the one that feeds the other; blocks."""
        self.encoder.close()
        self.decoder.close()

    def encode(self, x: Array, caller: Caller) -> Reply[Outputs]:
        """mean and log_var of each row, float32 (rows, latent size)."""
        return self.encoder.submit(x, len(x), x.nbytes, caller)

    def decode(self, source: Source, caller: Caller, *, params: bool = False) -> Reply[Outputs]:
        """For each latent of the source: x (rows, *shape), params if asked for, and z itself."""
        nbytes = source.rows * self.manifest.latent_size * 4
        return self.decoder.submit(Decoding(source, params), source.rows, nbytes, caller)

    async def reconstruct(
        self, x: Array, draw: Draw | None, scores: bool, caller: Caller
    ) -> tuple[Array, Scores | None]:
        """x -> x' through each row's mean, or through `draw` around it; scores on request."""
        if scores:
            self._check_scores("scores")
        mean, log_var = await self.encode(x, caller)
        source = Points(mean) if draw is None else Posterior(mean, log_var, draw)
        decoded, params, _ = await self.decode(source, caller, params=scores)
        if not scores:
            return decoded, None
        distortion = await self._distortion(x, params)
        kl = likelihood.kl_to_prior(mean, log_var)
        return decoded, Scores(kl, -distortion - kl, reconstruction_error=distortion)

    async def score(self, x: Array, draws: int, seed: int, offset: int, caller: Caller) -> Scores:
        """ELBO and importance-weighted bound of each row with `draws` draws, K.

        Memory does not grow with K: draws are made by the request's worth of rows, and the log of
        the mean weight is summed as they come in.
        """
        self._check_scores("model")
        rows = len(x)
        if self.manifest.likelihood == "bernoulli":
            x = likelihood.binarised(x, self.manifest.x)
        mean, log_var = await self.encode(x, caller)
        log_sum, distortion = np.full(rows, -np.inf), np.zeros(rows)
        together = max(1, self.max_rows // rows)
        for first in range(0, draws, together):
            replies = [
                self.decode(
                    Posterior(mean, log_var, Draw(seed, offset, rows, POSTERIOR + k)),
                    caller,
                    params=True,
                )
                for k in range(first, min(first + together, draws))
            ]
            for reply in replies:
                _, params, z = await reply
                distortion_k = await self._distortion(x, params)
                distortion += distortion_k / draws
                log_weight = likelihood.log_prior_ratio(z, mean, log_var) - distortion_k
                log_sum = np.logaddexp(log_sum, log_weight)
        kl = likelihood.kl_to_prior(mean, log_var)
        return Scores(kl, -distortion - kl, log_likelihood=log_sum - np.log(draws))

    def _distortion(self, x: Array, params: Array) -> Reply[likelihood.Nats]:
        """-log p(x | z) of each row."""

        def compute() -> likelihood.Nats:
            scaled = likelihood.scaled(x, self.manifest.x)
            return -likelihood.log_likelihood(scaled, params, self.manifest.likelihood)

        return offload(compute)

    def _check_scores(self, field: str) -> None:
        if self.manifest.family != "vae":
            raise InvalidInput(
                field,
                f"{self.manifest.model} is a plain autoencoder, which defines no likelihood to "
                "score with",
                "Score with a VAE",
            )
