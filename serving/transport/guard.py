"""Handlers that ask for a token first."""

from __future__ import annotations

from collections.abc import Mapping

from latentd.calls.context import CallContext
from latentd.errors import PermissionDenied, Unauthenticated
from latentd.metrics import Metrics
from latentd.rpc.methods import METHODS
from latentd.transport.access import Access
from latentd.transport.handlers import Handler
from latentd.transport.status import Status, status


def require_scope(
    handlers: Mapping[str, Handler], access: Access, metrics: Metrics
) -> dict[str, Handler]:
    """The same handlers of the contract's methods; each refuses callers whose token does not have
    the method's scope, before it reads anything of the call. Raises KeyError for a method that is
    not in METHODS."""
    return {
        path: _guarded(path, inner, METHODS[_name(path)].scope, access, metrics)
        for path, inner in handlers.items()
    }


def require_token(
    handlers: Mapping[str, Handler], access: Access, metrics: Metrics
) -> dict[str, Handler]:
    """The same handlers; each refuses callers without a known token, whatever its scopes."""
    return {path: _guarded(path, inner, "", access, metrics) for path, inner in handlers.items()}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _guarded(path: str, inner: Handler, scope: str, access: Access, metrics: Metrics) -> Handler:
    method = _name(path)

    def refusal(caller: CallContext) -> Status | None:
        try:
            caller.scopes = access.check(caller.authorization, scope)
        except (Unauthenticated, PermissionDenied) as error:
            refused = status(error, method, caller.stats.request_id)
            metrics.requests.labels(method, "", refused.code.name).inc()
            return refused
        return inner.refusal(caller)

    return Handler(inner.run, refusal)
