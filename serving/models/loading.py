"""Turns a verified bundle into graphs that can serve: loaded, profiled, checked and warm.

All of it happens before the first request reaches the graphs, and without disturbing models that
serve.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from latentd.batching.rowqueue import single_item_batch
from latentd.batching.runner import Outputs
from latentd.bundle import DECODER, ENCODER, Bundle, Manifest
from latentd.errors import BundleError, ConfigError
from latentd.latents import NoiseRange
from latentd.models.payloads import DecodePayload, decode_batch, encode_batch, encoder_outputs
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
"""Runs a batch of that many rows of zeros or noise."""

IDLE_RATIO: Final = 4.0
"""While another version serves: after each step, loading rests for this many times the step's
duration. So a new version costs the calls a fifth of one CPU."""
_SIZE_TOLERANCE: Final = 0.01
"""Two graph files whose sizes differ by less hold the same net with other weights."""


@dataclass(frozen=True, slots=True)
class MeasuredProfile:
    """How a graph runs and what that costs: all that another process needs to run it the same."""

    file_bytes: int
    threads: int  # of ONNX Runtime, for one run
    timings: list[BatchTiming]
    batch_rows: int  # the largest batch

    @property
    def batch_seconds(self) -> float:
        """Duration of the largest batch."""
        return profiling.seconds_of(self.batch_rows, self.timings)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """The profiles of a bundle's two graphs."""

    encoder: MeasuredProfile
    decoder: MeasuredProfile

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelProfile:
        """Read what `to_json` returned. Raises KeyError or TypeError for anything else."""

        def graph(one: Mapping[str, Any]) -> MeasuredProfile:
            timings = [BatchTiming(**timing) for timing in one["timings"]]
            return MeasuredProfile(**{**one, "timings": timings})

        return cls(graph(raw["encoder"]), graph(raw["decoder"]))


@dataclass(frozen=True, slots=True)
class ProfiledGraph:
    """A loaded graph, the outputs that it must give, and its profile."""

    graph: Graph
    golden: Golden
    profile: MeasuredProfile

    def check(self) -> float:
        """Run the golden inputs in every batch size that this thread would run; returns the largest
        absolute error. Raises BundleError(golden)."""
        return self.golden.check(self.graph, self.profile.batch_rows)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle's graphs, ready to serve."""

    manifest: Manifest
    digest: str
    encoder: ProfiledGraph
    decoder: ProfiledGraph
    golden_max_abs_error: float  # between the golden outputs and this machine's

    @property
    def profile(self) -> ModelProfile:
        """The profiles of both graphs."""
        return ModelProfile(self.encoder.profile, self.decoder.profile)

    def close(self) -> None:
        """Free the memory of both graphs; no run may follow."""
        self.encoder.graph.close()
        self.decoder.graph.close()


