"""Log lines on stderr: sentences for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime


def configure(level: str, form: str, worker: int | None = None) -> None:
    """Set up the root logger. level: debug | info | warning | error; form: text | json; worker:
    the number of this process among several, said in each line."""
    who = "" if worker is None else f"worker {worker}: "
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {who}%(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(worker) if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_says_no_header)
    # gRPC's C core writes to stderr by itself, and a line for each compressed or malformed call:
    # any caller could fill the disk. It reads this variable when the first server is made.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _says_no_header(record: logging.LogRecord) -> bool:
    # gRPC logs, with a traceback, each header that is no text: a token with a typing error, say.
    return not str(record.msg).startswith("Invalid encoding")


class _Json(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._who: dict[str, object] = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | self._who
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
