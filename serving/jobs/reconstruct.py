"""The pure function under every job: rows in, what was wanted of each row out.

In process, on ONNX Runtime. A row's results depend on the bundle, the row, its number and the rows
of its batch, which the plan fixes; so who computes them, when, or how often changes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentd import bundle, likelihood
from latentd.bundle import Bundle, DataSpec
from latentd.errors import ConfigError
from latentd.jobs.exit_codes import EngineBroken
from latentd.jobs.plan import OutputSpec
from latentd.latents import POSTERIOR, Latents, NoiseRange, standard_normal
from latentd.models import loading
from latentd.models.payloads import ENCODER_OUTPUTS
from latentd.models.sources import reparameterize
from latentd.ranges import Counts
from latentd.readers.rows import Array, BadRow, Chunk
from latentd.runtime import golden
from latentd.runtime.engine import SessionFactory
from latentd.runtime.provider import Provider

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Results:
    """What was wanted of some rows, in their order; None: it was not wanted.

    rows: their numbers; ids: their names; bad: rows left out; outside: of each row the number of
    values outside the model's range.
    """

    rows: NDArray[np.int64]
    ids: Sequence[str]
    bad: list[BadRow]
    outside: Counts
    reconstruction_error: Floats | None = None  # nats, (rows,)
    kl: Floats | None = None
    elbo: Floats | None = None
    mean: Floats | None = None  # (rows, latent size)
    log_var: Floats | None = None
    x: Array | None = None  # the reconstruction, (rows, *shape)


Reconstruct = Callable[[Iterator[Chunk]], Iterator[Results]]
"""One result for each chunk, in order."""


class LocalReconstructor:
    """A bundle's graphs, loaded and checked on its golden vectors."""

    def __init__(
        self, loaded: Bundle, wanted: OutputSpec, provider: str = "auto", batch_rows: int = 0
    ) -> None:
        """One thread each on a CPU: processes share the CPUs, and results then never depend on how
        many there are. batch_rows: the most rows of a batch. Raises BundleError, ConfigError."""
        engine = SessionFactory(Provider(provider))
        takes_x, takes_z = loading.signatures(loaded.manifest)
        self._encoder = engine.load(loaded.files[bundle.ENCODER], takes_x, threads=1)
        self._decoder = engine.load(loaded.files[bundle.DECODER], takes_z, threads=1)
        self._golden = golden.read(loaded)
        self._check_golden(batch_rows)
        self._manifest, self._wanted = loaded.manifest, wanted
        self._outputs = (["x"] if wanted.reconstruction != "none" else []) + (
            ["params"] if wanted.scores else []
        )

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        return map(self.run, chunks)

    def run(self, chunk: Chunk) -> Results:
        """One batch. Rows that make a graph fail, or for which it gives no finite numbers, are
        found by halving the batch, and left out."""
        if not len(chunk.rows):
            m = self._manifest
            empty = nothing(self._wanted, m.x, m.latent_size)
            return Results(chunk.rows, [], chunk.bad, chunk.counts_outside, **empty)
        try:
            columns = self._columns(chunk)
        except Exception as error:  # the runtime has no common base for what it raises
            if isinstance(error, MemoryError):
                raise
            if len(chunk.rows) == 1:
                self._check_engine(error)
                reason = f"the model fails on this row: {_line(error)}"
                return self._without(chunk, np.ones(1, bool), reason)
            middle = len(chunk.rows) // 2
            return joined([self.run(_part(chunk, 0, middle)), self.run(_part(chunk, middle))])
        finite = _finite(columns)
        if not finite.all():
            return self._without(chunk, ~finite, "the model gives no finite numbers for it")
        return Results(chunk.rows, chunk.ids, chunk.bad, chunk.counts_outside, **columns)

    def _check_golden(self, batch_rows: int = 0) -> None:
        """Raises BundleError where the graphs' outputs are not those of the golden vectors."""
        for vectors, graph in zip(self._golden, (self._encoder, self._decoder), strict=True):
            vectors.check(graph, batch_rows)

    def _check_engine(self, error: Exception) -> None:
        """Raise EngineBroken unless golden vectors still pass: then the fault is the row's own."""
        try:
            self._check_golden()
        except Exception:
            raise EngineBroken(
                f"The model fails on every row, also on its own golden vectors: {_line(error)}. "
                "Finished shards are kept: repeat the command once the device works again."
            ) from None

    def _columns(self, chunk: Chunk) -> dict[str, Array]:
        mean, log_var = self._encoder.run(chunk.x, ENCODER_OUTPUTS)
        columns: dict[str, Array] = {}
        if self._wanted.latents:
            columns |= {"mean": mean, "log_var": log_var}
        if not self._outputs:
            return columns
        z = self._drawn(chunk.rows, mean, log_var) if self._wanted.draw else mean
        decoded = dict(zip(self._outputs, self._decoder.run(z, self._outputs), strict=True))
        if self._wanted.scores:
            m = self._manifest
            scaled = likelihood.to_unit_interval(chunk.x, m.x)
            error = -likelihood.log_prob(scaled, decoded["params"], m.likelihood)
            kl = likelihood.kl_to_standard_normal(mean, log_var)
            scores = {"reconstruction_error": error, "kl": kl, "elbo": -error - kl}
            columns |= {name: values.astype(np.float32) for name, values in scores.items()}
        if "x" in decoded:
            columns["x"] = decoded["x"]
        return columns

    def _drawn(self, rows: NDArray[np.int64], mean: Latents, log_var: Latents) -> Latents:
        ends = np.flatnonzero(np.diff(rows, append=-1) != 1)
        begins = np.concatenate([[0], ends[:-1] + 1])
        draws = [
            NoiseRange(self._wanted.seed, int(rows[a]), int(b - a + 1), POSTERIOR)
            for a, b in zip(begins, ends, strict=True)
        ]
        return reparameterize(mean, log_var, standard_normal(draws, self._manifest.latent_size))

    def _without(self, chunk: Chunk, bad: NDArray[np.bool_], reason: str) -> Results:
        """The chunk's results once the rows at fault are left out; the others run again."""
        found = [
            BadRow(int(chunk.rows[i]), chunk.ids[i], reason) for i in np.flatnonzero(bad).tolist()
        ]
        keep = np.flatnonzero(~bad).tolist()
        ids, all_bad = [chunk.ids[i] for i in keep], [*chunk.bad, *found]
        return self.run(
            Chunk(chunk.rows[keep], ids, chunk.x[keep], all_bad, chunk.counts_outside[keep])
        )


