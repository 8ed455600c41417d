"""Box losses: IoU and its descendants, element by element.

Every function takes ``pred`` and ``target`` as ``(N, 4)`` boxes ``(cx, cy, w, h)`` in pixels and returns ``(N,)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .boxes import TINY, TINY_IOU, Overlap, aspect_angle, overlap, power, ratio, root
from .row import Limits, loss_row
from .state import RunningKernel, sum_over_ranks


def _empty_part(pair: Overlap) -> Tensor:
    """GIoU's ``(|C| - U)/|C|`` ``(N,)``: how much of the enclosing box neither box fills."""
    area = pair.enclosing().prod(1)
    return ratio(area - pair.union, area)


def _squared_distance(pred: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the centres ``(N,)`` in px2."""
    return (pred[:, :2] - target[:, :2]).square().sum(1)


def _distance(pred: Tensor, target: Tensor, pair: Overlap) -> Tensor:
    """DIoU's ``rho2/c2`` ``(N,)``."""
    return ratio(_squared_distance(pred, target), pair.enclosing().square().sum(1))


def _distance_and_sides(pred: Tensor, target: Tensor, pair: Overlap) -> tuple[Tensor, Tensor]:
    """EIoU's penalties: DIoU's ``rho2/c2`` ``(N,)``; ``dw2/Cw2`` and ``dh2/Ch2`` ``(N, 2)``."""
    around = pair.enclosing().square()
    distance = ratio(_squared_distance(pred, target), around.sum(1))
    return distance, ratio((pred[:, 2:] - target[:, 2:]).square(), around)


def _aspect_penalty(pred: Tensor, target: Tensor, iou: Tensor, gate: bool) -> Tensor:
    """CIoU's ``a v`` ``(N,)``: the disagreement of the aspect ratios and its detached weight."""
    v = (4 / math.pi**2) * aspect_angle(pred[:, 2:], target[:, 2:]).square()
    with torch.no_grad():
        a = ratio(v, 1 - iou + v)
        if gate:
            a = torch.where(iou > 0.5, a, 0.0)
    return a * v


@loss_row(
    "iou",
    formula="1 - IoU^2 | 1 - IoU | -log IoU",
    source="YOLOX 2107.08430, 1608.01471",
    limits={"mode": Limits(choices=("square", "linear", "log"))},
)
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


@loss_row("iou", formula="1 - IoU + (|C| - U)/|C|", source="1902.09630")
def giou(pred: Tensor, target: Tensor) -> Tensor:
    """Generalised IoU (1902.09630): ``1 - IoU + (|C| - U)/|C|``, range [0, 2]; pulls disjoint boxes together."""
    pair = overlap(pred, target)
    return 1 - pair.iou + _empty_part(pair)


@loss_row("iou", formula="1 - IoU + rho2/c2", source="1911.08287")
def diou(pred: Tensor, target: Tensor) -> Tensor:
    """Distance IoU (1911.08287): ``1 - IoU + rho2/c2``, range [0, 2]."""
    pair = overlap(pred, target)
    return 1 - pair.iou + _distance(pred, target, pair)


@loss_row("iou", formula="1 - IoU + rho2/c2 + a v", source="1911.08287, 2005.03572", limits={"gate": Limits()})
def ciou(pred: Tensor, target: Tensor, gate: bool = False) -> Tensor:
    """Complete IoU (1911.08287, 2005.03572): DIoU + ``a v``, range [0, 3).

    ``gate``: ``a`` is 0 unless IoU > 0.5, as in the journal version and MMDetection.
    """
    pair = overlap(pred, target)
    return 1 - pair.iou + _distance(pred, target, pair) + _aspect_penalty(pred, target, pair.iou, gate)


@loss_row("iou", formula="1 - IoU + rho2/c2 + dw2/Cw2 + dh2/Ch2", source="2101.08158")
def eiou(pred: Tensor, target: Tensor) -> Tensor:
    """Efficient IoU (2101.08158): DIoU + ``dw2/Cw2 + dh2/Ch2``, range [0, 4). Not MMDetection's *Extended* IoU."""
    pair = overlap(pred, target)
    distance, sides = _distance_and_sides(pred, target, pair)
    return 1 - pair.iou + distance + sides.sum(1)


@loss_row("iou", formula="IoU^gamma EIoU", source="2101.08158", limits={"gamma": Limits(low=0, open_low=True)})
def focal_eiou(pred: Tensor, target: Tensor, gamma: float = 0.5) -> Tensor:
    """Focal-EIoU (2101.08158): ``IoU**gamma EIoU``, the weight detached; range [0, 4).

    Boxes that do not touch have weight 0, so nothing pulls them together.
    """
    pair = overlap(pred, target)
    distance, sides = _distance_and_sides(pred, target, pair)
    return power(pair.iou.detach(), gamma) * (1 - pair.iou + distance + sides.sum(1))


@loss_row("iou", formula="1 - IoU^alpha", source="2110.13675", limits={"alpha": Limits(low=0, open_low=True)})
def alpha_iou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-IoU (2110.13675): ``1 - IoU**alpha``, range [0, 1]; alpha 2 is the stock loss."""
    return 1 - power(overlap(pred, target).iou, alpha)


@loss_row(
    "iou",
    formula="1 - IoU^alpha + ((|C| - U)/|C|)^alpha",
    source="2110.13675",
    limits={"alpha": Limits(low=0, open_low=True)},
)
def alpha_giou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-GIoU (2110.13675): ``1 - IoU**alpha + ((|C| - U)/|C|)**alpha``, range [0, 2]."""
    pair = overlap(pred, target)
    # The empty part is a difference of areas: where one box holds the other it is rounding, which a root would magnify.
    return 1 - power(pair.iou, alpha) + power(_empty_part(pair), alpha, floor=TINY)


@loss_row(
    "iou",
    formula="1 - IoU^alpha + (rho2/c2)^alpha",
    source="2110.13675",
    limits={"alpha": Limits(low=0, open_low=True)},
)
def alpha_diou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-DIoU (2110.13675): ``1 - IoU**alpha + (rho2/c2)**alpha``, range [0, 2]."""
    pair = overlap(pred, target)
    return 1 - power(pair.iou, alpha) + power(_distance(pred, target, pair), alpha)


@loss_row(
    "iou",
    formula="1 - IoU^alpha + (rho2/c2)^alpha + (a v)^alpha",
    source="2110.13675",
    limits={"alpha": Limits(low=0, open_low=True)},
)
def alpha_ciou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-CIoU (2110.13675): alpha-DIoU + ``(a v)**alpha``; ``a`` comes from the plain IoU. Range [0, 3)."""
    pair = overlap(pred, target)
    aspect = _aspect_penalty(pred, target, pair.iou, gate=False)
    return 1 - power(pair.iou, alpha) + power(_distance(pred, target, pair), alpha) + power(aspect, alpha)


@loss_row(
    "iou",
    formula="1 - IoU^alpha + (rho2/c2)^alpha + (dw2/Cw2)^alpha + (dh2/Ch2)^alpha",
    source="2110.13675, 2101.08158",
    limits={"alpha": Limits(low=0, open_low=True)},
)
def alpha_eiou(pred: Tensor, target: Tensor, alpha: float = 3.0) -> Tensor:
    """Alpha-EIoU (2110.13675 applied to 2101.08158): each of EIoU's penalties to the power of alpha. Range [0, 4)."""
    pair = overlap(pred, target)
    distance, sides = _distance_and_sides(pred, target, pair)
    return 1 - power(pair.iou, alpha) + power(distance, alpha) + power(sides, alpha).sum(1)


def _mismatch(pred: Tensor, target: Tensor) -> Tensor:
    """``|w - w*|/max(w, w*)`` and the same of the heights ``(N, 2)``, in [0, 1]."""
    return ratio((pred[:, 2:] - target[:, 2:]).abs(), torch.maximum(pred[:, 2:], target[:, 2:]))


def _siou_penalty(pred: Tensor, target: Tensor, pair: Overlap, theta: float) -> Tensor:
    """SIoU's ``(D + O)/2`` ``(N,)``."""
    offset = (pred[:, :2] - target[:, :2]).abs()
    # sin(2 asin(min/rho)) is 2 sin cos of that angle: no arcsine, whose slope is infinite where an offset is 0
    angle = ratio(2 * offset.prod(1), offset.square().sum(1))
    reach = ratio(offset.square(), pair.enclosing().square())
    distance = -torch.expm1(-(2 - angle).unsqueeze(1) * reach)
    shape = power(-torch.expm1(-_mismatch(pred, target)), theta)
    return (distance + shape).sum(1) / 2


@loss_row(
    "iou", formula="1 - IoU + (distance by angle + shape^theta)/2", source="2205.12740", limits={"theta": Limits(low=1)}
)
def siou(pred: Tensor, target: Tensor, theta: float = 4.0) -> Tensor:
    """SIoU (2205.12740): ``1 - IoU + (D + O)/2``, a distance cost that depends on the angle and a shape cost.

    Range [0, 3).
    """
    pair = overlap(pred, target)
    return 1 - pair.iou + _siou_penalty(pred, target, pair, theta)


@loss_row(
    "iou",
    name="wiou",
    formula="w exp(rho2/c2) (1 - IoU); v1: w = 1, v2: sqrt(b), v3: b/(delta alpha^(b-delta)); b = (1-IoU)/mean",
    source="2301.10051",
    limits={
        "version": Limits(choices=(1, 2, 3)),
        "alpha": Limits(low=1, high=5, open_low=True),
        "delta": Limits(low=0, high=6, open_low=True),
        "momentum": Limits(low=0, high=1),
    },
)
class WIoU(RunningKernel):
    """Wise-IoU (2301.10051): ``exp(rho2/c2) (1 - IoU)``, times a weight that depends on how good the box is for now.

    Version 2 stresses boxes that are worse than usual, version 3 those in between: with ``b = (1 - IoU) / mean`` the
    weight is ``sqrt(b)`` and ``b / (delta alpha**(b - delta))``. ``c2`` and the weight are detached. ``mean`` is the
    running mean of ``1 - IoU`` over all ranks; it starts at 1 and moves, before it is used, in training mode only.
    """

    state = ("mean",)
    mean: Tensor

    def __init__(self, version: int = 3, alpha: float = 1.9, delta: float = 3.0, momentum: float = 0.01) -> None:
        super().__init__()
        self.version, self.alpha, self.delta, self.momentum = version, alpha, delta, momentum
        self.register_buffer("mean", torch.ones(()), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Element-wise loss ``(N,)`` of boxes ``(N, 4)``."""
        pair = overlap(pred, target)
        loss = 1 - pair.iou
        diagonal = pair.enclosing().square().sum(1).detach()
        attention = torch.exp(ratio(_squared_distance(pred, target), diagonal))
        if self.version == 1:
            return attention * loss
        moves = self.moves_now()
        with torch.no_grad():
            badness = loss.clamp(min=0)
            badness = badness / self._running_mean(badness, moves).clamp(min=TINY)
            if self.version == 2:
                weight = badness.sqrt()
            else:
                weight = badness / self.delta * torch.exp((self.delta - badness) * math.log(self.alpha))
        return weight * attention * loss

    def _running_mean(self, badness: Tensor, moves: bool) -> Tensor:
        mean = self.mean.to(badness)
        if moves:
            total, count = sum_over_ranks(torch.stack([badness.sum(), badness.new_tensor(float(len(badness)))]))
            moved = (1 - self.momentum) * mean + self.momentum * total / count.clamp(min=1)
            self.mean = mean = torch.where(count > 0, moved, mean)
        return mean


@loss_row(
    "iou",
    formula="1 - IoU + (d_topleft2 + d_bottomright2)/(H2 + W2)",
    source="2307.07662",
    limits={"image_size": Limits(kind="size", words="(height, width) in px, or None: the batch's")},
    wants=("image_size",),
)
def mpdiou(pred: Tensor, target: Tensor, image_size: tuple[float, float] | None = None) -> Tensor:
    """MPDIoU (2307.07662): ``1 - IoU + (d_topleft2 + d_bottomright2)/(H2 + W2)`` of the input image (H, W) in px.

    The loss stage hands the size of the batch over when it is not given.
    """
    if image_size is None:
        raise ValueError("mpdiou: only the loss stage knows the size of the images; here set image_size=(H, W)")
    pair = overlap(pred, target)
    corners = (pair.pred_tl - pair.target_tl).square() + (pair.pred_br - pair.target_br).square()
    return 1 - pair.iou + corners.sum(1) / (image_size[0] ** 2 + image_size[1] ** 2)


def _one_minus_inner(pred: Tensor, target: Tensor, ratio: float) -> Tensor:
    """``1 - IoU`` ``(N,)`` of both boxes scaled about their own centres (2311.02877).

    Inner-X is ``L_X + IoU - IoU_inner``: the IoU of X cancels, its penalties stay, and these are of the original boxes.
    """
    scale = pred.new_tensor([1.0, 1.0, ratio, ratio])
    return 1 - overlap(pred * scale, target * scale).iou


@loss_row("iou", formula="1 - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_iou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-IoU (2311.02877): ``1 - IoU`` of boxes scaled by ratio, range [0, 1].

    Ratios below 1 are for boxes that are good already, above 1 for those that are not; where the scaled boxes do not
    touch nothing pulls.
    """
    return _one_minus_inner(pred, target, ratio)


@loss_row("iou", formula="GIoU + IoU - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_giou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-GIoU (2311.02877): ``GIoU + IoU - IoU_inner``, range [0, 2]."""
    return _one_minus_inner(pred, target, ratio) + _empty_part(overlap(pred, target))


@loss_row("iou", formula="DIoU + IoU - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_diou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-DIoU (2311.02877): ``DIoU + IoU - IoU_inner``, range [0, 2]."""
    return _one_minus_inner(pred, target, ratio) + _distance(pred, target, overlap(pred, target))


@loss_row("iou", formula="CIoU + IoU - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_ciou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-CIoU (2311.02877): ``CIoU + IoU - IoU_inner``, range [0, 3)."""
    pair = overlap(pred, target)
    penalty = _distance(pred, target, pair) + _aspect_penalty(pred, target, pair.iou, gate=False)
    return _one_minus_inner(pred, target, ratio) + penalty


@loss_row("iou", formula="EIoU + IoU - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_eiou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-EIoU (2311.02877): ``EIoU + IoU - IoU_inner``, range [0, 4)."""
    distance, sides = _distance_and_sides(pred, target, overlap(pred, target))
    return _one_minus_inner(pred, target, ratio) + distance + sides.sum(1)


@loss_row("iou", formula="SIoU + IoU - IoU_inner", source="2311.02877", limits={"ratio": Limits(low=0, open_low=True)})
def inner_siou(pred: Tensor, target: Tensor, ratio: float = 0.75) -> Tensor:
    """Inner-SIoU (2311.02877): ``SIoU + IoU - IoU_inner``, range [0, 3)."""
    return _one_minus_inner(pred, target, ratio) + _siou_penalty(pred, target, overlap(pred, target), theta=4.0)


@loss_row(
    "iou",
    formula="1 - IoU + (hh dx2 + ww dy2)/c2 + shape/2, weights by the target's shape^scale",
    source="2312.17663",
    limits={"scale": Limits(low=0)},
)
def shape_iou(pred: Tensor, target: Tensor, scale: float = 0.0) -> Tensor:
    """Shape-IoU (2312.17663): offsets and sides weighed by the target's shape, range [0, 4).

    ``scale`` goes with the size of the objects in the data set; at 0 the shape does not matter.
    """
    pair = overlap(pred, target)
    with torch.no_grad():
        # 2 w^s/(w^s + h^s), as a sigmoid: a power of a side overflows
        sides = target[:, 2:].clamp(min=TINY).log()
        across = 2 * torch.sigmoid(scale * (sides[:, 1] - sides[:, 0]))  # the paper's hh, large for tall targets
        weight = torch.stack([across, 2 - across], 1)
    offset = (weight * (pred[:, :2] - target[:, :2]).square()).sum(1)
    distance = ratio(offset, pair.enclosing().square().sum(1))
    shape = power(-torch.expm1(-weight * _mismatch(pred, target)), 4).sum(1)
    return 1 - pair.iou + distance + shape / 2


@loss_row(
    "iou",
    formula="v1: 2 - IoU - exp(-P2); v2: 3 x exp(-x2) v1, x = lambda exp(-P)",
    source="Powerful-IoU, Neural Networks 170 (2024)",
    limits={"version": Limits(choices=(1, 2)), "lambda_": Limits(low=0, open_low=True)},
)
def piou(pred: Tensor, target: Tensor, version: int = 2, lambda_: float = 1.3) -> Tensor:
    """Powerful-IoU (Neural Networks 170, 2024): ``1 - IoU + 1 - exp(-P2)``, range [0, 2].

    P is the mean distance of the edges in sides of the target. Version 2 multiplies by ``3 x exp(-x2)``,
    ``x = lambda exp(-P)``, which is not detached, as in the authors' code: boxes far away are let go.
    """
    pair = overlap(pred, target)
    edges = (pair.pred_tl - pair.target_tl).abs() + (pair.pred_br - pair.target_br).abs()
    p = ratio(edges, target[:, 2:]).sum(1) / 4
    loss = 1 - pair.iou - torch.expm1(-p.square())
    if version == 1:
        return loss
    x = lambda_ * torch.exp(-p)
    return 3 * x * torch.exp(-x.square()) * loss


@loss_row(
    "iou",
    formula="1 - exp(-W/constant)",
    source="2110.13389",
    limits={
        "constant": Limits(kind="length_or_mean", words="a number of px at least 0.001, or 'mean': the boxes' size")
    },
)
def nwd(pred: Tensor, target: Tensor, constant: float | str = 12.8) -> Tensor:
    """Normalised Wasserstein distance (2110.13389): ``1 - exp(-W/constant)``, range [0, 1), for tiny objects.

    ``W2 = dx2 + dy2 + (dw2 + dh2)/4`` in px2; ``constant`` is about the mean size of the objects in px, or ``mean``, for
    that of the targets handed over (the square root of their area).
    """
    length = root(target[:, 2:].prod(1)).mean().clamp(min=1e-3) if isinstance(constant, str) else constant
    gap = (pred - target).square()
    return -torch.expm1(-root(gap[:, :2].sum(1) + gap[:, 2:].sum(1) / 4) / length)
