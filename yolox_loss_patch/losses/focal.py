"""Objectness and class losses from logits, element by element.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1] and returns that shape. All start from
``binary_cross_entropy_with_logits``: forms written in probabilities lose their gradient where the sigmoid saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import has_no_custom_gradient
from .row import Limits, loss_row
from .state import RunningKernel, number_of_ranks, sum_over_ranks

_HARD_OR_IOU, _IOU_OR_HARD = ("hard", "iou"), ("iou", "hard")
_PER_CLASS = "a list of numbers at least 0, one per class, or a dict from class names to such numbers"
FOCAL_LIMITS = {"alpha": Limits(low=0, high=1, also=(-1.0,)), "gamma": Limits(low=0, high=100)}
_BCE, _YOLOX = "-t log p - (1-t) log(1-p)", "YOLOX 2107.08430"


class _KnownSlope(torch.autograd.Function):
    """An element-wise loss whose slope is known: computed along with the value, it alone is needed for the way back.

    Left to autograd, a focal loss keeps every step of the formula for all anchors of a batch and takes twice the time.
    ``kernel(pred, target, *knobs)`` returns value and slope. ``formula``, the same loss in differentiable steps, serves
    where the gradient itself is differentiated (``create_graph=True``).
    """

    @staticmethod
    def forward(ctx: Any, kernel: Any, formula: Any, pred: Tensor, target: Tensor, *knobs: Any) -> Tensor:
        value, slope = kernel(pred.contiguous(), target, *knobs)
        ctx.formula, ctx.knobs = formula, knobs
        ctx.save_for_backward(pred, target, slope)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pred, target, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            value = ctx.formula(pred, target, *ctx.knobs)
            (slope,) = torch.autograd.grad(value.sum(), pred, create_graph=True)
        return (None, None, gradient * slope, None, *[None] * len(ctx.knobs))


def _with_known_slope(kernel: Any, formula: Any, pred: Tensor, target: Tensor, *knobs: Any) -> Tensor:
    if target.requires_grad or has_no_custom_gradient():
        plain: Tensor = formula(pred, target, *knobs)
        return plain
    value: Tensor = _KnownSlope.apply(kernel, formula, pred, target, *knobs)
    return value


def _power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` of a base in [0, 1] in differentiable steps; 0 without gradient at 0 for an exponent below 1."""
    if exponent >= 1:
        return base**exponent
    is_some = base > torch.finfo(base.dtype).tiny
    return torch.where(is_some, torch.where(is_some, base, 1.0) ** exponent, 0.0)


