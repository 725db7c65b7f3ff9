"""CSV files as Arrow tables: a line of column names, then a line for each row.

Values are separated by commas, in files that end in .tsv by tabs. An empty text is a missing value.
In a file of one column an empty line is a row without a value; in others it is ignored.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

SUFFIXES: Final = (".csv", ".tsv")


def parse(
    content: bytes,
    path: str,
    text_columns: Collection[str] = (),
    ragged: dict[int, str] | None = None,
) -> Any:
    """The table of a file's content.

    text_columns: read as text; the kinds of other columns are inferred from all of their values
    ragged:       gets the reason for each line with too few or too many values, by row, in words
                  that follow "row 3"; the table lacks these rows. None: such a line is an error

    Raises pyarrow.ArrowInvalid, or UnicodeDecodeError for names that are not UTF-8.
    """
    table = _parse(content, path, text_columns, ragged, ignore_empty_lines=True)
    if len(table.column_names) == 1:
        lines = content.lstrip(b"\r\n")
        table = _parse(lines, path, text_columns, ragged, ignore_empty_lines=False)
    return table


def _parse(
    content: bytes,
    path: str,
    text_columns: Collection[str],
    ragged: dict[int, str] | None,
    ignore_empty_lines: bool,
) -> Any:
    import pyarrow as pa
    import pyarrow.csv as csv

    def skip(line: Any) -> str:
        assert ragged is not None
        given, expected = line.actual_columns, line.expected_columns
        ragged[line.number - 2] = f"has {given} values; the first line names {expected}"
        return "skip"

    if ragged is not None:
        ragged.clear()
    return csv.read_csv(
        pa.BufferReader(content),
        read_options=csv.ReadOptions(
            use_threads=False,  # so that lines have numbers
            # Kinds of values are inferred from one block, so it is the whole file.
            block_size=min(len(content) + 1, (1 << 31) - 1),
        ),
        parse_options=csv.ParseOptions(
            delimiter="\t" if path.lower().endswith(".tsv") else ",",
            newlines_in_values=True,
            ignore_empty_lines=ignore_empty_lines,
            invalid_row_handler=None if ragged is None else skip,
        ),
        convert_options=csv.ConvertOptions(
            strings_can_be_null=True, column_types=dict.fromkeys(text_columns, pa.string())
        ),
    )
