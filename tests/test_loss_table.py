"""The tables of docs/which_loss.md and docs/from_scratch.md are those that scripts/loss_table.py makes of the comparisons."""

import csv

import pytest
from conftest import ROOT, load_script

loss_table = load_script("loss_table")
FOLDERS = [folder for sets in loss_table.PAGES.values() for folder in sets]


@pytest.mark.parametrize("page", loss_table.PAGES)
def test_the_page_has_the_tables_of_the_comparisons(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert loss_table.written(text, page) == text


def test_a_table_is_written_under_its_heading_and_nothing_else_is_touched():
    (heading, table), *rest = loss_table.tables("from_scratch").items()
    others = "".join(f"\n{other}\n\n{written}" for other, written in rest)
    old = f"words | with a bar\n\n{heading}\n\nabout it\n\n| old |\n| --- |\n| \\1 |\n\nafter\n{others}"
    assert loss_table.written(old, "from_scratch") == f"words | with a bar\n\n{heading}\n\nabout it\n\n{table}\nafter\n{others}"


def test_a_heading_that_is_gone_is_an_error():
    with pytest.raises(SystemExit, match=r"docs/from_scratch\.md has no heading '### Blood cells"):
        loss_table.written("no table here", "from_scratch")


def test_every_loss_is_inside_the_picture(tmp_path):
    loss_table.draw(tmp_path / "which_loss.png")
    assert (tmp_path / "which_loss.png").stat().st_size > 20_000
    low, high = loss_table.LIMITS
    for folder in loss_table.DRAWN:
        for row in loss_table.comparison(folder):
            assert not row["AP_difference"] or low < float(row["AP_difference"]) < high, row["group"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_run_of_a_comparison_has_its_rows(folder):
    counted = sum(int(row["runs"]) for row in loss_table.comparison(folder))
    runs = list((ROOT / "benchmarks" / folder).glob("*-seed*.csv"))
    assert len(runs) == counted
    for path in runs:
        with path.open(newline="") as file:
            assert list(csv.DictReader(file))[-1]["AP"], path
