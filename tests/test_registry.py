"""Losses of a user's own, and what the registry tells."""

import pytest
import torch
from conftest import make_batch, make_head, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch.registry import LOSSES


@pytest.fixture
def clean():
    """Forget what a test registers."""
    before = {term: dict(rows) for term, rows in LOSSES.rows.items()}
    yield
    LOSSES.rows.update(before)


def test_every_name_can_be_built_and_shows_its_knobs():
    for term, names in ylp.available_losses().items():
        assert len(set(names)) == len(names) > 0
        for name in names:
            loss = ylp.build_loss(term, name)
            assert name in repr(loss)
            assert LOSSES.get(term, name).formula and LOSSES.get(term, name).paper


def test_a_loss_of_ones_own(clean):
    @ylp.LOSSES.register_module()
    class HuberBox(torch.nn.Module):
        """Huber on the corners."""

        term = "iou"

        def __init__(self, delta=1.0, loss_weight=1.0):
            super().__init__()
            self.delta, self.loss_weight = delta, loss_weight

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            loss = torch.nn.functional.huber_loss(pred, target, reduction="sum", delta=self.delta)
            return self.loss_weight * loss / avg_factor

    assert "HuberBox" in ylp.available_losses()["iou"]
    assert "HuberBox" not in ylp.available_losses()["obj"]
    head, inputs = make_head(), make_batch()
    with ylp.patched(loss_iou="HuberBox"):
        one = run_head(head, inputs)[0][1]
    with ylp.patched(loss_iou=dict(type="HuberBox", loss_weight=3.0)):
        three = run_head(head, inputs)[0][1]
    assert float(three) == pytest.approx(3 * float(one)) and float(one) > 0
    with pytest.raises(ValueError, match="Did you mean 'delta'"):
        ylp.build_loss("iou", dict(type="HuberBox", dleta=1))
    with pytest.raises(ValueError, match="takes no 'reduction'"):
        ylp.build_loss("iou", dict(type="HuberBox", reduction="sum"))


def test_register_loss_names_the_term_and_a_name_is_taken_once(clean):
    @ylp.register_loss("obj", "mine")
    class Mine(torch.nn.Module):
        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            return pred.sum() * 0

    assert ylp.available_losses()["obj"][-1] == "mine"
    for name in ("mine", "focal", "FocalLoss"):
        with pytest.raises(ValueError, match="is taken"):
            ylp.register_loss("obj", name)(Mine)


def test_a_constructor_that_swallows_knobs_is_refused(clean):
    class Greedy(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()

    with pytest.raises(ValueError, match="name its parameters"):
        ylp.register_loss("obj", "greedy")(Greedy)


def test_a_loss_of_ones_own_has_the_five_steps_and_is_checked_by_name(clean):
    from yolox_loss_patch.testing import check_loss

    seen = {}

    @ylp.register_loss("iou", "corner")
    class Corner(torch.nn.Module):
        """L1 of the sides and centres, in sides of the image."""

        wants = ("image_size",)

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, image_size=None):
            seen.update(image_size=tuple(image_size), avg_factor=avg_factor)
            loss = torch.nn.functional.smooth_l1_loss(
                pred.float() if pred.dtype != torch.float64 else pred, target.to(torch.promote_types(pred.dtype, torch.float32)),
                reduction="none",
            ).sum(1) / max(image_size)  # fmt: skip
            loss = loss if weight is None else loss * weight
            if reduction_override == "none":
                return loss
            return loss.sum() / (1 if reduction_override == "sum" else avg_factor or max(len(loss), 1))

    check_loss("iou", "corner", pulls=True)
    with ylp.patched(loss_iou=dict(type="corner", avg_factor="batch")):
        run_head(make_head(), make_batch(batch=3, height=96, width=160))
    assert seen == {"image_size": (96, 160), "avg_factor": 3}


def test_a_constructor_with_a_word_of_the_loss_stage_is_refused(clean):
    class Clash(torch.nn.Module):
        def __init__(self, target=1):
            super().__init__()

    with pytest.raises(ValueError, match="'target' is the loss stage's"):
        ylp.register_loss("obj", "clash")(Clash)


def test_list_and_plot_know_the_losses_of_an_experiment_file(clean, tmp_path, capsys):
    from yolox_loss_patch import cli

    (tmp_path / "mine.py").write_text(
        "import torch, yolox_loss_patch as ylp\n"
        "from yolox.exp.default.yolox_nano import Exp as Base\n"
        "@ylp.register_loss('l1', 'cubic')\n"
        "class Cubic(torch.nn.Module):\n"
        "    '''The cube.'''\n"
        "    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):\n"
        "        return (pred - target).abs() ** 3\n"
        "class Exp(ylp.LossExp, Base):\n"
        "    pass\n"
    )
    assert cli.main(["list", "cubic", "-f", str(tmp_path / "mine.py")]) == 0
    assert "The cube." in capsys.readouterr().out
    LOSSES.rows["l1"].pop("cubic")
    words = ["plot", "cubic", "l1", "-f", str(tmp_path / "mine.py"), "--out", str(tmp_path / "a.svg")]
    assert cli.main(words) == 0 and (tmp_path / "a.svg").is_file()
