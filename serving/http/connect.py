"""The methods of vae.v1 as Connect's unary calls, on this server's own handlers."""

from __future__ import annotations

import math

from starlette.requests import Request

from latentd.explorer.connect import Answer, Convert
from latentd.http.calls import Calls, Failed


class OwnCaller:
    """See explorer.connect.Caller."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def __call__(
        self, path: str, request: Request, convert: Convert, seconds: float | None
    ) -> Answer:
        try:
            call = self._calls.call(path, request, math.inf if seconds is None else seconds)
            response = await call.run(convert)
        except Failed as failed:
            trailers = (*failed.status.trailers, *failed.headers.items())
            return Answer(failed.status.code.name, failed.status.details, b"", trailers)
        return Answer("OK", "", response.message, tuple(response.headers.items()))
