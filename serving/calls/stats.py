"""What one call costs: its rows, how long they were queued and how long they ran."""

from __future__ import annotations

import itertools
import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

from latentd.pb.vae_pb2 import ModelVersion

REQUEST_ID: Final = "x-request-id"
HEADERS: Final = frozenset((REQUEST_ID, "traceparent", "tracestate"))
"""The headers that the statistics keep: the call's request id, and W3C's trace context."""
_SAFE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""A client's request id goes into logs and trailers; these characters cannot break either."""
MAX_SPANS: Final = 64
"""How many spans a call keeps: a stream may have any number of them."""

_process: Final = secrets.token_hex(4)
_numbers: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """Some rows in one batcher; times on time.monotonic's clock."""

    graph: str
    rows: int
    queued_at: float
    started_at: float  # when the first batch with some of the rows started
    ended_at: float  # when the last of them had run


class CallStats:
    """The statistics of one call.

    request_id: the client's, if it sent a safe one; otherwise generated here
    context:    the client's trace context, by the names of W3C's headers; None: it sent none
    served_by:  the model that answers, as the server names it; None: none was found or is needed
    spans:      the first MAX_SPANS, if a list was set to keep them in; None: not kept
    """

    __slots__ = ("_graphs", "context", "request_id", "served_by", "spans")

    def __init__(self) -> None:
        self.request_id = f"{_process}{next(_numbers):x}"
        self.context: dict[str, str] | None = None
        self.served_by: ModelVersion | None = None
        self.spans: list[BatchSpan] | None = None
        self._graphs: dict[str, list[Any]] = {}  # rows, seconds queued, seconds run

    def set_header(self, header: str, value: str | bytes) -> None:
        """Keep one of HEADERS."""
        if header != REQUEST_ID:
            self.context = {**(self.context or {}), header: str(value)}
        elif isinstance(value, str) and _SAFE_REQUEST_ID.fullmatch(value):
            self.request_id = value

    def record(
        self, graph: str, rows: int, queued_at: float, started_at: float, ended_at: float
    ) -> None:
        """Add some rows that a graph has run. For each graph, one thread at a time calls this,
        under the batcher's lock."""
        totals = self._graphs.get(graph)
        if totals is None:
            self._graphs[graph] = [rows, started_at - queued_at, ended_at - started_at]
        else:
            totals[0] += rows
            totals[1] += started_at - queued_at
            totals[2] += ended_at - started_at
        if self.spans is not None and len(self.spans) < MAX_SPANS:
            self.spans.append(BatchSpan(graph, rows, queued_at, started_at, ended_at))

    def totals(self) -> tuple[int, float, float]:
        """Over all graphs: the rows of the graph that ran most; the seconds that rows were queued
        until the first of them ran; the seconds from then until the last of them had run."""
        rows, queued, ran = 0, 0.0, 0.0
        for graph_rows, graph_queued, graph_ran in self._graphs.values():
            rows = max(rows, graph_rows)
            queued += graph_queued
            ran += graph_ran
        return rows, queued, ran
