"""Reconstruct rows in process, on ONNX Runtime: the pure function of every job.

A row's results depend only on the bundle, the row, its number and the other rows of its batch. The
plan fixes all of these, so it does not matter which worker computes them, when, or how often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentd import bundle
from latentd.bundle import SCORES, Bundle, RowShapes
from latentd.codec import Array
from latentd.decoding import Greedy, TeacherForced
from latentd.errors import ConfigError
from latentd.jobs.exit_codes import EngineBroken
from latentd.jobs.plan import BATCH_BYTES, OutputSpec
from latentd.latents import POSTERIOR, Latents, NoiseRange, standard_normal, uniform
from latentd.model_description import ModelDescription
from latentd.models import likelihood_graphs, loading
from latentd.models.scoring import score_reconstructions
from latentd.models.sources import reparameterize
from latentd.ranges import Counts
from latentd.readers.rows import BadRow, Chunk
from latentd.runtime import golden
from latentd.runtime.engine import Graph, SessionFactory
from latentd.runtime.provider import Provider

Floats = NDArray[np.float32]

Rows = Array | list[Array]
"""An array (rows, *shape), or the array of each row if rows have several shapes."""


@dataclass(frozen=True, slots=True)
class Results:
    """The requested results of some rows, in order; None: not requested.

    rows: their numbers; ids: their names; bad: rows without results; values_outside_range:
    how many of each row; shapes: of each row, one line a row.
    """

    rows: NDArray[np.int64]
    ids: Sequence[str]
    bad: list[BadRow]
    values_outside_range: Counts
    shapes: NDArray[np.int64]
    reconstruction_error: Floats | None = None  # nats, (rows,)
    kl: Floats | None = None
    elbo: Floats | None = None
    mean: Rows | None = None
    log_var: Rows | None = None
    z: Rows | None = None
    x: Rows | None = None  # the reconstruction
    contributions: Rows | None = None  # nats, float32, (rows, *terms)


class Reconstruct(Protocol):
    """Runs the model on chunks.

    consecutive: its chunks must follow each other without gaps
    """

    consecutive: bool

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        """Returns one result for each chunk, in order."""


class LocalReconstructor:
    """Runs a bundle's graphs in this process. They are checked on the golden vectors first."""

    consecutive = False

    def __init__(
        self, loaded: Bundle, wanted: OutputSpec, provider: str = "auto", batch_rows: int = 0
    ) -> None:
        """batch_rows: maximum rows of a batch. Raises BundleError, ConfigError.

        The decoder is loaded only if its outputs are wanted. On a CPU each graph has one thread:
        processes share the CPUs, and results do not depend on the number of CPUs.
        """
        engine = SessionFactory(Provider(provider))
        encoder_signature, decoder_signature = loading.signatures(loaded.manifest)
        self._manifest, self._wanted = loaded.manifest, wanted
        self._encoded = loaded.manifest.encoder_outputs
        self._outputs = (["x"] if wanted.reconstruction != "none" else []) + (
            [loaded.manifest.score_output] if wanted.scores else []
        )
        self._encoder = engine.load(loaded.files[bundle.ENCODER], encoder_signature, threads=1)
        self._decoder: Graph | None = None
        if self._outputs:
            decoder = loaded.files[bundle.DECODER]
            self._decoder = engine.load(decoder, decoder_signature, threads=1)
        self._likelihood = likelihood_graphs.load(loaded) if wanted.scores else None
        self._golden = golden.read(loaded)
        self._check_golden(batch_rows)

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        return map(self.run, chunks)

    def run(self, chunk: Chunk) -> Results:
        """Run one batch. If a graph fails, the halves of the batch run again, until single rows
        fail: those are bad rows. So are rows with results that are not finite."""
        if not len(chunk.rows):
            empty = empty_columns(self._wanted, self._manifest, self._manifest.default)
            return Results(
                chunk.rows,
                [],
                chunk.bad,
                chunk.counts_outside_range,
                row_shapes(0, chunk.x),
                **empty,
            )
        try:
            columns = self._columns(chunk)
        except Exception as error:  # the runtime's errors have no common base class
            if isinstance(error, MemoryError):
                raise
            if len(chunk.rows) == 1:
                self._check_engine(error)
                reason = f"the model fails on this row: {_first_line(error)}"
                return self._without(chunk, np.ones(1, bool), reason)
            middle = len(chunk.rows) // 2
            return concat_results(
                [self.run(_part(chunk, 0, middle)), self.run(_part(chunk, middle))]
            )
        finite = _finite(columns)
        if not finite.all():
            return self._without(chunk, ~finite, _not_finite(self._wanted))
        shapes = row_shapes(len(chunk.rows), chunk.x)
        return Results(
            chunk.rows, chunk.ids, chunk.bad, chunk.counts_outside_range, shapes, **columns
        )

    def _check_golden(self, batch_rows: int = 0) -> None:
        """Raises BundleError if the graphs' outputs differ from the golden vectors."""
        item_bytes = np.dtype(self._manifest.x.dtype).itemsize
        graphs = (self._encoder, self._decoder)
        for graph, of_graph in zip(graphs, self._golden[:2], strict=True):
            if graph is None:
                continue
            for vectors in of_graph:
                most = BATCH_BYTES // (item_bytes * vectors.elements)
                vectors.check(graph, min(batch_rows, most))
        if self._likelihood:
            for rows in self._golden.likelihood:
                rows.check(self._likelihood)

    def _check_engine(self, error: Exception) -> None:
        """Raise EngineBroken if the golden vectors fail too: then the row is not at fault."""
        try:
            self._check_golden()
        except Exception:
            raise EngineBroken(
                f"The model also fails on its own golden vectors: {_first_line(error)}. "
                "Finished shards are kept; rerun the command once the device works again."
            ) from None

    def _columns(self, chunk: Chunk) -> dict[str, Array]:
        encoded = dict(zip(self._encoded, self._encoder.run(chunk.x, self._encoded), strict=True))
        mean, log_var = encoded["mean"], encoded.get("log_var")
        columns: dict[str, Array] = dict(encoded) if self._wanted.latents else {}
        if self._wanted.encode:
            columns["z"] = encoded_z(chunk.rows, mean, log_var, self._wanted)
        if self._decoder is None:
            return columns
        z = mean
        if self._wanted.draw and log_var is not None:
            z = _draw(chunk.rows, mean, log_var, self._wanted.seed)
        choices = self._choices(chunk)
        if self._manifest.x.is_text:
            decoded = self._decode_texts(self._decoder, z, choices, chunk.x)
        else:
            rows = z if choices is None else np.concatenate((z, choices), axis=1)
            decoded = dict(zip(self._outputs, self._decoder.run(rows, self._outputs), strict=True))
        if self._wanted.scores and log_var is not None:
            score_output = decoded[self._manifest.score_output]
            scores = score_reconstructions(chunk.x, mean, log_var, score_output, self._likelihood)
            columns |= {name: getattr(scores, name).astype(np.float32) for name in SCORES}
            if self._wanted.contributions and self._likelihood:
                columns["contributions"] = self._likelihood.contributions(chunk.x, score_output)
        if "x" in decoded:
            columns["x"] = decoded["x"]
        return columns

    def _choices(self, chunk: Chunk) -> Floats | None:
        """How the decoder chooses each element of x'; None: it takes no choices."""
        if not self._manifest.takes_choices:
            return None
        elements = chunk.x.shape[1]
        if self._wanted.draw_x:
            return uniform(_noise(chunk.rows, self._wanted.seed), elements)
        return Greedy(elements).choices(0, len(chunk.rows))

    def _decode_texts(
        self, decoder: Graph, z: Latents, choices: Floats | None, x: Array
    ) -> dict[str, Array]:
        """x: as it is chosen; log_likelihood: of the rows themselves, (rows, 1)."""
        decoded = {}
        if "x" in self._outputs and choices is not None:
            (decoded["x"],) = decoder.run(np.concatenate((z, choices), axis=1), ["x"])
        if "log_likelihood" in self._outputs:
            forced = np.concatenate((z, TeacherForced(x).choices(0, len(z))), axis=1)
            (decoded["log_likelihood"],) = decoder.run(forced, ["log_likelihood"])
        return decoded

    def _without(self, chunk: Chunk, bad: NDArray[np.bool_], reason: str) -> Results:
        """The chunk's results without the bad rows. The other rows run again."""
        bad_rows = [
            BadRow(int(chunk.rows[i]), chunk.ids[i], reason) for i in np.flatnonzero(bad).tolist()
        ]
        keep = np.flatnonzero(~bad).tolist()
        ids, all_bad = [chunk.ids[i] for i in keep], [*chunk.bad, *bad_rows]
        return self.run(
            Chunk(chunk.rows[keep], ids, chunk.x[keep], all_bad, chunk.counts_outside_range[keep])
        )


