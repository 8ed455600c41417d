"""The kit's losses, a row each, and MMDetection's names for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..losses import focal, iou, l1, region
from .knobs import Knob, factor_or_factors, factors, length_or_mean, size


@dataclass(frozen=True)
class Loss:
    """What fills a term under a name.

    Attributes:
        build: the kernel; for a user's own loss, the class.
        knobs: its settings.
        formula, paper: one line each.
        targets: which targets of the objectness term it can have, the default first.
        whole_set: it weighs and averages over its set itself, so no ``avg_factor`` divides it.
        wants: facts of the batch that it asks the loss stage for.
        calibrated: whether the loss stage trains it as `Calibrated` unless its ``preset`` is ``paper``.
        beside: its share `Beside` YOLOX's own loss, where it cannot stand alone, unless its ``preset`` is ``paper``.
        by_overlap: whether the loss stage trains it as `ByOverlap` unless its ``preset`` is ``paper``.
        published: settings that ``preset="paper"`` has otherwise than the defaults.
        own: False for a user's class, which checks its own knobs.
    """

    build: Callable[..., Any]
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    formula: str = ""
    paper: str = ""
    targets: tuple[str, ...] = ("hard",)
    whole_set: bool = False
    wants: tuple[str, ...] = ()
    calibrated: bool = False
    beside: float | None = None
    by_overlap: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    own: bool = True

    @property
    def has_presets(self) -> bool:
        """Whether the default is another than the paper's."""
        return self.calibrated or self.by_overlap or self.beside is not None


_HARD_OR_IOU = ("hard", "iou")
# Calibrated, a hard target does better than the paper's: YOLOX's class targets carry the IoU already.
_IOU_IN_PAPER = {"target": "iou"}
_FOCAL = {"alpha": Knob(0.25, low=0, high=1, also=(-1.0,)), "gamma": Knob(2.0, low=0)}
_SMOOTH = Knob(1.0, low=1e-6)  # less is 0 in fp32, and 0/0 in an image without a box
_DICE = {"smooth": _SMOOTH, "squared": Knob(False)}
_TVERSKY = {"alpha": Knob(0.3, low=0), "beta": Knob(0.7, low=0), "smooth": _SMOOTH}
_DICE_FOCAL = {**_DICE, **_FOCAL, "weight": Knob(1.0, low=0)}
# Foreground anchors have no order by image, so only the objectness map can be told apart by image.
_SCOPE = {"scope": Knob("batch", choices=("batch", "image"))}
_PER_CLASS = "a list of numbers at least 0, one a class, or a dict from class names to such numbers"
_POS_WEIGHT = Knob(1.0, parse=factor_or_factors, words=f"a number at least 0, or {_PER_CLASS}")
_CLASS_WEIGHT = Knob(None, parse=factors, words=f"None, or {_PER_CLASS}")
_ALPHA = {"alpha": Knob(3.0, low=0, open_low=True)}
_RATIO = {"ratio": Knob(0.75, low=0, open_low=True)}

_BCE = ("-t log p - (1-t) log(1-p)", "YOLOX 2107.08430")
_DICE_TEXT = ("1 - (2 sum p t + s)/(sum p + sum t + s)", "1606.04797")
_TVERSKY_TEXT = ("1 - (TP + s)/(TP + alpha FP + beta FN + s)", "1706.05721")
_DICE_FOCAL_TEXT = ("dice + weight x mean focal", "1606.04797, 1708.02002")

