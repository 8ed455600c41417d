"""Box losses: ``1 - IoU`` and penalties, and the modifiers that turn each of them into its relatives.

A loss is written as a function of its penalties: ``giou(pair)`` returns what GIoU adds to ``1 - IoU``. `BoxLoss` puts
IoU, penalties and modifiers together, element by element, for ``(N, 4)`` boxes ``(cx, cy, w, h)`` in pixels. Losses of
another form (``-log IoU``, NWD) are plain functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .boxes import TINY, TINY_IOU, Pair, aspect_angle, overlap, power, ratio, root
from .row import Limits, alias_row, loss_row
from .state import RunningKernel, sum_over_ranks

Penalties = tuple[Tensor, ...]
"""The penalties of a loss, ``(N,)`` each, or ``(N, 2)`` for one per side. A power is taken of each on its own."""

#: Modifier -> what it may be. The defaults stand in `BoxLoss`.
MODIFIERS = {
    "power": Limits(low=0, high=100, open_low=True),
    "inner": Limits(low=0, high=100, open_low=True),
    "focaler": Limits(kind="interval", words="None, or (d, u) with 0 <= d < u <= 1"),
    "focal": Limits(low=0, high=100),
    "wise": Limits(
        kind="wise",
        words="None, 1, 2, 3, or dict(version=3, alpha=1.9, delta=3, momentum=0.01) with version 1, 2 or 3, 1 < alpha <= 5, "
        "0 < delta <= 6 and 0 <= momentum <= 1",
    ),
}


class Wise:
    """The knobs of the modifier ``wise``: which version of Wise-IoU's weight, and its constants.

    Args:
        version: 1: attention only; 2: stresses boxes that are worse than usual; 3: those in between.
        alpha, delta: of version 3: the weight is ``b/(delta alpha**(b - delta))``.
        momentum: of the running mean of ``1 - IoU``, versions 2 and 3.
    """

    #: alpha**delta goes into the gradient, which has to fit fp16.
    limits: Mapping[str, Limits] = {
        "version": Limits(choices=(1, 2, 3)),
        "alpha": Limits(low=1, high=5, open_low=True),
        "delta": Limits(low=0, high=6, open_low=True),
        "momentum": Limits(low=0, high=1),
    }
    #: version -> the knobs that have a meaning in it.
    knobs: Mapping[int, tuple[str, ...]] = {
        1: ("version",),
        2: ("version", "momentum"),
        3: ("version", "alpha", "delta", "momentum"),
    }

    def __init__(self, version: int = 3, alpha: float = 1.9, delta: float = 3.0, momentum: float = 0.01) -> None:
        self.version, self.alpha, self.delta, self.momentum = version, alpha, delta, momentum

    def weight(self, badness: Tensor) -> Tensor:
        """The weight ``(N,)`` of boxes with ``b = (1 - IoU) / mean`` ``(N,)``, versions 2 and 3."""
        if self.version == 2:
            return badness.sqrt()
        return badness / self.delta * torch.exp((self.delta - badness) * math.log(self.alpha))


class BoxLoss(RunningKernel):
    """``1 - IoU + penalties`` with modifiers, element by element.

    In this order: ``inner``, ``focaler`` and ``power`` on the IoU, ``power`` on each penalty, then the weights.

    Args:
        penalties: ``penalties(pair, **knobs)``.
        knobs: of the penalties.
        attention: a factor on the loss that belongs to its formula, ``attention(pair, **knobs)``, not detached.
        power: ``1 - IoU**power + sum of penalty**power`` (Alpha-IoU, 2110.13675); above 0.
        inner: the IoU is that of both boxes scaled by this about their own centres, the penalties are those of the
            boxes as they are (Inner-IoU, 2311.02877); above 0. Below 1 it is for boxes that are good already, above 1
            for those that are not. Where the scaled boxes do not touch, the IoU part has no gradient.
        focaler: (d, u): the IoU becomes ``clip((IoU - d)/(u - d), 0, 1)`` (Focaler-IoU, 2401.10525).
        focal: the loss is multiplied by ``IoU**focal``, detached (Focal-EIoU, 2101.08158); at least 0. Boxes that do
            not touch get weight 0.
        wise: the loss is multiplied by Wise-IoU's attention ``exp(rho2/c2)``, c2 detached, and in versions 2 and 3 by
            its weight of ``b = (1 - IoU) / mean``, detached (2301.10051). ``mean`` is the running mean of ``1 - IoU``
            over all ranks; it starts at 1 and moves, before it is used, in training mode only.
    """

    mean: Tensor

    def __init__(
        self,
        penalties: Callable[..., Penalties],
        knobs: Mapping[str, Any] | None = None,
        attention: Callable[..., Tensor | None] | None = None,
        power: float = 1.0,
        inner: float = 1.0,
        focaler: tuple[float, float] | None = None,
        focal: float = 0.0,
        wise: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.penalties, self.attention = penalties, attention
        self.knobs = {key: value for key, value in (knobs or {}).items() if value is not None}
        self.power, self.inner, self.focaler, self.focal = power, inner, focaler, focal
        self.wise = None if wise is None else Wise(**wise)
        if self.wise is not None and self.wise.version > 1:
            self.state = ("mean",)
            self.register_buffer("mean", torch.ones(()), persistent=False)

    def forward(self, pred: Tensor, target: Tensor, **facts: Any) -> Tensor:
        """The loss ``(N,)`` of boxes ``(N, 4)``; a knob comes before the fact of that name."""
        pair, knobs = Pair(pred, target, adds_up=self.power == 1), {**facts, **self.knobs}
        loss = 1 - self._similarity(pair)
        for penalty in self.penalties(pair, **knobs):
            raised = penalty if self.power == 1 else power(penalty, self.power, _FLOORS.get(self.penalties, TINY_IOU))
            loss = loss + (raised if raised.dim() == 1 else raised.sum(1))
        if self.attention is not None:
            factor = self.attention(pair, **knobs)
            loss = loss if factor is None else factor * loss
        if self.wise is not None:
            loss = self._wise_weight(pair, self.wise) * loss
        return loss if self.focal == 0 else power(pair.iou.detach(), self.focal) * loss

    def _similarity(self, pair: Pair) -> Tensor:
        """The IoU part ``(N,)``, in [0, 1]."""
        if self.inner == 1:
            similarity = pair.iou
        else:
            scale = pair.pred.new_tensor([1.0, 1.0, self.inner, self.inner])
            similarity = overlap(pair.pred * scale, pair.target * scale).iou
        if self.focaler is not None:
            low, high = self.focaler
            similarity = ((similarity - low) / (high - low)).clamp(0, 1)
        if self.power == 1:
            return similarity
        return similarity**self.power if self.power > 1 else power(similarity, self.power)

    def _wise_weight(self, pair: Pair, wise: Wise) -> Tensor:
        iou = pair.iou.detach()
        attention = torch.exp(ratio(pair.distance, pair.diagonal.detach()))
        if wise.version == 1:
            return attention
        moves = self.moves_now()
        with torch.no_grad():
            badness = (1 - iou).clamp(min=0)
            weight = wise.weight(badness / self._running_mean(badness, wise.momentum, moves).clamp(min=TINY))
        return weight * attention

    def _running_mean(self, badness: Tensor, momentum: float, moves: bool) -> Tensor:
        mean = self.mean.to(badness)
        if moves:
            total, count = sum_over_ranks(torch.stack([badness.sum(), badness.new_tensor(float(len(badness)))]))
            moved = (1 - momentum) * mean + momentum * total / count.clamp(min=1)
            self.mean = mean = torch.where(count > 0, moved, mean)
        return mean


def _empty_part(pair: Pair) -> Tensor:
    """GIoU's ``(|C| - U)/|C|`` ``(N,)``: how much of the enclosing box neither box fills."""
    area = pair.enclosing.prod(1)
    return ratio(area - pair.overlap.union, area)


