"""The plan of a job: its inputs, its bundle, its shards and its outputs.

The job writes it once, as plan.json, when it starts. Everything the job does later depends only on
the plan. Rerunning the command with other inputs, another bundle or other options is rejected.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from latentd.bundle import DataSpec, Shapes
from latentd.errors import ConfigError
from latentd.jobs.model_rows import ModelRows

FORMAT: Final = 3
SHARD_ROWS: Final = 16384
SHARD_BYTES: Final = 64 << 20  # of input and output held in memory at once
BATCH_ROWS: Final = 128  # fixed: the last bits of results depend on the batch size
RECONSTRUCTIONS: Final = ("none", "png", "raw")
FORMATS: Final = ("parquet", "npy")


@dataclass(frozen=True)
class OutputSpec:
    """What the job writes for each row."""

    format: str = "parquet"  # one of FORMATS
    scores: bool = True  # reconstruction_error, kl, elbo, in nats
    latents: bool = True  # mean and log_var
    reconstruction: str = "none"  # one of RECONSTRUCTIONS
    draw: bool = False  # decode a draw around the mean instead of the mean
    seed: int = 0  # of the draws; row i of the job draws row i


@dataclass(frozen=True)
class BundleId:
    """Identifies the bundle; the job relies only on the digest."""

    model: str
    version: int
    digest: str


@dataclass(frozen=True)
class Input:
    """One input: an array, a table, or a folder of images."""

    kind: str  # array | table | pictures
    path: str  # to open; for pictures the folder, or "" if names are full paths
    rows: int
    bytes: int
    sha256: str  # of the file; for pictures, of every name and every file's sha256
    column: str = ""  # for a table
    id_column: str = ""  # for a table
    names: str = ""  # for pictures: sha256 of their lines in plan.names
    stamp: str = ""  # changes when the file is written; not part of the digest


@dataclass(frozen=True)
class Plan:
    """plan.json, field by field."""

    bundle: BundleId
    data: ModelRows
    inputs: tuple[Input, ...]
    wanted: OutputSpec
    shard_rows: int
    batch_rows: int = BATCH_ROWS
    resize: bool = False  # images to the model's size, as training does
    training_scores: dict[str, Any] = dataclasses.field(default_factory=dict)  # the manifest's
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

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> range:
        """The rows of one shard, numbered over all inputs."""
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
            raw["inputs"] = tuple(Input(**entry) for entry in raw["inputs"])
            raw["wanted"] = OutputSpec(**raw["wanted"])
            return cls(**raw)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"plan.json cannot be read by this release ({error}). Use a new --output."
            ) from None


def default_shard_rows(shapes: Shapes, wanted: OutputSpec) -> int:
    """Rows per shard, so that a shard's inputs and outputs need little memory."""
    copies = 1 if wanted.reconstruction == "none" else 2
    row_bytes = shapes.x.nbytes * copies + 8 * shapes.z_size
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))


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
    elif known.inputs != requested.inputs:
        paths = _changed_inputs(known, requested)
        difference = f"inputs added, removed or changed: {paths}"
    else:
        pairs = {**_pairs(known.wanted, requested.wanted), **_pairs(known, requested)}
        difference = ", ".join(
            f"{name.replace('_', ' ')} {a} -> {b}"
            for name, (a, b) in pairs.items()
            if name not in ("wanted", "inputs", "bundle", "files")
        )
    raise ConfigError(
        f"--output holds a job with different settings ({difference}). Rerun with the original "
        "settings, or use another --output."
    )


def _pairs(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two dataclasses -> both values."""
    both = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return {name: (old, new) for name, old, new in both if old != new}


def _changed_inputs(known: Plan, requested: Plan) -> str:
    def unstamped(plan: Plan) -> set[Input]:
        return {dataclasses.replace(i, stamp="") for i in plan.inputs}

    paths = sorted({i.path or "(images)" for i in unstamped(known) ^ unstamped(requested)})
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
