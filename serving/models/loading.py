"""Turns a verified bundle into graphs that can serve: loaded, profiled, checked and warm.

All of it happens before the first request reaches the graphs, and without disturbing models that
serve.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from latentd import latent_map
from latentd.batching.entries import single_item_batch
from latentd.batching.runner import Outputs
from latentd.bundle import DECODER, ENCODER, MAP, Bundle, Manifest, RowShapes
from latentd.decoding import Greedy
from latentd.errors import BundleError, ConfigError
from latentd.latents import NoiseRange
from latentd.models import likelihood_graphs, profile
from latentd.models.payloads import DecodePayload, decode_batch, encode_batch
from latentd.models.profile import MeasuredProfile, ModelProfile, SizeProfile, sizes_to_measure
from latentd.models.sources import PriorSamples
from latentd.runtime import golden, memory, profiling
from latentd.runtime.engine import Graph, SessionFactory
from latentd.runtime.golden import Golden
from latentd.runtime.io_binding import IOBindingGraph
from latentd.runtime.likelihood import LikelihoodGraph
from latentd.runtime.provider import available_cpus
from latentd.runtime.signature import Signature
from latentd.settings import Settings
from latentd.shapes import Shape

log = logging.getLogger(__name__)

RunRows = Callable[[Graph, RowShapes, int], Outputs]
"""Runs a batch of that many rows of zeros or noise at one size."""

IDLE_RATIO: Final = 4.0
"""While another version serves: after each step, loading rests for this many times the step's
duration. So a new version costs the calls a fifth of one CPU."""
_RUN_MEMORY_SHARE: Final = 4  # one run may take a quarter of what is free
_SIZE_TOLERANCE: Final = 0.01
"""Two graph files whose sizes differ by less hold the same net with other weights."""


@dataclass(frozen=True, slots=True)
class ProfiledGraph:
    """A loaded graph, the outputs that it must give, and its profile."""

    graph: Graph
    golden: Sequence[Golden]  # one for each size that the bundle has vectors of
    profile: MeasuredProfile

    def check(self) -> float:
        """Run the golden inputs in every batch size that this thread would run; returns the largest
        absolute error. Raises BundleError(golden)."""
        return max(
            vectors.check(self.graph, self.profile.max_batch_rows(vectors.elements))
            for vectors in self.golden
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle's graphs, ready to serve."""

    manifest: Manifest
    digest: str
    encoder: ProfiledGraph
    decoder: ProfiledGraph
    golden_max_abs_error: float  # between the golden outputs and this machine's
    likelihood: LikelihoodGraph | None = None  # None: the model defines no likelihood

    @property
    def profile(self) -> ModelProfile:
        """The profiles of both graphs."""
        return ModelProfile(self.encoder.profile, self.decoder.profile)

    def close(self) -> None:
        """Free the memory of the graphs; no run may follow."""
        self.encoder.graph.close()
        self.decoder.graph.close()
        if self.likelihood:
            self.likelihood.close()


def load_model(
    bundle: Bundle,
    engine: SessionFactory,
    settings: Settings,
    previous: ModelProfile | None = None,
    measured: ModelProfile | None = None,
) -> LoadedModel:
    """Load the graphs, profile encoder and decoder, run all on the golden vectors; blocks.

    previous: of another version of the model, which serves now. Its profile is reused if it is
    still valid. If it is not, profiling rests between its steps.
    measured: of these very graphs, from a trial: nothing is measured again.
    Raises BundleError.
    """
    loader = _GraphLoader(bundle, engine, settings, idle_ratio=IDLE_RATIO if previous else 0.0)
    m = bundle.manifest
    encoder_signature, decoder_signature = signatures(m)
    encoder_golden, decoder_golden, density_golden = golden.read(bundle)
    if MAP in bundle.files:
        latent_map.read(bundle.files[MAP], m)  # only checked: GetMap reads the file again
    likelihood = likelihood_graphs.load(bundle)
    if likelihood:
        for vectors in density_golden:
            vectors.check(likelihood)

    def encode(graph: Graph, shapes: RowShapes, rows: int) -> Outputs:
        x = np.zeros((rows, *shapes.x.shape), shapes.x.dtype)
        return encode_batch(graph, m.encoder_outputs, single_item_batch(x, rows))

    def decode(graph: Graph, shapes: RowShapes, rows: int) -> Outputs:
        source = PriorSamples(NoiseRange(seed=0, offset=0, rows=rows))
        decoding = Greedy(shapes.x.size) if m.takes_choices else None
        payload = DecodePayload(source, shapes.z, score_output=None, decoding=decoding)
        return decode_batch(graph, single_item_batch(payload, rows))

    try:
        encoder = loader.load(
            ENCODER,
            encoder_signature,
            encoder_golden,
            encode,
            previous.encoder if previous else None,
            measured.encoder if measured else None,
        )
        with _closed_on_failure(encoder.graph):
            decoder = loader.load(
                DECODER,
                decoder_signature,
                decoder_golden,
                decode,
                previous.decoder if previous else None,
                measured.decoder if measured else None,
            )
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # the errors of ONNX Runtime have no base class of their own
        raise BundleError("engine", f"A graph cannot run a batch: {error}") from error
    with _closed_on_failure(encoder.graph), _closed_on_failure(decoder.graph):
        max_abs_error = max(encoder.check(), decoder.check())
    return LoadedModel(m, bundle.digest, encoder, decoder, max_abs_error, likelihood)


