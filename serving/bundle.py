"""The bundle: the one thing that passes from training to serving.

    <root>/<model>/<version>/
        manifest.json   what the model is, and the sha256 of every other file
        encoder.onnx    x -> mean, log_var
        decoder.onnx    z -> x, params
        golden.npz      inputs and the outputs they must give

A version is a positive whole number and immutable: `publish` writes beside and renames, `load`
checks every byte before anybody uses it and hands on the very bytes it checked. Standard library
only, so that both halves, and any script, can read and write bundles.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serving.errors import BundleError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
GOLDEN: Final = "golden.npz"
FILES: Final = (ENCODER, DECODER, GOLDEN)
MOST_MANIFEST_BYTES: Final = 16 << 20
"""Of manifest.json, which holds words and numbers for people besides what is checked."""

MODEL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,62}[a-z0-9])?")
VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
KINDS: Final = ("image", "vector")
DTYPES: Final = ("uint8", "float32")
FAMILIES: Final = ("vae", "ae")
PRECISIONS: Final = ("float32", "float16")
LIKELIHOODS: Final = {"bernoulli": 1, "gaussian": 2, "discretised-logistic": 2}
"""Each likelihood's name and its parameters per element of x: the decoder's `params` output has
shape (rows, parameters, *x.shape). bernoulli: logits. gaussian: mean, log standard deviation.
discretised-logistic, of bytes: mean, log scale. All of x scaled to [0, 1]."""

SCORES: Final = ("reconstruction_error", "kl", "elbo")


@dataclass(frozen=True)
class XSpec:
    """One row of data, as the caller has it and as it travels."""

    kind: str  # image | sequence | vector
    shape: tuple[int, ...]  # of one row; images are height, width[, channels]
    dtype: str  # uint8 | float32
    range: tuple[float, float]  # lowest and highest value, both allowed

    @property
    def size(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one row on the wire."""
        return self.size * (1 if self.dtype == "uint8" else 4)