def encoded_z(
    rows: NDArray[np.int64], mean: Latents, log_var: Latents | None, wanted: OutputSpec
) -> Array:
    """The z that an encode job writes for these rows."""
    z = mean
    if wanted.encode == "draw":
        assert log_var is not None
        z = _draw(rows, mean, log_var, wanted.seed)
    with np.errstate(over="ignore"):  # the row is then quarantined
        return z.astype(wanted.z_dtype, copy=False)


def _draw(rows: NDArray[np.int64], mean: Latents, log_var: Latents, seed: int) -> Latents:
    """A draw for each row; rows: their numbers, ascending."""
    return reparameterize(mean, log_var, standard_normal(_noise(rows, seed), mean.shape[1:]))


def _noise(rows: NDArray[np.int64], seed: int) -> list[NoiseRange]:
    """The noise of rows with these numbers, ascending."""
    lasts = np.flatnonzero(np.diff(rows, append=-1) != 1)  # of each range without gaps
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    return [
        NoiseRange(seed, int(rows[a]), int(b - a + 1), POSTERIOR)
        for a, b in zip(firsts, lasts, strict=True)
    ]


def without_infinite(results: Results, wanted: OutputSpec) -> Results:
    """Results of an encode job, without the rows whose z is not finite: they become bad rows."""
    assert isinstance(results.z, np.ndarray)
    finite = _finite({"z": results.z})
    if finite.all():
        return results
    reason = _not_finite(wanted)
    bad = [
        BadRow(int(results.rows[i]), results.ids[i], reason)
        for i in np.flatnonzero(~finite).tolist()
    ]
    ids = [results.ids[i] for i in np.flatnonzero(finite).tolist()]
    return Results(
        results.rows[finite],
        ids,
        [*results.bad, *bad],
        results.values_outside_range[finite],
        results.shapes[finite],
        z=results.z[finite],
    )


