"""The file of one shard's results: the same bytes for the same results.

Parquet has these columns:
    row, id
    values_outside_range      uint32: number of the row's values outside the range of the training
                              data; only if the model's likelihood scores such values
    reconstruction_error, kl, elbo      float32, nats
    *_percentile              float32: of each score among the training rows, if the bundle has
                              them; null for a row of another size than theirs, the default
    is_outlier                whether reconstruction_error exceeds --threshold, or the bundle's,
                              which is for rows of the default size: null for others. Only if there
                              is a threshold
    contributions             list of float32 in C order, nats: what each element of x adds to
                              reconstruction_error; of a model with columns one column for each,
                              contributions.NAME
    excess.NAME               float32, nats: contributions.NAME less its median among the training
                              rows, if the bundle has it. The largest of a row are the columns that
                              make it unusual
    contributions_shape       list of int32: the shape of contributions; if the model has free axes
    mean, log_var, z          lists in C order, float32; no log_var if the posterior is a point;
                              z, of encode jobs, may be float16
    z_shape                   list of int32: the shape of the row's latents; in encode jobs, and if
                              the model has free axes
    reconstruction            a PNG file, a string, or the row's bytes in C order; of a model with
                              columns one column for each, reconstruction.NAME, in the data's own
                              units
    x_shape                   list of int32: the shape of the reconstruction; if the model has free
                              axes
Lists have one length unless the model has free axes. .npy is one structured array with the same
fields except id and the shapes, for numpy.load(mmap_mode=...); its rows have one size. It has NaN
in place of null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from latentd import images, tables, texts
from latentd.bundle import SCORES, RowShapes
from latentd.errors import ConfigError
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import Floats, Results, Rows
from latentd.outliers import MEDIANS, are_outliers
from latentd.outliers import excess as excess_of
from latentd.ranges import Counts

Flags = NDArray[np.bool_]

OUTSIDE: Final = "values_outside_range"
_LATENTS: Final = ("mean", "log_var", "z")


def suffix(plan: Plan) -> str:
    return f".{plan.wanted.format}"


def check(plan: Plan) -> None:
    """Raise ConfigError, before any work is done, if the format cannot hold rows of several sizes
    or its package is missing."""
    if plan.wanted.format == "npy" and plan.shapes is None:
        raise ConfigError(
            "--format npy: an array has rows of one size, and --input has rows of several. Use "
            "--format parquet, or --fit resize."
        )
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


def bytes_per_row(plan: Plan, shapes: RowShapes) -> int:
    """An estimate for rows of these shapes; PNG files count as half of their pixels."""
    wanted, nbytes = plan.wanted, shapes.x.nbytes
    x = {"none": 0, "png": nbytes // 2, "raw": nbytes, "text": nbytes}[wanted.reconstruction]
    scores = (24 if plan.training_scores else 12) if wanted.scores else 0
    outside = 4 if _counts_outside(plan) else 0
    latents = 8 * shapes.z_size if wanted.latents else 0
    z = np.dtype(wanted.z_dtype).itemsize * shapes.z_size if wanted.encode else 0
    terms = 4 * math.prod(shapes.contributions or ()) if wanted.contributions else 0
    terms *= 2 if MEDIANS in plan.training_scores else 1  # with their excess
    return 16 + outside + x + scores + latents + z + terms


def _counts_outside(plan: Plan) -> bool:
    """Whether rows may hold values outside the model's range, so that the file counts them."""
    every_byte = plan.x.dtype == "uint8" and plan.x.range == (0, 255)
    return not plan.x.bounded and not every_byte and math.isfinite(plan.x.range[0])


def _outliers(results: Results, plan: Plan) -> tuple[Flags, Flags] | None:
    """Whether each row is an outlier, and whether that is known; None: there is no threshold."""
    error, given = results.reconstruction_error, plan.wanted.threshold
    threshold = plan.threshold if given is None else given
    if error is None or threshold is None:
        return None
    default = (results.shapes == plan.x.shape).all(axis=1)
    known = default if given is None else np.ones(len(error), np.bool_)
    return known & are_outliers(error, threshold), known


def count_outliers(results: Results, plan: Plan) -> int:
    """The number of rows that are outliers."""
    found = _outliers(results, plan)
    return 0 if found is None else int(np.count_nonzero(found[0]))


def _numbers(results: Results, plan: Plan) -> dict[str, Rows | Counts]:
    """The requested numeric columns: values outside the range, scores, percentiles, latents."""
    outside = {OUTSIDE: results.values_outside_range} if _counts_outside(plan) else {}
    columns = {name: getattr(results, name) for name in (*SCORES, *_LATENTS)}
    scores = {name: columns[name] for name in SCORES if columns[name] is not None}
    training = plan.training_scores
    default = (results.shapes == plan.x.shape).all(axis=1)
    percentiles = {
        column: np.where(default, percentile(scores[name], name, training), np.float32(np.nan))
        for column, name in PERCENTILES.items()
        if training and name in scores
    }
    latents = {name: columns[name] for name in _LATENTS if columns[name] is not None}
    return outside | scores | percentiles | latents


