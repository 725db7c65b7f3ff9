"""The plan of a job: its inputs, its bundle, its shards and its outputs.

The job writes it once, as plan.json, when it starts. Everything the job does later depends only on
the plan. Rerunning the command with other inputs, another bundle or other options is rejected.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from latentd.bundle import DataSpec, RowShapes
from latentd.errors import ConfigError
from latentd.jobs.model_rows import ModelRows

FORMAT: Final = 4
SHARD_ROWS: Final = 16384
SHARD_BYTES: Final = 64 << 20  # of input and output held in memory at once
BATCH_ROWS: Final = 128  # fixed: the last bits of results depend on the batch size
BATCH_BYTES: Final = 4 << 20  # of x in a batch: within a graph it takes hundreds of times as much
RECONSTRUCTIONS: Final = ("none", "png", "raw", "text")
ENCODINGS: Final = ("mean", "draw")
Z_DTYPES: Final = ("float32", "float16")
FORMATS: Final = ("parquet", "npy")


@dataclass(frozen=True)
class OutputSpec:
    """What the job writes for each row."""

    format: str = "parquet"  # one of FORMATS
    scores: bool = True  # reconstruction_error, kl, elbo, in nats
    latents: bool = True  # mean and log_var
    reconstruction: str = "none"  # one of RECONSTRUCTIONS
    draw: bool = False  # decode a draw around the mean instead of the mean
    draw_x: bool = False  # draw x' from p(x | z): the bytes of texts, the values of columns
    seed: int = 0  # of the draws; row i of the job draws row i
    encode: str = ""  # one of ENCODINGS: only z, for other models to train on; "": no z
    z_dtype: str = "float32"  # one of Z_DTYPES
    contributions: bool = False  # what each element of x adds to its row's reconstruction_error
    threshold: float | None = None  # of outliers, in nats; None: the bundle's, if it has one


@dataclass(frozen=True)
class BundleId:
    """Identifies the bundle; the job relies only on the digest."""

    model: str
    version: int
    digest: str


@dataclass(frozen=True)
class Input:
    """One input: an array, a column of a Parquet file, a table, texts, or a folder of images."""

    kind: str  # array | parquet column | table | pictures | text
    path: str  # to open; for pictures the folder, or "" if names are full paths
    rows: int
    bytes: int
    sha256: str  # of the file; for pictures, of every name and every file's sha256
    column: str = ""  # for a parquet column: its name
    id_column: str = ""  # for a table and a parquet column
    names: str = ""  # for pictures: sha256 of their lines in plan.names
    size: tuple[int, ...] = ()  # of all its rows, the length of each free axis; (): the default
    sizes: str = ""  # if its rows have several sizes: sha256 of its part of plan.sizes
    stamp: str = ""  # changes when the file is written; not part of the digest


@dataclass(frozen=True)
class Plan:
    """plan.json, field by field."""

    bundle: BundleId
    data: ModelRows
    inputs: tuple[Input, ...]
    wanted: OutputSpec
    shard_rows: int = SHARD_ROWS
    shard_ends: tuple[int, ...] = ()  # if rows have several sizes: the row after each shard's last
    batch_rows: int = BATCH_ROWS  # the maximum
    batch_bytes: int = BATCH_BYTES  # the maximum of x in a batch of several rows
    fit: str = "refuse"  # of images to the model's default size, one of pixels.FITS
    training_scores: dict[str, Any] = dataclasses.field(default_factory=dict)  # the manifest's
    threshold: float | None = None  # the manifest's, of rows of the default size
    # Number of files read, and skipped by reason; not part of the digest.
    files: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @property
    def x(self) -> DataSpec:
        """A row of the default size."""
        return self.data.default.x

    @property
    def rows(self) -> int:
        return sum(i.rows for i in self.inputs)

    @functools.cached_property
    def shapes(self) -> RowShapes | None:
        """The shapes of every row; None: the rows have several sizes."""
        sizes = {entry.size for entry in self.inputs}
        if len(sizes) != 1 or any(entry.sizes for entry in self.inputs):
            return None
        return self.data.of_size(sizes.pop())

    def rows_per_batch(self, shapes: RowShapes) -> int:
        """The maximum for rows of these shapes."""
        return max(1, min(self.batch_rows, self.batch_bytes // shapes.x.nbytes))

    @property
    def shards(self) -> int:
        return len(self.shard_ends) or -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> range:
        """The rows of one shard, numbered over all inputs."""
        if self.shard_ends:
            return range(self.shard_ends[index - 1] if index else 0, self.shard_ends[index])
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of everything that the outputs depend on, in hexadecimal."""
        fields = self._fields()
        del fields["files"]
        for entry in fields["inputs"]:
            del entry["stamp"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        return (json.dumps(self._fields(), indent=2) + "\n").encode()

    def _fields(self) -> dict[str, Any]:
        """As JSON has them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        inputs = [dataclasses.asdict(entry) for entry in self.inputs]
        bundle, wanted = dataclasses.asdict(self.bundle), dataclasses.asdict(self.wanted)
        if not self.wanted.draw_x:  # plans that know nothing of it keep their digest
            del wanted["draw_x"]
        parts = {"bundle": bundle, "data": self.data.to_json(), "inputs": inputs, "wanted": wanted}
        return fields | parts

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Raises ConfigError if this release cannot read it."""
        try:
            raw: dict[str, Any] = json.loads(data)
            if raw["format"] != FORMAT:
                raise ConfigError(
                    f"plan.json has format {raw['format']}; this release reads {FORMAT}. Finish "
                    "that job with the release that started it, or use a new --output."
                )
            raw["data"] = ModelRows.from_json(raw["data"])
            raw["bundle"] = BundleId(**raw["bundle"])
            raw["inputs"] = tuple(
                Input(**entry | {"size": tuple(entry["size"])}) for entry in raw["inputs"]
            )
            raw["shard_ends"] = tuple(raw["shard_ends"])
            raw["wanted"] = OutputSpec(**raw["wanted"])
            return cls(**raw)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"plan.json cannot be read by this release ({error}). Use a new --output."
            ) from None


