"""Reads a folder of pictures into one array of bytes.

Each picture is read by the rules of `picture`. With --color auto, all become RGB if any picture has
color, and grey otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from latentd.training import machine
from latentd.training.config import parse_size
from latentd.training.errors import TrainingError
from latentd.training.files import printable, require_memory
from latentd.training.readers.image_files import SUFFIXES, Search, find
from latentd.training.readers.picture import (
    Bad,
    Header,
    Pixels,
    read_header,
    read_picture,
    warnings_ignored,
)

S = TypeVar("S")
T = TypeVar("T")
_GREY: Final = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_PROGRESS_FROM: Final = 256  # with fewer pictures, no progress bar is shown
_THREADS: Final = 16
_BYTES_A_PIXEL: Final = 16  # approximate memory to decode, convert and resize a picture
_FILES_LISTED: Final = 3  # files that a report names per reason
_QUEUED: Final = 4096  # files handed to the threads at once: each takes memory


Allocate = Callable[[tuple[int, ...]], Pixels]
"""Makes the array of the pixels."""

Order = Callable[[int], npt.NDArray[np.int64]]
"""The number of rows -> a permutation of them."""


class ImageOptions(NamedTuple):
    """How to read a folder.

    size:     "HEIGHTxWIDTH" to resize to; None keeps the pictures' sizes, which must be equal
    color:    auto, grey or rgb
    skip_bad: skip and list files that cannot be used; otherwise they are an error
    """

    size: str | None = None
    color: str = "auto"
    skip_bad: bool = False


class Pictures(NamedTuple):
    """pixels: uint8 (rows, height, width) for grey, (rows, height, width, 3) for RGB; labels:
    int64 (rows,), an index into `classes` (the folders' names), or None; notes: sentences;
    left_out: one line for each file that cannot be used."""

    pixels: Pixels
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def pixels_in_memory(shape: tuple[int, ...]) -> Pixels:
    """As `Allocate`. Raises TrainingError if the pixels need more than half of the memory."""
    require_memory("images", math.prod(shape), "Pass a smaller --image-size.")
    return np.empty(shape, np.uint8)


def read_pictures(
    folder: Path,
    options: ImageOptions,
    found: Search | None = None,
    order: Order = np.arange,
    allocate: Allocate = pixels_in_memory,
) -> Pictures:
    """Read every picture below `folder`, in the order of their paths, permuted by `order`.

    found: the files of the folder, if `find` has found them already. Raises TrainingError for a
    folder without pictures, and for pictures of several sizes before it decodes any. Unless
    options.skip_bad, files that cannot be used raise one TrainingError that reports them all.
    """
    found = found or find(folder)
    where = f"images:{printable(folder)}"
    if not found.paths and not found.unreadable:
        raise TrainingError(
            f"{printable(folder)} holds no pictures ({found.summary()}); they are known by "
            f"{', '.join(SUFFIXES)}."
        )
    resized = parse_size(options.size) if options.size else None
    with warnings_ignored():
        look = partial(read_header, turned=resized is None)
        headers = _each(look, found.paths, _THREADS, f"looking at {printable(folder)}")
        good = {p: h for p, h in zip(found.paths, headers, strict=True) if isinstance(h, Header)}
        bad = {path: Bad(reason) for path, reason in found.unreadable.items()}
        bad |= {p: h for p, h in zip(found.paths, headers, strict=True) if isinstance(h, Bad)}
        sizes = Counter((h.height, h.width) for h in good.values())
        colored = any(header.mode not in _GREY for header in good.values())
        mode = "RGB" if options.color == "rgb" or (options.color == "auto" and colored) else "L"
        shape = resized or max(sizes, key=lambda s: sizes[s], default=(0, 0))
        row = (*shape, 3) if mode == "RGB" else shape
        kept, pixels = list[Path](), np.empty((0, *row), np.uint8)
        if good and (resized or len(sizes) == 1):
            paths = list(good)
            kept = [paths[number] for number in order(len(paths))]
            pixels = allocate((len(kept), *row))
            threads, title = _threads(good.values()), f"reading {printable(folder)}"
            read_into = partial(_read_into, pixels=pixels, mode=mode, resized=resized)
            results = _each(read_into, list(enumerate(kept)), threads, title)
            damaged = {path: fault for path, fault in zip(kept, results, strict=True) if fault}
            bad |= damaged
            good = {path: header for path, header in good.items() if path not in damaged}
            kept, pixels = _without(damaged, kept, pixels)
    faults = [] if options.skip_bad and good else _faults(where, bad, len(good))
    if len(sizes) > 1 and not resized:
        faults.append(_of_several_sizes(where, good))
    if faults:
        raise TrainingError(" ".join(faults))
    if bad:
        found.left_out["that cannot be used"] = len(bad)
        found.paths = list(good)
    labels, classes = _labels(folder, kept)
    notes = [_note(where, found.summary(), list(good.values()), row)]
    if bad:
        notes.append(f"{where}: cannot be used and left out: {_by_reason(bad)}.")
    if labels is not None:
        counts = zip(classes, np.bincount(labels), strict=True)
        named = _first([f"{name} ({count:,})" for name, count in counts], 10)
        notes.append(f"{where}: the names of {len(classes)} folders are the labels: {named}.")
    left_out = tuple(f"{printable(path)}: {' '.join(fault).strip()}" for path, fault in bad.items())
    return Pictures(pixels, labels, classes, tuple(notes), left_out)


def _read_into(
    place: tuple[int, Path], pixels: Pixels, mode: str, resized: tuple[int, int] | None
) -> Bad | None:
    """Read a picture into its row."""
    row, path = place
    picture = read_picture(path, mode, resized)
    if isinstance(picture, Bad):
        return picture
    if picture.shape != pixels.shape[1:]:
        return Bad("of another size than its header says")
    pixels[row] = picture
    return None


def _without(
    damaged: Collection[Path], kept: list[Path], pixels: Pixels
) -> tuple[list[Path], Pixels]:
    """The paths and their rows without the damaged ones. The last rows take their places, so that
    nothing is decoded again and few rows are moved."""
    kept, row = list(kept), 0
    while row < len(kept):
        if kept[row] not in damaged:
            row += 1
        elif (last := kept.pop()) not in damaged:
            kept[row], pixels[row] = last, pixels[len(kept)]
    return kept, pixels[: len(kept)]


def _each(work: Callable[[S], T], items: Sequence[S], threads: int, title: str) -> list[T]:
    # Pillow releases the interpreter's lock while it decodes, so threads suffice.
    results: list[T] = []
    few = len(items) < _PROGRESS_FROM
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(desc=title, total=len(items), unit="picture", disable=few or None) as bar:
            for start in range(0, len(items), _QUEUED):
                for result in pool.map(work, items[start : start + _QUEUED]):
                    results.append(result)
                    bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits only for what is being read
    return results


def _threads(headers: Iterable[Header]) -> int:
    """How many threads can decode the largest picture at once in a quarter of available memory."""
    largest = max((header.height * header.width for header in headers), default=1)
    return max(1, min(_THREADS, machine.available_memory() // 4 // (largest * _BYTES_A_PIXEL)))


def _faults(where: str, bad: dict[Path, Bad], good: int) -> list[str]:
    if not bad:
        return []
    return [
        f"{where}: {len(bad):,} of {len(bad) + good:,} files cannot be used: {_by_reason(bad)}. "
        "Replace or remove them, or pass --bad-images skip."
    ]


def _by_reason(bad: dict[Path, Bad]) -> str:
    """'2 damaged (a.png: image file is truncated, b.png: ...), 1 unreadable (...)'."""
    reasons: dict[str, list[str]] = {}
    for path, (reason, detail) in bad.items():
        text = f"{printable(path)}: {detail}" if detail else printable(path)
        reasons.setdefault(reason, []).append(text)
    return ", ".join(
        f"{len(names):,} {reason} ({_first(names, _FILES_LISTED)})"
        for reason, names in reasons.items()
    )


def _of_several_sizes(where: str, headers: dict[Path, Header]) -> str:
    sizes: dict[str, list[str]] = {}
    for path, header in headers.items():
        sizes.setdefault(f"{header.height}x{header.width}", []).append(printable(path))
    listed = sorted(sizes.items(), key=lambda item: -len(item[1]))
    counts = [f"{len(names):,} of {size} ({_first(names, 1)})" for size, names in listed]
    return (
        f"{where}: pictures are of {len(sizes)} sizes, height x width: {_first(counts, 5)}. Make "
        "them one, or pass --image-size HEIGHTxWIDTH."
    )


def _first(texts: Sequence[str], count: int) -> str:
    more = [f"and {len(texts) - count:,} more"] if len(texts) > count else []
    return ", ".join([*texts[:count], *more])


def _note(where: str, counts: str, headers: list[Header], row: tuple[int, ...]) -> str:
    """The files found, and the conversions chosen for pictures that differ."""
    modes = Counter(header.mode for header in headers)
    made_of = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
    kind = "RGB" if len(row) == 3 else "grey"
    note = f"{where}: {counts}; read as {row[0]}x{row[1]} (height x width) {kind}, from {made_of}"
    animated = sum(header.animated for header in headers)
    return f"{note}; the first frame of {animated:,} animated ones." if animated else f"{note}."


def _labels(
    folder: Path, paths: list[Path]
) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels from the first folder below `folder`. Requires that all pictures are in at least two
    such folders, and that these hold at least two pictures on average."""
    parts = [path.relative_to(folder).parts for path in paths]
    names = sorted({part[0] for part in parts})
    if not all(len(part) > 1 for part in parts) or not 2 <= len(names) <= len(paths) // 2:
        return None, ()
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[part[0]] for part in parts], np.int64)
    return labels, tuple(map(printable, names))
