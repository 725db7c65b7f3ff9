"""Reads files of text: each line becomes a row of bytes, as `latentd.texts` says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from latentd.texts import BYTE_ORDER_MARK, fault, to_rows
from latentd.training.config import Config
from latentd.training.errors import TrainingError
from latentd.training.files import printable, read_plain, require_memory
from latentd.training.readers.arrays import Arrays
from latentd.training.settings import MAX_TEXT_LENGTH


class TextOptions(NamedTuple):
    """Which lines become rows. The names are those of the flags."""

    text_length: int | None = None
    long_texts: str = "fail"
    keep_repeated: bool = False

    @classmethod
    def of(cls, config: Config) -> TextOptions:
        """A run's own."""
        return cls(config.text_length, config.long_texts, config.keep_repeated)


def read_texts(path: Path, options: TextOptions) -> Arrays:
    """Read a file of UTF-8, one text a line. Its notes count the lines that are no rows, by reason.

    Raises TrainingError, which names the line at fault.
    """
    name = printable(path)
    lines = _lines(path)
    texts = _checked(name, lines)
    notes = [f"{name}: {_count(len(lines), 'line')}."]
    if empty := len(lines) - len(texts):
        notes.append(f"{name}: {_count(empty, 'empty line')} left out.")
    if options.keep_repeated:
        if repeated := len(texts) - len(set(texts)):
            notes.append(
                f"{name}: {_count(repeated, 'line')} repeat an earlier one and are kept. Test rows "
                "may be training rows too, so their likelihood is too good."
            )
    else:
        distinct = list(dict.fromkeys(texts))
        if repeated := len(texts) - len(distinct):
            notes.append(
                f"{name}: {_count(repeated, 'line')} left out that repeat an earlier one. "
                "--keep-repeated keeps them."
            )
        texts = distinct
    texts, length, long = _fitting(name, texts, options)
    if long:
        notes.append(long)
    if not texts:
        raise TrainingError(f"{name} has no text that can be a row. {' '.join(notes)}")
    require_memory(name, len(texts) * length, "Use a smaller --text-length, or fewer texts.")
    return Arrays(to_rows(texts, length), notes=tuple(notes), text=True)


def _lines(path: Path) -> list[bytes]:
    content = read_plain(path, "text:FILE names a file with one text a line")
    # Not splitlines: it also splits at characters that are part of a text.
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _checked(name: str, lines: Iterable[bytes]) -> list[bytes]:
    """The lines that are not empty."""
    texts = []
    for number, line in enumerate(lines, 1):
        if reason := fault(line):
            raise TrainingError(
                f"{name}: line {number} {reason}. Remove the line, or save the file as text in "
                "UTF-8; iconv converts other files."
            )
        if line.decode().strip():
            texts.append(line)
    return texts


def _fitting(
    name: str, texts: list[bytes], options: TextOptions
) -> tuple[list[bytes], int, str | None]:
    """The texts that fit into a row, a row's length, and a note about the others."""
    longest = max(map(len, texts), default=1)
    length = options.text_length or min(longest + 1, MAX_TEXT_LENGTH)
    long = sum(len(text) >= length for text in texts)
    if not long:
        return texts, length, None
    limit = f"longer than {length - 1} bytes (the longest has {longest})"
    if options.long_texts == "fail":
        raise TrainingError(
            f"{name}: {_count(long, 'text')} of {len(texts):,} are {limit}. Use --text-length "
            f"{longest + 1}, or --long-texts cut or skip."
        )
    if options.long_texts == "skip":
        kept = [text for text in texts if len(text) < length]
        return kept, length, f"{name}: {_count(long, 'text')} left out that are {limit}."
    cut = [text if len(text) < length else _cut(text, length - 1) for text in texts]
    return cut, length, f"{name}: {_count(long, 'text')} cut that are {limit}."


def _cut(text: bytes, length: int) -> bytes:
    """The whole characters among the first `length` bytes."""
    return text[:length].decode("utf-8", "ignore").encode()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