@dataclass(frozen=True)
class Manifest:
    """manifest.json, field by field."""

    model: str
    x: XSpec
    latent_size: int
    likelihood: str  # a key of LIKELIHOODS
    family: str  # vae | ae: a plain autoencoder gives a point, so it has no ELBO
    opset: int
    preprocessing: str  # what the graphs do to x first, in words: clients need not do it
    parity: dict[str, Any]  # measured at export: batches, rows, largest differences, tolerance
    training: dict[str, Any] = field(default_factory=dict)  # configuration and metrics
    evaluation: dict[str, Any] = field(default_factory=dict)  # evaluation.json, where there was one
    precision: str = "float32"  # of the graphs' nets; inputs and outputs are float32 or bytes
    # How training rows score: rows, and for each of `levels` (percent, ascending) the quantile of
    # each of SCORES, in nats. {}: unknown, as in bundles of before, or an autoencoder's.
    training_scores: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> {sha256, bytes}
    version: int = 0  # given by publish
    created: str = ""  # UTC, ISO 8601; given by publish
    format: int = FORMAT

    def to_json(self) -> bytes:
        """The file's bytes: UTF-8, indented for people, keys in the order above."""
        return (json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse and check. Raises BundleError(format) that names the key."""
        try:
            raw = json.loads(data)
        except ValueError as error:
            raise BundleError("format", f"{MANIFEST} is not JSON: {error}.") from None
        if not isinstance(raw, dict):
            raise BundleError("format", f"{MANIFEST} holds no JSON object.")
        if raw.get("format") != FORMAT:
            raise BundleError(
                "format",
                f"{MANIFEST} has format {raw.get('format')!r}; this release reads format {FORMAT}. "
                "Export the model again with the matching release.",
            )
        try:
            x = raw["x"]
            raw["x"] = XSpec(x["kind"], tuple(x["shape"]), x["dtype"], tuple(x["range"]))
            manifest = cls(**raw)
            manifest._check()
        except (KeyError, TypeError) as error:
            raise BundleError(
                "format", f"{MANIFEST} lacks a key, or one is unknown or of a wrong type: {error}."
            ) from None
        return manifest

    def _check(self) -> None:
        shape = self.x.shape
        for key, good in {
            "model": isinstance(self.model, str) and bool(MODEL_NAME.fullmatch(self.model)),
            "version": type(self.version) is int and self.version >= 1,
            "family": self.family in FAMILIES,
            "likelihood": self.likelihood in LIKELIHOODS,
            "latent_size": type(self.latent_size) is int and 1 <= self.latent_size <= 1 << 16,
            "x.kind": self.x.kind in KINDS,
            "x.dtype": self.x.dtype in DTYPES,
            "x.shape": bool(shape)
            and all(type(n) is int and n >= 1 for n in shape)
            and math.prod(shape) <= 1 << 28,
            "x.range": len(self.x.range) == 2 and self.x.range[0] < self.x.range[1],
            "evaluation": isinstance(self.evaluation, dict),
            "precision": self.precision in PRECISIONS,
            "training_scores": _are_quantiles(self.training_scores),
            "files": isinstance(self.files, dict)
            and set(self.files) == set(FILES)
            and all(isinstance(entry, dict) for entry in self.files.values()),
        }.items():
            if not good:
                value: Any = self
                for part in key.split("."):
                    value = getattr(value, part)
                raise BundleError("format", f"{MANIFEST}: {key} cannot be {value!r}.")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte has been checked against its manifest."""

    path: Path
    manifest: Manifest
    digest: str  # "sha256:<hex>" of manifest.json, which holds the digests of all the rest
    files: Mapping[str, bytes]


def publish(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write `files` as the next version of `manifest.model` under `root`; returns its folder.

    The version appears whole or not at all: everything is written and fsynced in a hidden folder
    beside, then renamed. Two publishers at once get two versions. Raises BundleError(format) for
    a manifest `load` would refuse.
    """
    if not MODEL_NAME.fullmatch(manifest.model):
        raise BundleError(
            "format",
            f"{manifest.model!r} cannot name a model. Use 1 to 64 lower-case letters, digits, "
            "'.', '_' or '-', beginning and ending with a letter or a digit.",
        )
    folder = root / manifest.model
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".publishing-", dir=folder))
    try:
        entries = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        }
        for name, data in files.items():
            _write(beside / name, data)
        while True:
            version = max(versions(folder), default=0) + 1
            final = dataclasses.replace(
                manifest,
                files=entries,
                version=version,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            final._check()
            _write(beside / MANIFEST, final.to_json())
            beside.chmod(0o755)  # mkdtemp's 0700 would hide it from the server's own user
            _sync_folder(beside)
            try:
                beside.rename(folder / str(version))
            except OSError:
                if not (folder / str(version)).exists():
                    raise
                continue  # another publisher took this number: try the next
            _sync_folder(folder)
            return folder / str(version)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load(path: Path, most_bytes: int = sys.maxsize) -> Bundle:
    """Read and verify the bundle in `path`, a folder <root>/<model>/<version>.

    most_bytes: of all files but the manifest together; checked before any of them is read. Raises
    BundleError with reason missing, checksum, format or memory.
    """
    data = _read(path, MANIFEST, MOST_MANIFEST_BYTES)
    manifest = Manifest.from_json(data)
    if (manifest.model, str(manifest.version)) != (path.parent.name, path.name):
        raise BundleError(
            "format",
            f"{path} holds {manifest.model} version {manifest.version}: a version is published, "
            "never renamed or copied to another number.",
        )
    extra = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *FILES})
    if extra:
        raise BundleError("format", f"{path} holds files no bundle has: {', '.join(extra)}.")
    sizes: dict[str, Any] = {name: e.get("bytes") for name, e in manifest.files.items()}
    if not all(type(size) is int and size >= 0 for size in sizes.values()):
        raise BundleError("format", f"{MANIFEST}: files does not say how many bytes each has.")
    total = sum(int(size) for size in sizes.values())
    if total > most_bytes:
        raise BundleError(
            "memory", f"Its files hold {total >> 20} MiB, and {most_bytes >> 20} MiB may be loaded."
        )
    files = {}
    for name, entry in manifest.files.items():
        content = _read(path, name, sizes[name])
        if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            raise BundleError(
                "checksum",
                f"{path / name} is not the file that was published (its sha256 differs). "
                "Copy the bundle again from where it was exported.",
            )
        files[name] = content
    return Bundle(path, manifest, "sha256:" + hashlib.sha256(data).hexdigest(), files)


def versions(folder: Path) -> list[int]:
    """The version numbers under <root>/<model>, ascending; anything else there is ignored."""
    if not folder.is_dir():
        return []
    return sorted(
        int(entry.name)
        for entry in folder.iterdir()
        if entry.is_dir() and VERSION.fullmatch(entry.name)
    )


def root_above(folder: Path) -> Path | None:
    """The root that was probably meant, where `folder` is that of one version or of one model.

    None: it can be a root, as far as it can be read.
    """
    try:
        if (folder / MANIFEST).is_file():
            return Path(os.path.normpath(folder / "../.."))
        if any(versions(entry) for entry in folder.iterdir()):
            return None
        inside = [folder / str(version) for version in versions(folder)]
        if any((version / MANIFEST).is_file() for version in inside):
            return Path(os.path.normpath(folder / ".."))
    except OSError:
        pass
    return None


def _are_quantiles(scores: Any) -> bool:
    """Whether Manifest.training_scores may be this."""
    if scores == {}:
        return True
    if not isinstance(scores, dict) or set(scores) != {"rows", "levels", *SCORES}:
        return False
    lists = [scores[name] for name in ("levels", *SCORES)]
    return all(
        isinstance(values, list)
        and len(values) == len(lists[0]) >= 2
        and all(type(v) in (int, float) and math.isfinite(v) for v in values)
        and values == sorted(values)
        for values in lists
    )


def read_plain(path: Path, most_bytes: int, *, link: bool = False) -> bytes:
    """The bytes of a plain file, read in one go and never waited for: no pipe, no device.

    link: follow a symbolic link. Raises OSError, also for what is no plain file or is larger than
    `most_bytes`, which is found out before anything is read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if link else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", path.name)
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; at most {most_bytes:,} are read")
        data = file.read(status.st_size + 1)
    if len(data) != status.st_size:
        raise OSError(errno.EAGAIN, "it changed while it was read", path.name)
    return data


def _read(folder: Path, name: str, most_bytes: int) -> bytes:
    path = folder / name
    try:
        # A link could be changed behind the checksum's back, or point out of the bundle.
        return read_plain(path, most_bytes)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL):
            raise BundleError("missing", f"{path} is missing or not a plain file.") from None
        if error.errno in (errno.EFBIG, errno.EAGAIN):
            raise BundleError("checksum", f"{path} cannot be used: {error.strerror}.") from None
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