def _start(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``p``, BCE, and a buffer of that size to go on in: a fresh one costs as much as the arithmetic on it.

    BCE is ``max(x, 0) - t x + log1p(exp(-|x|))``: on hard targets nothing cancels, at either end of the sigmoid.
    """
    buffer = pred.clamp(min=0)
    loss = torch.sub(pred, buffer, alpha=2).exp_().log1p_()  # x - 2 max(x, 0) is -|x|
    loss.add_(buffer.addcmul_(pred, target, value=-1))
    return torch.sigmoid(pred), loss, buffer


def _safe_power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` of a base in [0, 1] that stays finite for an exponent below 0; 1 is no power at all."""
    if exponent == 1:
        return base
    return base.clamp(min=torch.finfo(base.dtype).tiny).pow_(exponent) if exponent < 0 else base**exponent


def _factor(pred: Tensor, value: float | Sequence[float], knob: str) -> Tensor:
    """A number, or a number per class, as a tensor that goes with the logits."""
    factor = pred.new_tensor(value)
    if factor.dim() and pred.shape[-1:] != factor.shape:
        raise ValueError(
            f"loss_cls: {knob} has {len(factor)} numbers, one per class; the logits are {tuple(pred.shape)}"
        )
    return factor


@loss_row(
    "cls",
    formula=_BCE,
    source=_YOLOX,
    limits={
        "pos_weight": Limits(kind="factor_or_factors", words=f"a number from 0 to 1e6, or {_PER_CLASS}"),
        "class_weight": Limits(
            kind="class_weight",
            words=f"None, {_PER_CLASS}, 'inverse', or dict(type='effective_number', beta=0.999)",
        ),
        "label_smoothing": Limits(low=0, high=1, open_high=True),
    },
)
@loss_row("obj", formula=_BCE, source=_YOLOX, limits={"pos_weight": Limits(low=0, high=1e6)}, targets=_HARD_OR_IOU)
def bce(
    pred: Tensor,
    target: Tensor,
    pos_weight: float | Sequence[float] = 1.0,
    class_weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Binary cross entropy, stock YOLOX: ``-t log p - (1 - t) log(1 - p)``.

    Args:
        pred: logits, any shape; with a number per class the last dimension is C.
        target: in [0, 1], the shape of ``pred``.
        pos_weight: factor on the first half, at least 0: one number, or C.
        class_weight: factor on both halves, at least 0: C numbers.
        label_smoothing: s in [0, 1): the target becomes ``t (1 - s) + s/2``. Not for objectness, where nearly every
            target is 0.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    Raises:
        ValueError: as many numbers per class as there are no classes.

    YOLOX 2107.08430.
    """
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / 2
    positive = None if pos_weight == 1 else _factor(pred, pos_weight, "pos_weight")
    loss = F.binary_cross_entropy_with_logits(pred, target, pos_weight=positive, reduction="none")
    return loss if class_weight is None else loss * _factor(pred, class_weight, "class_weight")


_FOCAL = "alpha_t (1-p_t)^gamma BCE"
_ALPHA_PER_CLASS = Limits(
    kind="share_or_shares",
    words="a number in [0, 1] or -1, or a list of numbers in [0, 1], one per class, or a dict from class names to such numbers",
)


@loss_row("cls", formula=_FOCAL, source="1708.02002", limits={**FOCAL_LIMITS, "alpha": _ALPHA_PER_CLASS})
@loss_row("obj", formula=_FOCAL, source="1708.02002", limits=FOCAL_LIMITS)
def focal(pred: Tensor, target: Tensor, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss: ``alpha_t (1 - p_t)**gamma BCE``, meant for targets 0 and 1.

    On a soft target the same formula is not smallest at p = t.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``.
        alpha: weight of foreground, in [0, 1]; background has ``1 - alpha``. -1: no weights. Or C numbers, one per
            class (the last dimension).
        gamma: at least 0; 0 is BCE.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 1708.02002.
    """
    if not isinstance(alpha, (int, float)):
        shares = _factor(pred, alpha, "alpha")
        return (shares * target + (1 - shares) * (1 - target)) * focal(pred, target, -1, gamma)
    if gamma == 0:
        return bce(pred, target) if alpha < 0 else (alpha * target + (1 - alpha) * (1 - target)) * bce(pred, target)
    return _with_known_slope(_focal, _focal_formula, pred, target, alpha, gamma)


def _focal_formula(pred: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    p = torch.sigmoid(pred)
    loss = _power(p + target - 2 * p * target, gamma) * bce(pred, target)
    return loss if alpha < 0 else (alpha * target + (1 - alpha) * (1 - target)) * loss


def _focal(pred: Tensor, target: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    # q = 1 - p_t, so q' = (1 - 2t) p (1 - p), and the slope is alpha_t q^(gamma-1) (gamma q' BCE + q (p - t))
    p, loss, buffer = _start(pred, target)
    rise = torch.addcmul(p, p, target, value=-2, out=buffer)
    q = target + rise
    rise.mul_(loss).addcmul_(rise, p, value=-1)
    slope = p.sub_(target).mul_(q).add_(rise, alpha=gamma)
    loss.mul_(q)
    weight = _safe_power(q, gamma - 1)
    if alpha >= 0:
        weight = torch.mul(weight, 1 - alpha, out=buffer).addcmul_(weight, target, value=2 * alpha - 1)
    return loss.mul_(weight), slope.mul_(weight)


_VARIFOCAL = "t > 0: t BCE(p, t); t = 0: alpha p^gamma BCE"
_VARIFOCAL_LIMITS = {"alpha": Limits(low=0, high=1e6), "gamma": Limits(low=0, high=100), "iou_weighted": Limits()}
_FACTOR_PER_CLASS = Limits(kind="factor_or_factors", words=f"a number from 0 to 1e6, or {_PER_CLASS}")


@loss_row(
    "cls",
    formula=_VARIFOCAL,
    source="2008.13367",
    limits={**_VARIFOCAL_LIMITS, "alpha": _FACTOR_PER_CLASS},
    targets=_IOU_OR_HARD,
)
@loss_row("obj", formula=_VARIFOCAL, source="2008.13367", limits=_VARIFOCAL_LIMITS, targets=_IOU_OR_HARD)
def varifocal(
    pred: Tensor,
    target: Tensor,
    alpha: float | Sequence[float] = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
) -> Tensor:
    """Varifocal loss: ``t BCE(p, t)`` where t > 0, ``alpha p**gamma BCE(p, 0)`` where t = 0.

    The weight of the background is not detached, as in the authors' code.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``: on foreground the IoU of the matched box.
        alpha: weight of the background, at least 0: one number, or C, one per class (the last dimension).
        gamma: at least 0.
        iou_weighted: False gives foreground the weight 1 instead of t.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 2008.13367.
    """
    if not isinstance(alpha, (int, float)):
        loss = varifocal(pred, target, 1.0, gamma, iou_weighted)
        return loss * torch.where(target > 0, 1.0, _factor(pred, alpha, "alpha"))
    return _with_known_slope(_varifocal, _varifocal_formula, pred, target, alpha, gamma, iou_weighted)


def _varifocal_formula(pred: Tensor, target: Tensor, alpha: float, gamma: float, iou_weighted: bool) -> Tensor:
    foreground = target if iou_weighted else torch.ones_like(target)
    weight = torch.where(target > 0, foreground, alpha * _power(torch.sigmoid(pred), gamma))
    return weight * bce(pred, target)


def _varifocal(pred: Tensor, target: Tensor, alpha: float, gamma: float, iou_weighted: bool) -> tuple[Tensor, Tensor]:
    # Foreground has the slope weight (p - t); in the background the weight moves too: alpha p^gamma (p + gamma (1-p) BCE)
    p, loss, buffer = _start(pred, target)
    outside = torch.sign(target, out=buffer).sub_(1)  # -1 in the background, else 0: `where` takes ten times as long
    fall = torch.addcmul(loss, loss, p, value=-1).mul_(outside)
    slope = torch.sub(p, fall, alpha=gamma, out=fall).sub_(target)
    weight = p.pow_(gamma)
    foreground = target if iou_weighted else outside + 1
    torch.addcmul(foreground, outside, weight, value=-alpha, out=weight)
    return loss.mul_(weight), slope.mul_(weight)


@loss_row(
    "obj",
    "cls",
    formula="|t - p|^beta BCE(p, t)",
    source="2006.04388",
    limits={"beta": Limits(low=0, high=100)},
    targets=_IOU_OR_HARD,
)
def quality_focal(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss: ``|t - p|**beta BCE(p, t)``, for soft targets; smallest at p = t.

    The weight is not detached, as in the authors' code. On hard targets the loss is focal without alpha.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``: on foreground the IoU of the matched box.
        beta: at least 0; 0 is BCE.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 2006.04388.
    """
    if beta == 0:
        return bce(pred, target)
    return _with_known_slope(_quality_focal, _quality_focal_formula, pred, target, beta)


def _quality_focal_formula(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    return _power((torch.sigmoid(pred) - target).abs(), beta) * bce(pred, target)


def _quality_focal(pred: Tensor, target: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    # With d = p - t the slope is |d|^(beta-1) sign(d) (beta p (1-p) BCE + d^2).
    p, loss, buffer = _start(pred, target)
    d = p - target
    square = torch.mul(d, d, out=buffer)
    rise = p.addcmul_(p, p, value=-1).mul_(loss)
    if beta == 2:
        return loss.mul_(square), square.add_(rise, alpha=beta).mul_(d)
    size = d.abs()
    weight = _safe_power(size, beta - 1)
    slope = square.add_(rise, alpha=beta).mul_(weight).mul_(d.sign_())
    return loss.mul_(weight).mul_(size), slope


@loss_row(
    "obj",
    "cls",
    name="ghmc",
    formula="BCE / (bins in use x elements in the bin of |p - t|)",
    source="1811.05181",
    limits={"bins": Limits(low=1, high=1000), "momentum": Limits(low=0, high=1, open_high=True)},
    targets=_HARD_OR_IOU,
    whole_set=True,
)
class GHMC(RunningKernel):
    """Gradient harmonised loss: BCE, each element divided by how many others have a gradient like its own.

    ``w = N/(bins in use x count of the bin of |p - t|)``, detached; the mean of ``w BCE`` over the N elements is the
    paper's loss. Elements of weight 0 are not counted. With ``momentum`` the counts of a bin are a running mean over
    the batches in which it was in use, agreed on by all ranks, moved in training mode only.

    Args:
        bins: of the histogram of ``|p - t|``, 1 to 1000.
        momentum: of the running counts, in [0, 1); 0: the counts of this batch.

    arXiv 1811.05181.
    """

    state = ("counts",)
    counts: Tensor

    def __init__(self, bins: int = 10, momentum: float = 0.0) -> None:
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.register_buffer("counts", torch.zeros(bins), persistent=False)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The weighted loss of each element.

        Args:
            pred: logits, any shape.
            target: in [0, 1], the shape of ``pred``.
            weight: of each element, the shape of ``pred``.
        """
        moves = self.moves_now()
        with torch.no_grad():
            gap = (torch.sigmoid(pred) - target).abs()
            place = (gap * self.bins).long().clamp(max=self.bins - 1)
            counted = place if weight is None else torch.where(weight > 0, place, self.bins)
            # Not bincount, which waits for a GPU and which meta tensors do not have.
            places = counted.flatten()
            counts_now = places.new_zeros(self.bins + 1).scatter_add_(0, places, torch.ones_like(places))
            now = counts_now[: self.bins].to(pred.dtype)
            if self.momentum > 0:
                now, counts = self._running_counts(now, moves)
            else:
                counts = now
            used = now > 0
            harmony = torch.where(used, pred.numel() / (used.sum() * counts.clamp(min=1e-30)), 0.0)[place]
        loss = harmony * bce(pred, target)
        return loss if weight is None else loss * weight

    def _running_counts(self, now: Tensor, moves: bool) -> tuple[Tensor, Tensor]:
        # A mean and not a sum over the ranks: each averages over its own elements, and DDP averages the ranks.
        now = sum_over_ranks(now) / number_of_ranks()
        counts = self.counts.to(now)
        if moves or not self.training:
            counts = torch.where(now > 0, self.momentum * counts + (1 - self.momentum) * now, counts)
        if moves:
            self.counts = counts
        return now, counts
