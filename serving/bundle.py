"""Publishes and loads bundles, the only thing that training passes to serving.

    <root>/<model>/<version>/
        manifest.json   what the model is, and the sha256 of every other file
        encoder.onnx    x -> mean, log_var; only mean if the posterior is a point
        decoder.onnx    z -> x, params; only x if there is no likelihood
        likelihood.onnx x, params -> log_likelihood; only if there is a likelihood. Of texts
                        decoder.onnx computes it: z, choices -> x, log_likelihood
        golden.npz      inputs, and the outputs that they must give
        map.npz         optional: some training rows in latent space; see latentd.latent_map

A version is a positive integer and immutable. `publish` writes to a temporary folder and renames
it. `load` checks every byte and returns the bytes that it checked. It reads only the files that the
manifest names and ignores all others. Standard library only, so that both halves, and any script,
can read and write bundles.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from latentd import atomic
from latentd.errors import BundleError
from latentd.manifest import Likelihood, Manifest, Tile
from latentd.manifest_schema import (
    DECODER,
    ENCODER,
    FILES,
    GOLDEN,
    LIKELIHOOD,
    MANIFEST,
    MAP,
    MAX_MANIFEST_BYTES,
    MAX_MAP_BYTES,
    MODEL_NAME,
    SCORES,
)
from latentd.model_description import DataSpec, LatentFormat, RowFormat, RowShapes
from latentd.outliers import Threshold

__all__ = [
    "DECODER",
    "ENCODER",
    "FILES",
    "GOLDEN",
    "LIKELIHOOD",
    "MANIFEST",
    "MAP",
    "MAX_MANIFEST_BYTES",
    "MAX_MAP_BYTES",
    "MODEL_NAME",
    "SCORES",
    "VERSION",
    "Bundle",
    "DataSpec",
    "LatentFormat",
    "Likelihood",
    "Manifest",
    "RowFormat",
    "RowShapes",
    "Threshold",
    "Tile",
    "load",
    "may_be_folder",
    "publish",
    "read_plain",
    "readable",
    "root_above",
    "versions",
]

VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked against its manifest, byte by byte."""

    path: Path
    manifest: Manifest
    digest: str  # "sha256:<hex>" of manifest.json, which has the digests of the other files
    files: Mapping[str, bytes]
    # Names in its folder that the manifest does not list, except those that begin with a dot, which
    # Finder and rsync write.
    stray: tuple[str, ...] = ()