def row_shapes(count: int, x: Array) -> NDArray[np.int64]:
    """Results.shapes of so many rows with the shape of x's rows."""
    return np.full((count, x.ndim - 1), x.shape[1:], np.int64)


def _not_finite(wanted: OutputSpec) -> str:
    if wanted.z_dtype == "float16":
        return "the latent of this row is not finite in float16"
    return "the model's results for this row are not finite"


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _finite(columns: dict[str, Array]) -> NDArray[np.bool_]:
    """Whether all results of a row are finite, for each row."""
    if "elbo" in columns:  # a sum of mean, log_var and p(x | z): finite only if they are
        elbo: NDArray[np.bool_] = np.isfinite(columns["elbo"])
        return elbo
    finite = np.ones(len(next(iter(columns.values()))), bool)
    for name in ("mean", "log_var", "z"):
        if name in columns:
            finite &= np.isfinite(columns[name]).reshape(len(finite), -1).all(axis=1)
    return finite


def empty_columns(
    wanted: OutputSpec, model: ModelDescription, shapes: RowShapes
) -> dict[str, Array]:
    """The requested columns for rows of these shapes, with no rows."""
    x = shapes.x
    latent = dict.fromkeys(model.encoder_outputs, np.empty((0, *shapes.z), np.float32))
    score = dict.fromkeys(("reconstruction_error", "kl", "elbo"), np.empty(0, np.float32))
    terms = np.empty((0, *(shapes.contributions or ())), np.float32)
    return {
        **(latent if wanted.latents else {}),
        **({"z": np.empty((0, *shapes.z), wanted.z_dtype)} if wanted.encode else {}),
        **(score if wanted.scores else {}),
        **({"x": np.empty((0, *x.shape), x.dtype)} if wanted.reconstruction != "none" else {}),
        **({"contributions": terms} if wanted.contributions else {}),
    }


