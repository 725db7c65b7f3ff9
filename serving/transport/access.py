"""Who may call what: bearer tokens, each with its scopes, from a file that may be replaced.

A line of the file is a name, scopes with commas between, and the token's SHA-256:

    batch-jobs infer,models sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The file holds no token, so that reading it gives nobody access.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from latentd.errors import ConfigError, PermissionDenied, Unauthenticated
from latentd.rpc.methods import SCOPES

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of the file."""

    name: str
    scopes: frozenset[str]
    digest: bytes  # SHA-256 of the token


class Access:
    """The grants of a file, read again when it changes; what cannot be read changes nothing."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._file, self._clock = file, clock
        self._looked = clock()
        self._content = self._load()
        self._grants = read(self._content, file)

    def check(self, authorization: str, scope: str = "") -> frozenset[str]:
        """The scopes of the caller who sends this header; `scope` must be one of them ("": any
        token will do). Raises Unauthenticated, PermissionDenied."""
        if self._clock() - self._looked >= _LOOK_SECONDS:
            self._look()
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated(
                "This server asks for a token: send metadata authorization: Bearer <token>."
            )
        digest = hashlib.sha256(token.encode()).digest()
        found: Grant | None = None
        for grant in self._grants:  # all of them: how long it takes tells nothing
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        if found is None:
            raise Unauthenticated("This token is not known here, or not any more.")
        if scope and scope not in found.scopes:
            has = ", ".join(sorted(found.scopes))
            raise PermissionDenied(
                f"This needs the scope {scope}; the token of {found.name} has {has}."
            )
        return found.scopes

    def _look(self) -> None:
        self._looked = self._clock()
        try:
            content = self._load()
            if content == self._content:
                return
            self._content = content  # also if it is wrong: it is said once
            self._grants = read(content, self._file)
        except ConfigError as error:
            log.error("The tokens stay as they were: %s", error)
            return
        log.info("%d tokens from now on.", len(self._grants))

    def _load(self) -> str:
        try:
            return self._file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"--tokens {self._file} cannot be read: {reason}.") from None


def read(content: str, file: Path) -> list[Grant]:
    """The grants of a file's content. Raises ConfigError naming the line."""
    grants = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, parts = f"--tokens {file}, line {number}", line.split()
        digest = _DIGEST.fullmatch(parts[2]) if len(parts) == 3 else None
        if digest is None:
            raise ConfigError(
                f"{where}: this must be NAME SCOPE,SCOPE sha256:<64 hex digits>. "
                "latentd token NAME makes such a line."
            )
        scopes = frozenset(parts[1].split(","))
        unknown = scopes - set(SCOPES)
        if unknown:
            raise ConfigError(
                f"{where}: no scope {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}."
            )
        grants.append(Grant(parts[0], scopes, bytes.fromhex(digest[1])))
    if not grants:
        raise ConfigError(f"--tokens {file} grants nothing: nobody could call.")
    return grants


def new_token(name: str, scopes: list[str]) -> tuple[str, str]:
    """A fresh token, and the line of the file that grants it."""
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    return token, f"{name} {','.join(scopes)} sha256:{digest}"
