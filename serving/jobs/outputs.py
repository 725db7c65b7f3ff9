"""The file of one shard's results: the same bytes for the same results.

Parquet has these columns:
    row, id
    values_outside_range      uint32: number of the row's values outside the range of the training
                              data; only if the model's likelihood scores such values
    reconstruction_error, kl, elbo      float32, nats
    *_percentile              float32: of each score among the training rows, if the bundle has them
    mean, log_var             lists of float32 of one length; no log_var if the posterior is a point
    reconstruction            a PNG file, or the row's bytes in C order
.npy is one structured array with the same fields except id, for numpy.load(mmap_mode=...).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from latentd import images
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
    """Raise ConfigError if the format's package is missing, before any work is done."""
    if plan.wanted.format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(
                "Parquet needs pyarrow: pip install 'latentd[jobs]', or use --format npy."
            ) from None


def write(results: Results, plan: Plan, file: BinaryIO) -> None:
    """Write the shard's file; `file` need not be seekable."""
    (_write_parquet if plan.wanted.format == "parquet" else _write_npy)(results, plan, file)


def count(path: Path) -> int:
    """The number of rows that the file itself declares."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with path.open("rb") as file:  # Arrow takes no path that is not UTF-8
            return int(pq.read_metadata(file).num_rows)
    return len(np.load(path, mmap_mode="r"))


def bytes_per_row(plan: Plan, latent_size: int) -> int:
    """An estimate; PNG files count as half of their pixels."""
    wanted = plan.wanted
    x = {"none": 0, "png": plan.x.nbytes // 2, "raw": plan.x.nbytes}[wanted.reconstruction]
    scores = (24 if plan.training_scores else 12) if wanted.scores else 0
    outside = 4 if _counts_outside(plan) else 0
    return 16 + outside + x + scores + (8 * latent_size if wanted.latents else 0)


def _counts_outside(plan: Plan) -> bool:
    """Whether rows may hold values outside the model's range, so that the file counts them."""
    every_byte = plan.x.dtype == "uint8" and plan.x.range == (0, 255)
    return not plan.x.bounded and not every_byte


def _numbers(results: Results, plan: Plan) -> dict[str, Floats | Counts]:
    """The requested numeric columns: values outside the range, scores, percentiles, latents."""
    outside = {OUTSIDE: results.outside} if _counts_outside(plan) else {}
    columns = {name: getattr(results, name) for name in (*SCORES, *_LATENTS)}
    scores = {name: columns[name] for name in SCORES if columns[name] is not None}
    training = plan.training_scores
    percentiles = {
        column: percentile(scores[name], name, training)
        for column, name in PERCENTILES.items()
        if training and name in scores
    }
    latents = {name: columns[name] for name in _LATENTS if columns[name] is not None}
    return outside | scores | percentiles | latents


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
    # Latents and scores are close to noise: compression would gain nothing.
    compression = {name: "none" for name in columns} | {"id": "snappy"}
    if plan.wanted.reconstruction == "raw":
        compression["reconstruction"] = "snappy"
    # Readers do not filter by ranges of latents or pixels.
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
"""Name of each percentile column -> its score."""


def percentile(values: Floats, of: str, training_scores: Mapping[str, Any]) -> Floats:
    """The share of training rows that score no higher, 0 to 100, for each of `values`.

    of: the score's name, one of SCORES. The result is linear between the bundle's quantiles. A
    large reconstruction error is unusual near 100, a small ELBO near 0.
    """
    levels, quantiles = training_scores["levels"], training_scores[of]
    result: Floats = np.interp(values, quantiles, levels).astype(np.float32)
    return result
