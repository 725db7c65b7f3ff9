"""The bundle: the one thing that passes from training to serving.

    <root>/<model>/<version>/
        manifest.json   what the model is, and the sha256 of every other file
        encoder.onnx    x -> mean, log_var
        decoder.onnx    z -> x, params
        golden.npz      inputs and the outputs they must give

A version is a positive whole number and immutable: `publish` writes beside and renames, `load`
checks every byte before anybody uses it and hands on the very bytes it checked. Only the files that
the manifest names are read; whatever else lies in the folder is ignored. Standard library only, so
that both halves, and any script, can read and write bundles.
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
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from serving import schema
from serving.errors import BundleError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
ENCODER: Final = "encoder.onnx"
DECODER: Final = "decoder.onnx"
GOLDEN: Final = "golden.npz"
FILES: Final = (ENCODER, DECODER, GOLDEN)
MAX_MANIFEST_BYTES: Final = 1 << 20

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

_MAX_VERSION: Final = 999_999_999
_MAX_ELEMENTS: Final = 1 << 28  # of one row
_LARGEST: Final = 1e30
"""Of float32 data: differences and quotients of such numbers are finite in float32, too."""


@dataclass(frozen=True)
class XSpec:
    """One row of data, as the caller has it and as it travels."""

    kind: str  # image | vector
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
    def from_json(cls, data: bytes, name: str = MANIFEST) -> Manifest:
        """Parse and check. Raises BundleError(format), which says the file's name, the key and what
        was expected."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(
                "format",
                f"{name} has {len(data)} bytes; expected {MAX_MANIFEST_BYTES} at most.",
            )
        try:
            raw = schema.parse(data)
        except schema.Invalid as error:
            raise BundleError("format", f"{name}: {error}") from None
        _check(raw, name)
        x = raw["x"]
        low, high = map(float, x["range"])
        spec = XSpec(x["kind"], tuple(x["shape"]), x["dtype"], (low, high))
        return cls(**raw | {"x": spec})


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte has been checked against its manifest."""

    path: Path
    manifest: Manifest
    digest: str  # "sha256:<hex>" of manifest.json, which holds the digests of all the rest
    files: Mapping[str, bytes]
    # Names in its folder that the manifest does not have; without those that begin with a dot, as
    # Finder and rsync write them.
    stray: tuple[str, ...] = ()


def publish(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write `files` as the next version of `manifest.model` under `root`; returns its folder.

    The version appears whole or not at all: everything is written and fsynced in a hidden folder
    beside, then renamed. Two publishers at once get two versions. Raises BundleError(format) for
    a manifest `load` would refuse, before anything is written.
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
    _check(dataclasses.asdict(final))
    folder = root / manifest.model
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".publishing-", dir=folder))
    try:
        for name, data in files.items():
            _write(beside / name, data)
        while True:
            version = _next_version(folder)
            final = dataclasses.replace(final, version=version)
            _check(dataclasses.asdict(final))
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

    Files that the manifest does not name are ignored. most_bytes: of all files but the manifest
    together; checked before any of them is read. Raises BundleError with reason missing,
    unreadable, checksum, format or memory; it names files from the model's folder on.
    """
    folder = f"{path.parent.name}/{path.name}"
    with readable(f"{folder}/{MANIFEST}"):
        data = _read(path, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = Manifest.from_json(data, f"{folder}/{MANIFEST}")
    _check_place(manifest, path)
    total = sum(entry["bytes"] for entry in manifest.files.values())
    if total > most_bytes:
        raise BundleError(
            "memory", f"Its files hold {total >> 20} MiB, and {most_bytes >> 20} MiB may be loaded."
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
    except (OSError, BundleError):
        pass
    return None


def may_be_folder(path: Path) -> bool:
    """Whether this is a folder, or cannot be examined: reading it then raises the reason."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _next_version(folder: Path) -> int:
    """One above whatever bears a version's name, be it a folder or not."""
    names = [entry.name for entry in folder.iterdir() if VERSION.fullmatch(entry.name)]
    return max(map(int, names), default=0) + 1


def _check_place(manifest: Manifest, path: Path) -> None:
    """Raises BundleError(format) unless the folders bear the manifest's model and version."""
    model, version = path.parent.name, path.name
    if (manifest.model, str(manifest.version)) == (model, version):
        return
    if manifest.model != model:
        what = f"the model {manifest.model}, version {manifest.version}"
        hint = f"Copy it to {manifest.model}/{manifest.version}, or export it under another name"
    else:
        what = f"a copy of version {manifest.version}"
        hint = (
            "Publish a new version with export; to serve an old one again, write its number into "
            f"{model}/pinned"
        )
    raise BundleError("format", f"{model}/{version} holds {what}, says its manifest. {hint}.")


def _is_shape(value: Any) -> bool:
    return (
        schema.is_list(value)
        and 1 <= len(value) <= 3
        and all(type(n) is int and 1 <= n <= _MAX_ELEMENTS for n in value)
        and math.prod(value) <= _MAX_ELEMENTS
    )


def _is_range(value: Any) -> bool:
    return schema.is_list(value) and len(value) == 2 and all(map(schema.is_number, value))


def _is_range_of_bytes(value: Any) -> bool:
    low, high = value
    return 0 <= low < high <= 255 and all(float(end).is_integer() for end in value)


def _is_range_of_floats(value: Any) -> bool:
    if not all(-_LARGEST <= end <= _LARGEST for end in value):
        return False
    low, high = struct.unpack("2f", struct.pack("2f", *value))  # as float32 has them
    return bool(high - low >= 1 / _LARGEST)


def _is_rising(value: Any) -> bool:
    return (
        schema.is_list(value)
        and len(value) >= 2
        and all(map(schema.is_number, value))
        and list(value) == sorted(value)
    )


_FILE: Final = schema.Fields(
    {
        "sha256": schema.pattern(re.compile("[0-9a-f]{64}"), "64 hexadecimal digits in lower case"),
        "bytes": schema.whole(0, 1 << 40),
    }
)
_QUANTILES: Final = schema.Rule("two or more ascending numbers", _is_rising)
_FORMAT_1: Final = schema.Fields(
    {
        "format": schema.one_of(1),
        "model": schema.pattern(
            MODEL_NAME,
            "1 to 64 lower-case letters, digits, '.', '_' or '-', beginning and ending with a "
            "letter or a digit",
        ),
        "version": schema.whole(1, _MAX_VERSION),
        "created": schema.time(),
        "family": schema.one_of(*FAMILIES),
        "x": schema.Fields(
            {
                "kind": schema.one_of(*KINDS),
                "dtype": schema.one_of(*DTYPES),
                "shape": schema.Rule(
                    f"1 to 3 lengths from 1, for {_MAX_ELEMENTS} elements at most", _is_shape
                ),
                "range": schema.Rule("the lowest and the highest value, both finite", _is_range),
            }
        ),
        "latent_size": schema.whole(1, 1 << 16),
        "likelihood": schema.one_of(*LIKELIHOODS),
        "opset": schema.whole(1, 1000),
        "preprocessing": schema.text(10_000),
        "parity": schema.Tree(),
        "files": schema.Fields(dict.fromkeys(FILES, _FILE)),
    },
    optional={
        "training": schema.Tree(),
        "evaluation": schema.Tree(),
        "precision": schema.one_of(*PRECISIONS),
        "training_scores": schema.EmptyOr(
            schema.Fields(
                {"rows": schema.whole(1, (1 << 32) - 1)}
                | dict.fromkeys(("levels", *SCORES), _QUANTILES)
            )
        ),
    },
)
_FORMATS: Final[Mapping[int, schema.Fields]] = {1: _FORMAT_1}
"""What each format's manifests hold, by `format`."""


def _rules(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, schema.Rule]]:
    """The checks that depend on another key: the key, its value and the check."""
    x = manifest["x"]
    if x["dtype"] == "uint8":
        ends = "two ascending whole numbers from 0 to 255, as x.dtype is uint8"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_bytes)
    else:
        ends = f"two ascending numbers from {-_LARGEST:g} to {_LARGEST:g}, apart in float32"
        yield "x.range", x["range"], schema.Rule(ends, _is_range_of_floats)
    if x["kind"] == "image":
        lengths = "height, width[, channels], as x.kind is image"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) >= 2)
    else:
        lengths = "one length, as x.kind is vector"
        yield "x.shape", x["shape"], schema.Rule(lengths, lambda shape: len(shape) == 1)
    if manifest["likelihood"] == "discretised-logistic":
        bytes_ = schema.Rule("uint8, as likelihood is discretised-logistic", "uint8".__eq__)
        yield "x.dtype", x["dtype"], bytes_
    if scores := manifest.get("training_scores"):
        levels = scores["levels"]
        percents = schema.Rule("percents from 0 to 100", lambda v: v[0] >= 0 and v[-1] <= 100)
        yield "training_scores.levels", levels, percents
        as_many = schema.Rule(
            f"as many numbers as levels, {len(levels)}", lambda v: len(v) == len(levels)
        )
        for name in SCORES:
            yield f"training_scores.{name}", scores[name], as_many


