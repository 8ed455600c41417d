"""Losses of another scale and another meaning of the score, brought to those of YOLOX's own.

YOLOX uses sigmoid(logit) as a probability in three places: the score of a detection, the cost of the label assignment,
and the prior that its biases start from. BCE is smallest where the score is that probability. Focal and its relatives
are smallest somewhere else: focal(0.25, 2) says 0.1 where the chance is 0.01, and YOLOX's start at 0.01 leaves its
background 4,460 times less gradient than BCE's. Which probability a score stands for can be read off the loss, where
its pulls on foreground and background cancel (2011.09172 does so for focal loss). With that the loss is trained on a
logit that means what BCE's means, and pulls as hard in all as BCE would.

A loss of a whole set (Dice, Tversky, GHM-C) has no such probability: where an anchor comes to rest depends on all the
others. Dice sends every score to 0 or 1, GHM-C all of them to about 1/2. In a sum with BCE (``bce+dice``) the score stays
a probability, give or take, so Dice is trained in segmentation too (1809.10486).

YOLOX's box loss is 1 - IoU**2, whose slope is 2 IoU. Nearly all others are 1 - IoU and something more, with a slope of 1:
they pull bad boxes harder, which unsettles a start, and in a network that is trained, where most boxes fit, half as hard.
Each box times its own 2 IoU has the slope of YOLOX's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .boxes import overlap, upcast
from .derivatives import has_no_custom_gradient
from .state import sum_over_ranks
from .terms import Call, LossModule, TermLoss

#: YOLOX's own prior: the probability of foreground that its heads start from.
PRIOR = 0.01
_REACH = 16.0  # of the losses' logits that are looked at; beyond, the ends go on as straight lines
_STEP = 0.01


def _segments(logits: Tensor, values: Tensor, start: float) -> tuple[Tensor, Tensor, Tensor]:
    """Left end and rise of the segment that each logit is in, and the place within it."""
    place = (logits - start) / _STEP
    # NaN has no place. It becomes one of the ends, and the result NaN.
    index = place.detach().long().clamp_(0, len(values) - 2)
    left = values[index]
    return left, values[index + 1] - left, place - index


class _Interpolate(torch.autograd.Function):
    """`_interpolate` that keeps the slope only; a slope is a constant within its segment."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, start: float) -> Tensor:
        left, rise, place = _segments(logits, values, start)
        ctx.save_for_backward(rise)
        return left.addcmul_(place, rise)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rise,) = ctx.saved_tensors
        return gradient * rise / _STEP, None, None


def _interpolate(logits: Tensor, values: Tensor, start: float) -> Tensor:
    """A function known at equal steps from ``start``, linear in between and beyond."""
    if has_no_custom_gradient():
        left, rise, place = _segments(logits, values, start)
        return left + place * rise
    value: Tensor = _Interpolate.apply(logits, values, start)
    return value


