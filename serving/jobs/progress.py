"""How far a job is: a bar on a terminal, and a file of metrics for who scrapes such."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from serving.errors import ConfigError

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
        self.rows = self.quarantined = 0
        self._total, self._metrics, self._written = rows, metrics, 0.0

    def __call__(self, rows: int, quarantined: int) -> None:
        self.rows += rows
        self.quarantined += quarantined
        self._bar.update(rows)
        if quarantined:
            self._bar.set_postfix_str(f"{self.quarantined} quarantined", refresh=False)
        if self._metrics and time.monotonic() - self._written > _FILE_SECONDS:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._write()

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