class _GraphLoader:
    """Loads and profiles the graphs of one bundle."""

    def __init__(
        self, bundle: Bundle, engine: SessionFactory, settings: Settings, idle_ratio: float
    ) -> None:
        self._bundle, self._engine, self._settings = bundle, engine, settings
        self._idle_ratio = idle_ratio

    def load(
        self,
        file: str,
        signature: Signature,
        golden: Sequence[Golden],
        run: RunRows,
        previous: MeasuredProfile | None,
        measured: MeasuredProfile | None,
    ) -> ProfiledGraph:
        """One graph with its profile: `measured`, else `previous` if it is still valid, else a new
        one. The graph has run its largest batch."""
        file_bytes, smallest = len(self._bundle.files[file]), self._sizes[0]
        if measured:
            graph = self._session(file, signature, measured.threads)
            with _closed_on_failure(graph), profiling.throttled(self._idle_ratio):
                run(graph, smallest, measured.batch_rows)
            return ProfiledGraph(graph, golden, measured)
        if (
            previous
            and abs(previous.file_bytes - file_bytes) <= _SIZE_TOLERANCE * file_bytes
            and previous.sizes[0].x_shape == smallest.x.shape
        ):
            graph = self._session(file, signature, previous.threads)
            with _closed_on_failure(graph):
                run_rows = functools.partial(run, graph, smallest)
                if profiling.profile_still_valid(
                    run_rows,
                    previous.timings,
                    previous.batch_rows,
                    IDLE_RATIO,
                    self._clock(previous.threads),
                ):
                    reused = dataclasses.replace(previous, file_bytes=file_bytes)
                    return ProfiledGraph(graph, golden, reused)
            graph.close()
        return self._profile(file, signature, golden, run)

    @functools.cached_property
    def _sizes(self) -> list[RowShapes]:
        return sizes_to_measure(self._bundle.manifest)

    def _session(self, file: str, signature: Signature, threads: int) -> Graph:
        with profiling.throttled(self._idle_ratio):
            return self._engine.load(self._bundle.files[file], signature, threads)

    def _clock(self, threads: int) -> profiling.Clock:
        """What times a graph's runs on so many threads."""
        return time.thread_time if self._engine.on_cpu and threads == 1 else time.perf_counter

    def _row_bytes(self, shapes: RowShapes) -> int:
        row_bytes = shapes.x.nbytes + shapes.z_size * 4
        if not self._engine.on_cpu and shapes.params:  # a GPU batch has buffers for all outputs
            row_bytes += math.prod(shapes.params) * 4
        return row_bytes

    def _profile(
        self, file: str, signature: Signature, golden: Sequence[Golden], run: RunRows
    ) -> ProfiledGraph:
        """Choose the number of threads and the batch size by measurement; load the graph so."""
        settings, smallest = self._settings, self._sizes[0]
        max_seconds = settings.max_batch_latency_ms / 1000
        max_bytes = 0 if signature.fixed or not self._engine.on_cpu else max_run_bytes(settings)

        def measure(threads: int) -> list[SizeProfile]:
            with closing(self._session(file, signature, threads)) as graph:
                return profile.measure(
                    self._sizes,
                    functools.partial(run, graph),
                    self._row_bytes,
                    max_seconds,
                    self._idle_ratio,
                    max_bytes,
                    self._clock(threads),
                )

        threads = settings.intra_op_threads or 1
        sizes = measure(threads)
        default = min(
            sizes, key=lambda size: abs(size.elements - self._bundle.manifest.default.x.size)
        )
        if (
            not settings.intra_op_threads
            and default.timings[0].seconds > profiling.ONE_THREAD_SECONDS
        ):
            threads = max(1, available_cpus() // max(1, settings.workers))
            sizes = measure(threads)
        batch_rows = settings.max_batch_rows or profiling.choose_batch_size(
            sizes[0].timings, max_seconds
        )
        # A new session, because a session keeps the memory of the largest batch that it ever ran.
        graph = self._session(file, signature, threads)
        with _closed_on_failure(graph):
            run(graph, smallest, batch_rows)
        measured = MeasuredProfile(len(self._bundle.files[file]), threads, batch_rows, sizes)
        return ProfiledGraph(graph, golden, measured)


@contextmanager
def _closed_on_failure(graph: Graph) -> Iterator[Graph]:
    """Close the graph if the body raises. GPU memory must be freed in order, not by the garbage
    collector."""
    try:
        yield graph
    except BaseException:
        graph.close()
        raise


def release_to_workers(profiled: ProfiledGraph) -> Callable[[], object] | None:
    """Free what the graph holds for this thread, which has loaded and checked it.

    Returns what each batcher thread must run first: it makes the thread's buckets and checks their
    outputs. None: the graph has nothing for each thread.
    """
    if not isinstance(profiled.graph, IOBindingGraph):
        return None
    profiled.graph.release_thread()
    return profiled.check


def max_run_bytes(settings: Settings) -> int:
    """The memory that one run of a graph with free axes may take."""
    share = memory.available_bytes() // (_RUN_MEMORY_SHARE * max(1, settings.workers))
    return settings.run_memory_mib << 20 or share


def signatures(m: Manifest) -> tuple[Signature, Signature]:
    """The inputs and outputs that the bundle's encoder and decoder must have."""
    x, z = m.x.shape, m.z.shape
    encoder = Signature(("x", m.x.dtype, x), dict.fromkeys(m.encoder_outputs, ("float32", z)))
    decoded = {"x": (m.x.dtype, x)}
    if m.x.is_text:
        decoded["log_likelihood"] = ("float32", Shape.parse([1]))
    if m.parameters:
        decoded["params"] = ("float32", Shape.parse([len(m.parameters), *x.json]))
    return encoder, Signature(("z", "float32", m.decoder_shape), decoded)
