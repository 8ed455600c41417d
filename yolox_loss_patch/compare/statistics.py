"""How sure a difference between two losses is: intervals over seeds, a verdict, and the seeds that are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
EFFECT = 0.005  # half a point of AP, below which a change of loss is hardly worth the trouble
POWER = 0.8
MOST_SEEDS = 1000

BETTER, WORSE, NO_DIFFERENCE, ONE_SEED = "better", "worse", "no detectable difference", "one seed cannot tell"


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 for an interval above or below zero, 0 for one that holds it."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class SeedDifference:
    """How a metric differs over seeds: the mean, its interval (None below two seeds), what it was made from.

    ``more_seeds``: how many seeds are missing until a difference of `EFFECT` would be found in 8 of 10 cases; None where
    the spread is not known. ``pairs``: the difference of each pair.
    """

    mean: float
    interval: Interval | None
    seeds: int
    paired: bool
    more_seeds: int | None
    pairs: tuple[float, ...] = ()


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The interval of a mean from Student's t; None below two values."""
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return _interval(mean, spread / math.sqrt(len(values)), len(values) - 1)


def _interval(mean: float, error: float, freedom: float) -> Interval:
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Interval(mean - reach, mean + reach)


def seed_difference(values: dict[str, float], baseline: dict[str, float]) -> SeedDifference:
    """How far a group lies above the baseline.

    Args:
        values: repeat (a seed) -> metric.
        baseline: the same of the baseline.

    Where at least two repeats are in both, those are the pairs that count, and only those. Else the two means are held
    against each other without pairs (Welch).
    """
    shared = [unit for unit in values if unit in baseline]
    if len(shared) >= 2 or len(values) < 2 or len(baseline) < 2:
        pairs = [values[unit] - baseline[unit] for unit in shared]
        if not pairs:
            mean = float(np.mean(list(values.values())) - np.mean(list(baseline.values())))
            return SeedDifference(mean, None, min(len(values), len(baseline)), False, None)
        interval = mean_interval(pairs)
        more = None if interval is None else max(seeds_needed(float(np.std(pairs, ddof=1))) - len(pairs), 0)
        return SeedDifference(float(np.mean(pairs)), interval, len(pairs), True, more, tuple(pairs))
    ours, theirs = np.array(list(values.values())), np.array(list(baseline.values()))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (ours, theirs)]
    mean, error = float(ours.mean() - theirs.mean()), math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs), strict=True)
    ) if error else 1.0  # fmt: skip
    seeds = min(len(ours), len(theirs))
    spread = math.sqrt(float(np.var(ours, ddof=1)) + float(np.var(theirs, ddof=1)))
    return SeedDifference(mean, _interval(mean, error, freedom), seeds, False, max(seeds_needed(spread) - seeds, 0))


def unrest(series: Sequence[Sequence[float]]) -> float | None:
    """How far a metric is thrown from one evaluation to the next: a standard deviation, free of a slow rise or fall.

    Args:
        series: of each run the values of evaluations that follow each other.

    Returns:
        The root of half the mean squared step; None without a step.
    """
    steps = np.concatenate([np.diff(values) for values in series]) if series else np.empty(0)
    return math.sqrt(float(np.mean(steps**2)) / 2) if len(steps) else None


def pooled_spread(groups: Sequence[Sequence[float]]) -> float | None:
    """The standard deviation within groups, all taken together; None where no group has two values."""
    groups = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    return math.sqrt(sum(float(np.var(v, ddof=1)) * (len(v) - 1) for v in groups) / freedom) if freedom else None


def seeds_needed(spread: float, effect: float = EFFECT) -> int:
    """The pairs of seeds with which a paired t-test finds an effect of this size in 8 of 10 cases.

    Args:
        spread: standard deviation of the paired differences.
        effect: the difference to be found, in the unit of ``spread``.

    Returns:
        At least 2, at most `MOST_SEEDS`, which then means "or more".
    """
    if spread == 0:
        return 2
    low, high = 2, MOST_SEEDS
    while low < high:  # power grows with the number of seeds
        middle = (low + high) // 2
        bar = stats.t.ppf((1 + CONFIDENCE) / 2, middle - 1)
        missed = stats.nct.cdf(bar, middle - 1, effect / spread * math.sqrt(middle))
        # Asked this way round because scipy's value is NaN where the effect is far above the bar.
        low, high = (middle + 1, high) if missed > 1 - POWER else (low, middle)
    return low


def verdict(seeds: SeedDifference, images: Interval | None) -> str:
    """In words, what seeds and images together allow to say.

    Better or worse only where both intervals leave zero out on the same side: the one over seeds tells that training again
    would come out alike, the one over images that other images of the kind would. Of two groups that do not differ at
    most 5% are called different.
    """
    if seeds.interval is None:
        return ONE_SEED
    sign = seeds.interval.sign
    if sign == 0 or (images is not None and images.sign != sign):
        return NO_DIFFERENCE
    return BETTER if sign > 0 else WORSE