def _check(manifest: Any, name: str = MANIFEST) -> None:
    """Raises BundleError(format) unless this is a manifest: what GetModel says of it, and what the
    graphs' signatures are made of, is of the type and the sense that they need."""
    found = manifest.get("format") if isinstance(manifest, dict) else FORMAT
    if type(found) is not int:
        found = FORMAT  # whose table names the fault
    if found not in _FORMATS:
        raise BundleError(
            "format",
            f"{name} has format {schema.shown(found)}; this release reads format "
            f"{', '.join(map(str, _FORMATS))}. Export the model again with the matching release.",
        )
    try:
        _FORMATS[found].check(manifest)
        for key, value, rule in _rules(manifest):
            rule.check(value, key)
    except schema.Invalid as error:
        raise BundleError("format", f"{name}: {error}") from None


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn an OSError of the body into BundleError(unreadable | missing), which names `what`."""
    try:
        yield
    except FileNotFoundError:
        raise BundleError("missing", f"{what} is missing.") from None
    except OSError as error:
        said = f"{what} cannot be read: {error.strerror or type(error).__name__}."
        if isinstance(error, PermissionError):
            said += f" Let the user that this process runs as, uid {os.geteuid()}, read it."
        raise BundleError("unreadable", said) from None


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
    what = f"{folder.parent.name}/{folder.name}/{name}"
    try:
        # A link could be changed behind the checksum's back, or point out of the bundle.
        return read_plain(folder / name, most_bytes)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL):
            raise BundleError("missing", f"{what} is missing or not a plain file.") from None
        if error.errno in (errno.EFBIG, errno.EAGAIN):
            raise BundleError("checksum", f"{what} cannot be used: {error.strerror}.") from None
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