def _distance(pair: Pair) -> Tensor:
    """DIoU's ``rho2/c2`` ``(N,)``."""
    return ratio(pair.distance, pair.diagonal)


# ---------------------------------------------------------------------------------------------------------------------
# The losses of the form 1 - IoU + penalties.


@loss_row(
    "iou",
    formula="1 - IoU^2 | 1 - IoU | -log IoU",
    source="YOLOX 2107.08430, 1608.01471",
    limits={"mode": Limits(choices=("square", "linear", "log"))},
    power=2.0,
)
def iou(pair: Pair, mode: str = "square") -> Penalties:
    """IoU loss: ``1 - IoU**2`` is stock YOLOX; no penalties.

    Args:
        pair: boxes ``(N, 4)`` in px.
        mode: ``square`` is power=2, ``linear`` power=1; ``log`` is ``-log IoU``, see `log_iou`.

    Returns:
        Nothing: the loss is in [0, 1]. Where boxes do not touch it has no gradient.

    YOLOX 2107.08430.
    """
    return ()


@loss_row("iou", formula="1 - IoU + (|C| - U)/|C|", source="1902.09630", power=1.0)
def giou(pair: Pair) -> Penalties:
    """Generalised IoU: ``1 - IoU + (|C| - U)/|C|``; pulls disjoint boxes together.

    Args:
        pair: boxes ``(N, 4)`` in px.

    Returns:
        The share ``(N,)`` of the enclosing box that neither box fills, in [0, 1]; the loss is in [0, 2].

    arXiv 1902.09630.
    """
    return (_empty_part(pair),)


