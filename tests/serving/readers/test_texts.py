"""Texts as inputs of jobs and of the console: lines of files, and strings of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentd.bundle import LatentFormat, RowFormat
from latentd.errors import ConfigError
from latentd.jobs.model_rows import ModelRows
from latentd.readers import sources
from latentd.readers.arrays import ArrayReader
from latentd.readers.parquet import ParquetColumnReader
from latentd.readers.rows import Chunk
from latentd.readers.texts import TextReader
from latentd.shapes import Shape
from latentd.texts import to_texts

LATENT = LatentFormat(Shape.parse([2]))
MODEL = ModelRows(RowFormat("text", Shape.parse([6]), "uint8", (0.0, 255.0)), LATENT)
PICTURES = ModelRows(RowFormat("image", Shape.parse([4, 4]), "uint8", (0.0, 255.0)), LATENT)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def lines(tmp_path: Path, opened: ExitStack) -> Callable[[bytes], TextReader]:
    def make(content: bytes) -> TextReader:
        path = tmp_path / "lines.txt"
        path.write_bytes(content)
        return opened.enter_context(closing(TextReader(str(path), MODEL)))

    return make


def table(tmp_path: Path, columns: dict[str, list[object]]) -> str:
    path = str(tmp_path / "table.parquet")
    pq.write_table(pa.table(columns), path)
    return path


def found(chunk: Chunk) -> tuple[list[str], list[int], list[tuple[int, str]]]:
    return to_texts(chunk.x), chunk.rows.tolist(), [(bad.row, bad.reason) for bad in chunk.bad]


@pytest.mark.parametrize("content", [b"ab\n\nc", b"ab\r\n\r\nc\r\n", b"\xef\xbb\xbfab\n\nc\n"])
def test_each_line_is_a_row(lines: Callable[[bytes], TextReader], content: bytes) -> None:
    reader = lines(content)
    assert reader.rows == 3
    assert found(reader.read(0, 3)) == (["ab", "", "c"], [0, 1, 2], [])
    assert found(reader.read(2, 3)) == (["c"], [2], [])


def test_lines_that_are_no_texts_are_bad_rows(lines: Callable[[bytes], TextReader]) -> None:
    reader = lines("ok\nabcdé\nb\0\n".encode() + b"x\xff\nend")
    texts, rows, bad = found(reader.read(0, 5))
    assert (texts, rows) == (["ok", "end"], [0, 4])
    assert bad == [
        (1, "has 6 bytes in UTF-8; the limit is 5"),
        (2, "holds a NUL character, which ends a text"),
        (3, "has other bytes than UTF-8, from byte 1 on"),
    ]


def test_an_empty_file_has_no_rows(lines: Callable[[bytes], TextReader]) -> None:
    assert lines(b"").rows == 0


def test_a_column_of_strings_is_read(tmp_path: Path, opened: ExitStack) -> None:
    path = table(tmp_path, {"name": ["ab", None, "too long"], "n": [1, 2, 3]})
    reader = opened.enter_context(closing(ParquetColumnReader(path, MODEL, id_column="n")))
    texts, rows, bad = found(reader.read(0, 3))
    assert (reader.column, texts, rows) == ("name", ["ab"], [0])
    assert bad == [(1, "no value"), (2, "has 8 bytes in UTF-8; the limit is 5")]


def test_categories_are_strings(tmp_path: Path, opened: ExitStack) -> None:
    path = str(tmp_path / "categories.parquet")
    names = pa.array(["ab", None, "ab", "c"]).dictionary_encode()
    pq.write_table(pa.table({"name": names}), path)
    reader = opened.enter_context(closing(ParquetColumnReader(path, MODEL)))
    texts, rows, bad = found(reader.read(0, 4))
    assert (texts, rows, bad) == (["ab", "ab", "c"], [0, 2, 3], [(1, "no value")])


def test_an_array_of_bytes_that_are_no_texts_has_bad_rows(
    tmp_path: Path, opened: ExitStack
) -> None:
    path = str(tmp_path / "rows.npy")
    np.save(
        path, np.array([[97, 98, 0, 0, 0, 0], [97] * 6, [0, 0, 0, 0, 99, 0], [300, 0, 0, 0, 0, 0]])
    )
    reader = opened.enter_context(closing(ArrayReader(path, MODEL)))
    assert found(reader.read(0, 4)) == (
        ["ab"],
        [0],
        [
            (1, "has no end: its last byte must be 0"),
            (2, "has bytes after its end, the first 0"),
            (3, "holds 300, which is not a byte (0 to 255)"),
        ],
    )


def test_of_several_columns_of_strings_one_must_be_named(tmp_path: Path, opened: ExitStack) -> None:
    path = table(tmp_path, {"a": ["x"], "b": ["y"]})
    with pytest.raises(ConfigError, match="Columns with strings: a, b"):
        ParquetColumnReader(path, MODEL)
    reader = opened.enter_context(closing(ParquetColumnReader(path, MODEL, "b")))
    assert to_texts(reader.read(0, 1).x) == ["y"]


def test_a_model_of_pictures_takes_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("a\n")
    (source,) = sources.find(str(path), sources.FileCounts())
    with pytest.raises(ConfigError, match="holds texts; this model takes images of uint8"):
        sources.open_source(source, PICTURES)


def test_in_a_folder_a_text_file_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="no supported files"):
        sources.find(str(tmp_path), sources.FileCounts())
