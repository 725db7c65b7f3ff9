"""Reconstruct rows on a server, with StreamReconstruct as background traffic."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from latentd.client import Client
from latentd.client.channel import CredentialFiles
from latentd.client.results import ModelInfo, ModelVersion, StreamedReconstruction
from latentd.codec import Array
from latentd.errors import ConfigError
from latentd.jobs.plan import BundleId, OutputSpec
from latentd.jobs.reconstruct import (
    Results,
    empty_columns,
    encoded_z,
    row_shapes,
    without_infinite,
)
from latentd.readers.rows import BadRow, Chunk

_IN_FLIGHT: Final = 8  # chunks that wait for their response
_SECONDS: Final = 3600.0  # deadline of one shard's stream


@dataclass(frozen=True)
class RemoteServer:
    """The address of a server, and the files with the credentials."""

    target: str  # host:port
    files: CredentialFiles

    def client(self, model: str = "", wait_for_ready: bool = False) -> Client:
        """wait_for_ready: it has answered before. Raises ConfigError."""
        return Client(
            self.target,
            model=model,
            background=True,
            wait_for_ready=wait_for_ready,
            **self.files.read(),
        )


def get_model(server: RemoteServer, model: str) -> ModelInfo:
    """GetModel of the server. Raises LatentdError."""
    with server.client(model) as client:
        return client.get_model()


class RemoteReconstructor:
    """Runs one version of a server's model. The results equal those of the bundle with that digest
    except for the last bits, because the server forms its own batches."""

    def __init__(self, server: RemoteServer, bundle: BundleId, wanted: OutputSpec) -> None:
        self._wanted, self._digest = wanted, bundle.digest
        self.consecutive = wanted.draw or wanted.draw_x  # a stream numbers its rows without gaps
        version = ModelVersion(bundle.model, bundle.version, bundle.digest)
        # The plan was made with this server's answer: a worker that starts in an outage waits.
        self._client = server.client(wait_for_ready=True).with_version(version)
        self._info = self._client.get_model(timeout=None)

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        """See reconstruct.Reconstruct. With a draw, the chunks must be consecutive. Raises
        LatentdError once the client stops retrying."""
        first = next(chunks, None)
        if first is None:
            return
        sent: deque[Chunk] = deque()

        def rows() -> Iterator[Array]:
            chunk: Chunk | None = first
            while chunk is not None:
                sent.append(chunk)
                yield self._with_blanks(chunk)
                chunk = next(chunks, None)

        wanted = self._wanted
        responses = self._client.stream_reconstruct(
            rows(),
            draw=wanted.draw,
            draw_x=wanted.draw_x,
            seed=wanted.seed,
            offset=int(_numbers(first)[0]),
            include_scores=wanted.scores,
            include_contributions=wanted.contributions,
            include_latents=wanted.latents or bool(wanted.encode),
            include_x=wanted.reconstruction != "none",
            in_flight=_IN_FLIGHT,
            timeout=_SECONDS,
        )
        for response in responses:
            yield self._results(sent.popleft(), response)

    def _with_blanks(self, chunk: Chunk) -> Array:
        """Its rows, with blank rows in place of bad ones, so that all rows keep their draws."""
        if not chunk.bad:
            return chunk.x
        numbers = _numbers(chunk)
        blank = max(self._info.x.range[0], 0.0)
        rows = np.full((len(numbers), *chunk.x.shape[1:]), blank, chunk.x.dtype)
        rows[np.isin(numbers, chunk.rows)] = chunk.x
        return rows

    def _results(self, chunk: Chunk, response: StreamedReconstruction) -> Results:
        if response.served_by.digest != self._digest:
            raise ConfigError(
                f"The server ran {response.served_by}; the plan requires {self._digest[:15]}. "
                "Start over with another --output."
            )
        numbers, ids = _numbers(chunk), dict(zip(chunk.rows.tolist(), chunk.ids, strict=True))
        done = np.array([i for i in range(len(numbers)) if i not in response.errors], np.int64)
        failed = {int(numbers[i]): why for i, why in sorted(response.errors.items())}
        bad = [*chunk.bad, *(BadRow(n, ids[n], why) for n, why in failed.items() if n in ids)]
        keep = np.isin(numbers[done], chunk.rows)
        rows = numbers[done][keep]
        outside = chunk.counts_outside_range[np.isin(chunk.rows, rows)]
        shapes = row_shapes(len(rows), chunk.x)
        if not len(rows):
            empty = empty_columns(self._wanted, self._info, self._info.default)
            return Results(rows, [], bad, outside, shapes, **empty)
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(Results)[5:]:
            values = getattr(response, field.name, None)
            columns[field.name] = values[keep] if values is not None and len(values) else None
        names = [ids[n] for n in rows.tolist()]
        if not self._wanted.encode:
            return Results(rows, names, bad, outside, shapes, **columns)
        z = encoded_z(rows, columns["mean"], columns["log_var"], self._wanted)
        return without_infinite(Results(rows, names, bad, outside, shapes, z=z), self._wanted)


def _numbers(chunk: Chunk) -> Array:
    """The numbers of all its rows, including bad ones: a range without gaps."""
    bad = np.array([row.row for row in chunk.bad], np.int64)
    return np.sort(np.concatenate((chunk.rows, bad)))
