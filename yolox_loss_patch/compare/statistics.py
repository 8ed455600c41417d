"""How sure a difference is when both the seeds and the images could have been others: interval, p values, verdict, plan.

Seeds and images are crossed: every seed is tested on every image. The variance of a mean difference is

    variance between seeds of the paired difference / number of seeds  +  variance over images of the mean difference

The first part is known from few seeds, the second from many images. Each part enters the interval with Student's quantile of
its own degrees of freedom (Banerjee 1960): half width = sqrt(t(seeds - 1)^2 part + t(images - 1)^2 part). Satterthwaite's
single t for both was tried first: with three seeds it is wrong in up to 7.8% of cases instead of 5%, and in up to seven times the
allowed share at the levels that Holm asks for, because a seed variance that is small by chance looks well known. What both parts
contain, the way in which seeds differ from image to image, is counted in both; that makes the interval at most a tenth wider at
three seeds. ``df`` is the degrees of freedom at which one t gives the same 95% interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
MARGIN = 0.005  # half a point of AP, below which a change of loss is hardly worth the trouble
POWER = 0.8
MOST_SEEDS = 1000

BETTER, WORSE, EQUAL, UNCLEAR = "better", "worse", "equal", "unclear"


@dataclass(frozen=True)
class Interval:
    """An interval, of 95% unless said otherwise."""

    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 for an interval above or below zero, 0 for one that holds it."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Part:
    """A part of a variance, and the degrees of freedom with which it is known."""

    variance: float
    df: float


@dataclass(frozen=True)
class Components:
    """What a difference varies by, for one seed on the images at hand.

    Attributes:
        seeds: variance between seeds on an endless set of images.
        images: variance over sets of images of the mean of endless seeds.
        both: variance of what a seed does to one set of images and not to another.
        number: of images in the set.
    """

    seeds: float
    images: float
    both: float
    number: int

    def parts(self, seeds: int, images: float) -> list[Part]:
        """What the two parts of the variance would be estimated as with so many seeds and images."""
        ratio = self.number / images
        between = (self.seeds + self.both * ratio) / seeds
        return [Part(between, seeds - 1), Part((self.images + self.both / seeds) * ratio, max(images - 1, 1))]

    def variance(self, seeds: int, images: float) -> float:
        """The variance of the mean difference with so many seeds and images."""
        ratio = self.number / images
        return self.seeds / seeds + (self.images + self.both / seeds) * ratio


@dataclass(frozen=True)
class Difference:
    """How far a group lies above the baseline, and how sure that is.

    Attributes:
        mean: the difference of the means; over pairs where there are pairs.
        seeds: pairs of seeds, or of the smaller group where there are none.
        paired: the same seeds are in both groups.
        images: the number of images that were resampled; None where detections are missing.
        se_seeds, se_images: standard error of the mean difference by seeds and by images; None where it is not known.
        interval: 95%; None where nothing is known.
        interval90: the same with 90%, which lies within the margin for ``equal``.
        df: degrees of freedom at which one t gives ``interval``.
        p: that there is no difference, two-sided.
        p_equal: that the difference is at least the margin.
        pairs: the difference of each pair of seeds.
        components: what the difference varies by; None where seeds or images are not known.
        looks: how many planned looks share the error; the intervals are as much wider, and p as much larger.
    """

    mean: float
    seeds: int
    paired: bool
    images: int | None
    se_seeds: float | None
    se_images: float | None
    interval: Interval | None
    interval90: Interval | None
    df: float | None
    p: float | None
    p_equal: float | None
    pairs: tuple[float, ...] = ()
    components: Components | None = None
    looks: int = 1

    @property
    def limits(self) -> str:
        """What the interval does not know, to stand behind the verdict; empty where it knows seeds and images."""
        if self.interval is None:
            return ""
        return (
            " (one seed: images only)" if self.se_seeds is None else " (seeds only)" if self.se_images is None else ""
        )


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95% interval of a mean from Student's t; None below two values."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    reach = half_width([Part(float(np.var(values, ddof=1)) / len(values), len(values) - 1)], CONFIDENCE)
    return Interval(mean - reach, mean + reach)


def half_width(parts: Sequence[Part], confidence: float) -> float:
    """Half of the interval of a mean whose variance has these parts."""
    level = (1 - confidence) / 2
    return math.sqrt(
        sum(float(stats.t.isf(level, part.df)) ** 2 * part.variance for part in parts if part.variance > 0)
    )


def p_value(distance: float, parts: Sequence[Part]) -> float:
    """The chance of a mean at least so far from the truth, to both sides: where `half_width` reaches the distance."""
    known = [part for part in parts if part.variance > 0]
    if distance <= 0 or not known:
        return 0.0 if distance > 0 else 1.0
    lowest = 1e-15

    def excess(logarithm: float) -> float:
        return half_width(known, 1 - math.exp(logarithm)) - distance

    if excess(math.log(lowest)) <= 0:
        return 0.0
    return math.exp(optimize.brentq(excess, math.log(lowest), 0.0, xtol=1e-10))


def equivalent_df(parts: Sequence[Part]) -> float:
    """The degrees of freedom at which one Student's t of the whole variance gives the 95% interval of the parts."""
    known = [part for part in parts if part.variance > 0]
    if not known:
        return float(max(part.df for part in parts))
    low, high = min(part.df for part in known), max(part.df for part in known)
    wanted = half_width(known, CONFIDENCE) / math.sqrt(sum(part.variance for part in known))

    def excess(df: float) -> float:
        return float(stats.t.isf((1 - CONFIDENCE) / 2, df)) - wanted

    if excess(low) <= 0 or excess(high) >= 0:
        return low if excess(low) <= 0 else high
    return float(optimize.brentq(excess, low, high))


