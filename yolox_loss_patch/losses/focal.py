"""Objectness and class losses from logits, element by element.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1] and returns that shape. All start from
``binary_cross_entropy_with_logits``: forms written in probabilities lose their gradient where the sigmoid saturates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .state import RunningKernel, number_of_ranks, sum_over_ranks


def _modulate(base: Tensor, gamma: float) -> Tensor:
    """``base ** gamma`` for a base in [0, 1]; gamma 0 is exactly 1, gamma in (0, 1) keeps a finite slope at 0."""
    if gamma == 0:
        return torch.ones_like(base)
    if gamma < 1:
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**gamma


def _factor(pred: Tensor, value: float | Sequence[float], what: str) -> Tensor:
    """A number, or a number a class, as a tensor that goes with the logits."""
    factor = pred.new_tensor(value)
    if factor.dim() and pred.shape[-1:] != factor.shape:
        raise ValueError(f"{what} has {len(factor)} numbers, one a class; the logits are {tuple(pred.shape)}")
    return factor


def bce(
    pred: Tensor,
    target: Tensor,
    pos_weight: float | Sequence[float] = 1.0,
    class_weight: Sequence[float] | None = None,
) -> Tensor:
    """Binary cross entropy, stock YOLOX: ``-t log p - (1 - t) log(1 - p)``, at least 0.

    ``pos_weight`` multiplies the first half, for all classes or one number a class; ``class_weight`` multiplies both,
    one number a class (the last dimension).
    """
    positive = None if pos_weight == 1 else _factor(pred, pos_weight, "pos_weight")
    loss = F.binary_cross_entropy_with_logits(pred, target, pos_weight=positive, reduction="none")
    return loss if class_weight is None else loss * _factor(pred, class_weight, "class_weight")


def focal(pred: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (1708.02002): ``alpha_t (1 - p_t)**gamma BCE``, at least 0; ``alpha=-1`` leaves alpha_t out.

    Meant for targets 0 and 1: on a soft target the same formula is not smallest at p = t.
    """
    p = torch.sigmoid(pred)
    loss = _modulate(p * (1 - target) + (1 - p) * target, gamma) * bce(pred, target)
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return loss


def varifocal(
    pred: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
) -> Tensor:
    """Varifocal loss (2008.13367): ``t BCE(p, t)`` where t > 0, ``alpha p**gamma BCE(p, 0)`` where t = 0.

    ``iou_weighted=False`` gives foreground the weight 1. The weight of the background is not detached, as in the
    authors' code.
    """
    background = alpha * _modulate(torch.sigmoid(pred), gamma)
    foreground = target if iou_weighted else torch.ones_like(target)
    return torch.where(target > 0, foreground, background) * bce(pred, target)


def quality_focal(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (2006.04388): ``|t - p|**beta BCE(p, t)``, at least 0; for soft targets, smallest at p = t.

    The weight is not detached, as in the authors' code; on hard targets it is focal without alpha.
    """
    return _modulate((target - torch.sigmoid(pred)).abs(), beta) * bce(pred, target)


class GHMC(RunningKernel):
    """Gradient harmonised loss (1811.05181): BCE, each element divided by how many others have a gradient like its own.

    ``w = N/(bins in use x count of the bin of |p - t|)``, detached; the mean of ``w BCE`` over the N elements is the
    paper's loss. Elements of weight 0 are not counted. With ``momentum`` the counts of a bin are a running mean over
    the batches in which it was in use, agreed on by all ranks, moved in training mode only.
    """

    state = ("counts",)
    counts: Tensor

    def __init__(self, bins: int = 10, momentum: float = 0.0) -> None:
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.register_buffer("counts", torch.zeros(bins), persistent=False)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Element-wise loss in the shape of the logits."""
        with torch.no_grad():
            gap = (torch.sigmoid(pred) - target).abs()
            place = (gap * self.bins).long().clamp(max=self.bins - 1)
            counted = place if weight is None else torch.where(weight > 0, place, self.bins)
            now = torch.bincount(counted.flatten(), minlength=self.bins + 1)[: self.bins].to(pred.dtype)
            if self.momentum > 0:
                now, counts = self._running_counts(now)
            else:
                counts = now
            used = now > 0
            harmony = torch.where(used, pred.numel() / (used.sum() * counts.clamp(min=1e-30)), 0.0)[place]
        loss = harmony * bce(pred, target)
        return loss if weight is None else loss * weight

    def _running_counts(self, now: Tensor) -> tuple[Tensor, Tensor]:
        # A mean and not a sum over the ranks: each averages over its own elements, and DDP averages the ranks.
        now = sum_over_ranks(now) / number_of_ranks()
        counts = self.counts.to(now)
        moved = torch.where(now > 0, self.momentum * counts + (1 - self.momentum) * now, counts)
        if self.training:
            self.counts = moved
        return now, moved
