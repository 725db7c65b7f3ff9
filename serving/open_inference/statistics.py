"""Counts and times of the requests to each operation of each version, for ModelStatistics."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from latentd.calls.stats import CallStats
from latentd.pb import open_inference_pb2 as pb


@dataclass(slots=True)
class _Counts:
    succeeded: int = 0
    failed: int = 0
    rows: int = 0
    succeeded_seconds: float = 0.0
    failed_seconds: float = 0.0
    queued_seconds: float = 0.0
    ran_seconds: float = 0.0
    last_at: float = 0.0  # in seconds since 1970; 0: never


class Statistics:
    """What the requests of this process cost. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int, str], _Counts] = {}

    def add(self, key: tuple[str, int, str], stats: CallStats, seconds: float, ok: bool) -> None:
        """A request has ended.

        key: of a model that is or was served: its name, its version and the operation
        """
        rows, queued, ran = stats.totals()
        with self._lock:
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = _Counts()
            counts.last_at = time.time()
            if not ok:
                counts.failed += 1
                counts.failed_seconds += seconds
                return
            counts.succeeded += 1
            counts.rows += rows
            counts.succeeded_seconds += seconds
            counts.queued_seconds += queued
            counts.ran_seconds += ran

    def describe(self, name: str, key: tuple[str, int, str]) -> pb.ModelStatistics:
        """One model of the protocol."""
        with self._lock:
            counts = self._counts.get(key, _Counts())
            ok = counts.succeeded

            def duration(count: int, seconds: float) -> pb.StatisticDuration:
                return pb.StatisticDuration(count=count, ns=int(seconds * 1e9))

            return pb.ModelStatistics(
                name=name,
                version=str(key[1]),
                last_inference=int(counts.last_at * 1e3),
                inference_count=counts.rows,
                execution_count=ok,
                inference_stats=pb.InferStatistics(
                    success=duration(ok, counts.succeeded_seconds),
                    fail=duration(counts.failed, counts.failed_seconds),
                    queue=duration(ok, counts.queued_seconds),
                    compute_input=duration(ok, 0),
                    compute_infer=duration(ok, counts.ran_seconds),
                    compute_output=duration(ok, 0),
                ),
            )
