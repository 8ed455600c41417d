"""check_loss: every loss of the kit passes, and what breaks a promise is found."""

import pytest
import torch
import torch.nn.functional as F

import yolox_loss_patch as ylp
from yolox_loss_patch.testing import check_loss

OWN = [(term, name) for term, names in ylp.available_losses().items() for name in names]
# Box losses without a gradient where boxes do not touch, and those that let go of boxes far away.
NO_PULL = ("iou", "alpha_iou", "focal_eiou", "inner_iou", "piou")


@pytest.mark.parametrize("term,name", OWN)
def test_every_loss_of_the_kit_passes(term, name):
    check_loss(term, name, pulls=None if term != "iou" else name not in NO_PULL)


class Mine(torch.nn.Module):
    """A sound loss of a user's own."""

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        loss = self.kernel(pred.float() if pred.dtype != torch.float64 else pred, target)
        if weight is not None:
            loss = loss * weight.view(-1, *[1] * (loss.dim() - 1))
        reduction = reduction_override or "mean"
        if reduction == "none":
            return loss
        return loss.sum() / (1 if reduction == "sum" else avg_factor or max(loss.numel(), 1))

    def kernel(self, pred, target):
        return F.binary_cross_entropy_with_logits(pred, target.to(pred.dtype), reduction="none")


class Saturates(Mine):
    def kernel(self, pred, target):
        p = pred.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log())


class Averages(Mine):
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return super().forward(pred, target, weight, None, reduction_override)


class Learns(Mine):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))


class Remembers(Mine):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))


class Backwards(Mine):
    def kernel(self, pred, target):
        return super().kernel(-pred, target)


class Rows(Mine):
    def kernel(self, pred, target):
        return super().kernel(pred, target).sum(-1)


class Half(Mine):
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return super().forward(pred, target, weight, avg_factor, reduction_override).to(pred.dtype)


def test_a_sound_loss_of_ones_own_passes():
    check_loss("obj", Mine())


BROKEN = [
    (Saturates, "finite"),
    (Averages, "avg_factor"),
    (Learns, "no parameters"),
    (Remembers, "state_dict"),
    (Backwards, "confident right scores"),
    (Rows, "reduction none gives"),
    (Half, "in fp32"),
]


@pytest.mark.parametrize("cls,promise", BROKEN)
def test_a_broken_promise_is_named(cls, promise):
    with pytest.raises(AssertionError, match=promise) as error:
        check_loss("obj", cls())
    assert cls.__name__ in str(error.value)


def test_a_step_that_raises_the_loss_is_found():
    class Up(Mine):
        def kernel(self, pred, target):
            loss = super().kernel(pred, target)
            return 2 * loss.detach() - loss  # the value is right, the gradient is turned round

    with pytest.raises(AssertionError, match="against the gradient"):
        check_loss("obj", Up())


def test_a_pull_that_is_not_there_is_found():
    with pytest.raises(AssertionError, match="pulls a disjoint box"):
        check_loss("iou", "iou", pulls=True)
    with pytest.raises(ylp.ConfigError, match="there is no loss"):
        check_loss("iou", "none")
