"""What a JSON document may hold: strict parsing, and tables of checks that name the key.

    TABLE = Fields({"name": text(64), "x": Fields({"size": whole(1, 100)})})
    TABLE.check(parse(data))        # "x.size is 0; expected a whole number from 1 to 100."

Standard library only. Tuples count as lists: a document can be checked before it is written.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

MAX_DEPTH: Final = 32
"""Objects and lists inside one another in a document without a table of its own."""

_INT64: Final = 1 << 63
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = 4
_SHOWN.maxlevel = 2


class Invalid(ValueError):
    """A document that is not as its table expects; the message is a sentence."""


class Check(Protocol):
    """What one value may be."""

    @property
    def expected(self) -> str:
        """The same in words, to follow "expected"."""

    def check(self, value: Any, key: str = "") -> None:
        """Raises Invalid, which names `key` or one below it."""


@dataclass(frozen=True)
class Rule:
    """One value, by a condition on it."""

    expected: str
    in_flight: Callable[[Any], bool]

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not self.in_flight(value):
            raise Invalid(f"{key} is {shown(value)}; expected {self.expected}.")


@dataclass(frozen=True)
class Fields:
    """An object with exactly these keys, apart from those that may be missing."""

    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)
    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not isinstance(value, dict):
            raise Invalid(f"{key or 'the document'} is {shown(value)}; expected {self.expected}.")
        checks = {**self.required, **self.optional}
        for name in value:
            if name not in checks:
                raise Invalid(f"{_below(key, name)} is unknown; expected {', '.join(checks)}.")
        for name, check in checks.items():
            if name in value:
                check.check(value[name], _below(key, name))
            elif name in self.required:
                raise Invalid(f"{_below(key, name)} is missing; expected {check.expected}.")


@dataclass(frozen=True)
class Tree:
    """An object of whatever JSON can say, at most MAX_DEPTH levels deep."""

    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not isinstance(value, dict):
            raise Invalid(f"{key} is {shown(value)}; expected {self.expected}.")
        _check_tree(value, key, 0)


@dataclass(frozen=True)
class EmptyOr:
    """An empty object, or what another check takes."""

    other: Check
    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if value != {}:
            self.other.check(value, key)


def one_of(*options: Any) -> Rule:
    """One of these values, and of its type: True is not 1."""
    names = ", ".join(map(str, options))
    return Rule(
        f"one of {names}" if len(options) > 1 else names,
        lambda value: any(type(value) is type(one) and value == one for one in options),
    )


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def text(most: int) -> Rule:
    """Text of at most so many characters, all of which UTF-8 can hold."""
    return Rule(
        f"text of at most {most} characters",
        lambda value: isinstance(value, str) and len(value) <= most and _encodable(value),
    )


def pattern(regex: re.Pattern[str], expected: str) -> Rule:
    """Text that matches as a whole."""
    return Rule(expected, lambda value: isinstance(value, str) and bool(regex.fullmatch(value)))


def time() -> Rule:
    """A time in ISO 8601 that says where on earth."""

    def in_flight(value: Any) -> bool:
        try:
            return datetime.fromisoformat(value).tzinfo is not None
        except (TypeError, ValueError):
            return False

    return Rule("a time in ISO 8601 with its offset from UTC", in_flight)


def is_number(value: Any) -> bool:
    """Whether this is a number that float64 holds, and no bool."""
    # A comparison, which is exact: converting a large int would raise OverflowError.
    return type(value) in (int, float) and -1.7e308 <= value <= 1.7e308


def is_list(value: Any) -> bool:
    """Whether this is a list, or a tuple, which JSON writes as one."""
    return isinstance(value, list | tuple)


def parse(data: bytes) -> Any:
    """Read JSON in UTF-8 with no key twice. NaN and infinity are left to the checks, which all
    refuse them and name the key. Raises Invalid."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique)
    except Invalid:
        raise
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not JSON in UTF-8: {error}.") from None


def shown(value: Any) -> str:
    """A value as a message shows it: never long, and never what UTF-8 cannot hold."""
    return _SHOWN.repr(value)


def _below(key: str, name: str) -> str:
    name = name if name.isidentifier() or name.replace(".", "").isidentifier() else shown(name)
    return f"{key}.{name}" if key else name


def _check_tree(value: Any, key: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Invalid(f"{key[:200]} is nested too deep; expected at most {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) or not _encodable(name):
                raise Invalid(f"{key} has the key {shown(name)}; expected text.")
            _check_tree(inner, _below(key, name), depth + 1)
    elif is_list(value):
        for index, inner in enumerate(value):
            _check_tree(inner, f"{key}[{index}]", depth + 1)
    elif isinstance(value, str):
        if not _encodable(value):
            raise Invalid(f"{key} is {shown(value)}; expected text that UTF-8 can hold.")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise Invalid(f"{key} is {shown(value)}; expected a whole number of 64 bits.")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise Invalid(f"{key} is {shown(value)}; expected a finite number or another JSON value.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Invalid(f"the key {shown(name)} appears twice in one object.")
        found[name] = value
    return found


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON's \u can write
        return False
    return True