def load_bundle(path: Path) -> Bundle:
    """The bundle in <root>/<model>/<version>, or the newest one in <root>/<model>."""
    numbers = bundle.versions(path)
    if not numbers and not (path / bundle.MANIFEST).exists():
        raise ConfigError(
            f"--bundle {path}: not a bundle. Use <root>/<model>/<version>, or <root>/<model> for "
            "the newest version."
        )
    return bundle.load(path / str(max(numbers)) if numbers else path)


def check_output_spec(
    wanted: OutputSpec, unavailable: Mapping[str, str], model: ModelDescription
) -> None:
    """Raise ConfigError if the model cannot produce an output."""
    x = model.default.x
    for name, flag, asked in (
        ("score", "--scores", wanted.scores),
        ("draw", "--draw", wanted.draw),
        ("draw", "--encode draw", wanted.encode == "draw"),
        ("contributions", "--contributions", wanted.contributions),
    ):
        if asked and name in unavailable:
            raise ConfigError(f"{flag}: this model {unavailable[name]}.")
    if wanted.draw_x and not model.takes_choices:
        raise ConfigError(
            f"--draw-x draws texts and rows with columns; this model's rows are {x.plural}."
        )
    if wanted.reconstruction == "png" and not x.is_8bit_image:
        raise ConfigError("This model's data cannot be stored as PNG. Use --reconstruction raw.")
    if wanted.reconstruction == "text" and not x.is_text:
        raise ConfigError(f"This model's rows are {x.plural}, not texts. Use --reconstruction raw.")
    if wanted.reconstruction in ("png", "text") and wanted.format == "npy":
        what = {"png": "PNG", "text": "texts"}[wanted.reconstruction]
        raise ConfigError(f".npy cannot hold {what}. Use --reconstruction raw.")


def _part(chunk: Chunk, start: int, stop: int | None = None) -> Chunk:
    piece = slice(start, stop)
    bad = chunk.bad if start == 0 else []
    return Chunk(
        chunk.rows[piece], chunk.ids[piece], chunk.x[piece], bad, chunk.counts_outside_range[piece]
    )


def concat_results(parts: Sequence[Results]) -> Results:
    """The results of all parts, sorted by row number."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    in_order = bool((np.diff(rows) > 0).all())
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(Results):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "ids":
            ids = [name for value in values for name in value]
            columns["ids"] = ids if in_order else [ids[i] for i in order.tolist()]
        elif field.name == "bad":
            columns["bad"] = sorted((b for value in values for b in value), key=lambda b: b.row)
        elif values[0] is not None:
            whole = _concat(values)
            if not in_order:
                whole = (
                    [whole[i] for i in order.tolist()] if isinstance(whole, list) else whole[order]
                )
            columns[field.name] = whole
    return Results(**columns)


def _concat(values: Sequence[Array]) -> Rows:
    filled = [value for value in values if len(value)] or values[:1]
    if len({value.shape[1:] for value in filled}) == 1:
        return np.concatenate(filled)
    return [row for value in filled for row in value]