def publish(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write `files` as the next version of `manifest.model` under `root`; returns its folder.

    The version appears whole or not at all: all files are written and fsynced in a hidden folder,
    which is then renamed. Two concurrent publishers get two versions. A failure leaves nothing, nor
    a model's folder that this call made and that is empty. Raises BundleError(format) before
    anything is written, for a manifest that `load` would reject.
    """
    final = dataclasses.replace(
        manifest,
        files={
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        },
        version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    final.check()
    folder = root / manifest.model
    with _unpublished(folder) as temporary:
        for name, data in files.items():
            _write(temporary / name, data)
        while True:
            version = _next_version(folder)
            final = dataclasses.replace(final, version=version)
            final.check()
            _write(temporary / MANIFEST, final.to_json())
            temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from the server's user
            atomic.sync(temporary)
            try:
                temporary.rename(folder / str(version))
            except OSError:
                if not (folder / str(version)).exists():
                    raise
                continue  # another publisher took this number: try the next
            atomic.sync(folder)
            return folder / str(version)


@contextmanager
def _unpublished(folder: Path) -> Iterator[Path]:
    """A new hidden folder in `folder`, which is made if need be. An error removes what was made."""
    is_new = not folder.exists()
    temporary = None
    try:
        while temporary is None:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another publisher failed, and removed the folder
                temporary = Path(tempfile.mkdtemp(prefix=".publishing-", dir=folder))
        yield temporary
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # not there, or another publisher has put something into it
                folder.rmdir()
        raise


def load(path: Path, max_bytes: int = sys.maxsize) -> Bundle:
    """Read and verify the bundle in `path`, a folder <root>/<model>/<version>.

    Ignores files that the manifest does not name. max_bytes: limit of all files together without
    the manifest, checked before any of them is read. Raises BundleError with reason missing,
    unreadable, checksum, format or memory; it names files relative to the root.
    """
    folder = f"{path.parent.name}/{path.name}"
    with readable(f"{folder}/{MANIFEST}"):
        data = _read(path, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = Manifest.from_json(data, f"{folder}/{MANIFEST}")
    _check_place(manifest, path)
    total = sum(entry["bytes"] for entry in manifest.files.values())
    if total > max_bytes:
        raise BundleError(
            "memory", f"Its files hold {total >> 20} MiB; the limit is {max_bytes >> 20} MiB."
        )
    files = {}
    for name, entry in manifest.files.items():
        with readable(f"{folder}/{name}"):
            content = _read(path, name, entry["bytes"])
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise BundleError(
                "checksum",
                f"{folder}/{name} is not the file that was published (its sha256 differs). "
                "Copy the bundle again from where it was exported.",
            )
        files[name] = content
    with readable(folder):
        others = {entry.name for entry in path.iterdir()} - {MANIFEST, *files}
    stray = sorted(name for name in others if not name.startswith("."))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Bundle(path, manifest, digest, files, tuple(stray))


def versions(folder: Path) -> list[int]:
    """The version numbers under <root>/<model>, ascending; anything else there is ignored.

    Raises BundleError(unreadable).
    """
    with readable(folder.name):
        if not folder.is_dir():
            return []
        entries = [entry for entry in folder.iterdir() if VERSION.fullmatch(entry.name)]
    return sorted(int(entry.name) for entry in entries if may_be_folder(entry))


def root_above(folder: Path) -> Path | None:
    """The root that was probably meant, if `folder` is the folder of a version or of a model.

    None: it can be a root, or it cannot be read.
    """
    try:
        if (folder / MANIFEST).is_file():
            return Path(os.path.normpath(folder / "../.."))
        if any(versions(entry) for entry in folder.iterdir()):
            return None
        inside = [folder / str(version) for version in versions(folder)]
        if any((version / MANIFEST).is_file() for version in inside):
            return Path(os.path.normpath(folder / ".."))
    except (OSError, BundleError):
        pass
    return None


def may_be_folder(path: Path) -> bool:
    """Whether this is a folder, or cannot be examined: reading it later raises the reason."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _next_version(folder: Path) -> int:
    """One more than the largest name that is a version number, of folders and files."""
    names = [entry.name for entry in folder.iterdir() if VERSION.fullmatch(entry.name)]
    return max(map(int, names), default=0) + 1


def _check_place(manifest: Manifest, path: Path) -> None:
    """Raises BundleError(format) unless the folders' names are the manifest's model and version."""
    model, version = path.parent.name, path.name
    if (manifest.model, str(manifest.version)) == (model, version):
        return
    if manifest.model != model:
        what = f"the model {manifest.model}, version {manifest.version}"
        hint = f"Copy it to {manifest.model}/{manifest.version}, or export it under another name"
    else:
        what = f"version {manifest.version}"
        hint = (
            "Publish a new version with export; to serve an old one again, write its number into "
            f"{model}/pinned"
        )
    raise BundleError("format", f"The manifest in {model}/{version} is that of {what}. {hint}.")


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn an OSError of the body into BundleError(unreadable | missing), which names `what`."""
    try:
        yield
    except FileNotFoundError:
        raise BundleError("missing", f"{what} is missing.") from None
    except OSError as error:
        message = f"{what} cannot be read: {error.strerror or type(error).__name__}."
        if isinstance(error, PermissionError):
            message += f" Give read permission to uid {os.geteuid()}, the user of this process."
        raise BundleError("unreadable", message) from None


def read_plain(path: Path, max_bytes: int, *, link: bool = False) -> bytes:
    """The bytes of a regular file. Never blocks: pipes and devices are rejected.

    link: follow a symbolic link. Raises OSError, also if this is not a regular file or is larger
    than `max_bytes`; both are checked before anything is read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if link else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path.name)
        if status.st_size > max_bytes:
            raise OSError(
                errno.EFBIG, f"it has {status.st_size:,} bytes; the limit is {max_bytes:,}"
            )
        data = file.read(status.st_size + 1)
    if len(data) != status.st_size:
        raise OSError(errno.EAGAIN, "it changed during the read", path.name)
    return data


def _read(folder: Path, name: str, max_bytes: int) -> bytes:
    what = f"{folder.parent.name}/{folder.name}/{name}"
    try:
        # A link could change after the checksum, or point out of the bundle.
        return read_plain(folder / name, max_bytes)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL):
            raise BundleError("missing", f"{what} is missing or not a regular file.") from None
        if error.errno in (errno.EFBIG, errno.EAGAIN):
            raise BundleError("checksum", f"{what} cannot be read: {error.strerror}.") from None
        raise


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)
    atomic.sync(path)
