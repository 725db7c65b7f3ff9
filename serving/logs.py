"""Logs to stderr: text for people, or one JSON object per line for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime


def configure(level: str, format: str, worker: int | None = None) -> None:
    """Set up the root logger.

    level: debug | info | warning | error. format: text | json. worker: the number of this worker
    process, written in each line.
    """
    prefix = "" if worker is None else f"worker {worker}: "
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {prefix}%(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(worker) if format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_drops_header_values)
    # gRPC's C core writes to stderr itself, a line for each compressed or malformed call: any
    # client could fill the disk. It reads this variable when the first server is created.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _drops_header_values(record: logging.LogRecord) -> bool:
    # gRPC logs each header that is not ASCII, with a traceback: for example a mistyped token.
    return not str(record.msg).startswith("Invalid encoding")


class _Json(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker: dict[str, object] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | self._worker
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