def _write_parquet(results: Results, plan: Plan, file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": pa.array(results.rows), "id": pa.array(results.ids, "string")}
    free = bool(plan.data.axes)
    numbers = _numbers(results, plan)
    for name, values in numbers.items():
        if name in _LATENTS:
            columns[name] = _lists(values, free)
        else:
            columns[name] = pa.array(values, from_pandas=name in PERCENTILES)  # NaN: null
    if (found := _outliers(results, plan)) is not None:
        columns["is_outlier"] = pa.array(found[0], mask=~found[1])
    if results.contributions is not None:
        columns |= _contributions(results.contributions, plan, free)
    latents = next((numbers[name] for name in _LATENTS if name in numbers), None)
    if latents is not None and (free or plan.wanted.encode):
        columns["z_shape"] = _shapes(latents, len(plan.data.z.shape.dims))
    if results.x is not None and plan.x.columns:
        assert isinstance(results.x, np.ndarray)
        for name, values in tables.to_values(plan.x.columns, results.x).items():
            columns[f"reconstruction.{name}"] = pa.array(values)
    elif results.x is not None:
        columns["reconstruction"] = _reconstructions(results.x, plan.wanted.reconstruction)
        if free:
            columns["x_shape"] = _shapes(results.x, len(plan.data.x.shape.dims))
    metadata = {
        "latentd.model": plan.bundle.model,
        "latentd.version": str(plan.bundle.version),
        "latentd.bundle": plan.bundle.digest,
        "latentd.plan": plan.digest,
        "latentd.x": json.dumps({"shape": plan.data.x.shape.json, "dtype": plan.x.dtype}),
    }
    if "z_shape" in columns or len(plan.data.z.shape.dims) > 1:
        metadata["latentd.z"] = json.dumps({"shape": plan.data.z.shape.json})
    table = pa.table(columns).replace_schema_metadata(metadata)
    # Latents and scores are close to noise: compression would gain nothing.
    compression = {name: "none" for name in columns} | {"id": "snappy"}
    compression |= {name: "snappy" for name in columns if name.endswith("_shape")}
    if plan.wanted.reconstruction in ("raw", "text"):
        names = [name for name in columns if name.startswith("reconstruction")]
        compression |= dict.fromkeys(names, "snappy")
    # Readers do not filter by ranges of latents or pixels.
    unfiltered = (*_LATENTS, "reconstruction", "contributions")
    statistics = [
        name for name in columns if name not in unfiltered and not name.endswith("_shape")
    ]
    pq.write_table(
        table, file, compression=compression, use_dictionary=False, write_statistics=statistics
    )


def _reconstructions(x: Rows, form: str) -> Any:
    """An Arrow array of files, texts or bytes. form: one of RECONSTRUCTIONS"""
    import pyarrow as pa

    if form == "text":
        return pa.array(texts.to_texts(x), "string")
    files = images.encode_files(x) if form == "png" else [row.tobytes() for row in x]
    return pa.array(files, "binary")


def _contributions(values: Rows, plan: Plan, free: bool) -> dict[str, Any]:
    """The columns with contributions; free: rows may differ in size."""
    import pyarrow as pa

    names = [column.name for column in plan.x.columns]
    if isinstance(values, np.ndarray) and values.shape[1:] == (len(names),):
        by_name = {"contributions": values}
        if (excess := excess_of(values, plan.training_scores)) is not None:
            by_name["excess"] = excess
        return {
            f"{what}.{name}": pa.array(numbers[:, at].copy())
            for what, numbers in by_name.items()
            for at, name in enumerate(names)
        }
    found = {"contributions": _lists(values, free)}
    if free:
        dims = len(plan.data.contributions.dims) if plan.data.contributions else 0
        found["contributions_shape"] = _shapes(values, dims)
    return found


def _lists(values: Rows, free: bool) -> Any:
    """An Arrow array with a list for each row; free: rows may differ in size."""
    import pyarrow as pa

    if not free:
        assert isinstance(values, np.ndarray)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), math.prod(values.shape[1:])
        )
    ends = np.cumsum([0, *(row.size for row in values)], dtype=np.int32)
    if isinstance(values, np.ndarray):
        flat = values.reshape(-1)
    else:
        flat = np.concatenate([row.reshape(-1) for row in values])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))


def _shapes(values: Rows, axes: int) -> Any:
    """An Arrow array with the shape of each row."""
    import pyarrow as pa

    shapes = np.array([row.shape for row in values], np.int32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(shapes), axes)


def _write_npy(results: Results, plan: Plan, file: BinaryIO) -> None:
    columns: dict[str, Any] = {"row": results.rows, **_numbers(results, plan)}
    found = _outliers(results, plan)
    if found is not None and found[1].all():  # rows of an array have one size
        columns["is_outlier"] = found[0]
    if results.contributions is not None:
        assert isinstance(results.contributions, np.ndarray)
        columns["contributions"] = results.contributions
        excess = excess_of(results.contributions, plan.training_scores)
        if excess is not None:
            columns["excess"] = excess
    if results.x is not None:
        columns["reconstruction"] = results.x
        if plan.x.columns:
            assert isinstance(results.x, np.ndarray)
            columns["reconstruction"] = tables.to_structured(plan.x.columns, results.x)
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
