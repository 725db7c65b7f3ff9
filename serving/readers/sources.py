"""Find the files that a path, folder, glob or URL names; count skipped files by reason.

The rules are the same for jobs and console, on disk and in remote stores:

    hidden files and folders (a name that starts with a dot) are skipped
    links to files and folders are followed; each folder is read once
    pipes, sockets and devices are never opened
    of a folder one kind is read: its images if it has any, else its Parquet files, else its arrays
"""

from __future__ import annotations

import glob
import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, Final

from latentd import csv_tables
from latentd.errors import BadData, ConfigError
from latentd.model_description import ModelDescription
from latentd.readers import files, kinds
from latentd.readers.arrays import ArrayReader, file_and_key
from latentd.readers.kinds import Kind
from latentd.readers.parquet import ParquetColumnReader
from latentd.readers.pictures import PictureReader
from latentd.readers.tables import TableReader, has_columns
from latentd.readers.texts import TextReader

HIDDEN: Final = "hidden (the name starts with a dot)"
NOT_PLAIN: Final = "pipes, sockets or devices"
BROKEN: Final = "broken links"
SEEN: Final = "links to folders read already"
CLOSED: Final = "folders that cannot be opened"
SPARK: Final = 'Parquet files or folders whose name starts with "_"'

_TEXT: Final = ".txt"
"""Read only where a file itself is named: in folders and globs such files are often notes. CSV
files are read if a path or a glob ends so: in folders they often hold labels."""

_NAMED: Final = 6  # reasons in the sentence; the rest are added up, but not images


