"""``plot assign``: what is drawn is what is trained."""

import csv

import numpy as np
import pytest
import torch
from conftest import EXP, load_script
from matplotlib.axes import Axes

from yolox_loss_patch import cli
from yolox_loss_patch.doctor.assignment import draw, look_at
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head.stage import LossStage

CPU = torch.device("cpu")


@pytest.fixture
def terms(monkeypatch):
    """What each call of a loss stage returned."""
    found = []
    get_losses = LossStage.get_losses

    def watch(self, *args, **kwargs):
        found.append(get_losses(self, *args, **kwargs))
        return found[-1]

    monkeypatch.setattr(LossStage, "get_losses", watch)
    return found


def experiment(folder, *overrides, data=None):
    if data is not None:
        (folder / "tiny.py").write_text(EXP.format(data=str(data)))
    exp = load_exp(str(folder / "tiny.py"))
    exp.merge(list(overrides))
    return exp


def test_the_losses_of_the_anchors_are_those_of_the_terms(work, terms):
    exp = experiment(work, "loss_iou", "giou+0.5*nwd", "loss_obj", "varifocal", "loss_cls", "bce+dice")
    batch = look_at(exp, 4, None, CPU)
    assert [learned.label for learned in batch.learned] == ["stock", "iou giou+0.5*nwd + obj varifocal + cls bce+dice"]
    for learned, (_, iou, _, cls, *_) in zip(batch.learned, terms, strict=True):
        count = learned.assignment.num_fg
        assert learned.values["iou"].sum() / count == pytest.approx(float(iou), rel=1e-5)
        if learned.label == "stock":
            assert learned.values["cls"].sum() / count == pytest.approx(float(cls), rel=1e-5)
        else:
            assert learned.values["cls"] is None  # Dice is one number for the whole set
        assert (learned.values["obj"] > 0).all() and len(learned.values["obj"]) == count
    rows = batch.rows()
    assert len(rows) == 2 * sum(int(boxes[:, 1:].any(1).sum()) for boxes in batch.boxes)
    for label, learned in zip(("stock", batch.learned[1].label), batch.learned, strict=True):
        mine = [row for row in rows if row["losses"] == label]
        assert sum(row[f"stride_{each}"] for row in mine for each in (8, 16, 32)) == learned.assignment.num_fg


def test_the_matches_are_the_hosts(work):
    batch = look_at(experiment(work), 4, None, CPU)
    hosts = look_at(experiment(work, "loss_assign", "host"), 4, None, CPU)
    (ours,), (theirs,) = batch.learned, hosts.learned
    assert torch.equal(ours.assignment.fg_mask, theirs.assignment.fg_mask)
    assert torch.equal(ours.assignment.matched_gt, theirs.assignment.matched_gt)
    strides = batch.strides
    assert np.allclose(batch.centres[0], strides[0] / 2) and np.allclose(batch.centres[-1], 96 - strides[-1] / 2)


def test_each_matched_anchor_is_drawn_once_where_it_lies(work, monkeypatch):
    batch = look_at(experiment(work, "loss_iou", "ciou"), 2, None, CPU)
    drawn = []
    monkeypatch.setattr(
        Axes, "scatter", lambda self, x, y, **how: drawn.extend(zip(x.tolist(), y.tolist(), strict=True))
    )
    assert draw(batch).startswith(b"\x89PNG")
    expected = []
    for learned in batch.learned:
        anchors = learned.assignment.rows.numpy() % len(batch.strides)
        expected += [tuple(batch.centres[anchor].tolist()) for anchor in anchors]
    assert sorted(drawn) == sorted(expected)


def test_ignored_regions_and_sampled_anchors(tmp_path):
    data = tmp_path / "crowd"
    load_script("scripts/make_digits").make(data, train=8, val=2, size=96, seed=3, faults=("crowd",))
    exp = experiment(
        tmp_path, "ignore_crowd", "True", "loss_obj", "bce(sampler={'type':'RandomSampler','num':20})", data=data
    )
    batch = look_at(exp, 8, None, CPU)
    stock, chosen = batch.learned
    assert sum(map(len, batch.regions)) > 0 and stock.ignored.any()
    for learned in batch.learned:
        foreground = learned.assignment.fg_mask.view(learned.ignored.shape).numpy()
        assert not (learned.background & (learned.ignored | foreground)).any()
    without = ~np.array([len(regions) > 0 for regions in batch.regions])
    assert not stock.ignored[without].any()
    assert stock.background.sum() == (~stock.ignored).sum() - stock.assignment.num_fg
    assert (chosen.background.sum(1) <= 20).all() and chosen.background.any()
    assert draw(batch).startswith(b"\x89PNG")


def test_the_verb_writes_a_picture_and_a_table(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert cli.main(["plot", "assign", "-f", "tiny.py", "-n", "2", "loss_iou", "ciou"]) == 0
    path = work / "YOLOX_outputs" / "yolox_nano" / "assignment.png"
    path = path if path.is_file() else work / capsys.readouterr().out.strip().splitlines()[-1]
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(path.with_suffix(".csv").open(newline="")))
    assert {row["losses"] for row in rows} == {"stock", "iou ciou"} and {row["image"] for row in rows} <= {"0", "1"}


@pytest.mark.parametrize(
    "words,answer",
    [
        (["-n", "0"], "from 1 to 16; got 0"),
        (["--out", "a.gif"], "ends in .png; got 'a.gif'"),
        (["-c", "gone.pth"], "There is no checkpoint 'gone.pth'"),
        (["loss_iou", "ciuo"], "Did you mean 'ciou'"),
    ],
)
def test_a_mistake_is_answered(work, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(work)
    assert cli.main(["plot", "assign", "-f", "tiny.py", *words]) == 2
    assert answer in capsys.readouterr().err
