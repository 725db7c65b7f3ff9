"""The same function through a server: StreamReconstruct, as background traffic."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from latentd.client import Client
from latentd.client.channel import CredentialFiles
from latentd.client.results import ModelInfo, ModelVersion, StreamedReconstruction
from latentd.errors import ConfigError
from latentd.jobs.plan import BundleId, OutputSpec
from latentd.jobs.reconstruct import Results, nothing
from latentd.readers.rows import Array, BadRow, Chunk

_IN_FLIGHT: Final = 8  # chunks sent and not yet answered
_SECONDS: Final = 3600.0  # deadline of one shard's stream


@dataclass(frozen=True)
class Server:
    """Where a job goes, and as whom."""

    target: str  # host:port
    files: CredentialFiles

    def client(self, model: str = "") -> Client:
        """Raises ConfigError."""
        return Client(self.target, model=model, background=True, **self.files.read())


def look(server: Server, model: str) -> ModelInfo:
    """What the server says of its model. Raises LatentdError."""
    with server.client(model) as client:
        return client.get_model()


class RemoteReconstructor:
    """A server's model, one version of it: its rows are those of the bundle with that digest,
    within the last bits, for the server makes batches of its own."""

    def __init__(self, server: Server, bundle: BundleId, wanted: OutputSpec) -> None:
        self._wanted, self._digest = wanted, bundle.digest
        version = ModelVersion(bundle.model, bundle.version, bundle.digest)
        self._client = server.client().with_version(version)
        self._info = self._client.get_model()

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        """See reconstruct.Reconstruct; without a draw any chunks, with one those that follow on
        each other. Raises LatentdError once the server is given up."""
        first = next(chunks, None)
        if first is None:
            return
        sent: deque[Chunk] = deque()

        def rows() -> Iterator[Array]:
            chunk: Chunk | None = first
            while chunk is not None:
                sent.append(chunk)
                yield self._filled(chunk)
                chunk = next(chunks, None)

        wanted = self._wanted
        answers = self._client.stream_reconstruct(
            rows(),
            draw=wanted.draw,
            seed=wanted.seed,
            offset=int(_numbers(first)[0]),
            include_scores=wanted.scores,
            include_latents=wanted.latents,
            include_x=wanted.reconstruction != "none",
            in_flight=_IN_FLIGHT,
            timeout=_SECONDS,
        )
        for answer in answers:
            yield self._results(sent.popleft(), answer)

    def _filled(self, chunk: Chunk) -> Array:
        """Its rows with blank ones where bad rows were, so that all keep their draws."""
        if not chunk.bad:
            return chunk.x
        numbers, x = _numbers(chunk), self._info.x
        rows = np.full((len(numbers), *x.shape), x.range[0], x.dtype)
        rows[np.isin(numbers, chunk.rows)] = chunk.x
        return rows

    def _results(self, chunk: Chunk, answer: StreamedReconstruction) -> Results:
        if answer.served_by.digest != self._digest:
            raise ConfigError(
                f"{answer.served_by} answered, and the plan is of {self._digest[:15]}. Start again "
                "with another --output."
            )
        numbers, ids = _numbers(chunk), dict(zip(chunk.rows.tolist(), chunk.ids, strict=True))
        taken = np.array([i for i in range(len(numbers)) if i not in answer.errors], np.int64)
        failed = {int(numbers[i]): why for i, why in sorted(answer.errors.items())}
        bad = [*chunk.bad, *(BadRow(n, ids[n], why) for n, why in failed.items() if n in ids)]
        keep = np.isin(numbers[taken], chunk.rows)
        rows = numbers[taken][keep]
        outside = chunk.counts_outside[np.isin(chunk.rows, rows)]
        if not len(rows):
            empty = nothing(self._wanted, self._info.x, self._info.latent_size)
            return Results(rows, [], bad, outside, **empty)
        columns = {}
        for field in dataclasses.fields(Results)[4:]:
            values = getattr(answer, field.name)
            columns[field.name] = values[keep] if values is not None and len(values) else None
        return Results(rows, [ids[n] for n in rows.tolist()], bad, outside, **columns)


def _numbers(chunk: Chunk) -> Array:
    """Of all its rows, the bad ones too: a range without gaps."""
    bad = np.array([row.row for row in chunk.bad], np.int64)
    return np.sort(np.concatenate((chunk.rows, bad)))
