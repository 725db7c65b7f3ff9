"""The same function through a server: StreamReconstruct, as background traffic."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Final

from serving.client import Client
from serving.client.results import ModelInfo, ModelVersion, StreamedReconstruction
from serving.errors import ConfigError
from serving.jobs.plan import BundleId, Wanted
from serving.jobs.reconstruct import Results, nothing
from serving.jobs.rows import Array, BadRow, Chunk

_IN_FLIGHT: Final = 8  # chunks sent and not yet answered
_SECONDS: Final = 3600.0  # deadline of one shard's stream


def look(server: str, model: str) -> ModelInfo:
    """What the server says of its model. Raises LatentdError."""
    with Client(server, model=model, background=True) as client:
        return client.get_model()


class Remote:
    """A server's model, one version of it: its rows are those of the bundle with that digest,
    within the last bits, for the server makes batches of its own."""

    def __init__(self, server: str, bundle: BundleId, wanted: Wanted) -> None:
        if wanted.draw:
            raise ConfigError("--draw is not to be had through --server: use --bundle.")
        self._wanted, self._digest = wanted, bundle.digest
        version = ModelVersion(bundle.model, bundle.version, bundle.digest)
        self._client = Client(server, background=True).pinned(version)
        self._info = self._client.get_model()

    def __call__(self, chunks: Iterator[Chunk]) -> Iterator[Results]:
        """See reconstruct.Reconstruct. Raises LatentdError once the server is given up."""
        sent: deque[Chunk] = deque()

        def rows() -> Iterator[Array]:
            for chunk in chunks:
                sent.append(chunk)
                if len(chunk.rows):
                    yield chunk.x

        wanted = self._wanted
        answers = self._client.stream_reconstruct(
            rows(),
            scores=wanted.scores,
            latents=wanted.latents,
            omit_x=wanted.reconstruction == "none",
            in_flight=_IN_FLIGHT,
            timeout=_SECONDS,
        )
        for answer in answers:
            while not len(sent[0].rows):  # all of it was bad: nothing was sent
                yield self._nothing(sent.popleft())
            yield self._results(sent.popleft(), answer)
        yield from map(self._nothing, sent)

    def _nothing(self, chunk: Chunk) -> Results:
        empty = nothing(self._wanted, self._info.x, self._info.latent_size)
        return Results(chunk.rows, [], chunk.bad, **empty)

    def _results(self, chunk: Chunk, answer: StreamedReconstruction) -> Results:
        if answer.served_by.digest != self._digest:
            raise ConfigError(
                f"{answer.served_by} answered, and the plan is of {self._digest[:15]}. Start again "
                "with another --output."
            )
        wanted, errors = self._wanted, answer.errors
        bad = [BadRow(int(chunk.rows[i]), chunk.ids[i], errors[i]) for i in sorted(errors)]
        keep = [i for i in range(len(chunk.rows)) if i not in errors]
        if not keep:
            return dataclasses.replace(
                self._nothing(chunk), rows=chunk.rows[:0], bad=[*chunk.bad, *bad]
            )
        return Results(
            chunk.rows[keep],
            [chunk.ids[i] for i in keep],
            [*chunk.bad, *bad],
            reconstruction_error=answer.reconstruction_error if wanted.scores else None,
            kl=answer.kl if wanted.scores else None,
            elbo=answer.elbo if wanted.scores else None,
            mean=answer.mean if wanted.latents else None,
            log_var=answer.log_var if wanted.latents else None,
            x=answer.x if wanted.reconstruction != "none" else None,
        )