def difference(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    resampled: Mapping[str, NDArray[np.float64]] | None = None,
    baseline_resampled: Mapping[str, NDArray[np.float64]] | None = None,
    images: int | None = None,
    margin: float = MARGIN,
    looks: int = 1,
) -> Difference:
    """How far a group lies above the baseline, with seeds and images both drawn by chance.

    Args:
        values: repeat (a seed) -> metric.
        baseline: the same of the baseline.
        resampled: repeat -> the metric in each resample of the images, the same resamples for all; None where detections
            are missing.
        baseline_resampled: the same of the baseline.
        images: the number of images.
        margin: for ``p_equal``.
        looks: how many looks at the data share the error (Bonferroni): each gets its share of the 5%.

    Where at least two repeats are in both groups, those are the pairs that count, and only those. Else the two means are
    compared without pairs. With one seed the interval holds the images only.
    """
    shared = [unit for unit in values if unit in baseline]
    paired = len(shared) >= 2 or (bool(shared) and (len(values) < 2 or len(baseline) < 2))
    ours, theirs = (shared, shared) if paired else (list(values), list(baseline))
    pairs = tuple(values[unit] - baseline[unit] for unit in shared) if paired else ()
    mean = float(np.mean([values[unit] for unit in ours]) - np.mean([baseline[unit] for unit in theirs]))
    number = min(len(ours), len(theirs))
    parts: list[Part] = []
    if number > 1:
        sides = [list(pairs)] if paired else [list(values.values()), list(baseline.values())]
        parts = [Part(float(np.var(side, ddof=1)) / len(side), len(side) - 1) for side in sides]
    se_seeds = math.sqrt(sum(part.variance for part in parts)) if parts else None
    se_images = components = None
    if resampled is not None and baseline_resampled is not None and images is not None:
        draws = [
            np.stack([side[unit] for unit in units])
            for side, units in ((resampled, ours), (baseline_resampled, theirs))
        ]
        by_images = float(np.var(draws[0].mean(axis=0) - draws[1].mean(axis=0), ddof=1))
        se_images = math.sqrt(by_images)
        if se_seeds is not None:
            # By how much the seeds move apart from resample to resample, for one pair of seeds.
            sides_apart = [draws[0] - draws[1]] if paired else draws
            both = sum(_interaction(side) for side in sides_apart)
            components = Components(
                max(se_seeds**2 * number - both, 0), max(by_images - both / number, 0), both, images
            )
        parts = [*parts, Part(by_images, max(images - 1, 1))]
    if not parts:
        return Difference(mean, number, paired, None, None, None, None, None, None, None, None, pairs)
    reach, reach90 = (half_width(parts, 1 - (1 - level) / looks) for level in (CONFIDENCE, 0.9))
    inside = p_value(abs(margin - abs(mean)), parts) / 2
    p_equal = inside if abs(mean) < margin else 1 - inside
    return Difference(
        mean,
        number,
        paired,
        images if se_images is not None else None,
        se_seeds,
        se_images,
        Interval(mean - reach, mean + reach),
        Interval(mean - reach90, mean + reach90),
        equivalent_df(parts),
        min(1.0, looks * p_value(abs(mean), parts)),
        min(1.0, looks * p_equal),
        pairs,
        components,
        looks,
    )


def is_out_of_reach(found: Difference, seeds: int, margin: float = MARGIN) -> bool:
    """Whether no verdict is to be expected with so many seeds on these images: to go on would be in vain.

    That is so when the mean would have to move by more than two standard errors of what the coming seeds can move it, to become
    better, worse, equal, or not better by the margin. To stop for this reason makes no verdict wrong; at worst one is missed.
    """
    parts = found.components
    if parts is None or found.seeds >= seeds:
        return False
    reach, reach90 = (
        half_width(parts.parts(seeds, parts.number), 1 - (1 - level) / found.looks) for level in (CONFIDENCE, 0.9)
    )
    move = 2 * math.sqrt((parts.seeds + parts.both) * (1 / found.seeds - 1 / seeds))
    nearest, farthest = max(0.0, abs(found.mean) - move), abs(found.mean) + move
    return farthest < reach and nearest + reach90 >= margin and found.mean - move + reach90 >= margin


