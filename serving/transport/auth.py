"""Authorization: bearer tokens with scopes, read from a file that may be replaced at any time."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from latentd.calls.context import CallContext
from latentd.errors import ConfigError, PermissionDenied, Unauthenticated
from latentd.metrics import Metrics
from latentd.rpc.methods import METHODS
from latentd.transport.handlers import Handler
from latentd.transport.status import Status, status
from latentd.transport.tokens import Grant, parse_tokens

log = logging.getLogger(__name__)

_CHECK_SECONDS: Final = 1.0
"""From one check of the file for changes to the next."""


class TokenStore:
    """The grants of a file. They are reloaded when the file changes; an invalid file is logged, and
    the previous grants stay."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._file, self._clock = file, clock
        self._last_check = clock()
        self._content = self._read()
        self._grants = parse_tokens(self._content, file)

    def check(self, authorization: str, scope: str = "") -> frozenset[str]:
        """The scopes of the token in an `authorization` header.

        scope: must be one of them; "": any known token will do
        Raises Unauthenticated, PermissionDenied.
        """
        if self._clock() - self._last_check >= _CHECK_SECONDS:
            self._reload_if_changed()
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated(
                'Missing bearer token. Send metadata "authorization: Bearer <token>".'
            )
        digest = hashlib.sha256(token.encode()).digest()
        found: Grant | None = None
        for grant in self._grants:  # all of them: the time taken must not depend on the token
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        if found is None:
            raise Unauthenticated("Unknown or revoked token.")
        if scope and scope not in found.scopes:
            has = ", ".join(sorted(found.scopes))
            raise PermissionDenied(f'Scope "{scope}" required; token "{found.name}" has: {has}.')
        return found.scopes

    def _reload_if_changed(self) -> None:
        self._last_check = self._clock()
        try:
            content = self._read()
            if content == self._content:
                return
            self._content = content  # invalid content too: its error is logged once
            self._grants = parse_tokens(content, self._file)
        except ConfigError as error:
            log.error("Token file not reloaded; keeping the previous tokens: %s", error)
            return
        log.info("Reloaded tokens: %d active.", len(self._grants))

    def _read(self) -> str:
        try:
            return self._file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"--tokens {self._file} cannot be read: {reason}.") from None


def require_scope(
    handlers: Mapping[str, Handler], tokens: TokenStore, metrics: Metrics
) -> dict[str, Handler]:
    """Wrap handlers of methods in METHODS: each rejects a call whose token lacks the method's
    scope, before it reads the call. Raises KeyError for a method that is not in METHODS."""
    return {
        path: _with_token(path, inner, METHODS[_method_name(path)].scope, tokens, metrics)
        for path, inner in handlers.items()
    }


def require_token(
    handlers: Mapping[str, Handler], tokens: TokenStore, metrics: Metrics
) -> dict[str, Handler]:
    """Wrap handlers: each rejects a call without a known token, whatever the token's scopes."""
    return {path: _with_token(path, inner, "", tokens, metrics) for path, inner in handlers.items()}


def _method_name(path: str) -> str:
    return path.rpartition("/")[2]


def _with_token(
    path: str, inner: Handler, scope: str, tokens: TokenStore, metrics: Metrics
) -> Handler:
    method = _method_name(path)

    def reject(context: CallContext) -> Status | None:
        try:
            context.scopes = tokens.check(context.authorization, scope)
        except (Unauthenticated, PermissionDenied) as error:
            rejected = status(error, method, context.stats.request_id)
            metrics.requests.labels(method, "", rejected.code.name).inc()
            return rejected
        return inner.reject(context)

    return Handler(inner.run, reject)
