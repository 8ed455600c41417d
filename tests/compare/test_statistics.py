"""Intervals over seeds, the verdict, and how often it is wrong."""

import numpy as np
import pytest
from scipy import stats

from yolox_loss_patch.compare.statistics import (
    BETTER,
    NO_DIFFERENCE,
    ONE_SEED,
    WORSE,
    Interval,
    mean_interval,
    seed_difference,
    seeds_needed,
    verdict,
)  # fmt: skip


def seeds(*values, first=0):
    return {f"seed {first + number}": value for number, value in enumerate(values)}


def test_the_interval_of_paired_seeds_is_students():
    ours, base = seeds(0.31, 0.36, 0.33), seeds(0.30, 0.32, 0.33)
    found = seed_difference(ours, base)
    low, high = stats.ttest_rel(list(ours.values()), list(base.values())).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(0.05 / 3) and found.seeds == 3 and found.paired
    # by the table: t(2, .975) = 4.303, differences .01 .04 .00, their standard deviation 0.0208167
    assert found.interval.high - found.mean == pytest.approx(4.302653 * 0.0208167 / 3**0.5, rel=1e-5)


def test_only_seeds_of_both_are_pairs_and_without_pairs_it_is_welch():
    assert seed_difference(seeds(0.3, 0.4, 0.9), seeds(0.2, 0.2)).mean == pytest.approx(0.15)
    ours, base = seeds(0.31, 0.36, 0.33), seeds(0.30, 0.32, 0.35, 0.31, first=7)
    found = seed_difference(ours, base)
    low, high = stats.ttest_ind(list(ours.values()), list(base.values()), equal_var=False).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high)) and not found.paired


def test_one_seed_has_no_interval():
    for ours, base in (
        (seeds(0.4), seeds(0.3)),
        (seeds(0.4), seeds(0.3, first=5)),
        (seeds(0.4), seeds(0.2, 0.3, first=5)),
    ):
        found = seed_difference(ours, base)
        assert found.interval is None and found.more_seeds is None
        assert verdict(found, Interval(0.1, 0.2)) == ONE_SEED
    assert mean_interval([0.3]) is None


@pytest.mark.parametrize(
    "over_seeds,over_images,said",
    [
        ((0.01, 0.02), (0.01, 0.02), BETTER),
        ((-0.02, -0.01), (-0.03, -0.01), WORSE),
        ((-0.01, 0.02), (0.01, 0.02), NO_DIFFERENCE),  # training again may turn it round
        ((0.01, 0.02), (-0.01, 0.02), NO_DIFFERENCE),  # other images may
        ((0.01, 0.02), (-0.02, -0.01), NO_DIFFERENCE),  # the two contradict each other
        ((0.01, 0.02), None, BETTER),  # without kept detections the seeds decide
    ],
)
def test_the_verdict_needs_both_intervals(over_seeds, over_images, said):
    from yolox_loss_patch.compare.statistics import SeedDifference

    difference = SeedDifference(0.0, Interval(*over_seeds), 3, True, 0)
    assert verdict(difference, None if over_images is None else Interval(*over_images)) == said


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3, 5])
def test_equal_groups_are_called_different_in_5_percent(number):
    rng = np.random.default_rng(number)
    called = 0
    for _ in range(4000):
        one, two = rng.normal(0.3, 0.02, number), rng.normal(0.3, 0.02, number)
        called += verdict(seed_difference(seeds(*one), seeds(*two)), None) != NO_DIFFERENCE
    assert 0.04 < called / 4000 < 0.06


@pytest.mark.parametrize("spread", [0.002, 0.005, 0.01, 0.02])
def test_the_missing_seeds_find_half_a_point_in_8_of_10_cases(spread):
    number = seeds_needed(spread)
    rng = np.random.default_rng(0)
    draws = rng.normal(0.005, spread, (4000, number))
    found = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert 0.78 < found < 0.9 or (number <= 5 and found > 0.78)
    if number > 2:
        fewer = rng.normal(0.005, spread, (4000, number - 1))
        assert np.mean(stats.ttest_1samp(fewer, 0, axis=1).pvalue < 0.05) < 0.82


def test_the_missing_seeds_have_ends():
    assert seeds_needed(0.0) == 2 and seeds_needed(1e-9) == 2 and seeds_needed(10.0) == 1000
    assert seed_difference(seeds(0.3, 0.3, 0.3), seeds(0.2, 0.2, 0.2)).more_seeds == 0


def test_a_smaller_spread_never_needs_more_seeds():
    """scipy's noncentral t has no number where the effect is some 38 standard errors."""
    needed = [seeds_needed(float(spread)) for spread in np.geomspace(1e-6, 1.0, 500)]
    assert needed == sorted(needed) and needed[0] == 2 and needed[-1] == 1000


def test_unrest_is_the_spread_of_the_steps_and_not_the_rise():
    from yolox_loss_patch.compare.statistics import unrest

    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.03, (500, 5))
    rise = np.linspace(0.3, 0.31, 5)
    assert unrest(list(noise + rise)) == pytest.approx(0.03, rel=0.05)
    assert unrest([list(rise)]) < 0.002
    assert unrest([[0.1, 0.3], [0.5]]) == pytest.approx(0.2 / 2**0.5)
    assert unrest([]) is None and unrest([[0.3], []]) is None


def test_the_pooled_spread_is_that_within_the_groups():
    from yolox_loss_patch.compare.statistics import pooled_spread

    assert pooled_spread([[0.1, 0.3], [0.9]]) == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert pooled_spread([[0.1, 0.3], [0.8, 0.8, 0.8]]) == pytest.approx(np.sqrt(0.02 / 3))
    assert pooled_spread([[0.1], [0.2]]) is None and pooled_spread([]) is None