# The empty part is a difference of areas: where one box holds the other it is rounding, which a root would magnify.
_FLOORS: dict[Callable[..., Penalties], float] = {giou: TINY}


@loss_row("iou", formula="1 - IoU + rho2/c2", source="1911.08287", power=1.0)
def diou(pair: Pair) -> Penalties:
    """Distance IoU: ``1 - IoU + rho2/c2``.

    Args:
        pair: boxes ``(N, 4)`` in px.

    Returns:
        The squared distance ``(N,)`` of the centres by the squared diagonal of the enclosing box, in [0, 1]; the loss
        is in [0, 2].

    arXiv 1911.08287.
    """
    return (_distance(pair),)


@loss_row(
    "iou",
    formula="1 - IoU + rho2/c2 + a v",
    source="1911.08287, 2005.03572",
    limits={"gate": Limits()},
    power=1.0,
)
def ciou(pair: Pair, gate: bool = False) -> Penalties:
    """Complete IoU: DIoU + ``a v``, ``v = 4/pi2 (atan(w*/h*) - atan(w/h))2`` and ``a = v/(1 - IoU + v)``, detached.

    Args:
        pair: boxes ``(N, 4)`` in px.
        gate: ``a`` is 0 unless IoU > 0.5, as in the journal version and MMDetection.

    Returns:
        DIoU's penalty and ``a v``, ``(N,)`` each; the loss is in [0, 3). ``a`` comes from the plain IoU, whatever the
        modifiers.

    arXiv 1911.08287 and 2005.03572.
    """
    v = (4 / math.pi**2) * aspect_angle(pair.pred[:, 2:], pair.target[:, 2:]).square()
    iou = pair.iou.detach()
    with torch.no_grad():
        a = ratio(v, 1 - iou + v)
        if gate:
            a = torch.where(iou > 0.5, a, 0.0)
    return _distance(pair), a * v


@loss_row("iou", formula="1 - IoU + rho2/c2 + dw2/Cw2 + dh2/Ch2", source="2101.08158", power=1.0)
def eiou(pair: Pair) -> Penalties:
    """Efficient IoU: DIoU + ``(w - w*)2/Cw2 + (h - h*)2/Ch2``. Not MMDetection's *Extended* IoU.

    Args:
        pair: boxes ``(N, 4)`` in px.

    Returns:
        DIoU's penalty ``(N,)`` and those of width and height ``(N, 2)``; the loss is in [0, 4).

    arXiv 2101.08158.
    """
    sides = (pair.pred[:, 2:] - pair.target[:, 2:]).square()
    return _distance(pair), ratio(sides, pair.enclosing_squared)


