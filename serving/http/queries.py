"""The parameters of a URL's query: each is read once, and one that is not read is an error."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from latentd.errors import InvalidArgument

_BOOLS: Final = {"true": True, "1": True, "false": False, "0": False}


class Query:
    """Reads parameters by name. The methods raise InvalidArgument that names the parameter."""

    def __init__(self, request: Request) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            self._values.setdefault(name, []).append(value)

    def text(self, name: str, default: str = "") -> str:
        values = self._values.pop(name, [default])
        if len(values) > 1:
            raise InvalidArgument(name, f"given {len(values)} times", "Give it once")
        return values[0]

    def given(self, name: str) -> bool:
        return name in self._values

    def integer(self, name: str, default: int, most: int = 2**32 - 1) -> int:
        """From 0 to `most`, in decimal digits."""
        if not self.given(name):
            return default
        text = self.text(name)
        if not (text.isascii() and text.isdecimal()) or len(text) > 20 or int(text) > most:
            raise InvalidArgument(name, f"{text[:40]!r} is not an integer from 0 to {most}")
        return int(text)

    def number(self, name: str) -> float | None:
        text = self.text(name)
        if not text:
            return None
        try:
            return float(text.replace("_", "?"))  # Python would read 1_0 as 10
        except ValueError:
            raise InvalidArgument(name, f"{text[:40]!r} is not a number") from None

    def boolean(self, name: str) -> bool:
        text = self.text(name, "false")
        if text.lower() not in _BOOLS:
            raise InvalidArgument(name, f"{text[:40]!r} is neither true nor false")
        return _BOOLS[text.lower()]

    def choice(self, name: str, choices: tuple[str, ...], default: str = "") -> str:
        text = self.text(name, default)
        if text not in choices:
            raise InvalidArgument(name, f"{text[:40]!r} is not one of {', '.join(choices)}")
        return text

    def integers(self, name: str, most: int = 2**31 - 1) -> list[int]:
        """A parameter that is repeated, as in shape=1&shape=4; []: it is not there."""
        values = self._values.pop(name, [])
        for text in values:
            if not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > most:
                raise InvalidArgument(name, f"{text[:40]!r} is not an integer from 0 to {most}")
        return [int(text) for text in values]

    def rest(self) -> list[str]:
        """The names that have not been read."""
        return list(self._values)

    def finish(self) -> None:
        """Every parameter must have been read."""
        for name in self._values:
            raise InvalidArgument(name[:40], "unknown parameter", "/docs lists the parameters")
