"""Region losses from logits: one number for a whole set, by how well prediction and target cover each other.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1]. The set is everything handed over
(``scope="batch"``) or each image of the batch (``scope="image"``, for a ``pred`` that is ordered by image): the result
is one number, or one per image.

An element's ``weight`` multiplies its part in every sum: 0 leaves it out, 2 counts it twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import focal
from .row import Limits, loss_row

_SMOOTH = Limits(low=1e-6, high=1e6)  # less is 0 in fp32, and 0/0 in an image without a box
# Foreground anchors have no order by image, so only the objectness map can be split by image.
_SCOPE = {"scope": Limits(choices=("batch", "image"))}
_DICE = {"smooth": _SMOOTH, "squared": Limits()}
_TVERSKY = {"alpha": Limits(low=0, high=1e6), "beta": Limits(low=0, high=1e6), "smooth": _SMOOTH}
_DICE_FOCAL = {**_DICE, **focal.FOCAL_LIMITS, "weight": Limits(low=0, high=1e6)}
_DICE_FORMULA, _DICE_SOURCE = "1 - (2 sum p t + s)/(sum p + sum t + s)", "1606.04797"
_TVERSKY_FORMULA, _TVERSKY_SOURCE = "1 - (TP + s)/(TP + alpha FP + beta FN + s)", "1706.05721"
_DICE_FOCAL_FORMULA, _DICE_FOCAL_SOURCE = "dice + weight x mean focal", "1606.04797, 1708.02002"
_HARD_OR_IOU = ("hard", "iou")


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


@loss_row("cls", formula=_DICE_FORMULA, source=_DICE_SOURCE, limits=_DICE, whole_set=True)
@loss_row(
    "obj",
    formula=_DICE_FORMULA,
    source=_DICE_SOURCE,
    limits={**_DICE, **_SCOPE},
    targets=_HARD_OR_IOU,
    whole_set=True,
    wants=("images",),
)
def dice(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    smooth: float = 1.0,
    squared: bool = False,
    scope: str = "batch",
    images: int | None = None,
) -> Tensor:
    """Dice loss of V-Net: ``1 - (2 sum p t + s)/(sum p + sum t + s)``.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``.
        weight: of each element in the sums, the shape of ``pred``.
        smooth: s, at least 1e-6.
        squared: the paper's denominator, with p and t squared; most code has the plain sums.
        scope: ``batch``: everything is one set; ``image``: one set per image.
        images: how many images there are, for ``scope="image"``; ``pred`` is ordered by image.

    Returns:
        One number, or ``(images,)`` numbers, in [0, 1).

    Raises:
        ValueError: ``scope="image"`` without ``images``.

    arXiv 1606.04797.
    """
    pred, target, weight = _sets(scope, images, pred, target, weight)
    return _shaped(_dice(torch.sigmoid(pred), target, weight, smooth, squared), scope)


@loss_row("cls", formula=_TVERSKY_FORMULA, source=_TVERSKY_SOURCE, limits=_TVERSKY, whole_set=True)
@loss_row(
    "obj",
    formula=_TVERSKY_FORMULA,
    source=_TVERSKY_SOURCE,
    limits={**_TVERSKY, **_SCOPE},
    targets=_HARD_OR_IOU,
    whole_set=True,
    wants=("images",),
)
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
    """Tversky loss: ``1 - (TP + s)/(TP + alpha FP + beta FN + s)``.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``.
        weight: of each element in the sums, the shape of ``pred``.
        alpha: weight of false positives, at least 0 (other libraries swap alpha and beta).
        beta: weight of false negatives, at least 0.
        smooth: s, at least 1e-6.
        scope: ``batch``: everything is one set; ``image``: one set per image.
        images: how many images there are, for ``scope="image"``; ``pred`` is ordered by image.

    Returns:
        One number, or ``(images,)`` numbers, in [0, 1).

    Raises:
        ValueError: ``scope="image"`` without ``images``.

    arXiv 1706.05721.
    """
    pred, target, weight = _sets(scope, images, pred, target, weight)
    p = torch.sigmoid(pred)
    hit = (weight * p * target).sum(1)
    false = (weight * p * (1 - target)).sum(1)
    missed = (weight * torch.sigmoid(-pred) * target).sum(1)
    return _shaped(1 - (hit + smooth) / (hit + alpha * false + beta * missed + smooth), scope)


@loss_row("cls", formula=_DICE_FOCAL_FORMULA, source=_DICE_FOCAL_SOURCE, limits=_DICE_FOCAL, whole_set=True)
@loss_row(
    "obj",
    formula=_DICE_FOCAL_FORMULA,
    source=_DICE_FOCAL_SOURCE,
    limits={**_DICE_FOCAL, **_SCOPE},
    whole_set=True,
    wants=("images",),
)
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
    """Dice plus ``weight`` x the mean of the focal loss over the same set; the mean is weighted where elements are.

    Args:
        pred: logits, any shape.
        target: 0 or 1, the shape of ``pred``.
        element_weight: of each element in the sums, the shape of ``pred``.
        smooth, squared: as in `dice`.
        alpha, gamma: as in `focal.focal`.
        weight: of the focal part, at least 0.
        scope: ``batch``: everything is one set; ``image``: one set per image.
        images: how many images there are, for ``scope="image"``; ``pred`` is ordered by image.

    Returns:
        One number, or ``(images,)`` numbers, at least 0.

    Raises:
        ValueError: ``scope="image"`` without ``images``.

    arXiv 1606.04797 and 1708.02002.
    """
    pred, target, each = _sets(scope, images, pred, target, element_weight)
    loss = _dice(torch.sigmoid(pred), target, each, smooth, squared)
    mean = (each * focal.focal(pred, target, alpha, gamma)).sum(1) / each.sum(1).clamp(min=torch.finfo(pred.dtype).tiny)
    return _shaped(loss + weight * mean, scope)
