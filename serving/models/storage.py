"""What lies under the bundles' root: models, versions, pins, and whether any of it has changed.

<root>/<model>/<version>/    bundles; see latentd.bundle
<root>/<model>/pinned        optional: the number of the version that shall count as the newest
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd import bundle
from latentd.errors import BundleError, ConfigError

PINNED: Final = "pinned"
_MOST_PIN_BYTES: Final = 4096

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, mtime and ctime of the files in a bundle's folder, the times in nanoseconds. mtime
can be set back by anybody (cp -p, rsync -t, tar), ctime cannot. Inode numbers are left out: some
network volumes invent new ones. So are names that begin with a dot: what Finder and rsync write
there is no reason to read a version again."""


def models(root: Path) -> list[Path]:
    """The models' folders; also through links, which is how volumes are swapped as a whole.

    Raises BundleError(unreadable) when the root cannot be read.
    """
    with bundle.readable("The bundles' folder"):
        entries = [entry for entry in root.iterdir() if bundle.MODEL_NAME.fullmatch(entry.name)]
    return sorted(entry for entry in entries if bundle.may_be_folder(entry))


def may_have_versions(folder: Path) -> bool:
    """Whether a model's folder holds versions, or cannot be read: to be refused by its name."""
    try:
        return bool(bundle.versions(folder))
    except BundleError:
        return True


def check_root(root: Path) -> None:
    """Raises ConfigError unless models can lie under `root`; says which folder may be meant."""
    if not bundle.may_be_folder(root):
        raise ConfigError(
            f"The bundles' folder {root} does not exist. Export a model into it "
            "(latentd export --bundles ...), or name another with --bundles."
        )
    meant = bundle.root_above(root)
    if meant is not None:
        raise ConfigError(
            f"--bundles {root} is the folder of one model or version. Did you mean {meant}?"
        )


def fingerprint(path: Path) -> Fingerprint:
    """Changes when a file in a bundle's folder does; empty when the folder cannot be read."""
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
    """The version that counts as the newest: those after it are as if they were not there."""

    version: int
    source: str  # where it was said, for people


def pin(folder: Path, given: dict[str, int]) -> Pin | None:
    """The pin of the model in `folder`: of the setting, else of its file. Raises BundleError: pin
    when the file does not hold one number, unreadable when it cannot be read."""
    if folder.name in given:
        return Pin(given[folder.name], "--pin")
    source = f"{folder.name}/{PINNED}"
    with bundle.readable(source):
        try:
            # Also through a link, as Kubernetes mounts a ConfigMap's keys.
            data = bundle.read_plain(folder / PINNED, _MOST_PIN_BYTES, link=True)
        except FileNotFoundError:
            return None
    text = data.decode(errors="replace").strip()
    if not bundle.VERSION.fullmatch(text):
        raise BundleError(
            "pin", f"{source} holds {text[:20]!a}: write the number of a version, or remove it."
        )
    return Pin(int(text), source)


def read_pins(text: str) -> dict[str, int]:
    """The setting `pin`: model=version, with commas between. Raises ConfigError."""
    pins = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, version = part.partition("=")
        if not (bundle.MODEL_NAME.fullmatch(model) and bundle.VERSION.fullmatch(version)):
            raise ConfigError(f"--pin {part}: write model=version, with commas between several.")
        pins[model] = int(version)
    return pins
