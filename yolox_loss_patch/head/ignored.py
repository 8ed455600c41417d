"""Ignored regions in the loss stage: rows of the labels with class -1, and the anchors that lie in them."""

from __future__ import annotations

import torch
from torch import Tensor

# COCO's evaluation lets a detection go that overlaps a crowd by its threshold, as a share of the detection's own area;
# its lowest threshold is 0.5.
COVERED = 0.5


def split_regions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels without their ignored regions, and where these stand.

    Args:
        labels: ``(B, M, 5)``: class, cx, cy, w, h in px; regions have class -1 and stand after the real boxes.

    Returns:
        The labels with zeros in the rows of regions, as after the last box, and a mask ``(B, M)`` of these rows.
    """
    is_region = labels[:, :, 0] < 0
    return labels.masked_fill(is_region.unsqueeze(2), 0.0), is_region


@torch.no_grad()
def covered_by_regions(boxes: Tensor, labels: Tensor, is_region: Tensor) -> Tensor:
    """The anchors whose predicted box lies in an ignored region, by the measure of COCO's evaluation.

    A box lies in a region when the region covers at least half of the box's area.

    Args:
        boxes: ``(B, A, 4)``, (cx, cy, w, h) in px.
        labels: ``(B, M, 5)``: class, cx, cy, w, h in px.
        is_region: ``(B, M)``, from `split_regions`.

    Returns:
        A mask ``(B, A)``.
    """
    covered = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    # One image at a time: a tensor [images, regions, anchors] could be larger than all the rest.
    for image in is_region.any(1).nonzero().flatten().tolist():
        centre, size = boxes[image].float().unsqueeze(1).split(2, 2)  # (A, 1, 2)
        region_centre, region_size = labels[image, is_region[image], 1:].float().split(2, 1)  # (R, 2)
        low = torch.maximum(centre - size / 2, region_centre - region_size / 2)
        high = torch.minimum(centre + size / 2, region_centre + region_size / 2)
        shared = (high - low).clamp(min=0).prod(2)
        covered[image] = ((shared >= COVERED * size.prod(2)) & (shared > 0)).any(1)
    return covered
