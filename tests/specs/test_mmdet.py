"""Every loss dict of MMDetection's and MMYOLO's published one-stage configs: what it means here, or why it is refused."""

import pytest
import reference as ref
import torch

import yolox_loss_patch as ylp
from yolox_loss_patch.specs.resolve import resolve

# config, term of YOLOX that it would fill, the dict as it stands there, what it means here
KEPT = [
    (
        "mmdet yolox",
        "cls",
        dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
        "bce(reduction='sum')",
    ),
    (
        "mmdet yolox",
        "iou",
        dict(type="IoULoss", mode="square", eps=1e-16, reduction="sum", loss_weight=5.0),
        "5*iou(reduction='sum')",
    ),
    (
        "mmdet yolox",
        "obj",
        dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
        "bce(reduction='sum')",
    ),
    ("mmdet yolox", "l1", dict(type="L1Loss", reduction="sum", loss_weight=1.0), "l1(reduction='sum')"),
    (
        "mmdet rtmdet",
        "cls",
        dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        "quality_focal",
    ),
    ("mmdet rtmdet", "iou", dict(type="GIoULoss", loss_weight=2.0), "2*giou"),
    ("mmdet atss", "cls", dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0), "focal"),
    ("mmdet atss", "obj", dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0), "bce"),
    ("mmdet atss", "iou", dict(type="GIoULoss", loss_weight=2.0), "2*giou"),
    ("mmdet gfl", "cls", dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0), "quality_focal"),
    (
        "mmdet vfnet",
        "cls",
        dict(type="VarifocalLoss", use_sigmoid=True, alpha=0.75, gamma=2.0, iou_weighted=True, loss_weight=1.0),
        "varifocal",
    ),
    ("mmdet vfnet", "iou", dict(type="GIoULoss", loss_weight=1.5), "1.5*giou"),
    (
        "mmdet retinanet",
        "cls",
        dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        "focal",
    ),
    ("mmdet retinanet", "l1", dict(type="L1Loss", loss_weight=1.0), "l1"),
    (
        "mmdet retinanet ghm",
        "cls",
        dict(type="GHMC", bins=30, momentum=0.75, use_sigmoid=True, loss_weight=1.0),
        "ghmc(bins=30, momentum=0.75)",
    ),
    ("mmdet retinanet", "l1", dict(type="SmoothL1Loss", beta=0.11, loss_weight=1.0), "smooth_l1(beta=0.11)"),
    (
        "mmdet libra",
        "l1",
        dict(type="BalancedL1Loss", alpha=0.5, gamma=1.5, beta=0.11, loss_weight=1.0),
        "balanced_l1(beta=0.11)",
    ),
    ("mmdet fcos", "iou", dict(type="IoULoss", loss_weight=1.0), "iou(mode='log')"),
    ("mmdet diou", "iou", dict(type="DIoULoss", loss_weight=12.0), "12*diou"),
    ("mmdet ciou", "iou", dict(type="CIoULoss", loss_weight=12.0), "12*ciou(gate=True)"),
    ("alpha per class", "cls", dict(type="FocalLoss", use_sigmoid=True, alpha=[0.25, 0.5]), "focal(alpha=[0.25, 0.5])"),
    (
        "mmyolo yolox",
        "cls",
        dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
        "bce(reduction='sum')",
    ),
    (
        "mmyolo yolox",
        "iou",
        dict(type="mmdet.IoULoss", mode="square", eps=1e-16, reduction="sum", loss_weight=5.0),
        "5*iou(reduction='sum')",
    ),
    ("mmyolo yolox", "l1", dict(type="mmdet.L1Loss", reduction="sum", loss_weight=1.0), "l1(reduction='sum')"),
    (
        "mmyolo rtmdet",
        "cls",
        dict(type="mmdet.QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        "quality_focal",
    ),
    ("mmyolo rtmdet", "iou", dict(type="mmdet.GIoULoss", loss_weight=2.0), "2*giou"),
    (
        "mmyolo yolov5",
        "iou",
        dict(
            type="IoULoss",
            iou_mode="ciou",
            bbox_format="xywh",
            eps=1e-7,
            reduction="mean",
            loss_weight=0.05,
            return_iou=True,
        ),
        "0.05*ciou",
    ),
    (
        "mmyolo yolov6",
        "iou",
        dict(type="IoULoss", iou_mode="siou", bbox_format="xyxy", reduction="mean", loss_weight=2.5, return_iou=False),
        "2.5*siou",
    ),
    (
        "mmyolo yolov6",
        "cls",
        dict(
            type="mmdet.VarifocalLoss",
            use_sigmoid=True,
            alpha=0.75,
            gamma=2.0,
            iou_weighted=True,
            reduction="sum",
            loss_weight=1.0,
        ),
        "varifocal(reduction='sum')",
    ),
    (
        "mmyolo ppyoloe",
        "iou",
        dict(type="IoULoss", iou_mode="giou", bbox_format="xyxy", reduction="mean", loss_weight=2.5, return_iou=False),
        "2.5*giou",
    ),
    (
        "mmyolo yolov8",
        "iou",
        dict(type="IoULoss", iou_mode="ciou", bbox_format="xyxy", reduction="sum", loss_weight=7.5, return_iou=False),
        "7.5*ciou(reduction='sum')",
    ),
    ("mmdet gfl, tood", "iou", dict(type="GIoULoss", loss_weight=2.0), "2*giou"),
    (
        "mmyolo yolov5, yolov7",
        "obj",
        dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=1.0),
        "bce",
    ),
    (
        "mmyolo yolov5, yolov7",
        "cls",
        dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=0.5),
        "0.5*bce",
    ),
    (
        "mmyolo yolov7",
        "iou",
        dict(type="IoULoss", iou_mode="ciou", bbox_format="xywh", reduction="mean", loss_weight=0.05, return_iou=True),
        "0.05*ciou",
    ),
    ("mmyolo iou", "iou", dict(type="mmyolo.IoULoss", iou_mode="iou"), "iou(power=1)"),
    ("mmyolo siou", "iou", dict(type="mmyolo.IoULoss", iou_mode="siou", siou_theta=6.0), "siou(theta=6)"),
]
# config, term, the dict, a word of the reason; those with ``head`` are refused in the head only
REFUSED = [
    ("mmdet gfl", "iou", dict(type="DistributionFocalLoss", loss_weight=0.25), "predict a distribution"),
    (
        "mmyolo yolov8",
        "iou",
        dict(type="mmdet.DistributionFocalLoss", reduction="mean", loss_weight=0.375),
        "predict a distribution",
    ),
    ("mmdet rtmdet-ins", "obj", dict(type="DiceLoss", loss_weight=2.0, eps=5e-6, reduction="mean"), "naive_dice"),
    ("mmdet retinanet ghm", "iou", dict(type="GHMR", mu=0.02, bins=10, momentum=0.7, loss_weight=10.0), "GHM-C only"),
    (
        "mmdet two-stage",
        "cls",
        dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        "independent sigmoids",
    ),
    (
        "mmdet seesaw",
        "cls",
        dict(type="SeesawLoss", p=0.8, q=2.0, num_classes=1203, loss_weight=1.0),
        "independent sigmoids",
    ),
    ("mmdet eiou", "iou", dict(type="EIoULoss", smooth_point=0.1, loss_weight=1.0), "Extended-IoU"),
    ("mmdet siou", "iou", dict(type="SIoULoss", eps=1e-6), "neg_gamma=True"),
    ("mmdet bounded", "iou", dict(type="BoundedIoULoss", beta=0.2, loss_weight=10.0), "Bounded IoU"),
    ("mmyolo yolox-pose", "iou", dict(type="OksLoss", metainfo="coco.py", loss_weight=30.0), "no loss 'OksLoss'"),
    ("mmyolo rtmdet-r", "iou", dict(type="mmrotate.RotatedIoULoss", mode="linear", loss_weight=2.0), "angle"),
    ("mmrotate rtmdet", "iou", dict(type="RotatedIoULoss", mode="linear", loss_weight=2.0), "angle"),
    ("mmyolo", "iou", dict(type="IoULoss", iou_mode="eiou"), "iou, giou, ciou, siou"),
    ("mmyolo", "iou", dict(type="IoULoss", iou_mode="ciou", bbox_format="cxcywh"), "xywh, xyxy"),
    ("mmyolo", "iou", dict(type="IoULoss", iou_mode="ciou", mode="square"), "'mode'"),
]
IN_THE_HEAD = [
    (
        "mmdet tood",
        "cls",
        dict(type="QualityFocalLoss", use_sigmoid=True, activated=True, beta=2.0, loss_weight=1.0),
        "logits",
    ),
    ("mmdet tood", "cls", dict(type="FocalLoss", use_sigmoid=True, activated=True, gamma=2.0, alpha=0.25), "logits"),
    (
        "mmyolo yolov8",
        "cls",
        dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="none", loss_weight=0.5),
        "mean or sum",
    ),
]