@loss_row(
    "iou",
    formula="1 - IoU + (distance by angle + shape^theta)/2",
    source="2205.12740",
    limits={"theta": Limits(low=1, high=100)},
    power=1.0,
)
def siou(pair: Pair, theta: float = 4.0) -> Penalties:
    """SIoU: ``1 - IoU + (D + O)/2``, a distance cost that depends on the angle, and a shape cost.

    Args:
        pair: boxes ``(N, 4)`` in px.
        theta: the power in the shape cost, at least 1; the paper has 2 to 6.

    Returns:
        ``D/2`` and ``O/2``, ``(N,)`` each; the loss is in [0, 3).

    arXiv 2205.12740.
    """
    offset = pair.offset.abs()
    across, down = offset.unbind(1)
    # sin(2 asin(min/rho)) is 2 sin cos of that angle: no arcsine, whose slope is infinite where an offset is 0
    angle = ratio(2 * across * down, pair.distance)
    reach = ratio(offset.square(), pair.enclosing_squared)
    distance = -torch.expm1((angle - 2).unsqueeze(1) * reach)
    shape = power(-torch.expm1(-pair.mismatch()), theta)
    return distance.sum(1) / 2, shape.sum(1) / 2


@loss_row(
    "iou",
    formula="1 - IoU + (d_topleft2 + d_bottomright2)/(H2 + W2)",
    source="2307.07662",
    limits={"image_size": Limits(kind="size", words="(height, width) in px, or None: the batch's")},
    wants=("image_size",),
    power=1.0,
)
def mpdiou(pair: Pair, image_size: tuple[float, float] | None = None) -> Penalties:
    """MPDIoU: ``1 - IoU + (d_topleft2 + d_bottomright2)/(H2 + W2)`` of the input image.

    Args:
        pair: boxes ``(N, 4)`` in px.
        image_size: (H, W) in px; the loss stage hands the size of the batch over when it is not given.

    Returns:
        The squared distances of the two corners by the squared diagonal of the image, ``(N,)`` each, or their sum.

    Raises:
        ValueError: nobody has said how large the images are.

    arXiv 2307.07662.
    """
    if image_size is None:
        raise ValueError("mpdiou: only the loss stage knows the size of the images; here set image_size=(H, W)")
    lies = pair.overlap
    diagonal = image_size[0] ** 2 + image_size[1] ** 2
    top_left, bottom_right = lies.pred_tl - lies.target_tl, lies.pred_br - lies.target_br
    if pair.adds_up:
        return ((top_left.square() + bottom_right.square()).sum(1) / diagonal,)
    return top_left.square().sum(1) / diagonal, bottom_right.square().sum(1) / diagonal


@loss_row(
    "iou",
    formula="1 - IoU + (hh dx2 + ww dy2)/c2 + shape/2, weights by the target's shape^scale",
    source="2312.17663",
    limits={"scale": Limits(low=0, high=1e6)},
    power=1.0,
)
def shape_iou(pair: Pair, scale: float = 0.0) -> Penalties:
    """Shape-IoU: offsets and sides weighed by the target's shape.

    Args:
        pair: boxes ``(N, 4)`` in px.
        scale: at least 0; goes with the size of the objects in the data set. At 0 the shape does not matter.

    Returns:
        The distance and half the shape cost, ``(N,)`` each; the loss is in [0, 4).

    arXiv 2312.17663.
    """
    with torch.no_grad():
        # 2 w^s/(w^s + h^s), as a sigmoid: a power of a side overflows
        sides = pair.target[:, 2:].clamp(min=TINY).log()
        across = 2 * torch.sigmoid(scale * (sides[:, 1] - sides[:, 0]))  # the paper's hh, large for tall targets
        weight = torch.stack([across, 2 - across], 1)
    offset = (weight * pair.offset.square()).sum(1)
    shape = power(-torch.expm1(-weight * pair.mismatch()), 4).sum(1)
    return ratio(offset, pair.diagonal), shape / 2


def _let_go(pair: Pair, version: int = 2, lambda_: float = 1.3) -> Tensor | None:
    """Powerful-IoU's attention ``(N,)`` of version 2: ``3 x exp(-x2)``, ``x = lambda exp(-P)``."""
    if version == 1:
        return None
    x = lambda_ * torch.exp(-pair.edges)
    return 3 * x * torch.exp(-x.square())


