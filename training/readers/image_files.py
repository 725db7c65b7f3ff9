"""The picture files under a folder, and a count of all other files there."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""The suffixes of picture files, in upper or lower case. Serving has the same list."""

_UNREAD: Final = frozenset(
    {
        ".jfif",
        ".jpe",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".svg",
        ".psd",
        ".ico",
        ".tga",
        ".pgm",
        ".ppm",
    }
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".exr", ".hdr"}
)
_KINDS_NAMED: Final = 8  # kinds of skipped files named; the rest are counted together


@dataclass
class Search:
    """The result of `find`."""

    paths: list[Path] = field(default_factory=list)  # the picture files, sorted
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> how many
    unreadable: dict[Path, str] = field(default_factory=dict)  # folders and links -> why

    def summary(self) -> str:
        """The numbers of files found, used and left out, by reason."""
        count = sum(self.left_out.values())
        text = f"{len(self.paths) + count:,} files found, {len(self.paths):,} taken"
        if not count:
            return f"{text}, none left out"
        reasons = [f"{n:,} {reason}" for reason, n in self.left_out.most_common(_KINDS_NAMED)]
        rest = count - sum(n for _, n in self.left_out.most_common(_KINDS_NAMED))
        reasons += [f"{rest:,} others"] if rest else []
        text = f"{text}, {count:,} left out ({', '.join(reasons)})"
        unread = sorted(_UNREAD & set(self.left_out))
        return f"{text}; pictures of kind {', '.join(unread)} are not read" if unread else text

    def digest(self) -> str:
        """Names the files with their sizes and times: another digest, other pictures."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = path.stat()
                facts = f"{status.st_size} {status.st_mtime_ns}"
            except OSError as error:
                facts = str(error.errno)
            digest.update(os.fsencode(path) + b"\0" + facts.encode() + b"\0")
        digest.update(repr(sorted(self.unreadable)).encode(errors="surrogateescape"))
        return digest.hexdigest()


def find(folder: Path) -> Search:
    """Find every picture file below `folder`. This follows links, but reads each folder only once,
    so a cycle of links ends. It leaves out names that begin with a dot."""
    found = Search()
    folders, linked = [folder], list[Path]()
    seen: set[tuple[int, int]] = set()
    while folders or linked:
        # Links come last, so a folder that is also below `folder` is found under its own name.
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                found.left_out["links to folders read already"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable[here] = error.strerror or str(error)
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                found.left_out["hidden"] += 1
                continue
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                found.unreadable[path] = error.strerror or str(error)
                continue
            if stat.S_ISDIR(mode):
                (linked if entry.is_symlink() else folders).append(path)
            elif not stat.S_ISREG(mode):
                found.left_out["not plain files"] += 1
            elif path.suffix.lower() not in SUFFIXES:
                found.left_out[path.suffix.lower() or "without a suffix"] += 1
            else:
                found.paths.append(path)
    found.paths.sort()
    return found
