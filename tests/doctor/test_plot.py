"""The pictures: drawn for every kind of loss, and a simulation that shows what the papers say."""

import pytest
import torch

from yolox_loss_patch import cli
from yolox_loss_patch.doctor.plot import element_wise, simulate

PICTURES = [
    (["bce", "focal", "varifocal"], [], "a.png", b"\x89PNG"),
    (["quality_focal", "{'type': 'focal', 'alpha': -1}"], [], "a.svg", b"<?xml"),
    (["iou", "giou", "ciou", "mpdiou", "wiou"], [], "deep/er/a.svg", b"<?xml"),
    (["l1", "smooth_l1", "balanced_l1"], [], "a.svg", b"<?xml"),
    (["giou", "mpdiou"], ["--regression", "--points", "1"], "a.png", b"\x89PNG"),
]


@pytest.mark.slow
@pytest.mark.parametrize("losses,flags,name,start", PICTURES)
def test_a_picture_is_drawn(losses, flags, name, start, tmp_path, capsys):
    assert cli.main(["plot", *losses, *flags, "--out", str(tmp_path / name)]) == 0
    assert str(tmp_path / name) in capsys.readouterr().out
    assert (tmp_path / name).read_bytes().startswith(start)


WRONG = [
    (["ciuo", "--out", "a.png"], "Did you mean 'ciou'"),
    (["ciou", "focal", "--out", "a.png"], "different terms"),
    (["dice", "--out", "a.png"], "whole set"),
    (["ciou", "--out", "a.gif"], ".png or .svg"),
    (["focal", "--regression", "--out", "a.png"], "no loss 'focal'"),
    (["{'type': ciou}", "--out", "a.png"], "no dict"),
    (["ciou", "--regression", "--points", "0", "--out", "a.png"], "at least 1"),
]


@pytest.mark.parametrize("words,answer", WRONG)
def test_a_wrong_picture_is_answered(words, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", *words]) == 2
    assert answer in capsys.readouterr().err


def test_what_is_drawn_is_what_is_trained():
    """By overlap each box is pulled 2 IoU times as hard; a calibrated loss rests at the chance, a published focal does not."""
    pred = torch.tensor([[10.0, 10.0, 2.0, 1.0], [10.4, 10.3, 2.0, 1.5]], dtype=torch.float64)
    target = torch.tensor([[10.5, 10.0, 2.0, 1.0]], dtype=torch.float64).expand(2, 4)
    shared = torch.tensor([1.5, 1.9 * 0.95], dtype=torch.float64)
    iou = shared / (torch.tensor([2.0, 3.0], dtype=torch.float64) + 2 - shared)
    for name in ("giou", "mpdiou"):
        _, bare = element_wise("iou", {"type": name})(pred, target)
        _, trained = element_wise("iou", {"type": name, "by_overlap": True})(pred, target)
        torch.testing.assert_close(trained, 2 * iou.unsqueeze(1) * bare)

    score = torch.logit(torch.tensor([0.1], dtype=torch.float64))
    for spec, chance in (({"type": "focal"}, 0.0078), ({"type": "focal", "calibrated": True}, 0.1)):
        loss = element_wise("obj", spec)
        up, down = (abs(float(loss(score, torch.full_like(score, target))[1])) for target in (1.0, 0.0))
        assert down / (up + down) == pytest.approx(chance, rel=5e-3)


@pytest.mark.slow
def test_the_simulation_shows_what_the_diou_paper_says():
    """Plain IoU leaves disjoint boxes where they are, losses with a penalty bring them home."""
    error = {name: simulate(element_wise("iou", {"type": name}), points=8) for name in ("iou", "giou", "diou", "ciou")}
    assert error["iou"][-1] > 0.9 * error["iou"][0]
    assert all(error[name][-1] < 0.02 * error[name][0] for name in ("giou", "diou", "ciou"))
