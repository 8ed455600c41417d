"""Box losses: IoU and its descendants, element by element.

Every function takes ``pred`` and ``target`` as ``(N, 4)`` boxes ``(cx, cy, w, h)`` in pixels and returns ``(N,)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .boxes import TINY, TINY_IOU, aspect_angle, overlap, power, ratio


def _squared_distance(pred: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the centres ``(N,)`` in px2."""
    return (pred[:, :2] - target[:, :2]).square().sum(1)


def _aspect_penalty(pred: Tensor, target: Tensor, iou: Tensor, gate: bool) -> Tensor:
    """CIoU's ``a v`` ``(N,)``: the disagreement of the aspect ratios and its detached weight."""
    v = (4 / math.pi**2) * (aspect_angle(target[:, 2:]) - aspect_angle(pred[:, 2:])).square()
    with torch.no_grad():
        a = ratio(v, 1 - iou + v)
        if gate:
            a = torch.where(iou > 0.5, a, 0.0)
    return a * v


def iou(pred: Tensor, target: Tensor, mode: str = "square") -> Tensor:
    """IoU loss: ``1 - IoU**2`` (``square``, stock YOLOX), ``1 - IoU`` (``linear``), ``-log IoU`` (``log``, 1608.01471).

    Range [0, 1]; ``log`` reaches 69 where the boxes do not touch, and has no gradient there, as the others.
    """
    value = overlap(pred, target).iou
    if mode == "square":
        return 1 - value**2
    if mode == "linear":
        return 1 - value
    return -torch.log(value.clamp(min=TINY_IOU))


def giou(pred: Tensor, target: Tensor) -> Tensor:
    """Generalised IoU (1902.09630): ``1 - IoU + (|C| - U)/|C|``, range [0, 2]; pulls disjoint boxes together."""
    pair = overlap(pred, target)
    area = pair.enclosing().prod(1)
    return 1 - pair.iou + ratio(area - pair.union, area)


def diou(pred: Tensor, target: Tensor) -> Tensor:
    """Distance IoU (1911.08287): ``1 - IoU + rho2/c2``, range [0, 2]."""
    pair = overlap(pred, target)
    diagonal = pair.enclosing().square().sum(1)
    return 1 - pair.iou + ratio(_squared_distance(pred, target), diagonal)


def ciou(pred: Tensor, target: Tensor, gate: bool = False) -> Tensor:
    """Complete IoU (1911.08287, 2005.03572): DIoU + ``a v``, range [0, 3).

    ``gate``: ``a`` is 0 unless IoU > 0.5, as in the journal version and MMDetection.
    """
    pair = overlap(pred, target)
    diagonal = pair.enclosing().square().sum(1)
    distance = ratio(_squared_distance(pred, target), diagonal)
    return 1 - pair.iou + distance + _aspect_penalty(pred, target, pair.iou, gate)


def eiou(pred: Tensor, target: Tensor) -> Tensor:
    """Efficient IoU (2101.08158): DIoU + ``dw2/Cw2 + dh2/Ch2``, range [0, 4). Not MMDetection's *Extended* IoU."""
    pair = overlap(pred, target)
    sides = pair.enclosing().square()
    distance = ratio(_squared_distance(pred, target), sides.sum(1))
    return 1 - pair.iou + distance + ratio((pred[:, 2:] - target[:, 2:]).square(), sides).sum(1)


def alpha_iou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-IoU (2110.13675): ``1 - IoU**alpha``, range [0, 1]; alpha 2 is the stock loss."""
    return 1 - power(overlap(pred, target).iou, alpha)


def alpha_giou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-GIoU (2110.13675): ``1 - IoU**alpha + ((|C| - U)/|C|)**alpha``, range [0, 2]."""
    pair = overlap(pred, target)
    area = pair.enclosing().prod(1)
    # The empty part is a difference of areas: where one box holds the other it is rounding, which a root would magnify.
    return 1 - power(pair.iou, alpha) + power(ratio(area - pair.union, area), alpha, floor=TINY)


def alpha_diou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-DIoU (2110.13675): ``1 - IoU**alpha + (rho2/c2)**alpha``, range [0, 2]."""
    pair = overlap(pred, target)
    diagonal = pair.enclosing().square().sum(1)
    distance = ratio(_squared_distance(pred, target), diagonal)
    return 1 - power(pair.iou, alpha) + power(distance, alpha)


def alpha_ciou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-CIoU (2110.13675): alpha-DIoU + ``(a v)**alpha``; ``a`` comes from the plain IoU. Range [0, 3)."""
    pair = overlap(pred, target)
    diagonal = pair.enclosing().square().sum(1)
    distance = ratio(_squared_distance(pred, target), diagonal)
    aspect = _aspect_penalty(pred, target, pair.iou, gate=False)
    return 1 - power(pair.iou, alpha) + power(distance, alpha) + power(aspect, alpha)


def alpha_eiou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-EIoU (2110.13675 applied to 2101.08158): each of EIoU's penalties to the power of alpha. Range [0, 4)."""
    pair = overlap(pred, target)
    sides = pair.enclosing().square()
    distance = ratio(_squared_distance(pred, target), sides.sum(1))
    shape = ratio((pred[:, 2:] - target[:, 2:]).square(), sides)
    return 1 - power(pair.iou, alpha) + power(distance, alpha) + power(shape, alpha).sum(1)
