"""One shard, from its rows to its commit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from latentd.errors import BadData
from latentd.jobs import outputs
from latentd.jobs.inputs import Rows
from latentd.jobs.plan import Plan
from latentd.jobs.reconstruct import Reconstruct, Results, joined
from latentd.jobs.store import ShardManifest, Store

WORST: Final = 32
"""Of a shard, for the contact sheet: so many of its largest reconstruction errors are kept."""


class Done(NamedTuple):
    """Rows that are done; how many of them are quarantined, and how many were committed before."""

    rows: int = 0
    quarantined: int = 0
    kept: int = 0


Report = Callable[[Done], None]
"""Is called again and again, with what was done since the last time."""


def make(plan: Plan, shard: int, rows: Rows, reconstruct: Reconstruct, report: Report) -> Results:
    """Run one shard's rows. Raises BadData."""
    wanted = plan.shard(shard)
    parts = []
    chunks = rows.read(wanted.start, wanted.stop, plan.batch_rows)
    for part in reconstruct(chunks):
        parts.append(part)
        report(Done(len(part.rows) + len(part.bad), len(part.bad)))
    results = joined(parts)
    if len(results.rows) + len(results.bad) != len(wanted):
        raise BadData(
            f"Shard {shard}: {len(wanted)} rows went in, {len(results.rows)} came out and "
            f"{len(results.bad)} were quarantined."
        )
    return results


def commit(plan: Plan, shard: int, results: Results, store: Store) -> ShardManifest:
    """Write one shard, whose lock is held, for good. Raises OSError."""
    wanted = plan.shard(shard)
    manifest = ShardManifest(
        plan=plan.digest,
        shard=shard,
        start=wanted.start,
        stop=wanted.stop,
        rows=len(results.rows),
        quarantined=results.bad,
        outside=int(np.count_nonzero(results.outside)),
        worst=_worst(results),
        bytes=0,
        sha256="",
    )
    write = functools.partial(outputs.write, results, plan)
    return store.commit(shard, write, outputs.count, manifest)


def _worst(results: Results) -> list[tuple[int, float, int]]:
    """The largest reconstruction errors: the first row that has each, and how many have it."""
    error = results.reconstruction_error
    if error is None:
        return []
    lowest_first, at, counts = np.unique(-error, return_index=True, return_counts=True)
    rows = results.rows[at]
    found = zip(rows.tolist(), (-lowest_first).tolist(), counts.tolist(), strict=True)
    return list(itertools.islice(found, WORST))
