"""From a verified bundle to graphs that can serve: loaded, checked, warm, and their costs known.

All of it happens before the first request meets the graphs, and away from those who serve others.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from latentd.batching.rowqueue import single_item_batch
from latentd.batching.runner import Outputs
from latentd.bundle import DECODER, ENCODER, LIKELIHOODS, Bundle, Manifest
from latentd.errors import BundleError, ConfigError
from latentd.latents import NoiseRange
from latentd.models.payloads import ENCODED, DecodePayload, decode_batch, encode_batch
from latentd.models.sources import PriorSamples
from latentd.runtime import golden, profiling
from latentd.runtime.engine import Graph, SessionFactory, Signature
from latentd.runtime.golden import Golden
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.profiling import BatchTiming
from latentd.runtime.provider import available_cpus
from latentd.settings import Settings

log = logging.getLogger(__name__)

RunRows = Callable[[Graph, int], Outputs]
"""Runs a batch of so many rows of nothing in particular."""

REST: Final = 4.0
"""While others are being served: how long to rest after each step, in times its own. A fifth of one
CPU is what a new version may cost them."""
_SAME_SIZE: Final = 0.01
"""Two graph files whose sizes differ by less hold the same net with other weights."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How a graph is run and what that costs: all that another process needs to run it so."""

    file_bytes: int
    threads: int
    costs: list[BatchTiming]
    batch_rows: int  # the most rows that one batch should hold


@dataclass(frozen=True, slots=True)
class Measurements:
    """Of both graphs of a bundle."""

    encoder: Measured
    decoder: Measured

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Measurements:
        """What `to_json` gave. Raises KeyError, TypeError for anything else."""

        def measured(one: Mapping[str, Any]) -> Measured:
            return Measured(**{**one, "costs": [BatchTiming(**cost) for cost in one["costs"]]})

        return cls(measured(raw["encoder"]), measured(raw["decoder"]))


@dataclass(frozen=True, slots=True)
class ProfiledGraph:
    """A graph, what it has to give, how it is run and what that costs."""

    graph: Graph
    golden: Golden
    file_bytes: int
    threads: int
    costs: list[BatchTiming]
    batch_rows: int  # the most rows that one batch should hold

    def check(self) -> float:
        """See that the graph gives what it should, in every size of batch that this thread would
        run; the largest difference. Raises BundleError(golden)."""
        return self.golden.check(self.graph, self.batch_rows)

    @property
    def measured(self) -> Measured:
        """Without the graph."""
        return Measured(self.file_bytes, self.threads, self.costs, self.batch_rows)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle's graphs, ready to serve."""

    manifest: Manifest
    digest: str
    encoder: ProfiledGraph
    decoder: ProfiledGraph
    golden_max_abs_error: float  # the largest between the golden outputs and this machine's

    @property
    def measurements(self) -> Measurements:
        """Without the graphs."""
        return Measurements(self.encoder.measured, self.decoder.measured)

    def close(self) -> None:
        """Give the memory of both graphs back; no run may follow."""
        self.encoder.graph.close()
        self.decoder.graph.close()


