"""MMDetection's names of losses and what each means here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MMDetName:
    """How a class of MMDetection reads here.

    Attributes:
        name: the kit's loss.
        defaults: MMDetection's own defaults where they differ.
        must: what its knobs have to be, because nothing else has a meaning here.
        why: the reason, in general; reasons: that of one knob.
        said: whether ``must`` has to be written, because MMDetection's default is something else.
        renamed: its knobs that have another name here.
        terms: the terms in which its meaning is kept; all that have the loss if empty.
        refuse: the reason why it does not read at all.
    """

    name: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    why: str = "YOLOX's scores are independent sigmoids of logits"
    reasons: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    terms: tuple[str, ...] = ()
    refuse: str = ""


NO_SOFTMAX = (
    "a softmax over the classes does not fit YOLOX: its detector decodes independent sigmoids, and a checkpoint trained "
    "otherwise would not be YOLOX's. Choose a loss of sigmoids: bce, focal, varifocal, eqlv2, ..."
)
NO_FIRST_EQL = (
    "the first equalization loss is a softmax in one paper and asks for a list of rare classes in the other. "
    "Choose the second for the class term: loss_cls = 'eqlv2' finds them by itself."
)
NO_DISTRIBUTION = (
    "distribution focal loss is for heads that predict a distribution of each side, and YOLOX's head predicts numbers. "
    "Choose a box loss: yolox-loss list."
)
#: Names that people look for and that cannot be -> the reason.
REFUSED = {
    **dict.fromkeys(("softmax", "cross_entropy", "softmax_cross_entropy", "seesaw"), NO_SOFTMAX),
    **dict.fromkeys(("eql", "equalization"), NO_FIRST_EQL),
    **dict.fromkeys(("dfl", "distribution_focal"), NO_DISTRIBUTION),
}
#: `iou_mode` of MMYOLO's IoULoss -> the loss with the same formula.
MMYOLO_IOU = {
    "iou": {"type": "iou", "mode": "linear"},
    "giou": {"type": "giou"},
    "ciou": {"type": "ciou"},
    "siou": {"type": "siou"},
}

MMDET = {
    # MMDetection hands class_weight to the sigmoid form as PyTorch's pos_weight.
    "CrossEntropyLoss": MMDetName(
        "bce",
        must={"use_sigmoid": True, "use_mask": False, "ignore_index": None, "avg_non_ignore": False},
        said=("use_sigmoid",),
        reasons=dict.fromkeys(
            ("ignore_index", "avg_non_ignore"), "every target of YOLOX's counts, none is to be ignored"
        ),
        renamed={"class_weight": "pos_weight"},
    ),
    "FocalLoss": MMDetName("focal", must={"use_sigmoid": True}),
    "VarifocalLoss": MMDetName("varifocal", must={"use_sigmoid": True}),
    "QualityFocalLoss": MMDetName("quality_focal", must={"use_sigmoid": True}),
    "GHMC": MMDetName("ghmc", must={"use_sigmoid": True}),
    # A set of MMDetection's is one row of its input: a mask, which is an image's objectness here.
    "DiceLoss": MMDetName(
        "dice",
        defaults={"scope": "image", "smooth": 1e-3},
        must={"use_sigmoid": True, "activate": True, "naive_dice": True},
        said=("naive_dice",),
        why="the loss starts from logits, and MMDetection's default denominator makes an image without a box cost 1 "
        "whatever is predicted; for squared terms write dict(type='dice', squared=True)",
        renamed={"eps": "smooth"},
        terms=("obj",),
    ),
    "TverskyLoss": MMDetName(
        refuse="MMSegmentation's TverskyLoss is a softmax over classes, and YOLOX's scores are independent sigmoids; "
        "for the same formula on them write 'tversky' (alpha and beta mean the same)."
    ),
    "IoULoss": MMDetName("iou", defaults={"mode": "log"}),
    "GIoULoss": MMDetName("giou"),
    "DIoULoss": MMDetName("diou"),
    # MMDetection weighs the aspect ratio only where IoU > 0.5.
    "CIoULoss": MMDetName("ciou", defaults={"gate": True}),
    "SIoULoss": MMDetName(
        "siou",
        must={"neg_gamma": True},
        said=("neg_gamma",),
        why="MMDetection's default, neg_gamma=False, has the sign of the distance cost flipped against the paper, so "
        "that boxes are pushed apart",
    ),
    "EIoULoss": MMDetName(
        refuse="MMDetection's EIoULoss is Extended-IoU, another loss than Efficient-IoU (2101.08158) with the same "
        "letters; for Efficient-IoU write 'eiou'."
    ),
    "BoundedIoULoss": MMDetName(refuse="the kit has no Bounded IoU loss; choose another box loss: yolox-loss list."),
    "RotatedIoULoss": MMDetName(
        refuse="MMRotate's boxes have an angle and YOLOX's have none; for the same formula write 'iou' with its mode."
    ),
    "GHMR": MMDetName(
        refuse="the kit has GHM-C only, as 'ghmc' for scores; for boxes choose a box loss or 'smooth_l1'."
    ),
    "DistributionFocalLoss": MMDetName(refuse=NO_DISTRIBUTION),
    "SeesawLoss": MMDetName(refuse=NO_SOFTMAX),
    "L1Loss": MMDetName("l1"),
    "SmoothL1Loss": MMDetName("smooth_l1"),
    "MSELoss": MMDetName("l2"),
    "BalancedL1Loss": MMDetName("balanced_l1"),
}


def explain_mmdet(name: str) -> str:
    """How a class of MMDetection reads in an experiment, in lines."""
    entry = MMDET[name]
    if entry.refuse:
        return f"{name} (MMDetection) does not read here: {entry.refuse}"
    knobs = "".join(f", {key}={value!r}" for key, value in {**{key: entry.must[key] for key in entry.said}}.items())
    lines = [f"{name} (MMDetection) reads as {entry.name}: dict(type='{name}'{knobs})"]
    for title, values in (
        ("its defaults that differ from those of " + entry.name, entry.defaults),
        ("only these values have a meaning here", entry.must),
        ("names that differ here", entry.renamed),
    ):
        if values:
            lines.append(f"  {title}: " + ", ".join(f"{key}={value!r}" for key, value in values.items()))
    if entry.terms:
        lines.append(f"  for {', '.join(f'loss_{term}' for term in entry.terms)}")
    return "\n".join(lines)