@dataclass
class FileCounts:
    """Number of found files that are read, and of skipped files by reason."""

    taken: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int = 1) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + count

    @property
    def found(self) -> int:
        return self.taken + sum(self.left_out.values())

    def __str__(self) -> str:
        text = f"{self.found:,} file{'s' * (self.found != 1)} found, {self.taken:,} taken"
        if not self.left_out:
            return f"{text}, none left out"
        # Images first: they are most likely missed.
        reasons = sorted(
            self.left_out.items(), key=lambda item: (kinds.IMAGE not in item[0], -item[1])
        )
        named = max(_NAMED, sum(kinds.IMAGE in reason for reason in self.left_out))
        parts = [f"{count:,} {reason}" for reason, count in reasons[:named]]
        if rest := sum(count for _, count in reasons[named:]):
            parts.append(f"{rest:,} others")
        return f"{text}, {self.found - self.taken:,} left out: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows, or images that are read one after another.

    path:  as it can be opened, FILE.npz:key too; of images the folder, "" where names are paths
    names: of images, relative to the folder, sorted
    """

    kind: Kind
    path: str
    names: Sequence[str] = ()


def find(pattern: str, counts: FileCounts, flag: str = "") -> list[Source]:
    """What `pattern` names, added up in `counts`.

    flag: which brought the pattern, for the sentences. Raises ConfigError where it names nothing
    that is read, OSError where a remote store cannot be asked.
    """
    shown = f"{flag} {files.printable(pattern)}".strip()
    pattern = os.path.expanduser(pattern.removeprefix("file://"))
    path, key = file_and_key(pattern)
    own = FileCounts()
    matches = _remote(path, own) if files.is_remote(path) else _local(path, own, shown)
    if not matches.paths and not matches.folders:
        raise ConfigError(f"{shown}: no such file or folder.")
    if list(matches.paths) == [path] and path.lower().endswith(_TEXT):
        own.taken += 1
        found = [Source("text", path)]
    elif matches.paths and path.lower().endswith(csv_tables.SUFFIXES):
        own.taken += len(matches.paths)
        found = [Source("csv", each) for each in matches.paths]
    else:
        found = _by_kind(matches.paths, own)
    named = [name for _, names in matches.folders for name in names]
    for folder, names in matches.folders:
        found += _in_folder(folder, sorted(names), own)
    if not found and not own.found:
        raise ConfigError(f"{shown}: the folder is empty.")
    if not found and matches.paths:
        hint = kinds.hint(matches.paths[0])
        raise ConfigError(f"{shown}: unsupported file. {hint} {kinds.TAKEN}.")
    if not found and any(name.lower().endswith(csv_tables.SUFFIXES) for name in named):
        glob = f"{pattern.rstrip('/')}/*.csv"
        raise ConfigError(f"{shown}: name the tables in the folder, as in '{glob}' (or .tsv).")
    if not found:
        raise ConfigError(f"{shown}: no supported files ({own}). {kinds.TAKEN}.")
    if key:
        found = [_with_key(source, key, shown) for source in found]
    counts.taken += own.taken
    for reason, count in own.left_out.items():
        counts.leave_out(reason, count)
    return found


def open_source(
    source: Source,
    model: ModelDescription,
    column: str = "",
    id_column: str = "",
    fit: str = "refuse",
) -> ArrayReader | TableReader | ParquetColumnReader | PictureReader | TextReader:
    """The source's reader. Raises ConfigError if its rows cannot be the model's, BadData."""
    if source.kind == "picture":
        names = source.names
        return PictureReader(
            source.path, lambda start, stop: names[start:stop], len(names), model, fit
        )
    if source.kind == "csv" or (
        source.kind == "parquet" and not column and has_columns(source.path, model)
    ):
        return TableReader(source.path, model, id_column)
    if source.kind == "parquet":
        return ParquetColumnReader(source.path, model, column, id_column, fit)
    if source.kind == "text":
        return TextReader(source.path, model)
    return ArrayReader(source.path, model)


@dataclass(frozen=True, slots=True)
class _Matches:
    """Regular files, and folders with the names of the regular files below them."""

    paths: Sequence[str] = ()
    folders: Sequence[tuple[str, list[str]]] = ()


def _by_kind(paths: Sequence[str], counts: FileCounts) -> list[Source]:
    """The sources of files that were named one by one or by a glob, of any kinds."""
    found, pictures = [], []
    for path in paths:
        kind = kinds.kind_of(path) or _kind_by_content(path)
        if kind is None:
            counts.leave_out(kinds.skip_reason(path))
            continue
        counts.taken += 1
        if kind == "picture":
            pictures.append(path)
        else:
            found.append(Source(kind, path))
    return found + ([Source("picture", "", pictures)] if pictures else [])


def _in_folder(folder: str, names: Sequence[str], counts: FileCounts) -> list[Source]:
    """One kind of rows: images, else Parquet files, else arrays."""
    groups: dict[str, list[str]] = {"images": [], "Parquet files": [], "arrays": []}
    for name in names:
        kind = kinds.kind_of(name)
        if kind is None:
            counts.leave_out(kinds.skip_reason(name))
        elif kind == "parquet" and any(part.startswith("_") for part in PurePath(name).parts):
            counts.leave_out(SPARK)  # Spark's metadata, and files that it has not committed
        elif name.lower().endswith(kinds.LABELS):
            counts.leave_out("IDX files of labels")
        else:
            of_several = {"picture": "images", "parquet": "Parquet files"}.get(kind, "arrays")
            groups[of_several].append(name)
    chosen = next((group for group, members in groups.items() if members), "")
    for group, members in groups.items():
        if members and group != chosen:
            counts.leave_out(f"{group} next to {chosen}", len(members))
    taken = groups.get(chosen, [])
    counts.taken += len(taken)
    if chosen == "images":
        return [Source("picture", folder, taken)]
    return [Source(kinds.kind_of(name) or "idx", files.join(folder, name)) for name in taken]


def _kind_by_content(path: str) -> Kind | None:
    """IDX files may have any name; they start with two zero bytes and the type of their numbers."""
    if kinds.hint(path):
        return None
    try:
        with files.open_file(path) as file:
            packed = path.lower().endswith(".gz")
            head = (gzip.GzipFile(fileobj=file) if packed else file).read(3)
    except (BadData, OSError, EOFError, zlib.error):
        return None
    return "idx" if head == bytes((0, 0, 8)) else None


def _with_key(source: Source, key: str, shown: str) -> Source:
    if source.kind != "npz":
        raise ConfigError(f"{shown}: only .npz files have arrays by name.")
    return Source("npz", f"{source.path}:{key}")


def _local(path: str, counts: FileCounts, shown: str) -> _Matches:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _matching(path, counts)
    except OSError as error:
        raise ConfigError(f"Cannot stat {shown}: {files.describe(error)}.") from None
    if stat.S_ISDIR(mode):
        return _Matches(folders=[(path, list(_below(path, counts)))])
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{shown} is a pipe, socket or device; only regular files are read. Write its "
            "content to a file."
        )
    return _Matches([path])


def _matching(pattern: str, counts: FileCounts) -> _Matches:
    """A glob's files, or its folders if it matches no file."""
    parts = PurePath(pattern).parts
    if "**" in parts:  # Python's glob would follow a cycle of links some forty times
        at = parts.index("**")
        return _Matches(list(_matching_below(os.path.join("", *parts[:at]), parts[at:], counts)))
    plain, folders = [], []
    for path in sorted(glob.glob(pattern)):
        if os.path.isdir(path):
            folders.append(path)
        elif os.path.isfile(path):
            plain.append(path)
        else:
            counts.leave_out(NOT_PLAIN if os.path.exists(path) else BROKEN)
    if plain:
        return _Matches(plain)
    return _Matches(folders=[(folder, list(_below(folder, counts))) for folder in folders])


