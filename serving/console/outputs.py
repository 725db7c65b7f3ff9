"""Files that the command line writes: whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Final, TextIO

import numpy as np

from latentd import atomic, images, tables, texts
from latentd.bundle import DataSpec
from latentd.client.results import ModelInfo, ModelVersion
from latentd.codec import Array
from latentd.errors import InvalidArgument

TABLES: Final = ("csv", "parquet")
"""Kinds of output for rows with columns."""

Write = Callable[[Array], None]


class OutputPath:
    """The path of --out, checked before any work is done.

    kind: "png", "npy", "npz", "txt", "csv", "parquet" or "folder" (no suffix). Raises
    InvalidArgument for --out.
    """

    def __init__(self, out: str, kinds: tuple[str, ...]) -> None:
        self.path = Path(out)
        self.kind = self.path.suffix.lower().removeprefix(".") or "folder"
        if self.path.is_dir() or out.endswith("/"):
            self.kind = "folder"
        if self.kind not in kinds:
            endings = [f".{kind}" for kind in kinds if kind != "folder"]
            raise InvalidArgument(
                "--out",
                f"unsupported output {out}",
                f"Use a {' or '.join(endings)} path"
                + (", or a folder" if "folder" in kinds else ""),
            )
        if not self.path.absolute().parent.is_dir():
            raise InvalidArgument("--out", f"folder {self.path.parent} does not exist")
        if self.kind == "folder" and self.path.exists() and any(self.path.iterdir()):
            raise InvalidArgument("--out", f"{out} is not empty", "Use a new folder")

    def check(self, x: DataSpec) -> None:
        """Raise InvalidArgument for PNG output of data that is not 8-bit images, and for lines of
        data that is not text."""
        use = "Use a .txt, .npz or .npy path" if x.is_text else "Use a .npz or .npy path"
        if self.kind in ("png", "folder") and not x.is_8bit_image:
            what = f"PNG needs 8-bit images; this model's rows are {x.dtype} {x.plural}"
            raise InvalidArgument("--out", what, use)
        if self.kind == "txt" and not x.is_text:
            what = f"a .txt file needs texts; this model's rows are {x.dtype} {x.plural}"
            raise InvalidArgument("--out", what, use)
        if self.kind in TABLES and not x.columns:
            raise InvalidArgument(
                "--out",
                f"rows of this model have no columns; they are {x.plural}",
                use,
            )
        if self.kind == "parquet":
            try:
                import pyarrow  # noqa: F401
            except ImportError:
                raise InvalidArgument(
                    "--out",
                    "Parquet needs pyarrow",
                    "pip install pyarrow, or use a .csv path",
                ) from None

    def write(self, content: bytes) -> None:
        """Write a whole file."""
        with self._replacing() as temporary:
            temporary.write_bytes(content)

    def write_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Write an .npz without the arrays that are None."""
        given = {name: array for name, array in arrays.items() if array is not None}
        with self._replacing() as temporary, temporary.open("wb") as file:
            np.savez(file, **given)

    @contextmanager
    def rows(
        self, count: int, x: DataSpec, first: int, metadata: Mapping[str, Any]
    ) -> Iterator[Write]:
        """Yields a function that writes the next rows, `count` rows of x in total.

        first: number of the first row, for file names. metadata: other arrays of an .npz, read
        after all rows are written.
        """
        with self._replacing() as temporary:
            if self.kind == "folder":
                temporary.mkdir()
                yield _folder(temporary, first, count)
            elif self.kind == "csv":
                with temporary.open("w", newline="", encoding="utf-8") as text:
                    yield _csv(text, x)
            elif self.kind == "parquet":
                with _parquet(temporary, x) as write:
                    yield write
            elif self.kind == "npy":
                with temporary.open("wb") as file:
                    yield _array(file, count, x)
            elif self.kind == "txt":
                with temporary.open("w", encoding="utf-8", newline="") as lines:
                    yield _lines(lines)
            else:
                with zipfile.ZipFile(temporary, "w") as archive:
                    with archive.open("x.npy", "w", force_zip64=True) as entry:
                        yield _array(entry, count, x)
                    for name, value in metadata.items():
                        with archive.open(f"{name}.npy", "w") as entry:
                            np.lib.format.write_array(entry, np.asarray(value))

    def _replacing(self) -> AbstractContextManager[Path]:
        """A temporary path that becomes `self.path`; not fsynced: the command can be repeated."""
        return atomic.replacing(self.path, durable=False)


def output_path(out: str | None, kinds: tuple[str, ...]) -> OutputPath | None:
    """The path of --out; None: it was not given."""
    return OutputPath(out, kinds) if out else None


def path_of(out: OutputPath | None) -> Path | None:
    """The path of a command's output, if it has one."""
    return out.path if out else None


def write_rows(
    out: OutputPath | None,
    x: Array,
    info: ModelInfo,
    metadata: dict[str, Any],
    columns: int = 0,
    first: int = 0,
) -> None:
    """Write rows of x. metadata: other arrays of an .npz; first: the number of the first row."""
    if out is None:
        return
    if out.kind == "png":
        out.write(images.make_grid(x, columns))
    elif out.kind == "npz":
        out.write_arrays({"x": x, **metadata} | provenance(info.served_by, offset=first))
    else:
        with out.rows(len(x), info.shapes_of_x(x.shape[1:]).x, first, {}) as write:
            write(x)


def provenance(served_by: ModelVersion, **numbers: Any) -> dict[str, Any]:
    """The values that reproduce an .npz, for storing in it."""
    result = {name: number for name, number in numbers.items() if number is not None}
    if "seed" in result:
        result["seed"] = np.uint64(result["seed"])
    return result | dataclasses.asdict(served_by)


def _array(file: IO[bytes], count: int, x: DataSpec) -> Write:
    """Write a .npy sequentially: with a memory map, a full disk would raise SIGBUS."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(x.dtype)),
        "fortran_order": False,
        "shape": (count, *x.shape),
    }
    np.lib.format.write_array_header_2_0(file, header)

    def write(rows: Array) -> None:
        file.write(rows.tobytes())

    return write


def _csv(file: TextIO, x: DataSpec) -> Write:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.name for column in x.columns)

    def write(rows: Array) -> None:
        writer.writerows(tables.to_csv(tables.to_values(x.columns, rows)))

    return write


def _lines(file: IO[str]) -> Write:
    """Write each row of a model of text as a line."""

    def write(rows: Array) -> None:
        file.writelines(f"{texts.one_line(text)}\n" for text in texts.to_texts(rows))

    return write


@contextmanager
def _parquet(path: Path, x: DataSpec) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = ((c.name, pa.string() if c.is_categorical else pa.float32()) for c in x.columns)
    schema = pa.schema(list(kinds))
    with path.open("wb") as file, pq.ParquetWriter(file, schema) as writer:

        def write(rows: Array) -> None:
            values = tables.to_values(x.columns, rows).values()
            arrays = [pa.array(v, kind.type) for v, kind in zip(values, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))

        yield write


def _folder(folder: Path, first: int, count: int) -> Write:
    digits = len(str(first + count - 1))  # zero-padded, so that names sort by row
    row = first

    def write(rows: Array) -> None:
        nonlocal row
        for png in images.encode_files(rows):
            (folder / f"{row:0{digits}d}.png").write_bytes(png)
            row += 1

    return write
