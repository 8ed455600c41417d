"""The tables of docs/which_loss.md are those that scripts/loss_table.py makes of the comparisons."""

import csv

from conftest import ROOT, load_script

loss_table = load_script("loss_table")


def test_the_page_has_the_tables_of_the_comparisons():
    assert loss_table.markdown() in (ROOT / "docs" / "which_loss.md").read_text()


def test_every_run_of_a_comparison_has_its_rows():
    for folder in loss_table.SETS:
        with (ROOT / "benchmarks" / folder / "comparison.csv").open(newline="") as file:
            counted = sum(int(row["runs"]) for row in csv.DictReader(file))
        runs = list((ROOT / "benchmarks" / folder).glob("*-seed*.csv"))
        assert len(runs) == counted, folder
        for path in runs:
            with path.open(newline="") as file:
                assert list(csv.DictReader(file))[-1]["AP"], path