def words(value):
    return value if isinstance(value, str) else None


@pytest.mark.parametrize("config,term,theirs,ours", KEPT, ids=words)
def test_it_means_here_what_it_means_there(config, term, theirs, ours):
    assert resolve(term, theirs) == resolve(term, ours)
    ylp.LossConfig(**{f"loss_{term}": theirs})


@pytest.mark.parametrize("config,term,theirs,reason", REFUSED, ids=words)
def test_it_is_refused_with_the_reason(config, term, theirs, reason):
    with pytest.raises(ylp.ConfigError, match=reason):
        ylp.build_loss(term, theirs)


@pytest.mark.parametrize("config,term,theirs,reason", IN_THE_HEAD, ids=words)
def test_it_can_be_built_but_not_stand_in_the_head(config, term, theirs, reason):
    ylp.build_loss(term, theirs)
    with pytest.raises(ylp.ConfigError, match=reason):
        ylp.LossConfig(**{f"loss_{term}": theirs})


MODES = {
    "iou": lambda p, t: ref.ref_iou(p, t, mode="linear"),
    "giou": ref.ref_giou,
    "ciou": ref.ref_ciou,
    "siou": ref.ref_siou,
}


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_mmyolo_are_these_formulas(mode):
    """Its loss is 1 - bbox_overlaps(..., mode): without CIoU's gate, with the paper's sign in SIoU."""
    pred, target = (64.0, 70.0, 40.0, 24.0), (60.0, 80.0, 35.0, 52.0)
    loss = ylp.build_loss("iou", dict(type="IoULoss", iou_mode=mode, loss_weight=2.0, return_iou=False))
    assert float(loss(torch.tensor([pred]).double(), torch.tensor([target]).double())) == pytest.approx(
        2 * MODES[mode](pred, target)
    )
