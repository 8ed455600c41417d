"""Intervals over seeds and images together, Holm, the verdict, the plan, and how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from yolox_loss_patch.compare.statistics import (
    BETTER,
    EQUAL,
    UNCLEAR,
    WORSE,
    Components,
    Part,
    detectable,
    difference,
    equivalent_df,
    evaluation_noise,
    half_width,
    holm,
    images_needed,
    mean_interval,
    p_value,
    pooled_spread,
    power,
    seeds_needed,
    verdict,
)


def seeds(*values, first=0):
    return {f"seed {first + number}": value for number, value in enumerate(values)}


def draws(values, spread, number=2000, seed=0):
    """Resamples of each repeat, independent of each other."""
    rng = np.random.default_rng(seed)
    return {unit: value + rng.normal(0, spread, number) for unit, value in values.items()}


def test_with_seeds_alone_the_interval_is_students():
    ours, base = seeds(0.31, 0.36, 0.33), seeds(0.30, 0.32, 0.33)
    found = difference(ours, base)
    told = stats.ttest_rel(list(ours.values()), list(base.values()))
    low, high = told.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(told.pvalue) and found.df == 2 and found.se_images is None and found.images is None
    assert found.mean == pytest.approx(0.05 / 3) and found.seeds == 3 and found.paired
    # by the table: t(2, .975) = 4.303, differences .01 .04 .00, their standard deviation 0.0208167
    assert found.interval.high - found.mean == pytest.approx(4.302653 * 0.0208167 / 3**0.5, rel=1e-5)
    assert found.se_seeds == pytest.approx(0.0208167 / 3**0.5, rel=1e-5)


def test_only_seeds_of_both_are_pairs_and_without_pairs_each_group_is_a_part():
    assert difference(seeds(0.3, 0.4, 0.9), seeds(0.2, 0.2)).mean == pytest.approx(0.15)
    ours, base = seeds(0.31, 0.36, 0.33), seeds(0.30, 0.32, 0.35, 0.31, first=7)
    found = difference(ours, base)
    parts = [np.var(list(side.values()), ddof=1) / len(side) for side in (ours, base)]
    assert not found.paired and found.se_seeds == pytest.approx(sum(parts) ** 0.5)
    reach = (4.302653**2 * parts[0] + 3.182446**2 * parts[1]) ** 0.5  # t(2) and t(3)
    assert found.interval.high - found.mean == pytest.approx(reach, rel=1e-5)
    welch = stats.ttest_ind(list(ours.values()), list(base.values()), equal_var=False).confidence_interval(0.95)
    assert found.interval.high - found.interval.low > welch.high - welch.low


def test_seeds_and_images_are_in_one_interval():
    ours, base = seeds(0.31, 0.36, 0.33), seeds(0.30, 0.32, 0.33)
    sides = draws(ours, 0.01), draws(base, 0.01, seed=1)
    found = difference(ours, base, *sides, images=400)
    by_images = np.var(np.mean([sides[0][unit] - sides[1][unit] for unit in ours], axis=0), ddof=1)
    assert found.se_images == pytest.approx(by_images**0.5) and found.images == 400
    reach = (stats.t.isf(0.025, 2) ** 2 * found.se_seeds**2 + stats.t.isf(0.025, 399) ** 2 * by_images) ** 0.5
    assert found.interval.high - found.mean == pytest.approx(reach)
    # one Student's t of the whole variance gives the same
    whole = (found.se_seeds**2 + found.se_images**2) ** 0.5
    assert stats.t.isf(0.025, found.df) * whole == pytest.approx(reach) and 2 < found.df < 399
    assert found.interval90.high - found.mean < reach
    # the parts that are not the seeds' and not the images' alone
    assert found.components.both == pytest.approx(2 * 0.01**2, rel=0.1) and found.components.number == 400
    assert found.components.images == pytest.approx(0, abs=1e-5)


def test_one_seed_has_the_images_only():
    for ours, base in ((seeds(0.4), seeds(0.3)), (seeds(0.4), seeds(0.3, first=5)), (seeds(0.4), seeds(0.2, 0.3))):
        assert difference(ours, base).interval is None and verdict(difference(ours, base), None) == UNCLEAR
        found = difference(ours, base, draws(ours, 0.01), draws(base, 0.01, seed=1), images=100)
        assert found.se_seeds is None and found.components is None and found.df == pytest.approx(99)
        assert found.interval.high - found.mean == pytest.approx(stats.t.isf(0.025, 99) * found.se_images)
    assert mean_interval([0.3]) is None


def test_no_difference_at_all_is_equal():
    ours = seeds(0.3, 0.4)
    found = difference(ours, ours, draws(ours, 0.01), draws(ours, 0.01), images=50)
    assert (found.interval.low, found.interval.high, found.p, found.p_equal) == (0, 0, 1, 0)
    assert verdict(found, 1.0) == EQUAL
    sure = difference(seeds(0.3, 0.3), seeds(0.2, 0.2))
    assert sure.p == 0 and verdict(sure, 0.0) == BETTER


@pytest.mark.parametrize("distance", [0.0001, 0.003, 0.01, 0.05, 0.2])
def test_the_p_value_is_where_the_interval_ends(distance):
    parts = [Part(1e-5, 2), Part(2e-5, 300)]
    p = p_value(distance, parts)
    assert p < 1e-14 or half_width(parts, 1 - p) == pytest.approx(distance, rel=1e-6)
    (only,) = parts[:1]
    assert p_value(distance, [only]) == pytest.approx(2 * stats.t.sf(distance / only.variance**0.5, only.df))
    assert equivalent_df([only, Part(0.0, 9)]) == 2


def test_holm_is_the_one_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]


@pytest.mark.parametrize(
    "mean,spread,p_holm,said",
    [
        (0.02, 0.001, 0.001, BETTER),
        (-0.02, 0.001, 0.001, WORSE),
        (0.02, 0.001, 0.2, UNCLEAR),  # chance explains it among so many losses
        (0.0, 0.0005, 0.9, EQUAL),
        (0.0, 0.01, 0.9, UNCLEAR),
        (0.002, 0.0002, 0.001, BETTER),  # small and sure
    ],
)
def test_the_words_of_the_verdict(mean, spread, p_holm, said):
    values = seeds(*(mean + spread * shift for shift in (-1, 0, 1)))
    assert verdict(difference(values, seeds(0, 0, 0)), p_holm) == said


def crossed(rng, trials, number, effect, components):
    """Whether a difference is called, and whether it is called equal, in trials with new seeds and new images each time.

    The variance that a bootstrap over images has is given instead of drawn.
    """
    shift = rng.normal(0, components.images**0.5, trials)
    values = effect + shift[:, None] + rng.normal(0, (components.seeds + components.both) ** 0.5, (trials, number))
    by_seeds, mean = values.var(axis=1, ddof=1) / number, values.mean(axis=1)
    by_images = components.images + components.both / number

    def reach(confidence):
        unit = [half_width([Part(1.0, df)], confidence) ** 2 for df in (number - 1, components.number - 1)]
        return np.sqrt(unit[0] * by_seeds + unit[1] * by_images)

    return np.stack([np.abs(mean) > reach(0.95), np.abs(mean) + reach(0.9) < 0.005], axis=1)


CASES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.1, 0), (1, 0.3, 0.1), (0.3, 0.1, 1)]


@pytest.mark.parametrize("number", [3, 5, 10])
@pytest.mark.parametrize("ratio", CASES)
def test_equal_groups_are_called_different_in_at_most_5_percent(number, ratio):
    unit = 1e-5
    found = crossed(
        np.random.default_rng(number), 20000, number, 0.0, Components(*(unit * part for part in ratio), 200)
    )
    assert found[:, 0].mean() < 0.05 + 3 * (0.05 * 0.95 / 20000) ** 0.5


@pytest.mark.parametrize("ratio", CASES)
def test_a_difference_of_the_margin_is_called_equal_in_at_most_5_percent(ratio):
    unit = 2e-6
    found = crossed(np.random.default_rng(0), 20000, 5, 0.005, Components(*(unit * part for part in ratio), 200))
    assert found[:, 1].mean() < 0.05 + 3 * (0.05 * 0.95 / 20000) ** 0.5


@pytest.mark.parametrize("ratio", [(1, 0, 0), (1, 1, 0), (0.3, 0.1, 1)])
def test_the_forecast_power_is_what_trials_find(ratio):
    components = Components(*(1e-5 * part for part in ratio), 200)
    for number in (3, 8):
        found = crossed(np.random.default_rng(1), 20000, number, 0.006, components)[:, 0].mean()
        assert power(components, number, 200, 0.006) == pytest.approx(found, abs=0.02)


def test_what_is_missing():
    small = Components(1e-5, 1e-7, 1e-7, 500)
    number = seeds_needed(small, 500)
    assert power(small, number, 500, 0.005) >= 0.8 > power(small, number - 1, 500, 0.005)
    assert seeds_needed(small, 500, tests=10) > number and seeds_needed(small, 500, effect=0.02) < number
    by_images = Components(1e-7, 1e-5, 1e-7, 500)  # no number of seeds helps
    assert seeds_needed(by_images, 500) is None
    images = images_needed(by_images, 5)
    assert images > 500 and power(by_images, 5, images, 0.005) >= 0.8 > power(by_images, 5, 0.97 * images, 0.005)
    assert images_needed(Components(1.0, 0, 0, 500), 3) is None, "nor a number of images here"
    assert seeds_needed(Components(0, 0, 0, 10), 10) == 2
    found = detectable(small, 5, 500)
    assert power(small, 5, 500, found) == pytest.approx(0.8, abs=0.01) and detectable(small, 10, 500) < found


def test_evaluation_noise_is_the_spread_of_the_steps_and_not_the_rise():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.03, (500, 5))
    rise = np.linspace(0.3, 0.31, 5)
    assert evaluation_noise(list(noise + rise)) == pytest.approx(0.03, rel=0.05)
    assert evaluation_noise([list(rise)]) < 0.002
    assert evaluation_noise([[0.1, 0.3], [0.5]]) == pytest.approx(0.2 / 2**0.5)
    assert evaluation_noise([]) is None and evaluation_noise([[0.3], []]) is None


def test_the_pooled_spread_is_that_within_the_groups():
    assert pooled_spread([[0.1, 0.3], [0.9]]) == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert pooled_spread([[0.1, 0.3], [0.8, 0.8, 0.8]]) == pytest.approx(np.sqrt(0.02 / 3))
    assert pooled_spread([[0.1], [0.2]]) is None and pooled_spread([]) is None