def load_model(
    bundle: Bundle,
    engine: SessionFactory,
    settings: Settings,
    previous: ModelProfile | None = None,
    measured: ModelProfile | None = None,
) -> LoadedModel:
    """Load both graphs, profile them and run them on the golden vectors; blocks.

    previous: of another version of the model, which serves now. Its profile is reused if it is
    still valid. If it is not, profiling rests between its steps.
    measured: of these very graphs, from a trial: nothing is measured again.
    Raises BundleError.
    """
    idle_ratio = IDLE_RATIO if previous else 0.0
    m = bundle.manifest
    encoder_signature, decoder_signature = signatures(m)
    encoder_golden, decoder_golden = golden.read(bundle)

    shapes = m.default

    def encode(graph: Graph, rows: int) -> Outputs:
        x = np.zeros((rows, *shapes.x.shape), shapes.x.dtype)
        return encode_batch(graph, encoder_outputs(m), single_item_batch(x, rows))

    def decode(graph: Graph, rows: int) -> Outputs:
        source = PriorSamples(NoiseRange(seed=0, offset=0, rows=rows))
        payload = DecodePayload(source, shapes.z, params=False)
        return decode_batch(graph, single_item_batch(payload, rows))

    def profiled(
        file: str,
        signature: Signature,
        golden: Golden,
        run: RunRows,
        previous: MeasuredProfile | None,
        measured: MeasuredProfile | None,
    ) -> ProfiledGraph:
        def load(threads: int) -> Graph:
            with profiling.throttled(idle_ratio):
                return engine.load(bundle.files[file], signature, threads)

        file_bytes = len(bundle.files[file])
        if measured:
            graph = load(measured.threads)
            with _closed_on_failure(graph), profiling.throttled(idle_ratio):
                run(graph, measured.batch_rows)
            return ProfiledGraph(graph, golden, measured)
        if previous and abs(previous.file_bytes - file_bytes) <= _SIZE_TOLERANCE * file_bytes:
            graph = load(previous.threads)
            with _closed_on_failure(graph):
                run_rows, timings = functools.partial(run, graph), previous.timings
                if profiling.profile_still_valid(
                    run_rows, timings, previous.batch_rows, IDLE_RATIO
                ):
                    reused = dataclasses.replace(previous, file_bytes=file_bytes)
                    return ProfiledGraph(graph, golden, reused)
            graph.close()
        row_bytes = shapes.x.nbytes + shapes.z_size * 4
        if not engine.on_cpu and shapes.params:  # a GPU batch has buffers for all of its outputs
            row_bytes += math.prod(shapes.params) * 4
        return _profile(load, golden, file_bytes, run, row_bytes, settings, idle_ratio)

    try:
        encoder = profiled(
            *(ENCODER, encoder_signature, encoder_golden, encode),
            previous.encoder if previous else None,
            measured.encoder if measured else None,
        )
        with _closed_on_failure(encoder.graph):
            decoder = profiled(
                *(DECODER, decoder_signature, decoder_golden, decode),
                previous.decoder if previous else None,
                measured.decoder if measured else None,
            )
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # the errors of ONNX Runtime have no base class of their own
        raise BundleError("engine", f"A graph cannot run a batch: {error}") from error
    with _closed_on_failure(encoder.graph), _closed_on_failure(decoder.graph):
        max_abs_error = max(encoder.check(), decoder.check())
    return LoadedModel(m, bundle.digest, encoder, decoder, max_abs_error)


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


def signatures(m: Manifest) -> tuple[Signature, Signature]:
    """The inputs and outputs that the bundle's encoder and decoder must have."""
    x, z, params = m.default.x, m.default.z, m.default.params
    encoder = Signature(("x", x.dtype, x.shape), dict.fromkeys(encoder_outputs(m), ("float32", z)))
    decoder = Signature(
        ("z", "float32", z),
        {"x": (x.dtype, x.shape), **({"params": ("float32", params)} if params else {})},
    )
    return encoder, decoder


def _profile(
    load: Callable[[int], Graph],
    golden: Golden,
    file_bytes: int,
    run: RunRows,
    row_bytes: int,
    settings: Settings,
    idle_ratio: float,
) -> ProfiledGraph:
    """Choose the number of threads and the batch size by measurement; load the graph so."""
    max_seconds = settings.max_batch_latency_ms / 1000

    def measure(threads: int) -> list[BatchTiming]:
        with closing(load(threads)) as graph:
            return profiling.measure(
                functools.partial(run, graph), row_bytes, max_seconds, idle_ratio
            )

    threads = settings.intra_op_threads or 1
    timings = measure(threads)
    if not settings.intra_op_threads and timings[0].seconds > profiling.ONE_THREAD_SECONDS:
        threads = max(1, available_cpus() // max(1, settings.workers))
        timings = measure(threads)
    batch_rows = settings.max_batch_rows or profiling.choose_batch_size(timings, max_seconds)
    # A new session, because a session keeps the memory of the largest batch that it ever ran.
    graph = load(threads)
    with _closed_on_failure(graph):
        run(graph, batch_rows)
    return ProfiledGraph(graph, golden, MeasuredProfile(file_bytes, threads, timings, batch_rows))