class _Wrapper(LossModule):
    """A loss within a loss: it wants the same facts, and has the same running state."""

    def __init__(self, loss: TermLoss) -> None:
        super().__init__()
        self.loss, self.wants = loss, loss.wants
        self.loss_weight, self.reduction = loss.loss_weight, loss.reduction

    def running_state(self) -> dict[str, Tensor]:
        """What the loss has learnt from the batches so far."""
        return self.loss.running_state()

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state`."""
        self.loss.load_running_state(state)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to a ``loss_weight`` that is a schedule."""
        self.loss.set_epoch(epoch)


class Calibrated(_Wrapper):
    """A loss of logits, trained on logits whose sigmoid is the chance of foreground that the loss stands for.

    Let ``g1(z)`` and ``g0(z)`` be how hard the loss pulls up at target 1 and down at target 0. With a chance p of
    foreground they cancel at ``p g1 = (1 - p) g0``, so the loss's logit z stands for the probability's logit
    ``x(z) = log g0(z) - log g1(z)``. Written in x the loss is BCE with a weight that depends on p alone, the pull of both
    together, ``w(p) = (g0 + g1) dz/dx``: at target t its gradient is ``w(p) (p - t)``.

    The loss here is ``loss(z(x)) / u``, with u the mean of w over the anchors at hand, each counted by how hard BCE pulls
    it, ``|p - t|``. So the loss pulls as hard in all as BCE does, at the start as in the end, and what it makes of
    YOLOX is another spread over the anchors. Of BCE nothing changes. In eval mode u is w at YOLOX's prior, p = 0.01.

    On soft targets (the IoU of the matched box) the same curves are used.

    Args:
        loss: an element-wise loss. Its ``loss_weight`` multiplies the result.
        over_ranks: the anchors at hand are those of all processes of a distributed run, not this one's only; every rank
            has to call the loss once a step.

    Raises:
        ValueError: the pulls have no such curve: one is 0, or the loss's score falls where the chance rises.
    """

    def __init__(self, loss: TermLoss, over_ranks: bool = False) -> None:
        super().__init__(loss)
        self.over_ranks = over_ranks
        logits = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
        up, down = (_pull(loss, logits, target) for target in (1.0, 0.0))
        means = down.log() - up.log()
        steps = means.diff()
        if not bool((torch.isfinite(means)).all()):
            raise ValueError(
                "a pull of it is 0 at some score (as with label_smoothing, the margin of asymmetric, alpha 0 or 1, and gamma "
                "from 46 on)"
            )
        if not bool((steps > 0).all()):
            raise ValueError("its score has no probability that it stands for")
        start, end = float(means[0]), float(means[-1])
        grid = torch.arange(start, end, _STEP, dtype=torch.float64)
        place = torch.searchsorted(means, grid).clamp(1, len(means) - 1)
        self.start = start
        # No buffers: a stage is no part of the model, so nobody moves it to a device.
        self.curve = logits[place - 1] + (grid - means[place - 1]) * (_STEP / steps[place - 1])
        both = up + down
        self.pulls = (both[place - 1] + both[place]) / 2 * (_STEP / steps[place - 1])
        self.pull = float(self.pulls[self._place(torch.logit(torch.tensor(PRIOR, dtype=torch.float64)))])

    def compute(self, call: Call) -> Tensor:
        """The loss of logits of any shape."""
        pred, target = upcast(call.pred, call.target)
        self.curve, self.pulls = self.curve.to(pred), self.pulls.to(pred)  # from then on they are where the logits are
        logits = _interpolate(pred, self.curve, self.start)
        value = self.loss.compute(call._replace(pred=logits, target=target))
        return value / (self._unit(pred.detach(), target.detach(), call.weight) if self.training else self.pull)

    def _unit(self, pred: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """How hard the loss pulls at these anchors, in units of BCE's pull."""
        error = (pred.sigmoid() - target).abs_()
        if weight is not None:
            error *= self.loss.fit(weight, error)
        pull, bce = (self.pulls[self._place(pred)] * error).sum(), error.sum()
        if self.over_ranks:
            pull, bce = sum_over_ranks(torch.stack([pull, bce]))
        nothing = 1e-20  # where there is nothing to pull, the unit is that of the start
        return (pull + nothing * self.pull) / (bce + nothing)

    def _place(self, pred: Tensor) -> Tensor:
        """Where on the curves these logits lie."""
        return ((pred - self.start) / _STEP).long().clamp_(0, len(self.pulls) - 1)


class WeighedByOverlap(_Wrapper):
    """A box loss of power 1 with the pull of YOLOX's own: each box times ``2 IoU``, detached.

    Its ``1 - IoU`` then has the gradient of ``1 - IoU**2``, and its penalties keep their share of it. As with YOLOX's
    own, boxes that do not touch are left alone.

    Args:
        loss: an element-wise box loss. Its ``loss_weight`` multiplies the result.
    """

    def compute(self, call: Call) -> Tensor:
        """The loss of boxes ``(N, 4)``."""
        with torch.no_grad():
            slope = 2 * overlap(*upcast(call.pred, call.target)).iou
            if call.weight is not None:
                slope *= self.loss.fit(call.weight, slope)
        return self.loss.compute(call._replace(weight=slope))


def _pull(loss: TermLoss, logits: Tensor, target: float) -> Tensor:
    """How hard a loss of weight 1 pulls at each of these logits, towards the target."""
    logits = logits.clone().requires_grad_()
    value = loss.kernel(logits, torch.full_like(logits, target))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return -gradient if target else gradient
