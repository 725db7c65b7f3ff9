"""One shard's results as one file, the same bytes for the same results.

Parquet: a column each for row, id, reconstruction_error, kl, elbo (float32, nats), mean, log_var
(fixed-size lists of float32) and reconstruction (PNG files, or the row's bytes in C order).
.npy: one structured array with the same fields and no id, to be mapped with numpy.load(mmap_mode).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from serving import images
from serving.errors import ConfigError
from serving.jobs.plan import Plan
from serving.jobs.reconstruct import Results

_SCORES: Final = ("reconstruction_error", "kl", "elbo")
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

        return int(pq.read_metadata(path).num_rows)
    return len(np.load(path, mmap_mode="r"))


def bytes_per_row(plan: Plan, latent_size: int) -> int:
    """About; PNG files counted as half of their pixels."""
    wanted = plan.wanted
    x = {"none": 0, "png": plan.x.nbytes // 2, "raw": plan.x.nbytes}[wanted.reconstruction]
    return 16 + x + (12 if wanted.scores else 0) + (8 * latent_size if wanted.latents else 0)


def _write_parquet(results: Results, plan: Plan, file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": pa.array(results.rows), "id": pa.array(results.ids, "string")}
    for name in _SCORES:
        values = getattr(results, name)
        if values is not None:
            columns[name] = pa.array(values)
    for name in _LATENTS:
        values = getattr(results, name)
        if values is not None:
            flat = pa.array(values.reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if results.x is not None:
        rows = (
            images.write_pngs(results.x)
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
    columns: dict[str, Any] = {"row": results.rows}
    for name in (*_SCORES, *_LATENTS):
        if getattr(results, name) is not None:
            columns[name] = getattr(results, name)
    if results.x is not None:
        columns["reconstruction"] = results.x
    fields = [
        (name, values.dtype.newbyteorder("<"), values.shape[1:]) for name, values in columns.items()
    ]
    table = np.empty(len(results.rows), fields)
    for name, values in columns.items():
        table[name] = values
    np.lib.format.write_array(file, table, allow_pickle=False)
