"""What losses were measured to do: the rows of measured.json, which benchmarks/measured.py makes of the kit's comparisons."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import LossConfig
from .labels import label_of
from .registry import TERMS
from .resolve import parts_of, resolve

FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Measured:
    """One loss against stock on one data set.

    Attributes:
        term, spec: the loss, by its label.
        data, start: what was trained on, and from where.
        seeds: pairs of seeds.
        difference: AP minus stock's AP, both in [0, 1]; ``low`` and ``high`` are its 95% interval over seeds and images.
        verdict: ``better``, ``worse``, ``equal`` (within 0.5 AP) or ``unclear``.
        set: the folder of the comparison under ``benchmarks/``.
    """

    term: str
    spec: str
    data: str
    start: str
    seeds: int
    difference: float
    low: float
    high: float
    verdict: str
    set: str

    def __str__(self) -> str:
        return (
            f"{self.difference:+.3f} AP [{self.low:+.3f}, {self.high:+.3f}] against stock on the {self.data}, {self.start}, "
            f"{self.seeds} seeds: {self.verdict}"
        )


@functools.cache
def rows() -> tuple[Measured, ...]:
    """All that was measured, in the order of the file."""
    return tuple(Measured(**row) for row in json.loads(FILE.read_text(encoding="utf-8")))


def measured(term: str, spec: Any) -> list[Measured]:
    """What this loss, with these knobs, was measured to do; nothing where it was not trained.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: as in an experiment file.

    Raises:
        ConfigError: a spec that cannot be.
    """
    label = label_of(term, resolve(term, spec))
    return [row for row in rows() if (row.term, row.spec) == (term, label)]


def measured_variants(term: str, name: str) -> list[Measured]:
    """What was measured of this loss with any knobs, alone or in a sum."""
    kinds = {str(part["type"]) for part in parts_of(resolve(term, name))}
    return [row for row in rows() if row.term == term and kinds & _types(row)]


def warnings_of(config: LossConfig) -> list[str]:
    """One sentence per term whose loss was measured as worse than stock: what was seen, where, what to write instead."""
    found = []
    for term in TERMS:
        worse = [row for row in measured(term, getattr(config, f"loss_{term}")) if row.verdict == "worse"]
        if worse:
            lowest = min(worse, key=lambda row: row.difference)
            found.append(f"loss_{term}={lowest.spec} was worse than stock: {lowest}. {_instead(lowest)}")
    return found


def _instead(row: Measured) -> str:
    """The variant of the loss that did best there and was not worse; else stock's loss."""
    kinds = _types(row)
    variants = [
        other
        for other in rows()
        if (other.term, other.data, other.start) == (row.term, row.data, row.start)
        and other.verdict != "worse"
        and kinds & _types(other)
    ]
    if not variants:
        return f"Stock's loss is {getattr(LossConfig(), f'loss_{row.term}')!r}."
    best = max(variants, key=lambda other: other.difference)
    return f"There {best.spec!r} ended at {best.difference:+.3f} ({best.verdict})."


def _types(row: Measured) -> set[str]:
    stock = {"bce"} if row.term in ("obj", "cls") else set()
    return {str(part["type"]) for part in parts_of(resolve(row.term, row.spec))} - stock