# (terms, name, loss), in the order in which `list` shows them
ROWS: tuple[tuple[tuple[str, ...], str, Loss], ...] = (
    (("obj",), "bce", Loss(focal.bce, {"pos_weight": Knob(1.0, low=0)}, *_BCE, targets=_HARD_OR_IOU)),
    (("cls",), "bce", Loss(focal.bce, {"pos_weight": _POS_WEIGHT, "class_weight": _CLASS_WEIGHT}, *_BCE)),
    (
        ("obj", "cls"),
        "focal",
        Loss(focal.focal, _FOCAL, "alpha_t (1-p_t)^gamma BCE", "1708.02002", calibrated=True),
    ),
    (
        ("obj", "cls"),
        "varifocal",
        Loss(
            focal.varifocal,
            {"alpha": Knob(0.75, low=0), "gamma": Knob(2.0, low=0), "iou_weighted": Knob(True)},
            "t > 0: t BCE(p, t); t = 0: alpha p^gamma BCE",
            "2008.13367",
            targets=_HARD_OR_IOU,
            calibrated=True,
            published=_IOU_IN_PAPER,
        ),
    ),
    (
        ("obj", "cls"),
        "quality_focal",
        Loss(
            focal.quality_focal,
            {"beta": Knob(2.0, low=0)},
            "|t - p|^beta BCE(p, t)",
            "2006.04388",
            targets=_HARD_OR_IOU,
            calibrated=True,
            published=_IOU_IN_PAPER,
        ),
    ),
    (
        ("obj", "cls"),
        "ghmc",
        Loss(
            focal.GHMC,
            {"bins": Knob(10, low=1, high=1000), "momentum": Knob(0.0, low=0, high=1, open_high=True)},
            "BCE / (bins in use x elements in the bin of |p - t|)",
            "1811.05181",
            targets=_HARD_OR_IOU,
            whole_set=True,
            beside=0.2,  # it does not fade as BCE does: at 1 it outweighs it in the end
        ),
    ),
    (
        ("obj",),
        "dice",
        Loss(
            region.dice,
            {**_DICE, **_SCOPE},
            *_DICE_TEXT,
            targets=_HARD_OR_IOU,
            whole_set=True,
            wants=("images",),
            beside=1.0,
        ),
    ),
    (("cls",), "dice", Loss(region.dice, _DICE, *_DICE_TEXT, whole_set=True, beside=1.0)),
    (
        ("obj",),
        "tversky",
        Loss(
            region.tversky,
            {**_TVERSKY, **_SCOPE},
            *_TVERSKY_TEXT,
            targets=_HARD_OR_IOU,
            whole_set=True,
            wants=("images",),
            beside=1.0,
        ),
    ),
    (("cls",), "tversky", Loss(region.tversky, _TVERSKY, *_TVERSKY_TEXT, whole_set=True, beside=1.0)),
    (
        ("obj",),
        "dice_focal",
        Loss(
            region.dice_focal,
            {**_DICE_FOCAL, **_SCOPE},
            *_DICE_FOCAL_TEXT,
            whole_set=True,
            wants=("images",),
            beside=1.0,
        ),
    ),
    (("cls",), "dice_focal", Loss(region.dice_focal, _DICE_FOCAL, *_DICE_FOCAL_TEXT, whole_set=True, beside=1.0)),
    (
        ("iou",),
        "iou",
        Loss(
            iou.iou,
            {"mode": Knob("square", choices=("square", "linear", "log"))},
            "1 - IoU^2 | 1 - IoU | -log IoU",
            "YOLOX 2107.08430, 1608.01471",
        ),
    ),
    (("iou",), "giou", Loss(iou.giou, {}, "1 - IoU + (|C| - U)/|C|", "1902.09630", by_overlap=True)),
    (("iou",), "diou", Loss(iou.diou, {}, "1 - IoU + rho2/c2", "1911.08287", by_overlap=True)),
    (
        ("iou",),
        "ciou",
        Loss(iou.ciou, {"gate": Knob(False)}, "1 - IoU + rho2/c2 + a v", "1911.08287, 2005.03572", by_overlap=True),
    ),
    (("iou",), "eiou", Loss(iou.eiou, {}, "1 - IoU + rho2/c2 + dw2/Cw2 + dh2/Ch2", "2101.08158", by_overlap=True)),
    (
        ("iou",),
        "focal_eiou",
        Loss(
            iou.focal_eiou, {"gamma": Knob(0.5, low=0, open_low=True)}, "IoU^gamma EIoU", "2101.08158", by_overlap=True
        ),
    ),
    (("iou",), "alpha_iou", Loss(iou.alpha_iou, _ALPHA, "1 - IoU^alpha", "2110.13675")),
    (("iou",), "alpha_giou", Loss(iou.alpha_giou, _ALPHA, "1 - IoU^alpha + ((|C| - U)/|C|)^alpha", "2110.13675")),
    (("iou",), "alpha_diou", Loss(iou.alpha_diou, _ALPHA, "1 - IoU^alpha + (rho2/c2)^alpha", "2110.13675")),
    (
        ("iou",),
        "alpha_ciou",
        Loss(iou.alpha_ciou, _ALPHA, "1 - IoU^alpha + (rho2/c2)^alpha + (a v)^alpha", "2110.13675"),
    ),
    (
        ("iou",),
        "alpha_eiou",
        Loss(
            iou.alpha_eiou,
            _ALPHA,
            "1 - IoU^alpha + (rho2/c2)^alpha + (dw2/Cw2)^alpha + (dh2/Ch2)^alpha",
            "2110.13675, 2101.08158",
        ),
    ),
    (
        ("iou",),
        "siou",
        Loss(
            iou.siou,
            {"theta": Knob(4.0, low=1)},
            "1 - IoU + (distance by angle + shape^theta)/2",
            "2205.12740",
            by_overlap=True,
        ),
    ),
    (
        ("iou",),
        "wiou",
        Loss(
            iou.WIoU,
            {
                "version": Knob(3, choices=(1, 2, 3)),
                "alpha": Knob(
                    1.9, low=1, high=5, open_low=True
                ),  # alpha^delta goes into the gradient, which has to fit fp16
                "delta": Knob(3.0, low=0, high=6, open_low=True),
                "momentum": Knob(0.01, low=0, high=1),
            },
            "w exp(rho2/c2) (1 - IoU); v1: w = 1, v2: sqrt(b), v3: b/(delta alpha^(b-delta)); b = (1-IoU)/mean",
            "2301.10051",
            by_overlap=True,
        ),
    ),
    (
        ("iou",),
        "mpdiou",
        Loss(
            iou.mpdiou,
            {"image_size": Knob(None, parse=size, words="(height, width) in px, or None: the batch's")},
            "1 - IoU + (d_topleft2 + d_bottomright2)/(H2 + W2)",
            "2307.07662",
            wants=("image_size",),
            by_overlap=True,
        ),
    ),
    (("iou",), "inner_iou", Loss(iou.inner_iou, _RATIO, "1 - IoU_inner", "2311.02877", by_overlap=True)),
    (("iou",), "inner_giou", Loss(iou.inner_giou, _RATIO, "GIoU + IoU - IoU_inner", "2311.02877", by_overlap=True)),
    (("iou",), "inner_diou", Loss(iou.inner_diou, _RATIO, "DIoU + IoU - IoU_inner", "2311.02877", by_overlap=True)),
    (("iou",), "inner_ciou", Loss(iou.inner_ciou, _RATIO, "CIoU + IoU - IoU_inner", "2311.02877", by_overlap=True)),
    (("iou",), "inner_eiou", Loss(iou.inner_eiou, _RATIO, "EIoU + IoU - IoU_inner", "2311.02877", by_overlap=True)),
    (("iou",), "inner_siou", Loss(iou.inner_siou, _RATIO, "SIoU + IoU - IoU_inner", "2311.02877", by_overlap=True)),
    (
        ("iou",),
        "shape_iou",
        Loss(
            iou.shape_iou,
            {"scale": Knob(0.0, low=0)},
            "1 - IoU + (hh dx2 + ww dy2)/c2 + shape/2, weights by the target's shape^scale",
            "2312.17663",
            by_overlap=True,
        ),
    ),
    (
        ("iou",),
        "piou",
        Loss(
            iou.piou,
            {"version": Knob(2, choices=(1, 2)), "lambda_": Knob(1.3, low=0, open_low=True)},
            "v1: 2 - IoU - exp(-P2); v2: 3 x exp(-x2) v1, x = lambda exp(-P)",
            "Powerful-IoU, Neural Networks 170 (2024)",
            by_overlap=True,
        ),
    ),
    (
        ("iou",),
        "nwd",
        Loss(
            iou.nwd,
            {
                "constant": Knob(
                    "mean", parse=length_or_mean, words="a number of px at least 0.001, or 'mean': the boxes' size"
                )
            },
            "1 - exp(-W/constant)",
            "2110.13389",
            beside=1.0,
            published={"constant": 12.8},  # the mean size of AI-TOD's objects
        ),
    ),
    (("l1",), "l1", Loss(l1.l1, {}, "|d|", "YOLOX 2107.08430")),
    (
        ("l1",),
        "smooth_l1",
        Loss(l1.smooth_l1, {"beta": Knob(1.0, low=1e-6)}, "|d| < beta: d2/(2 beta), else |d| - beta/2", "1504.08083"),
    ),
    (("l1",), "l2", Loss(l1.l2, {}, "d2", "squared error")),
    (
        ("l1",),
        "balanced_l1",
        Loss(
            l1.balanced_l1,
            # Within these, exp(gamma/alpha) has room in fp32.
            {
                "alpha": Knob(0.5, low=0.1),
                "gamma": Knob(1.5, low=0, high=3, open_low=True),
                "beta": Knob(1.0, low=1e-3),
            },
            "|d| < beta: alpha/b (b|d| + 1) ln(b|d|/beta + 1) - alpha|d|, else gamma|d| + gamma/b - alpha beta",
            "1904.02701",
        ),
    ),
)