def _matching_below(root: str, pattern: Sequence[str], counts: FileCounts) -> Iterator[str]:
    for folder in sorted(glob.glob(root)) if root else [""]:
        for name in sorted(_below(folder, counts)):
            if _fits(PurePath(name).parts, pattern):
                yield os.path.join(folder, name)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, part by part; ** matches any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _below(root: str, counts: FileCounts) -> Iterator[str]:
    """The regular files below a folder, relative to it. Links are followed, and each folder is read
    once, so a cycle of links ends."""
    folders, linked = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while folders or linked:
        # Links last: a folder that is also below the root itself keeps its own name.
        inside = folders.pop() if folders else linked.pop(0)
        folder = os.path.join(root, inside) or os.curdir
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                counts.leave_out(SEEN)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            counts.leave_out(f"{CLOSED} ({files.describe(error)})")
            continue
        for entry in entries:
            name = os.path.join(inside, entry.name)
            if entry.name.startswith("."):
                counts.leave_out(HIDDEN)
                continue
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself, or to a name that no file can have
                is_folder = is_file = False
            if is_folder:
                (linked if entry.is_symlink() else folders).append(name)
            elif is_file:
                yield name
            else:
                counts.leave_out(NOT_PLAIN if os.path.exists(entry.path) else BROKEN)


def _remote(url: str, counts: FileCounts) -> _Matches:
    system, inside = files.remote_system(url)
    try:
        if glob.has_magic(inside):
            matched: dict[str, Any] = system.glob(inside, detail=True)
            plain = [path for path, about in matched.items() if about.get("type") == "file"]
            # In stores * matches hidden names, in a shell it does not.
            shown = _not_hidden(plain, counts, last_part_only=True)
            return _Matches(sorted(str(system.unstrip_protocol(path)) for path in shown))
        if system.isdir(inside):
            prefix = inside.rstrip("/") + "/"
            listed: dict[str, Any] = system.find(inside, detail=True)
            names = []
            for path, about in listed.items():
                if about.get("type", "file") == "file":
                    names.append(path.removeprefix(prefix))
                else:
                    counts.leave_out(NOT_PLAIN)
            return _Matches(folders=[(url, list(_not_hidden(names, counts)))])
        return _Matches([url] if system.exists(inside) else [])
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the store's package can raise anything
        raise ConfigError(f"Cannot reach {url}: {files.describe(error)}.") from None


def _not_hidden(
    paths: Iterable[str], counts: FileCounts, last_part_only: bool = False
) -> Iterator[str]:
    """The paths that are not hidden."""
    for path in paths:
        parts = PurePath(path).parts
        if any(part.startswith(".") for part in (parts[-1:] if last_part_only else parts)):
            counts.leave_out(HIDDEN)
        else:
            yield path