@loss_row(
    "iou",
    formula="v1: 2 - IoU - exp(-P2); v2: 3 x exp(-x2) v1, x = lambda exp(-P)",
    source="Powerful-IoU, Neural Networks 170 (2024)",
    limits={"version": Limits(choices=(1, 2)), "lambda_": Limits(low=0, high=1e6, open_low=True)},
    power=1.0,
    attention=_let_go,
)
def piou(pair: Pair, version: int = 2, lambda_: float = 1.3) -> Penalties:
    """Powerful-IoU: ``1 - IoU + 1 - exp(-P2)``, P the mean distance of the edges in sides of the target.

    Args:
        pair: boxes ``(N, 4)`` in px.
        version: 2 multiplies by ``3 x exp(-x2)``, ``x = lambda exp(-P)``, which is not detached, as in the authors'
            code: boxes far away are let go.
        lambda_: of version 2, above 0.

    Returns:
        ``1 - exp(-P2)`` ``(N,)``, in [0, 1); the loss is in [0, 2].

    Neural Networks 170 (2024).
    """
    return (-torch.expm1(-pair.edges.square()),)


# ---------------------------------------------------------------------------------------------------------------------
# Names of losses with modifiers.

_ALPHA = {"alpha": "power"}
_RATIO = {"ratio": "inner"}
for _name, _formula in (
    ("iou", "1 - IoU^alpha"),
    ("giou", "1 - IoU^alpha + ((|C| - U)/|C|)^alpha"),
    ("diou", "1 - IoU^alpha + (rho2/c2)^alpha"),
    ("ciou", "1 - IoU^alpha + (rho2/c2)^alpha + (a v)^alpha"),
    ("eiou", "1 - IoU^alpha + (rho2/c2)^alpha + (dw2/Cw2)^alpha + (dh2/Ch2)^alpha"),
):
    alias_row(f"alpha_{_name}", of=_name, formula=_formula, source="2110.13675", renames=_ALPHA, sets={"power": 3.0})
_INNER = {"power": 1.0, "inner": 0.75}
alias_row("inner_iou", of="iou", formula="1 - IoU_inner", source="2311.02877", renames=_RATIO, sets=_INNER)
for _name in ("giou", "diou", "ciou", "eiou", "siou"):
    _formula = f"{_name[0].upper()}IoU + IoU - IoU_inner"
    alias_row(f"inner_{_name}", of=_name, formula=_formula, source="2311.02877", renames=_RATIO, sets={"inner": 0.75})
alias_row(
    "focal_eiou",
    of="eiou",
    formula="IoU^gamma EIoU",
    source="2101.08158",
    renames={"gamma": "focal"},
    sets={"focal": 0.5},
)
alias_row(
    "wiou",
    of="iou",
    formula="w exp(rho2/c2) (1 - IoU); v1: w = 1, v2: sqrt(b), v3: b/(delta alpha^(b-delta)); b = (1-IoU)/mean",
    source="2301.10051",
    renames={knob: f"wise.{knob}" for knob in Wise.limits},
    sets={"power": 1.0, "wise": {"version": 3}},
)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of another form.


def log_iou(pred: Tensor, target: Tensor) -> Tensor:
    """``-log IoU``: ``iou`` with ``mode="log"``.

    Args:
        pred: ``(N, 4)`` boxes (cx, cy, w, h) in px.
        target: ``(N, 4)``.

    Returns:
        ``(N,)``, in [0, 69]: 69 where the boxes do not touch, without gradient.

    arXiv 1608.01471.
    """
    return -torch.log(overlap(pred, target).iou.clamp(min=TINY_IOU))


@loss_row(
    "iou",
    formula="1 - exp(-W/constant)",
    source="2110.13389",
    limits={
        "constant": Limits(kind="length_or_mean", words="a number of px at least 0.001, or 'mean': the boxes' size")
    },
)
def nwd(pred: Tensor, target: Tensor, constant: float | str = 12.8) -> Tensor:
    """Normalised Wasserstein distance, for tiny objects: ``1 - exp(-W/constant)``, ``W2 = dx2 + dy2 + (dw2 + dh2)/4``.

    Args:
        pred: ``(N, 4)`` boxes (cx, cy, w, h) in px.
        target: ``(N, 4)``.
        constant: about the mean size of the objects in px (the paper's 12.8 is that of AI-TOD), or ``mean``, for that of
            the targets of the call (the square root of their area).

    Returns:
        ``(N,)``, in [0, 1).

    arXiv 2110.13389.
    """
    length = root(target[:, 2:].prod(1)).mean().clamp(min=1e-3) if isinstance(constant, str) else constant
    gap = (pred - target).square()
    return -torch.expm1(-root(gap[:, :2].sum(1) + gap[:, 2:].sum(1) / 4) / length)
