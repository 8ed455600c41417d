"""check_loss: every loss of the kit passes, and what breaks a promise is found."""

import pytest
import torch
import torch.nn.functional as F

import yolox_loss_patch as ylp
from yolox_loss_patch.doctor.conformance import check_loss

OWN = [(term, name) for term, names in ylp.available_losses().items() for name in names]
# Box losses without a gradient where boxes do not touch, and those that let go of boxes far away.
NO_PULL = ("iou", "alpha_iou", "focal_eiou", "inner_iou", "piou")


@pytest.mark.slow
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


class Fixed(Mine):
    def kernel(self, pred, target):
        return super().kernel(pred.detach(), target)


class Bare(Mine):
    def forward(self, pred, target):
        return super().forward(pred, target)


class Scalar(Mine):
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return 1.0


class Scribbles(Mine):
    def kernel(self, pred, target):
        return super().kernel(pred, target.clamp_(min=0.1))


class Wavers(Mine):
    def kernel(self, pred, target):
        return super().kernel(pred, target) * (1 + 0.01 * torch.rand(()))


BROKEN = [
    (Fixed, "has a gradient"),
    (Bare, r"can be called as loss\(pred, target, reduction_override='none'\).*TypeError"),
    (Scalar, "returns a tensor; got float"),
    (Scribbles, "leaves pred and target as they are"),
    (Wavers, "the same for the same input"),
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


def test_boxes_that_are_read_as_corners_are_found():
    ops = pytest.importorskip("torchvision.ops")

    class Corners(Mine):
        def kernel(self, pred, target):
            return ops.generalized_box_iou_loss(pred, target.to(pred.dtype), reduction="none")

    with pytest.raises(AssertionError, match=r"reads boxes as \(cx, cy, w, h\)"):
        check_loss("iou", Corners())


def test_weights_by_class_are_checked_with_as_many_classes():
    check_loss("cls", dict(type="bce", class_weight=[0.5, 1.0, 2.0, 3.0, 1.0]))
    check_loss("cls", dict(type="bce", pos_weight=[0.5, 2.0]))


def test_a_pull_that_is_not_there_is_found():
    with pytest.raises(AssertionError, match="pulls a disjoint box"):
        check_loss("iou", "iou", pulls=True)
    with pytest.raises(ylp.ConfigError, match="there is no loss"):
        check_loss("iou", "none")
    with pytest.raises(ylp.ConfigError, match="claim of box losses"):
        check_loss("obj", "focal", pulls=True)
