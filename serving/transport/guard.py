"""Handlers that ask for a token first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from serving.batching.tasks import Caller
from serving.errors import NotAllowed, NotAuthenticated
from serving.metrics import Metrics
from serving.transport.access import Access
from serving.transport.statuses import Status, status
from serving.transport.wire import Handler

SCOPE: Final = {
    **dict.fromkeys(("GetModel", "ListModels"), "models"),
    **dict.fromkeys(("Sample", "StreamSamples", "Decode", "Interpolate"), "generate"),
    **dict.fromkeys(("Encode", "Reconstruct", "StreamReconstruct", "Score"), "infer"),
}
"""What a method's callers need; others, as reflection, any token."""


def guarded(
    handlers: Mapping[str, Handler], access: Access, metrics: Metrics
) -> dict[str, Handler]:
    """The same handlers; who may not call is refused before anything of the call is read."""
    return {path: _guarded(path, inner, access, metrics) for path, inner in handlers.items()}


def _guarded(path: str, inner: Handler, access: Access, metrics: Metrics) -> Handler:
    method = path.rpartition("/")[2]
    scope = SCOPE.get(method, "")

    def refusal(caller: Caller) -> Status | None:
        try:
            access.check(caller.authorization, scope)
        except (NotAuthenticated, NotAllowed) as error:
            refused = status(error, method, caller.account.request_id)
            metrics.requests.labels(method, "", refused.code.name).inc()
            return refused
        return inner.refusal(caller)

    return Handler(inner.run, refusal)
