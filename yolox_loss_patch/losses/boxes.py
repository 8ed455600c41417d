"""What the box losses share: overlap, enclosing box, divisions and powers that stay finite.

Boxes are ``(N, 4)`` tensors of ``(cx, cy, w, h)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Below this a side, an area or a squared length is no geometry any more but rounding: the smallest box the kit
# promises to handle has sides of 1e-3 px, so an area of 1e-6.
TINY = 1e-12
# The smallest IoU that counts as touching. Honest ones are small too: 1e-3 px against 4096 px is 6e-14.
TINY_IOU = 1e-30


def upcast(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision to fp32, fp32 and fp64 as they are; the target follows the prediction.

    In fp16 an area of 256 x 256 is inf and 1e-16 is 0, so no loss may start in it.
    """
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return pred.to(dtype), target.to(dtype)


class Overlap(NamedTuple):
    """How two sets of boxes lie on each other, pair by pair.

    ``iou`` ``(N,)`` in [0, 1], ``union`` ``(N,)`` in px2, the rest are ``(N, 2)`` corners in px.
    """

    iou: Tensor
    union: Tensor
    pred_tl: Tensor
    pred_br: Tensor
    target_tl: Tensor
    target_br: Tensor


def overlap(pred: Tensor, target: Tensor) -> Overlap:
    """IoU of ``(N, 4)`` boxes, pair by pair.

    The operations and their order are those of YOLOX's ``IOUloss``, because the default loss promises YOLOX's bits and
    autograd adds up gradients in the order in which the operations were made.
    """
    pred_tl = pred[:, :2] - pred[:, 2:] / 2
    target_tl = target[:, :2] - target[:, 2:] / 2
    tl = torch.max(pred_tl, target_tl)
    pred_br = pred[:, :2] + pred[:, 2:] / 2
    target_br = target[:, :2] + target[:, 2:] / 2
    br = torch.min(pred_br, target_br)
    area_pred = product(pred[:, 2:])
    area_target = product(target[:, 2:])
    touching = (tl < br).all(1).to(tl.dtype)
    intersection = product(br - tl) * touching
    union = area_pred + area_target - intersection
    iou = intersection / (union + 1e-16)
    return Overlap(iou, union, pred_tl, pred_br, target_tl, target_br)


def product(sides: Tensor) -> Tensor:
    """``(N,)`` width x height of ``(N, 2)`` sides: on a CPU by YOLOX's operator, for its bits."""
    return torch.prod(sides, 1) if sides.device.type == "cpu" else plain_product(sides)


def plain_product(sides: Tensor) -> Tensor:
    """``(N,)`` width x height of ``(N, 2)`` sides, with a gradient that never waits for an accelerator.

    The gradient of ``torch.prod`` looks whether any side is 0. This one differs from it in the last bit.
    """
    width, height = sides.unbind(1)
    return width * height


class _once:
    """A property that is computed when it is first asked for; `functools.cached_property` takes a lock for it."""

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


class Pair:
    """Predicted boxes and their targets, and what the box losses measure on them; each is computed once, when asked for.

    So nothing may be asked for the first time under ``torch.no_grad``: it would have no gradient for those who ask later.

    Args:
        pred: ``(N, 4)`` boxes (cx, cy, w, h) in px.
        target: ``(N, 4)``.
        adds_up: penalties are added up as they are, not raised to a power first: a loss may give their sum instead.
    """

    def __init__(self, pred: Tensor, target: Tensor, adds_up: bool = False) -> None:
        self.pred, self.target, self.adds_up = pred, target, adds_up

    @_once
    def overlap(self) -> Overlap:
        """How the two lie on each other."""
        return overlap(self.pred, self.target)

    @property
    def iou(self) -> Tensor:
        """The IoU ``(N,)``."""
        return self.overlap.iou

    @_once
    def offset(self) -> Tensor:
        """Centre of the prediction minus centre of the target ``(N, 2)`` in px."""
        return self.pred[:, :2] - self.target[:, :2]

    @_once
    def enclosing(self) -> Tensor:
        """Sides ``(N, 2)`` in px of the smallest box around both."""
        lies = self.overlap
        return torch.max(lies.pred_br, lies.target_br) - torch.min(lies.pred_tl, lies.target_tl)

    @_once
    def enclosing_squared(self) -> Tensor:
        """The squares of the enclosing sides ``(N, 2)`` in px2."""
        return self.enclosing.square()

    @_once
    def diagonal(self) -> Tensor:
        """The squared diagonal of the enclosing box ``(N,)`` in px2: ``c2``."""
        return self.enclosing_squared.sum(1)

    @_once
    def distance(self) -> Tensor:
        """The squared distance of the centres ``(N,)`` in px2: ``rho2``."""
        return self.offset.square().sum(1)

    @_once
    def edges(self) -> Tensor:
        """Powerful-IoU's P ``(N,)``: the mean distance of the edges, in sides of the target."""
        lies = self.overlap
        gaps = (lies.pred_tl - lies.target_tl).abs() + (lies.pred_br - lies.target_br).abs()
        return ratio(gaps, self.target[:, 2:]).sum(1) / 4

    def mismatch(self) -> Tensor:
        """``|w - w*|/max(w, w*)`` and the same of the heights ``(N, 2)``, in [0, 1]."""
        sides, others = self.pred[:, 2:], self.target[:, 2:]
        return ratio((sides - others).abs(), torch.maximum(sides, others))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 without gradient where the denominator has vanished."""
    sane = denominator > TINY
    return torch.where(sane, numerator, 0.0) / torch.where(sane, denominator, 1.0)


def power(base: Tensor, exponent: float, floor: float = TINY_IOU) -> Tensor:
    """``base ** exponent`` for a base that is at least 0 but for rounding.

    An exponent below 1 has an infinite slope at 0: there the result is 0 without gradient, up to ``floor``.
    """
    if exponent >= 1:
        return base.clamp(min=0) ** exponent
    sane = base > floor
    return torch.where(sane, torch.where(sane, base, 1.0) ** exponent, 0.0)


def root(x: Tensor) -> Tensor:
    """Square root of a number that is at least 0; 0 without gradient where it has vanished."""
    sane = x > TINY_IOU
    return torch.where(sane, torch.where(sane, x, 1.0).sqrt(), 0.0)


def aspect_angle(pred: Tensor, target: Tensor) -> Tensor:
    """atan(w*/h*) - atan(w/h) ``(N,)`` of ``(N, 2)`` sides; a box without sides agrees with any and gets no gradient.

    As the angle between the two diagonals it takes one arctangent instead of two.
    """
    (w, h), (tw, th) = pred.unbind(1), target.unbind(1)
    cross, dot = tw * h - th * w, tw * w + th * h
    sane = dot + cross.abs() > TINY
    return torch.atan2(torch.where(sane, cross, 0.0), torch.where(sane, dot, 1.0))
