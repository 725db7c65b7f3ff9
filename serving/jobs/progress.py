"""Progress of a job: a bar on a terminal, and a file of Prometheus metrics."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from latentd.errors import ConfigError
from latentd.jobs.worker import Done

_FILE_SECONDS: Final = 5.0


class JobProgress:
    """Counts rows.

    metrics: a file in Prometheus' text format for node_exporter's textfile collector, replaced
             atomically every few seconds; None: no file
    """

    def __init__(self, rows: int, metrics: Path | None = None) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            raise ConfigError("The progress bar needs tqdm: pip install 'latentd[jobs]'.") from None
        self._bar = tqdm(total=rows, unit=" rows", unit_scale=True, disable=None, smoothing=0.1)
        self.rows = self.quarantined = self.kept = 0
        self._total, self._metrics, self._written = rows, metrics, 0.0

    def __call__(self, done: Done) -> None:
        self.rows += done.rows
        self.quarantined += done.quarantined
        self.kept += done.kept
        if done.kept and not self._bar.disable:  # the rate covers only the rows of this run
            self._bar.initial += done.kept
            self._bar.n += done.kept
            self._bar.last_print_n += done.kept
        self._bar.update(done.rows - done.kept)
        if done.quarantined:
            self._bar.set_postfix_str(f"{self.quarantined} quarantined", refresh=False)
        if self._metrics and time.monotonic() - self._written > _FILE_SECONDS:
            self._refresh()

    def __enter__(self) -> Self:
        """Raises ConfigError if the metrics file cannot be written."""
        try:
            self._write()
        except OSError as error:
            self._bar.close()
            raise ConfigError(
                f"Cannot write --metrics-file {self._metrics}: {error.strerror or error}."
            ) from None
        self._written = 0.0  # the first progress is written at once
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._refresh()
        self._bar.close()

    def _refresh(self) -> None:
        """Write the file; an error is printed and does not stop the job."""
        try:
            self._write()
        except OSError as error:
            self._bar.write(
                f"latentd: Cannot write --metrics-file {self._metrics} now: "
                f"{error.strerror or error}.",
                file=sys.stderr,
            )
            self._written = time.monotonic()

    def _write(self) -> None:
        if self._metrics is None:
            return
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        registry = CollectorRegistry()
        for name, help, value in (
            ("rows", "Rows of the job.", self._total),
            ("rows_done", "Rows written or quarantined.", self.rows),
            ("rows_quarantined", "Rows quarantined.", self.quarantined),
            ("updated_seconds", "Time of this update, in seconds since 1970.", time.time()),
        ):
            Gauge(f"latentd_job_{name}", help, registry=registry).set(value)
        write_to_textfile(str(self._metrics), registry)
        self._written = time.monotonic()
