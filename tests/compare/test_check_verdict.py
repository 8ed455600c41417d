"""The script that measures how often verdicts are wrong, and the table that it left."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from made_runs import script

from yolox_loss_patch.compare.statistics import MARGIN, Part, p_value


def rows():
    with (ROOT / "benchmarks" / "verdict.csv").open() as file:
        return list(csv.DictReader(file))


def test_its_p_values_are_those_of_the_kit():
    rng = np.random.default_rng(0)
    distance, by_seeds, by_images = rng.uniform(0, 0.02, 20), rng.uniform(1e-7, 1e-5, 20), rng.uniform(1e-7, 1e-5, 20)
    fast = script.p_values(distance, by_seeds, by_images, 4, 300)
    for place in range(20):
        exact = p_value(distance[place], [Part(by_seeds[place], 4), Part(by_images[place], 300)])
        assert exact <= fast[place] * 1.0001 and fast[place] == pytest.approx(exact, rel=0.01)
    assert script.holm(np.array([[0.01, 0.04, 0.03, 0.005]])) == pytest.approx(np.array([[0.03, 0.06, 0.06, 0.02]]))


def test_the_table_covers_what_it_should_and_no_error_rate_is_above_5_percent():
    table = rows()
    cases = {tuple(row[key] for key in ("set", "seeds", "images", "losses", "planted")) for row in table}
    assert len(cases) == len(table)
    for name in script.SETS:
        for key, values in (("seeds", script.SEEDS), ("images", script.IMAGES), ("losses", script.LOSSES)):
            assert {int(row[key]) for row in table if row["set"] == name} == set(values)
        assert {float(row["planted"]) for row in table if row["set"] == name} == set(script.EFFECTS)
    assert script.faults(table) == []
    # The mean of many rows has hardly any noise.
    same = [float(row["any_false"]) for row in table if row["planted"] == "0" and row["part"] == "variances"]
    at_margin = [float(row["interval90_within_margin"]) for row in table if row["planted"] == str(MARGIN)]
    assert np.mean(same) < 0.05 and np.mean(at_margin) < 0.05


def test_a_rate_above_5_percent_is_found():
    """The naive rule, one loss at a time without Holm, would be called out."""
    rng = np.random.default_rng(0)
    components = script.SETS["no interaction"]
    mean, by_seeds, by_images = script.draw(rng, 1000, components, 8, 300, 10, 0.0)
    p = script.p_values(np.abs(mean), by_seeds, by_images, 7, 299)
    found = {
        "better": 0,
        "worse": 0,
        "equal": 0,
        "interval90_within_margin": 0,
        "any_false": (p < 0.05).any(axis=1).mean(),
    }
    assert script.faults([script.row("variances", "x", 8, 300, 10, 0.0, 1000, found)])


def test_more_seeds_and_images_find_more():
    rng = np.random.default_rng(0)
    components = script.SETS["digits, trained start"]
    few, many = (
        script.rates(rng, 500, components, seeds, images, 1, 0.005)["better"] for seeds, images in ((3, 80), (8, 1000))
    )
    assert few < 0.3 < 0.9 < many
