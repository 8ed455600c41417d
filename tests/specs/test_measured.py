"""What losses were measured to do: the shipped file, `list`, and the warning before a training."""

import csv
import json

import pytest
from conftest import ROOT, load_script

import yolox_loss_patch as ylp
from yolox_loss_patch import cli
from yolox_loss_patch.exp.settings import warnings_of_losses
from yolox_loss_patch.specs import measured

WORSE = {
    "term": "obj", "spec": "focal", "data": "digits", "start": "from scratch", "seeds": 5, "difference": -0.142,
    "low": -0.2, "high": -0.08, "verdict": "worse", "set": "digits",
}  # fmt: skip
MENDED = {
    **WORSE,
    "spec": "focal(calibrated=True)",
    "difference": -0.002,
    "low": -0.02,
    "high": 0.016,
    "verdict": "unclear",
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A file of two rows: focal loss was worse, calibrated it was not."""
    file = tmp_path / "measured.json"
    file.write_text(json.dumps([WORSE, MENDED]))
    monkeypatch.setattr(measured, "FILE", file)
    measured.rows.cache_clear()
    yield
    measured.rows.cache_clear()


def test_the_shipped_file_is_what_the_script_makes_of_the_comparisons():
    script = load_script("benchmarks/measured")
    assert list(script.rows()) == json.loads(measured.FILE.read_text())


def test_each_difference_is_that_of_its_comparison():
    shown = measured.rows()
    assert len(shown) > 100
    for row in shown[::10]:
        with (ROOT / "benchmarks" / row.set / "comparison.csv").open(newline="") as file:
            found = {line["group"]: line["AP_difference"] for line in csv.DictReader(file)}
        assert row.difference == round(float(found[f"{row.term} {row.spec}"]), 4)
        assert row.low < row.difference < row.high


@pytest.mark.parametrize("spec", ["focal", {"type": "focal", "gamma": 2}, dict(type="FocalLoss", use_sigmoid=True)])
def test_a_loss_that_was_worse_is_told_with_where_and_what_to_write(planted, spec):
    (text,) = warnings_of_losses(ylp.LossConfig(loss_obj=spec))
    for part in (
        "loss_obj=focal was worse than stock",
        "-0.142 AP",
        "digits",
        "from scratch",
        "'focal(calibrated=True)'",
    ):
        assert part in text


@pytest.mark.parametrize(
    "losses", [{}, {"loss_obj": {"type": "focal", "gamma": 1}}, {"loss_obj": "focal(calibrated=True)"}]
)
def test_nothing_is_told_of_a_loss_that_was_not_worse(planted, losses):
    assert warnings_of_losses(ylp.LossConfig(**losses)) == []


def test_stock_is_what_to_write_where_no_variant_was_trained(planted, monkeypatch):
    measured.FILE.write_text(json.dumps([WORSE]))
    measured.rows.cache_clear()
    (text,) = warnings_of_losses(ylp.LossConfig(loss_obj="focal"))
    assert "Stock's loss is 'bce'" in text


def test_list_prints_what_was_measured(planted, capsys):
    assert cli.main(["list", "focal"]) == 0
    text = capsys.readouterr().out
    assert (
        "measured:" in text and "focal(calibrated=True): -0.002 AP [-0.020, +0.016] against stock on the digits" in text
    )