def over_looks(found: Sequence[Difference]) -> Difference:
    """The difference at the latest look, with the p values of all looks so far.

    Each look's p is already multiplied by the number of planned looks, so that the smallest of them is a p value of the loss;
    with these Holm goes over the losses, as without looks. Looks that are still to come count as p = 1: they can only lower it.
    A look at which the difference had the other sign is no evidence for this one.
    """
    latest = found[-1]
    same = [each for each in found if (each.mean > 0) == (latest.mean > 0)]
    p, p_equal = (
        min((value for each in chosen if (value := getattr(each, name)) is not None), default=None)
        for name, chosen in (("p", same), ("p_equal", found))
    )
    return replace(latest, p=p, p_equal=p_equal)


def _interaction(draws: NDArray[np.float64]) -> float:
    """The variance over resamples of what each seed does apart from the mean of the seeds; seeds x resamples."""
    apart = draws - draws.mean(axis=1, keepdims=True)
    return float(np.var(apart, axis=0, ddof=1).mean())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's p values: those of a table in which at most 5% hold a false one where each is called below 0.05.

    Those that are not known stay unknown and are not counted.
    """
    known = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        adjusted[place] = highest
    return adjusted


def verdict(found: Difference, p_holm: float | None, margin: float = MARGIN) -> str:
    """`BETTER` or `WORSE` where chance is ruled out over the table, `EQUAL` within the margin, else `UNCLEAR`."""
    if p_holm is not None and p_holm < 1 - CONFIDENCE and found.mean != 0:
        return BETTER if found.mean > 0 else WORSE
    is_within = found.interval90 is not None and -margin < found.interval90.low and found.interval90.high < margin
    if is_within or (found.looks > 1 and found.p_equal is not None and found.p_equal < 1 - CONFIDENCE):
        return EQUAL
    return UNCLEAR


def power(
    components: Components,
    seeds: int,
    images: float,
    effect: float,
    tests: int = 1,
    level: float = (1 - CONFIDENCE) / 2,
) -> float:
    """The chance that a difference of this size is called by its name, with so many seeds and images.

    Args:
        components: what the difference varies by.
        seeds: at least 2.
        images: of the set.
        effect: the difference.
        tests: losses of the table, each of which has to pass Holm's first step.
        level: of the test to one side, before Holm.
    """
    between, within = components.parts(seeds, images)
    level = level / tests
    # The variance between seeds comes out larger or smaller; one value for each hundredth of its distribution.
    spread = stats.chi2.ppf((np.arange(100) + 0.5) / 100, between.df) / between.df
    bar = np.sqrt(
        stats.t.isf(level, between.df) ** 2 * between.variance * spread
        + stats.t.isf(level, within.df) ** 2 * within.variance
    )
    true = math.sqrt(components.variance(seeds, images))
    if true == 0:
        return float(effect > 0)
    return float(np.mean(stats.norm.sf((bar - effect) / true)))


def seeds_needed(components: Components, images: float, effect: float = MARGIN, tests: int = 1) -> int | None:
    """The fewest seeds that find an effect of this size in 8 of 10 cases; None where no number does with these images."""
    if power(components, MOST_SEEDS, images, effect, tests) < POWER:
        return None
    low, high = 2, MOST_SEEDS
    while low < high:  # power grows with the number of seeds
        middle = (low + high) // 2
        low, high = (middle + 1, high) if power(components, middle, images, effect, tests) < POWER else (low, middle)
    return low


def images_needed(components: Components, seeds: int, effect: float = MARGIN, tests: int = 1) -> int | None:
    """The fewest images that find an effect of this size in 8 of 10 cases; None where no number does with these seeds."""
    low, high = 2, 10_000_000
    if power(components, seeds, high, effect, tests) < POWER:
        return None
    while high - low > max(1, low // 100):  # to a hundredth
        middle = (low + high) // 2
        low, high = (middle, high) if power(components, seeds, middle, effect, tests) < POWER else (low, middle)
    return high


def detectable(components: Components, seeds: int, images: float, tests: int = 1) -> float:
    """The smallest difference that is found in 8 of 10 cases with so many seeds and images."""
    low, high = 0.0, 1e-6
    while power(components, seeds, images, high, tests) < POWER:
        low, high = high, 2 * high
        if high > 1:
            return high
    return float(
        optimize.brentq(lambda effect: power(components, seeds, images, effect, tests) - POWER, low, high, xtol=1e-6)
    )


def evaluation_noise(series: Sequence[Sequence[float]]) -> float | None:
    """How far a metric moves from one evaluation to the next: a standard deviation, free of a slow rise or fall.

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
