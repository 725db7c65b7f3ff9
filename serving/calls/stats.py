"""What one call costs: its rows, how long they waited and how long they ran."""

from __future__ import annotations

import itertools
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

REQUEST_ID: Final = "x-request-id"
HEADERS: Final = frozenset((REQUEST_ID, "traceparent", "tracestate"))
"""Of a call, for its account: its own id, and W3C's trace context."""
_HARMLESS: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""A caller's request id goes into logs and trailers: nothing there can be broken by these."""
MAX_SPANS: Final = 64
"""Remembered of one call: a stream may have any number of them."""

_process: Final = secrets.token_hex(4)
_numbers: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """The way of some rows through a lane; times on time.monotonic's clock."""

    graph: str
    rows: int
    queued_at: float
    began: float  # when the first row left the queue
    ended: float  # when the last one had been run


class CallStats:
    """Of one call.

    request_id: the caller's own if it gave one that is harmless, else one made here
    context:    the caller's trace context, by the names of W3C's headers
    passes:     the first ones, while somebody wants them; None: nobody does
    """

    __slots__ = ("_graphs", "context", "passes", "request_id")

    def __init__(self) -> None:
        self.request_id = f"{_process}{next(_numbers):x}"
        self.context: dict[str, str] | None = None
        self.passes: list[BatchSpan] | None = None
        self._graphs: dict[str, list[Any]] = {}  # rows and seconds: waited, run

    def set_header(self, header: str, value: str | bytes) -> None:
        """Take in one of HEADERS."""
        if header != REQUEST_ID:
            self.context = {**(self.context or {}), header: str(value)}
        elif isinstance(value, str) and _HARMLESS.fullmatch(value):
            self.request_id = value

    def note(self, graph: str, rows: int, queued_at: float, began: float, ended: float) -> None:
        """Enter a pass. Of each lane by one thread at a time, under the lane's lock."""
        spent = self._graphs.get(graph)
        if spent is None:
            self._graphs[graph] = [rows, began - queued_at, ended - began]
        else:
            spent[0] += rows
            spent[1] += began - queued_at
            spent[2] += ended - began
        if self.passes is not None and len(self.passes) < MAX_SPANS:
            self.passes.append(BatchSpan(graph, rows, queued_at, began, ended))

    def sum(self) -> tuple[int, float, float]:
        """Over all passes: rows run in the lane that ran most of them; seconds from when rows were
        queued until the first of them was run; and from then until the last had been run."""
        rows, waited, ran = 0, 0.0, 0.0
        for spent in self._graphs.values():
            rows = max(rows, spent[0])
            waited += spent[1]
            ran += spent[2]
        return rows, waited, ran