def with_shards(plan: Plan, runs: Iterable[tuple[int, RowShapes]], rows: int) -> Plan:
    """The plan with shards of `rows` rows; 0: so many that a shard's inputs and outputs need little
    memory.

    runs: the number and the shapes of rows that follow each other, for all rows
    """
    if rows:
        return dataclasses.replace(plan, shard_rows=rows)
    if plan.shapes is None:
        weighed = ((count, _row_bytes(shapes, plan.wanted)) for count, shapes in runs)
        return dataclasses.replace(plan, shard_ends=_shard_ends(weighed))
    most = SHARD_BYTES // _row_bytes(plan.shapes, plan.wanted)
    return dataclasses.replace(plan, shard_rows=max(1, min(SHARD_ROWS, most)))


def _row_bytes(shapes: RowShapes, wanted: OutputSpec) -> int:
    """The bytes of a row's inputs and outputs."""
    copies = 1 if wanted.reconstruction == "none" else 2
    terms = 4 * math.prod(shapes.contributions or ()) if wanted.contributions else 0
    terms *= 2 if shapes.x.columns else 1  # with their excess
    return shapes.x.nbytes * copies + 8 * shapes.z_size + terms


def _shard_ends(runs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The row after the last of each shard, for runs of rows with these bytes each."""
    ends, row, start, used = list[int](), 0, 0, 0
    for count, row_bytes in runs:
        left = count
        while left:
            taken = min(left, SHARD_ROWS - (row - start), (SHARD_BYTES - used) // row_bytes)
            if taken <= 0 and row > start:
                ends.append(row)
                start, used = row, 0
                continue
            taken = max(taken, 1)  # a row that is larger than a shard
            row, left, used = row + taken, left - taken, used + taken * row_bytes
    return tuple([*ends, row])


def check_same(known: Plan, requested: Plan) -> None:
    """Raise ConfigError, which names the differences, unless both have the same outputs."""
    if known.digest == requested.digest:
        return
    old, new = known.bundle, requested.bundle
    if old != new:
        difference = (
            f"bundle {old.model} version {old.version} ({old.digest[:15]}) -> "
            f"{new.model} version {new.version} ({new.digest[:15]})"
        )
    else:
        options = _changed_options(known, requested)
        differences = [f"{name.replace('_', ' ')} {a} -> {b}" for name, (a, b) in options.items()]
        if paths := _changed_inputs(known, requested):
            differences.append(f"inputs added, removed or changed: {paths}")
        difference = ", ".join(differences) or "the same inputs in another order"
    raise ConfigError(
        f"--output holds a job with different settings ({difference}). Rerun with the original "
        "settings, or use another --output."
    )


def _pairs(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two dataclasses -> both values."""
    both = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return {name: (old, new) for name, old, new in both if old != new}


_NO_OPTIONS: Final = ("bundle", "inputs", "shard_ends", "training_scores", "files")
_OF_INPUTS: Final = ("column", "id_column")  # options that the plan keeps with each input


def _changed_options(known: Plan, requested: Plan) -> dict[str, tuple[Any, Any]]:
    """The options that differ -> both values. The number of rows of a shard may follow from the
    inputs and the other options, so it counts only if nothing else differs."""
    pairs = {**_pairs(known, requested), **_pairs(known.wanted, requested.wanted)}
    found = {name: both for name, both in pairs.items() if name not in ("wanted", *_NO_OPTIONS)}
    before = {_file(entry): entry for entry in known.inputs}
    for entry in requested.inputs:
        both = _pairs(before.get(_file(entry), entry), entry)
        found |= {name: both[name] for name in _OF_INPUTS if name in both}
    if len(found) > 1 or _changed_inputs(known, requested):
        found.pop("shard_rows", None)
    return found


def _file(entry: Input) -> Input:
    """The input without what depends on options: only its files."""
    return dataclasses.replace(entry, size=(), sizes="", column="", id_column="", stamp="")


def _changed_inputs(known: Plan, requested: Plan) -> str:
    before, after = ({_file(entry) for entry in plan.inputs} for plan in (known, requested))
    paths = sorted({entry.path or "(images)" for entry in before ^ after})
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