def prepare(
    bundle: Bundle,
    engine: SessionFactory,
    settings: Settings,
    before: Measurements | None = None,
    tried: Measurements | None = None,
) -> LoadedModel:
    """Load both graphs, measure what they cost and run them on the golden vectors; blocks.

    before: of another version of the model, which serves now. Its costs are taken over where they
    hold, and where they do not, measuring goes gently.
    tried: of these very graphs, from another process of this server: nothing is measured again.
    Raises BundleError.
    """
    rest = REST if before else 0.0
    m = bundle.manifest
    takes_x, takes_z = signatures(m)
    of_encoder, of_decoder = golden.read(bundle)

    def encode(graph: Graph, rows: int) -> Outputs:
        return encode_batch(graph, single_item_batch(np.zeros((rows, *m.x.shape), m.x.dtype), rows))

    def decode(graph: Graph, rows: int) -> Outputs:
        decoding = DecodePayload(
            PriorSamples(NoiseRange(seed=0, offset=0, rows=rows)), params=False
        )
        return decode_batch(graph, m.latent_size, single_item_batch(decoding, rows))

    def tuned(
        file: str,
        signature: Signature,
        golden: Golden,
        run: RunRows,
        known: Measured | None,
        exact: Measured | None,
    ) -> ProfiledGraph:
        def load(threads: int) -> Graph:
            with profiling.throttled(rest):
                return engine.load(bundle.files[file], signature, threads)

        def as_in(measured: Measured, graph: Graph) -> ProfiledGraph:
            threads, costs, rows = measured.threads, measured.costs, measured.batch_rows
            return ProfiledGraph(graph, golden, file_bytes, threads, costs, rows)

        file_bytes = len(bundle.files[file])
        if exact:
            with _closed_on_failure(load(exact.threads)) as graph, profiling.throttled(rest):
                run(graph, exact.batch_rows)
            return as_in(exact, graph)
        if known and abs(known.file_bytes - file_bytes) <= _SAME_SIZE * file_bytes:
            with _closed_on_failure(load(known.threads)) as graph:
                again = functools.partial(run, graph)
                if profiling.profile_still_valid(again, known.costs, known.batch_rows, REST):
                    return as_in(known, graph)
            graph.close()
        row_bytes = m.x.nbytes + m.latent_size * 4
        if not engine.on_cpu:  # there a batch has room for all that its graph gives
            row_bytes += m.x.size * LIKELIHOODS[m.likelihood] * 4
        return _measured(load, golden, file_bytes, run, row_bytes, settings, rest)

    try:
        known, exact = (one.encoder if one else None for one in (before, tried))
        encoder = tuned(ENCODER, takes_x, of_encoder, encode, known, exact)
        with _closed_on_failure(encoder.graph):
            known, exact = (one.decoder if one else None for one in (before, tried))
            decoder = tuned(DECODER, takes_z, of_decoder, decode, known, exact)
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # the runtime has no common base for what it raises
        raise BundleError("engine", f"A graph cannot run a batch: {error}") from error
    with _closed_on_failure(encoder.graph), _closed_on_failure(decoder.graph):
        difference = max(encoder.check(), decoder.check())
    return LoadedModel(m, bundle.digest, encoder, decoder, difference)


@contextmanager
def _closed_on_failure(graph: Graph) -> Iterator[Graph]:
    """What a graph holds on a GPU is given back in turn, never by whoever drops it last."""
    try:
        yield graph
    except BaseException:
        graph.close()
        raise


def release_to_workers(tuned: ProfiledGraph) -> Callable[[], object] | None:
    """Let go of the graph in this thread, which has loaded and checked it; what each thread that
    is to run it should do first: make its buckets and see that they give what they should. None: a
    graph that takes batches as they come does not care."""
    if not isinstance(tuned.graph, IOBindingGraph):
        return None
    tuned.graph.leave()
    return tuned.check


def signatures(m: Manifest) -> tuple[Signature, Signature]:
    """What the encoder and the decoder of such a bundle take and give."""
    latent, params = (m.latent_size,), (LIKELIHOODS[m.likelihood], *m.x.shape)
    takes_x = Signature(("x", m.x.dtype, m.x.shape), dict.fromkeys(ENCODED, ("float32", latent)))
    takes_z = Signature(
        ("z", "float32", latent), {"x": (m.x.dtype, m.x.shape), "params": ("float32", params)}
    )
    return takes_x, takes_z


def _measured(
    load: Callable[[int], Graph],
    golden: Golden,
    file_bytes: int,
    run: RunRows,
    row_bytes: int,
    settings: Settings,
    rest: float,
) -> ProfiledGraph:
    """Load a graph with as many threads as it is worth, and choose its batches."""
    budget = settings.max_batch_latency_ms / 1000

    def costs_with(threads: int) -> list[BatchTiming]:
        with closing(load(threads)) as graph:
            return profiling.measure(functools.partial(run, graph), row_bytes, budget, rest)

    threads = settings.intra_op_threads or 1
    costs = costs_with(threads)
    if not settings.intra_op_threads and costs[0].seconds > profiling.ONE_THREAD_SECONDS:
        threads = max(1, available_cpus() // max(1, settings.workers))
        costs = costs_with(threads)
    batch_rows = settings.max_batch_rows or profiling.choose_batch_size(costs, budget)
    graph = load(threads)  # anew: a session keeps the memory of the largest batch it ever ran
    with _closed_on_failure(graph):
        run(graph, batch_rows)
    return ProfiledGraph(graph, golden, file_bytes, threads, costs, batch_rows)
