"""Objectness and class losses from logits, element by element.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1] and returns that shape. All start from
``binary_cross_entropy_with_logits``: forms written in probabilities lose their gradient where the sigmoid saturates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _modulate(base: Tensor, gamma: float) -> Tensor:
    """``base ** gamma`` for a base in [0, 1]; gamma 0 is exactly 1, gamma in (0, 1) keeps a finite slope at 0."""
    if gamma == 0:
        return torch.ones_like(base)
    if gamma < 1:
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**gamma


def bce(pred: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, stock YOLOX: ``-t log p - (1 - t) log(1 - p)``, at least 0."""
    return F.binary_cross_entropy_with_logits(pred, target, reduction="none")


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
