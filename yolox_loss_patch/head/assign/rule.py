"""What an assignment is, and the rule by which the known hosts make it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...errors import DataError

TOP_IOUS = 10  # SimOTA's k is the sum of so many of the highest IoUs, and therefore at most this
IOU_WEIGHT = 3.0  # of the IoU's cost beside the class's
EPS = 1e-8  # added to an IoU before its logarithm
LOG_FLOOR = -100.0  # F.binary_cross_entropy never lets a logarithm go below


@dataclass
class Assignment:
    """The matches of a batch of B images with A anchors each, ordered by image, then by anchor.

    Attributes:
        fg_mask: (B * A,) bool, True where the anchor learns a box.
        rows: (num_fg,) int64, the anchors that learn a box, counted through the batch: image * A + anchor.
        image: (num_fg,) int64, the image's index in the batch.
        matched_gt: (num_fg,) int64, the box's index within the labels of its image.
        classes: (num_fg,) int64, the box's class.
        ious: (num_fg,) IoU of the prediction with the box, in [0, 1].
        boxes: (num_fg, 4) the box, (cx, cy, w, h) in pixels.
        num_fg: how many anchors learn a box.
        num_gt: how many boxes the batch has.
        ignored: (B * A,) bool, True where the anchor lies in an ignored region and learns no box, so that it learns
            nothing; None where the experiment ignores no regions.
        levels: (B * A,) int64, the feature map of each anchor, 0 for the finest; the loss stage sets it for the
            experiment's ``loss_weights``.
        strides: (B * A,) pixels per cell of the anchor's feature map; set as ``levels``.
        scores: (num_fg,) confidence of the box in [0, 1]; None where the experiment has no ``gt_score``.
    """

    fg_mask: Tensor
    rows: Tensor
    image: Tensor
    matched_gt: Tensor
    classes: Tensor
    ious: Tensor
    boxes: Tensor
    num_fg: int
    num_gt: int
    ignored: Tensor | None = None
    levels: Tensor | None = None
    strides: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """What differs between the assigners of the known hosts.

    Attributes:
        radius: an anchor is near a box when their centres are less than this many strides apart, in x and in y.
        in_box: True: an anchor whose centre lies in any box is a candidate too, and a pair goes without penalty when
            the anchor is both near the box and in it. False: near decides both.
        penalty: added to the cost of every other pair.
    """

    radius: float
    in_box: bool
    penalty: float


RULE_0_3_0 = Rule(radius=2.5, in_box=True, penalty=1e5)
RULE_MAIN = Rule(radius=1.5, in_box=False, penalty=1e6)


def label_error(image: int, row: int, label: float, num_classes: int) -> DataError:
    """The error for a class that the head does not have."""
    return DataError(
        f"The labels of image {image} of the batch hold class {label:g} in row {row}; the head has the classes 0 to "
        f"{num_classes - 1}.",
        "Correct the labels, or build the head with more classes.",
    )
