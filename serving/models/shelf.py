"""What lies under the bundles' root: models, versions, pins, and whether any of it has changed.

<root>/<model>/<version>/    bundles; see serving.bundle
<root>/<model>/pinned        optional: the number of the version that shall count as the newest
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving import bundle
from serving.errors import BundleError, ConfigError

PINNED: Final = "pinned"
_MOST_PIN_BYTES: Final = 4096

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, mtime and ctime of all that a bundle's folder holds, the times in nanoseconds. mtime
can be set back by anybody (cp -p, rsync -t, tar), ctime cannot. Inode numbers are left out: some
network volumes make them up anew."""


def models(root: Path) -> list[Path]:
    """The models' folders; also through links, which is how volumes are swapped as a whole.

    Raises OSError when the root cannot be read.
    """
    return sorted(
        entry
        for entry in root.iterdir()
        if bundle.MODEL_NAME.fullmatch(entry.name) and entry.is_dir()
    )


def check_root(root: Path) -> None:
    """Raises ConfigError unless models can lie under `root`; says which folder may be meant."""
    if not root.is_dir():
        raise ConfigError(
            f"The bundles' folder {root} does not exist. Export a model into it "
            "(python -m training export --bundles ...), or name another with --bundles."
        )
    meant = bundle.root_above(root)
    if meant is not None:
        raise ConfigError(
            f"--bundles {root} is the folder of one model or version. Did you mean {meant}?"
        )


def fingerprint(path: Path) -> Fingerprint:
    """Changes when anything in a bundle's folder does; empty when the folder cannot be read."""
    try:
        with os.scandir(path) as entries:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((n, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for n, s in found))


@dataclass(frozen=True, slots=True)
class Pin:
    """The version that counts as the newest: those after it are as if they were not there."""

    version: int
    source: str  # where it was said, for people


def pin(folder: Path, given: dict[str, int]) -> Pin | None:
    """The pin of the model in `folder`: of the setting, else of its file. Raises BundleError(pin)
    when the file does not hold one number."""
    if folder.name in given:
        return Pin(given[folder.name], "--pin")
    path = folder / PINNED
    try:
        # Also through a link, as Kubernetes mounts a ConfigMap's keys.
        text = bundle.read_plain(path, _MOST_PIN_BYTES, link=True).decode().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError("pin", f"{path} cannot be read: {error}.") from None
    if not bundle.VERSION.fullmatch(text):
        raise BundleError(
            "pin", f"{path} holds {text[:20]!r}: write the number of a version, or remove it."
        )
    return Pin(int(text), str(path))


def read_pins(text: str) -> dict[str, int]:
    """The setting `pin`: model=version, with commas between. Raises ConfigError."""
    pins = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, version = part.partition("=")
        if not (bundle.MODEL_NAME.fullmatch(model) and bundle.VERSION.fullmatch(version)):
            raise ConfigError(f"--pin {part}: write model=version, with commas between several.")
        pins[model] = int(version)
    return pins
