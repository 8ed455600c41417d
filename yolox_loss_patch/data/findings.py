"""What a check found: a level, a sentence and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..printing import printable_lines

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        level: ``ok``, ``warning`` or ``error``.
        check: what was looked at, a word or two.
        text: what was found.
        remedy: what to do about it; empty where nothing is to be done.
    """

    level: str
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"  What to do: {self.remedy}" if self.remedy else ""
        return printable_lines(f"{self.level:<8} {self.check:<12} {self.text}{remedy}".replace("\n", " "))


def counted(number: int, noun: str) -> str:
    """``1 error``, ``2 errors``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(items: Sequence[Any], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
