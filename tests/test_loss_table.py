"""The tables of docs/which_loss.md and docs/from_scratch.md are those that benchmarks/loss_table.py makes of the comparisons."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, load_script

from yolox_loss_patch import cli

loss_table = load_script("benchmarks/loss_table")
FOLDERS = [folder for sets in loss_table.PAGES.values() for folder in sets]


@pytest.mark.parametrize("page", loss_table.PAGES)
def test_the_page_has_the_tables_of_the_comparisons(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert loss_table.written(text, page) == text


def test_a_table_is_written_under_its_heading_and_nothing_else_is_touched():
    (heading, table), *rest = loss_table.tables("from_scratch").items()
    others = "".join(f"\n{other}\n\n{written}" for other, written in rest)
    old = f"words | with a bar\n\n{heading}\n\nabout it\n\n| old |\n| --- |\n| \\1 |\n\nafter\n{others}"
    assert (
        loss_table.written(old, "from_scratch")
        == f"words | with a bar\n\n{heading}\n\nabout it\n\n{table}\nafter\n{others}"
    )


def test_a_heading_that_is_gone_is_an_error():
    with pytest.raises(SystemExit, match=r"docs/from_scratch\.md has no heading '### Blood cells"):
        loss_table.written("no table here", "from_scratch")


def test_the_picture_has_every_loss_where_it_came_out(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **how: drawn.append(figure))
    loss_table.draw(tmp_path / "which_loss.png")
    low, high = loss_table.LIMITS
    names = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]  # the columns share them
    for axes, folders in zip(drawn[0].axes, loss_table.DRAWN.values(), strict=True):
        dots = [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
        found = {names[int(y)]: x for x, y in dots}
        rows = [row for folder in folders for row in loss_table.comparison(folder) if row["AP_difference"]]
        wanted = {row["group"]: float(row["AP_difference"]) for row in rows}
        assert found == wanted and all(low < value < high for value in wanted.values())


@pytest.mark.parametrize("folder", ["bccd_finetune", "digits_finetune", "digits_newcls"])
def test_the_table_says_what_the_runs_ended_with(folder):
    """From the runs' own files, past `compare`: means and their difference."""
    ends = {}
    for name in ("obj_bce", "obj_bce_targetiou"):
        for path in (ROOT / "benchmarks" / folder).glob(f"{folder}-{name}-seed*.csv"):
            with path.open(newline="") as file:
                ends.setdefault(name, []).append(float(list(csv.DictReader(file))[-1]["AP"]))
    stock, ours = (sum(values) / len(values) for values in ends.values())
    (row,) = [line for line in loss_table.rows(loss_table.comparison(folder)) if line[0] == "obj bce(target='iou')"]
    assert (
        row[1] == str(len(ends["obj_bce"])) and row[2].startswith(f"{ours:.3f} ±") and row[3] == f"{ours - stock:+.3f}"
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_run_of_a_comparison_has_its_rows(folder):
    counted = sum(int(row["runs"]) for row in loss_table.comparison(folder))
    runs = list((ROOT / "benchmarks" / folder).glob("*-seed*.csv"))
    assert len(runs) == counted
    for path in runs:
        with path.open(newline="") as file:
            assert list(csv.DictReader(file))[-1]["AP"], path


def commands(tmp_path, *words):
    """What ``benchmarks/loss_table.sh`` calls ``yolox-loss`` with, in a dry run."""
    recorder = tmp_path / "yolox-loss"
    recorder.write_text(f"#!{sys.executable}\nimport json, sys\nprint('CALL', json.dumps(sys.argv[1:]))\n")
    recorder.chmod(0o755)
    done = subprocess.run(
        [ROOT / "benchmarks" / "loss_table.sh", *words, "--dry-run"],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line.removeprefix("CALL ")) for line in done.stdout.splitlines() if line.startswith("CALL ")]


@pytest.mark.slow
def test_one_command_makes_every_run_of_the_tables_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    calls = commands(tmp_path)
    (tmp_path / "exps").symlink_to(ROOT / "exps")
    monkeypatch.chdir(tmp_path)  # where nothing is trained yet
    made = set()
    for call in calls:
        assert cli.main(call) == 0
        made |= set(re.findall(r"^(\S+-seed\d+): ", capsys.readouterr().out, re.MULTILINE))
    recorded = {path.stem for folder in FOLDERS for path in (ROOT / "benchmarks" / folder).glob("*-seed*.csv")}
    assert recorded and recorded <= made
    assert {"digits_start-seed100", "bccd_start-seed100"} <= made


def test_a_set_of_the_tables_by_itself_with_flags_for_its_sweeps(tmp_path):
    calls = commands(tmp_path, "digits_one", "--jobs", "2")
    assert [call[call.index("-f") + 1] for call in calls] == ["exps/digits_stock.py", "exps/digits_finetune.py"]
    assert all(call[call.index("--jobs") + 1] == "2" for call in calls)


def test_a_set_that_is_none_is_answered():
    done = subprocess.run([ROOT / "benchmarks" / "loss_table.sh", "digits_two"], capture_output=True, text=True)
    assert (
        done.returncode == 2 and "There is no set 'digits_two'. Choose of: bccd_finetune,bccd_catalogue," in done.stderr
    )
