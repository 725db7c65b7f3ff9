"""Parses JSON strictly and checks it against a table; errors name the key.

    TABLE = Fields({"name": text(64), "x": Fields({"size": integer(1, 100)})})
    TABLE.check(parse(data))        # "x.size is 0; expected an integer from 1 to 100."

Standard library only. Tuples count as lists: a document can be checked before it is written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

MAX_DEPTH: Final = 32
"""Maximum nesting of objects and lists in a `Tree`."""

_INT64: Final = 1 << 63
_NAMES: Final[Mapping[Any, str]] = {None: "null"}
_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 4
_REPR.maxlevel = 2


class Invalid(ValueError):
    """A document does not match its table; the message is a sentence."""


class Check(Protocol):
    """A check of one value."""

    @property
    def expected(self) -> str:
        """The valid values, in words that follow "expected"."""

    def check(self, value: Any, key: str = "") -> None:
        """Raises Invalid, which names `key` or a key below it."""


@dataclass(frozen=True)
class Rule:
    """A check by a condition on the value."""

    expected: str
    accepts: Callable[[Any], bool]

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not self.accepts(value):
            raise Invalid(f"{key} is {format_value(value)}; expected {self.expected}.")


@dataclass(frozen=True)
class Fields:
    """An object with the required keys, and no others than the optional ones."""

    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)
    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not isinstance(value, dict):
            raise Invalid(
                f"{key or 'the document'} is {format_value(value)}; expected {self.expected}."
            )
        checks = {**self.required, **self.optional}
        for name in value:
            if name not in checks:
                raise Invalid(f"{_join(key, name)} is unknown; expected {', '.join(checks)}.")
        for name, check in checks.items():
            if name in value:
                check.check(value[name], _join(key, name))
            elif name in self.required:
                raise Invalid(f"{_join(key, name)} is missing; expected {check.expected}.")


@dataclass(frozen=True)
class Tree:
    """An object of any JSON values, at most MAX_DEPTH levels deep."""

    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not isinstance(value, dict):
            raise Invalid(f"{key} is {format_value(value)}; expected {self.expected}.")
        _check_tree(value, key, 0)


@dataclass(frozen=True)
class EmptyOr:
    """An empty object, or one that another check accepts."""

    other: Check
    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if value != {}:
            self.other.check(value, key)


@dataclass(frozen=True)
class Optional:
    """null, or a value that another check accepts."""

    other: Rule | Fields

    @property
    def expected(self) -> str:
        """As Check.expected."""
        return f"null, or {self.other.expected}"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if value is not None:
            dataclasses.replace(self.other, expected=self.expected).check(value, key)


@dataclass(frozen=True)
class Map:
    """An object whose keys are free names, each checked, and whose values have one form."""

    name: Check
    value: Check
    expected: str = "an object"

    def check(self, value: Any, key: str = "") -> None:
        """See Check."""
        if not isinstance(value, dict):
            raise Invalid(f"{key} is {format_value(value)}; expected {self.expected}.")
        for name, inner in value.items():
            self.name.check(name, f"a key of {key}")
            self.value.check(inner, _join(key, str(name)))


def one_of(*options: Any) -> Rule:
    """One of these values, of the same type: True is not 1."""
    names = ", ".join(_NAMES.get(option, str(option)) for option in options)
    return Rule(
        f"one of {names}" if len(options) > 1 else names,
        lambda value: any(type(value) is type(one) and value == one for one in options),
    )


def integer(low: int, high: int) -> Rule:
    """An integer from `low` to `high`."""
    return Rule(
        f"an integer from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def text(max_length: int) -> Rule:
    """Text of at most `max_length` characters that can be encoded as UTF-8."""
    return Rule(
        f"text of at most {max_length} characters",
        lambda value: isinstance(value, str) and len(value) <= max_length and _encodable(value),
    )


def pattern(regex: re.Pattern[str], expected: str) -> Rule:
    """Text that matches the whole regular expression."""
    return Rule(expected, lambda value: isinstance(value, str) and bool(regex.fullmatch(value)))


def time() -> Rule:
    """A time in ISO 8601 with its offset from UTC."""

    def accepts(value: Any) -> bool:
        try:
            return datetime.fromisoformat(value).tzinfo is not None
        except (TypeError, ValueError):
            return False

    return Rule("a time in ISO 8601 with its offset from UTC", accepts)


def is_number(value: Any) -> bool:
    """Whether this is a number that float64 can hold, and not a bool."""
    # Comparisons are exact; converting a large int would raise OverflowError.
    return type(value) in (int, float) and -1.7e308 <= value <= 1.7e308


def is_list(value: Any) -> bool:
    """Whether this is a list or a tuple, which JSON writes as a list."""
    return isinstance(value, list | tuple)


def parse(data: bytes) -> Any:
    """Parse JSON in UTF-8 without repeated keys. NaN and infinity pass: the checks reject them and
    name the key. Raises Invalid."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique)
    except Invalid:
        raise
    except (ValueError, RecursionError) as error:
        raise Invalid(f"not JSON in UTF-8: {error}.") from None


def format_value(value: Any) -> str:
    """A value for a message: short, and valid UTF-8."""
    return _REPR.repr(value)


def _join(key: str, name: str) -> str:
    name = (
        name if name.isidentifier() or name.replace(".", "").isidentifier() else format_value(name)
    )
    return f"{key}.{name}" if key else name


def _check_tree(value: Any, key: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Invalid(f"{key[:200]} is nested too deep; expected at most {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) or not _encodable(name):
                raise Invalid(f"{key} has the key {format_value(name)}; expected text.")
            _check_tree(inner, _join(key, name), depth + 1)
    elif is_list(value):
        for index, inner in enumerate(value):
            _check_tree(inner, f"{key}[{index}]", depth + 1)
    elif isinstance(value, str):
        if not _encodable(value):
            raise Invalid(f"{key} is {format_value(value)}; expected text that UTF-8 can hold.")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise Invalid(f"{key} is {format_value(value)}; expected a 64-bit integer.")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise Invalid(
            f"{key} is {format_value(value)}; expected a finite number or another JSON value."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Invalid(f"the key {format_value(name)} appears twice in one object.")
        found[name] = value
    return found


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON's \u can write
        return False
    return True
