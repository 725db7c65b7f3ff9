"""One shard's results as one file, the same bytes for the same results.

Parquet: a column each for row, id, values_outside_range (uint32: how many of the row's values lie
outside the range of the training data; only where the model's likelihood scores such), the scores
reconstruction_error, kl, elbo (float32, nats), the percentile of each among the training rows
(float32, where the bundle knows their scores), mean, log_var (fixed-size lists of float32) and
reconstruction (PNG files, or the row's bytes in C order).
.npy: one structured array with the same fields and no id, to be mapped with numpy.load(mmap_mode).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from latentd import images, ranges
from latentd.bundle import SCORES
from latentd.errors import ConfigError
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import Floats, Results
from latentd.ranges import Counts

OUTSIDE: Final = "values_outside_range"
_LATENTS: Final = ("mean", "log_var")


def suffix(plan: Plan) -> str:
    return f".{plan.wanted.format}"


def check(plan: Plan) -> None:
    """Raise ConfigError where the format's package is missing: before work, not after it."""
    if plan.wanted.format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(
                "Parquet needs pyarrow: pip install 'latentd[jobs]', or say --format npy."
            ) from None


def write(results: Results, plan: Plan, file: BinaryIO) -> None:
    """Write the shard's file; `file` need not be seekable."""
    (_write_parquet if plan.wanted.format == "parquet" else _write_npy)(results, plan, file)


def count(path: Path) -> int:
    """Rows in a file that `write` wrote, as it says itself."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with path.open("rb") as file:  # Arrow takes no path that is not UTF-8
            return int(pq.read_metadata(file).num_rows)
    return len(np.load(path, mmap_mode="r"))


def bytes_per_row(plan: Plan, latent_size: int) -> int:
    """About; PNG files counted as half of their pixels."""
    wanted = plan.wanted
    x = {"none": 0, "png": plan.x.nbytes // 2, "raw": plan.x.nbytes}[wanted.reconstruction]
    scores = (24 if plan.training_scores else 12) if wanted.scores else 0
    outside = 4 if _counts_outside(plan) else 0
    return 16 + outside + x + scores + (8 * latent_size if wanted.latents else 0)


def _counts_outside(plan: Plan) -> bool:
    """Whether rows may hold values outside the model's range, so that they are counted."""
    every_byte = plan.x.dtype == "uint8" and plan.x.range == (0, 255)
    return plan.likelihood in ranges.UNBOUNDED and not every_byte


def _numbers(results: Results, plan: Plan) -> dict[str, Floats | Counts]:
    """The columns of values outside the range, of scores, of their percentiles and of latents that
    are wanted and known."""
    outside = {OUTSIDE: results.outside} if _counts_outside(plan) else {}
    found = {name: getattr(results, name) for name in (*SCORES, *_LATENTS)}
    scores = {name: found[name] for name in SCORES if found[name] is not None}
    known = plan.training_scores
    shares = {
        column: percentile(scores[name], name, known)
        for column, name in PERCENTILES.items()
        if known and name in scores
    }
    latents = {name: found[name] for name in _LATENTS if found[name] is not None}
    return outside | scores | shares | latents


def _write_parquet(results: Results, plan: Plan, file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": pa.array(results.rows), "id": pa.array(results.ids, "string")}
    for name, values in _numbers(results, plan).items():
        flat = pa.array(values.reshape(-1))
        columns[name] = (
            flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        )
    if results.x is not None:
        rows = (
            images.encode_pngs(results.x)
            if plan.wanted.reconstruction == "png"
            else [row.tobytes() for row in results.x]
        )
        columns["reconstruction"] = pa.array(rows, "binary")
    table = pa.table(columns).replace_schema_metadata(
        {
            "latentd.model": plan.bundle.model,
            "latentd.version": str(plan.bundle.version),
            "latentd.bundle": plan.bundle.digest,
            "latentd.plan": plan.digest,
            "latentd.x": json.dumps({"shape": list(plan.x.shape), "dtype": plan.x.dtype}),
        }
    )
    # Latents and scores are as good as noise: nothing to be won from them.
    compression = {name: "none" for name in columns} | {"id": "snappy"}
    if plan.wanted.reconstruction == "raw":
        compression["reconstruction"] = "snappy"
    # Nor does anybody look up ranges of latents or of pixels.
    statistics = [name for name in columns if name not in (*_LATENTS, "reconstruction")]
    pq.write_table(
        table, file, compression=compression, use_dictionary=False, write_statistics=statistics
    )


def _write_npy(results: Results, plan: Plan, file: BinaryIO) -> None:
    columns: dict[str, Any] = {"row": results.rows, **_numbers(results, plan)}
    if results.x is not None:
        columns["reconstruction"] = results.x
    fields = [
        (name, values.dtype.newbyteorder("<"), values.shape[1:]) for name, values in columns.items()
    ]
    table = np.empty(len(results.rows), fields)
    for name, values in columns.items():
        table[name] = values
    np.lib.format.write_array(file, table, allow_pickle=False)


PERCENTILES: Final = {f"{name}_percentile": name for name in SCORES}
"""Name of each column of percentiles, and of the score it is of."""


def percentile(values: Floats, of: str, training_scores: Mapping[str, Any]) -> Floats:
    """0 to 100 for each of `values`, which are scores of the kind `of`.

    Linear between the bundle's quantiles. 100: no training row that was scored has more; so a
    large reconstruction error is unusual near 100, and a small ELBO near 0.
    """
    levels, quantiles = training_scores["levels"], training_scores[of]
    found: Floats = np.interp(values, quantiles, levels).astype(np.float32)
    return found