def _line(error: Exception) -> str:
    """The first line of what a library says, or the error's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _finite(columns: dict[str, Array]) -> NDArray[np.bool_]:
    """Which rows have finite numbers only."""
    if "elbo" in columns:  # the sum of all that can be infinite: mean, log_var and p(x | z)
        elbo: NDArray[np.bool_] = np.isfinite(columns["elbo"])
        return elbo
    if "mean" in columns:
        latents = np.isfinite(np.stack((columns["mean"], columns["log_var"])))
        finite: NDArray[np.bool_] = latents.all(axis=(0, 2))
        return finite
    return np.ones(len(columns["x"]), bool)


def nothing(wanted: OutputSpec, x: DataSpec, latent_size: int) -> dict[str, Array]:
    """Columns without rows."""
    latent = dict.fromkeys(("mean", "log_var"), np.empty((0, latent_size), np.float32))
    score = dict.fromkeys(("reconstruction_error", "kl", "elbo"), np.empty(0, np.float32))
    return {
        **(latent if wanted.latents else {}),
        **(score if wanted.scores else {}),
        **({"x": np.empty((0, *x.shape), x.dtype)} if wanted.reconstruction != "none" else {}),
    }


def load_bundle(path: Path) -> Bundle:
    """The bundle in <root>/<model>/<version>, or the newest one in <root>/<model>."""
    numbers = bundle.versions(path)
    if not numbers and not (path / bundle.MANIFEST).exists():
        raise ConfigError(
            f"--bundle {path}: no bundle there. Name a folder <root>/<model>/<version>, or "
            "<root>/<model> for its newest version."
        )
    return bundle.load(path / str(max(numbers)) if numbers else path)


def check_wanted(wanted: OutputSpec, family: str, png: bool) -> None:
    """Raise ConfigError where this model cannot give what is wanted; png: its rows fit into PNG."""
    if wanted.scores and family != "vae":
        raise ConfigError(
            "A plain autoencoder defines no likelihood to score with: say --no-scores."
        )
    if wanted.reconstruction == "png" and not png:
        raise ConfigError("This model's rows fit into no PNG: say --reconstruction raw.")
    if wanted.reconstruction == "png" and wanted.format == "npy":
        raise ConfigError("PNG files have no place in .npy: say --reconstruction raw.")


def _part(chunk: Chunk, start: int, stop: int | None = None) -> Chunk:
    piece = slice(start, stop)
    bad = chunk.bad if start == 0 else []
    return Chunk(
        chunk.rows[piece], chunk.ids[piece], chunk.x[piece], bad, chunk.counts_outside[piece]
    )


def joined(parts: Sequence[Results]) -> Results:
    """Results one below the other, bad rows in their order."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(Results):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "ids":
            columns["ids"] = [name for value in values for name in value]
        elif field.name == "bad":
            columns["bad"] = sorted((b for value in values for b in value), key=lambda b: b.row)
        elif values[0] is not None:
            columns[field.name] = np.concatenate(values)
    return Results(**columns)
