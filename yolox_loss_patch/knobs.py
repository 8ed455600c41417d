"""What a setting of a loss may be, and the errors for what it may not."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


def nearest(word: Any, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a choice is close to the word, else nothing."""
    match = difflib.get_close_matches(str(word).lower(), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


def is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Knob:
    """One setting of a loss: its default and what it may be.

    ``low`` and ``high`` bound a number (``open_low``, ``open_high``: the bound itself is out), ``also`` are values
    allowed besides; a default of type int asks for a whole number. ``choices`` are the words or whole numbers allowed.
    Anything else has a ``parse`` that returns the value in its own type or None, and ``words`` that say what is allowed.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[float, ...] = ()
    choices: tuple[Any, ...] = ()
    parse: Callable[[Any], Any] | None = None
    words: str = ""

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.words:
            return self.words
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if isinstance(self.default, bool):
            return "True or False"
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        bounds = ([low] if self.low > -math.inf else []) + ([high] if self.high < math.inf else [])
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return " ".join([kind, " and ".join(bounds)]).rstrip() + "".join(f", or {value:g}" for value in self.also)

    def check(self, where: str, value: Any) -> Any:
        """The value in the knob's type; `ConfigError` when it is not allowed."""
        error = ConfigError(f"{where} is {self.allowed()}; got {value!r}.")
        if self.parse is not None:
            parsed = None if value is None else self.parse(value)
            if parsed is None and value != self.default:
                raise error
            return parsed
        if self.choices:
            if value not in self.choices or isinstance(value, bool):
                raise ConfigError(f"{error}{nearest(value, map(str, self.choices))}")
            return type(self.choices[0])(value)
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise error
            return value
        if not is_number(value):
            raise error
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below) and value not in self.also:
            raise error
        if not isinstance(self.default, int):
            return float(value)
        if value != int(value):
            raise error
        return int(value)


def size(value: Any) -> tuple[float, float] | None:
    """(height, width), both above 0."""
    if isinstance(value, Sequence) and len(value) == 2 and all(is_number(side) and side > 0 for side in value):
        return float(value[0]), float(value[1])
    return None


def factors(value: Any) -> tuple[float, ...] | None:
    """One number a class, none below 0."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return tuple(map(float, value)) if all(is_number(v) and v >= 0 for v in value) else None
    return None


def factor_or_factors(value: Any) -> float | tuple[float, ...] | None:
    """One number for all classes, or one a class, none below 0."""
    return float(value) if is_number(value) and value >= 0 else factors(value)


def factors_or_named(value: Any) -> tuple[float, ...] | dict[str, float] | None:
    """One number a class as a list, or by the class's name."""
    if isinstance(value, Mapping) and value:
        sane = all(isinstance(name, str) and is_number(v) and v >= 0 for name, v in value.items())
        return {name: float(v) for name, v in value.items()} if sane else None
    return factors(value)
