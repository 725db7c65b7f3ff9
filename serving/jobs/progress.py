"""How far a job is: a bar on a terminal, and a file of metrics for who scrapes such."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from latentd.errors import ConfigError
from latentd.jobs.worker import Done

_FILE_SECONDS: Final = 5.0


class Progress:
    """Counts rows. metrics: a file in Prometheus' text format, replaced whole every few seconds,
    as node_exporter's textfile collector reads them; None: none."""

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
        if done.kept and not self._bar.disable:  # the rate is of the rows that were run now
            self._bar.initial += done.kept
            self._bar.n += done.kept
            self._bar.last_print_n += done.kept
        self._bar.update(done.rows - done.kept)
        if done.quarantined:
            self._bar.set_postfix_str(f"{self.quarantined} quarantined", refresh=False)
        if self._metrics and time.monotonic() - self._written > _FILE_SECONDS:
            self._refresh()

    def __enter__(self) -> Self:
        """Raises ConfigError where the file of metrics cannot be written."""
        try:
            self._write()
        except OSError as error:
            self._bar.close()
            raise ConfigError(
                f"--metrics-file {self._metrics} cannot be written: {error.strerror or error}."
            ) from None
        self._written = 0.0  # the first rows are news
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
        """Write the file; a job that can go on does not end for its metrics."""
        try:
            self._write()
        except OSError as error:
            self._bar.write(
                f"latentd: --metrics-file {self._metrics} could not be written this time: "
                f"{error.strerror or error}.",
                file=sys.stderr,
            )
            self._written = time.monotonic()

    def _write(self) -> None:
        if self._metrics is None:
            return
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        registry = CollectorRegistry()
        for name, text, value in (
            ("rows", "Rows of the job.", self._total),
            ("rows_done", "Rows written or quarantined.", self.rows),
            ("rows_quarantined", "Rows quarantined.", self.quarantined),
            ("updated_seconds", "When this was written, in seconds since 1970.", time.time()),
        ):
            Gauge(f"latentd_job_{name}", text, registry=registry).set(value)
        write_to_textfile(str(self._metrics), registry)
        self._written = time.monotonic()
