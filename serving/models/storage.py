"""Reads the bundle directory: models, versions, pins, and whether any of them has changed.

<root>/<model>/<version>/    bundles; see latentd.bundle
<root>/<model>/pinned        optional: the number of the version that counts as the newest
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd import bundle
from latentd.errors import BundleError, ConfigError

PINNED: Final = "pinned"
_MAX_PIN_BYTES: Final = 4096

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, mtime and ctime of the files in a bundle's folder, the times in nanoseconds.

Any program can set mtime back (cp -p, rsync -t, tar), but not ctime. Inode numbers are left out,
because some network volumes change them. Names that begin with a dot are left out too: files of
Finder and rsync are no reason to read a version again."""


def models(root: Path) -> list[Path]:
    """The models' folders. Links are followed, because some volumes are replaced by links.

    Raises BundleError(unreadable) when the root cannot be read.
    """
    with bundle.readable("The bundle directory"):
        entries = [entry for entry in root.iterdir() if bundle.MODEL_NAME.fullmatch(entry.name)]
    return sorted(entry for entry in entries if bundle.may_be_folder(entry))


def may_have_versions(folder: Path) -> bool:
    """Whether a model's folder holds versions, or cannot be read and must be rejected by name."""
    try:
        return bool(bundle.versions(folder))
    except BundleError:
        return True


def check_root(root: Path) -> None:
    """Raises ConfigError unless `root` can hold models; the message suggests the right folder."""
    if os.path.isfile(root):  # unlike Path.is_file, it raises nothing
        raise ConfigError(f"--bundles {root} is a file; expected the folder of all models.")
    if not bundle.may_be_folder(root):
        raise ConfigError(
            f"Bundle directory {root} does not exist. Export a model into it "
            "(latentd export --bundles ...), or set --bundles to another directory."
        )
    meant = bundle.root_above(root)
    if meant is not None:
        raise ConfigError(
            f"--bundles {root} is the folder of one model or version. Did you mean {meant}?"
        )


def fingerprint(path: Path) -> Fingerprint:
    """Changes when a file in a bundle's folder changes; empty if the folder cannot be read."""
    try:
        with os.scandir(path) as entries:
            found = [
                (entry.name, entry.stat(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".")
            ]
    except OSError:
        return ()
    return tuple(sorted((n, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in found))


@dataclass(frozen=True, slots=True)
class Pin:
    """The version that counts as the newest: later versions are ignored."""

    version: int
    source: str  # the flag or file, for people


def pin(folder: Path, given: dict[str, int]) -> Pin | None:
    """The pin of the model in `folder`, from --pin or else from its file. Raises BundleError: pin
    if the file does not hold one number, unreadable if it cannot be read."""
    if folder.name in given:
        return Pin(given[folder.name], "--pin")
    source = f"{folder.name}/{PINNED}"
    with bundle.readable(source):
        try:
            # Links are followed: Kubernetes mounts the keys of a ConfigMap as links.
            data = bundle.read_plain(folder / PINNED, _MAX_PIN_BYTES, link=True)
        except FileNotFoundError:
            return None
    text = data.decode(errors="replace").strip()
    if not bundle.VERSION.fullmatch(text):
        raise BundleError(
            "pin",
            f"{source} holds {text[:20]!a}; expected the number of a version. Fix or remove it.",
        )
    return Pin(int(text), source)


def parse_pins(text: str) -> dict[str, int]:
    """Parse --pin: model=version, separated by commas. Raises ConfigError."""
    pins = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, version = part.partition("=")
        if not (bundle.MODEL_NAME.fullmatch(model) and bundle.VERSION.fullmatch(version)):
            raise ConfigError(f"--pin {part}: expected model=version, separated by commas.")
        pins[model] = int(version)
    return pins
