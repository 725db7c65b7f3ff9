"""Texts as rows of bytes: a text's UTF-8, then zeros. The first 0 is the text's end.

A row of `length` bytes holds a text of at most length - 1 bytes, so that its end always fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_CONTROLS: Final = dict.fromkeys((*range(32), 127, *range(128, 160)), "\N{REPLACEMENT CHARACTER}")

_LINE_BREAKS: Final = str.maketrans("\n\r", "\N{REPLACEMENT CHARACTER}" * 2)

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""What some programs write before UTF-8. It is no part of a text."""

Rows = NDArray[np.uint8]
"""uint8, (texts, length)."""


def to_rows(texts: Sequence[bytes], length: int) -> Rows:
    """Texts of at most length - 1 bytes, without NUL."""
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def to_texts(rows: Any) -> list[str]:
    """The texts of rows. What a net made up may have other bytes than UTF-8: U+FFFD is there."""
    return [bytes(row).partition(b"\0")[0].decode("utf-8", "replace") for row in np.asarray(rows)]


def one_line(text: str) -> str:
    """The text as a line of a file: U+FFFD stands for line breaks, which a model may make up."""
    return text.translate(_LINE_BREAKS)


def printable(text: str) -> str:
    """The text on one line, for a terminal or a page: U+FFFD stands for characters on which these
    would act, such as an escape or the end of a line."""
    return text.translate(_CONTROLS)


def fault(text: bytes, length: int | None = None) -> str | None:
    """Why bytes are no text that fits into a row of `length` bytes (None: of any length), in words
    that follow "row 3"; None: they are."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"has other bytes than UTF-8, from byte {error.start} on"
    if b"\0" in text:
        return "holds a NUL character, which ends a text"
    if length is not None and len(text) >= length:
        return f"has {len(text):,} bytes in UTF-8; the limit is {length - 1:,}"
    return None


def faults(rows: Rows) -> dict[int, str]:
    """Why rows are no texts, by row."""
    ended = np.logical_or.accumulate(rows == 0, axis=1)
    after = (rows != 0) & ended
    found = dict.fromkeys(
        np.flatnonzero(after.any(1)).tolist(), "has bytes after its end, the first 0"
    )
    open_ended = "has no end: its last byte must be 0"
    return found | dict.fromkeys(np.flatnonzero(rows[:, -1] != 0).tolist(), open_ended)
