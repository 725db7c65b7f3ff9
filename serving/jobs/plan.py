"""The plan: what goes in, through which bundle, cut into which shards, and what is wanted of it.

Written once, as plan.json, when a job begins; everything the job does later follows from it alone.
Whoever comes back with other inputs, another bundle or other wishes is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from latentd.bundle import DataSpec
from latentd.errors import ConfigError

FORMAT: Final = 2
SHARD_ROWS: Final = 16384
SHARD_BYTES: Final = 64 << 20  # of input and output held in memory at once
BATCH_ROWS: Final = 128  # fixed: results differ in their last bits with the size of a batch
RECONSTRUCTIONS: Final = ("none", "png", "raw")
FORMATS: Final = ("parquet", "npy")


@dataclass(frozen=True)
class OutputSpec:
    """What the job writes of each row."""

    format: str = "parquet"  # one of FORMATS
    scores: bool = True  # reconstruction_error, kl, elbo, in nats
    latents: bool = True  # mean and log_var
    reconstruction: str = "none"  # one of RECONSTRUCTIONS
    draw: bool = False  # decode a draw around the mean instead of the mean
    seed: int = 0  # of the draws; row i of the job draws row i


@dataclass(frozen=True)
class BundleId:
    """Which bundle; the job trusts nothing but the digest."""

    model: str
    version: int
    digest: str


@dataclass(frozen=True)
class Input:
    """One input: an array, a table, or a folder of images."""

    kind: str  # array | table | pictures
    path: str  # as it can be opened; of pictures the folder, "" where names are whole paths
    rows: int
    bytes: int
    sha256: str  # of the file; of pictures, of every name and every file's own sha256
    column: str = ""  # of a table
    id_column: str = ""  # of a table
    names: str = ""  # of pictures: sha256 of their lines in plan.names
    stamp: str = ""  # what changes when the file is written; no part of the digest


@dataclass(frozen=True)
class Plan:
    """plan.json, field by field."""

    bundle: BundleId
    x: DataSpec
    likelihood: str  # the model's, which decides on values outside x's range
    inputs: tuple[Input, ...]
    wanted: OutputSpec
    shard_rows: int
    batch_rows: int = BATCH_ROWS
    resize: bool = False  # images to the model's size, as training does
    training_scores: dict[str, Any] = dataclasses.field(default_factory=dict)  # the manifest's
    # How many files of --input were taken, and how many left out by reason; no part of the digest.
    files: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

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

    @property
    def digest(self) -> str:
        """sha256 of all that the outputs depend on, in hexadecimal."""
        facts = dataclasses.asdict(self)
        del facts["files"]
        for entry in facts["inputs"]:
            del entry["stamp"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Raises ConfigError where this release cannot read it."""
        try:
            raw: dict[str, Any] = json.loads(data)
            if raw["format"] != FORMAT:
                raise ConfigError(
                    f"plan.json is of format {raw['format']}; this release reads {FORMAT}. Finish "
                    "that job with the release that began it, or give a new --output."
                )
            x = raw["x"]
            raw["x"] = DataSpec(x["kind"], tuple(x["shape"]), x["dtype"], tuple(x["range"]))
            raw["bundle"] = BundleId(**raw["bundle"])
            raw["inputs"] = tuple(Input(**entry) for entry in raw["inputs"])
            raw["wanted"] = OutputSpec(**raw["wanted"])
            return cls(**raw)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"plan.json is not one that this release reads ({error}). Give a new --output."
            ) from None


def default_shard_rows(x: DataSpec, latent_size: int, wanted: OutputSpec) -> int:
    """Rows in a shard, so that its inputs and outputs stay small in memory."""
    row_bytes = x.nbytes * (1 if wanted.reconstruction == "none" else 2) + 8 * latent_size
    return max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))


def check_same(begun: Plan, asked: Plan) -> None:
    """Raise ConfigError, which says what differs, unless both give the same outputs."""
    if begun.digest == asked.digest:
        return
    old, new = begun.bundle, asked.bundle
    if old != new:
        what = (
            f"with {old.model} version {old.version} ({old.digest[:15]}), and not "
            f"{new.model} version {new.version} ({new.digest[:15]})"
        )
    elif begun.inputs != asked.inputs:
        paths = _changed_inputs(begun, asked)
        what = f"with other inputs; added, gone or changed since: {paths}"
    else:
        pairs = {**_pairs(begun.wanted, asked.wanted), **_pairs(begun, asked)}
        what = "with " + ", ".join(
            f"{name.replace('_', ' ')} {a} and not {b}"
            for name, (a, b) in pairs.items()
            if name not in ("wanted", "inputs", "bundle", "files")
        )
    raise ConfigError(
        f"The job in this --output was begun {what}. Repeat the command as it was begun, or give "
        "another --output."
    )


def _pairs(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which two dataclasses differ."""
    both = ((f.name, getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return {name: (old, new) for name, old, new in both if old != new}


def _changed_inputs(begun: Plan, asked: Plan) -> str:
    def known(plan: Plan) -> set[Input]:
        return {dataclasses.replace(i, stamp="") for i in plan.inputs}

    paths = sorted({i.path or "(images)" for i in known(begun) ^ known(asked)})
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
