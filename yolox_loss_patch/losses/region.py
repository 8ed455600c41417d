"""Region losses from logits: one number for a whole set, by how well prediction and target cover each other.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1]. The set is everything handed over
(``scope="batch"``) or each image of the batch (``scope="image"``, for a ``pred`` that is ordered by image): the result
is one number, or one an image.

An element's ``weight`` multiplies its part in every sum: 0 leaves it out, 2 counts it twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import focal


def _sets(scope: str, images: int | None, *values: Tensor | None) -> list[Tensor]:
    """Each value as ``(sets, elements)``; a weight that is not there as ones."""
    if scope == "image" and images is None:
        raise ValueError("scope='image' asks for the number of images, which the loss stage knows; pass images=")
    first = values[0]
    assert first is not None
    rows = (images, first.numel() // images) if scope == "image" and images else (1, first.numel())
    return [(torch.ones_like(first) if value is None else value).reshape(rows) for value in values]


def _shaped(loss: Tensor, scope: str) -> Tensor:
    """``(sets,)``, or a single number for the batch."""
    return loss if scope == "image" else loss.squeeze(0)


def _dice(p: Tensor, target: Tensor, weight: Tensor, smooth: float, squared: bool) -> Tensor:
    size = p.square() + target.square() if squared else p + target
    return 1 - (2 * (weight * p * target).sum(1) + smooth) / ((weight * size).sum(1) + smooth)


def dice(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smooth: float = 1.0,
    squared: bool = False,
    scope: str = "batch",
    images: int | None = None,
) -> Tensor:
    """Dice loss (V-Net, 1606.04797): ``1 - (2 sum p t + s)/(sum p + sum t + s)``, range [0, 1).

    ``squared``: the paper's denominator, with p and t squared; most code has the plain sums.
    """
    pred, target, weight = _sets(scope, images, pred, target, weight)
    return _shaped(_dice(torch.sigmoid(pred), target, weight, smooth, squared), scope)


def tversky(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    scope: str = "batch",
    images: int | None = None,
) -> Tensor:
    """Tversky loss (1706.05721): ``1 - (TP + s)/(TP + alpha FP + beta FN + s)``, range [0, 1).

    ``alpha`` weighs false positives, ``beta`` false negatives; other libraries swap them.
    """
    pred, target, weight = _sets(scope, images, pred, target, weight)
    p = torch.sigmoid(pred)
    hit = (weight * p * target).sum(1)
    false = (weight * p * (1 - target)).sum(1)
    missed = (weight * torch.sigmoid(-pred) * target).sum(1)
    return _shaped(1 - (hit + smooth) / (hit + alpha * false + beta * missed + smooth), scope)


def dice_focal(
    pred: Tensor,
    target: Tensor,
    element_weight: Tensor | None = None,
    smooth: float = 1.0,
    squared: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    weight: float = 1.0,
    scope: str = "batch",
    images: int | None = None,
) -> Tensor:
    """Dice plus ``weight`` x the mean of the focal loss over the same set; the mean is weighted where elements are."""
    pred, target, each = _sets(scope, images, pred, target, element_weight)
    loss = _dice(torch.sigmoid(pred), target, each, smooth, squared)
    mean = (each * focal.focal(pred, target, alpha, gamma)).sum(1) / each.sum(1).clamp(min=torch.finfo(pred.dtype).tiny)
    return _shaped(loss + weight * mean, scope)
