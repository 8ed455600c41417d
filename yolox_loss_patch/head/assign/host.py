"""The host's own assigner, called image by image."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from .rule import Assignment
from .scene import boxes_per_image


def host_assign(
    head: Any,
    *,
    bbox_preds: Tensor,
    obj_preds: Tensor,
    cls_preds: Tensor,
    labels: Tensor,
    x_shifts: Tensor,
    y_shifts: Tensor,
    expanded_strides: Tensor,
    imgs: Tensor | None = None,
) -> Assignment:
    """Assign with the `get_assignments` of the host's head, image by image, as stock does.

    Arguments are bound by parameter name: 0.3.0 takes four more than main, and a fork may have another order. When the
    device runs out of memory the image is done again in the host's "cpu" mode.

    Args:
        head: a YOLOX head, or anything with a `get_assignments` of either known signature.
        bbox_preds: (B, A, 4) decoded predictions, (cx, cy, w, h) in pixels.
        obj_preds: (B, A, 1) objectness logits.
        cls_preds: (B, A, C) class logits.
        labels: (B, M, 5) rows of (class, cx, cy, w, h), zero rows below the last box.
        x_shifts, y_shifts: (1, A) column and row of each anchor in its feature map.
        expanded_strides: (1, A) stride of each anchor in pixels.
        imgs: (B, 3, H, W) the images; the known hosts ignore them.

    Returns:
        The matches, with `ious` and `boxes` in the dtypes that the host gives them.

    Raises:
        TypeError: the host's `get_assignments` has a parameter that is not known here.
        RuntimeError, IndexError: raised by the host, for instance where no anchor is near any box.
    """
    anchors = bbox_preds.shape[1]
    parameters = inspect.signature(head.get_assignments).parameters
    counts = boxes_per_image(labels).tolist()
    masks, images, matched, classes, ious, boxes = [], [], [], [], [], []
    for index, num_gt in enumerate(counts):
        if num_gt == 0:
            masks.append(torch.zeros(anchors, dtype=torch.bool, device=bbox_preds.device))
            continue
        offered = {
            "batch_idx": index,
            "num_gt": num_gt,
            "total_num_anchors": anchors,
            "gt_bboxes_per_image": labels[index, :num_gt, 1:5],
            "gt_classes": labels[index, :num_gt, 0],
            "bboxes_preds_per_image": bbox_preds[index],
            "expanded_strides": expanded_strides,
            "x_shifts": x_shifts,
            "y_shifts": y_shifts,
            "cls_preds": cls_preds,
            "bbox_preds": bbox_preds,
            "obj_preds": obj_preds,
            "labels": labels,
            "imgs": imgs,
        }
        arguments = _bind(parameters, offered)
        try:
            result = head.get_assignments(**arguments)
        except RuntimeError as error:
            # stock looks for this text; newer PyTorch says "CUDA out of memory." in the same place
            if "out of memory" not in str(error) or "mode" not in parameters:
                raise
            logger.error(
                f"The device ran out of memory while image {index} of a batch, with {num_gt} boxes, had its labels "
                "assigned; that image is done again on the CPU, which is slow. loss_assign='fast', a smaller batch or "
                "smaller images avoid it."
            )
            torch.cuda.empty_cache()
            result = head.get_assignments(**arguments, mode="cpu")
        gt_matched_classes, fg_mask, pred_ious, matched_gt, _ = result
        masks.append(fg_mask)
        images.append(torch.full_like(matched_gt, index))
        matched.append(matched_gt)
        classes.append(gt_matched_classes.to(torch.int64))
        ious.append(pred_ious)
        boxes.append(labels[index, :num_gt, 1:5][matched_gt])
    device = bbox_preds.device
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    ious = ious or [bbox_preds.new_zeros(0)]
    boxes = boxes or [labels.new_zeros(0, 4)]
    image = torch.cat(images or [empty])
    fg_mask = torch.cat(masks) if masks else empty.bool()
    return Assignment(
        fg_mask=fg_mask,
        rows=fg_mask.nonzero().squeeze(1),
        image=image,
        matched_gt=torch.cat(matched or [empty]),
        classes=torch.cat(classes or [empty]),
        ious=torch.cat(ious),
        boxes=torch.cat(boxes),
        num_fg=image.numel(),
        num_gt=sum(counts),
    )


def _bind(parameters: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Pick the offered arguments that a host's `get_assignments` names."""
    kinds = inspect.Parameter
    arguments = {}
    for name, parameter in parameters.items():
        if parameter.kind is kinds.VAR_KEYWORD:
            return offered
        if name in offered:
            arguments[name] = offered[name]
        elif parameter.default is kinds.empty and parameter.kind is not kinds.VAR_POSITIONAL:
            raise TypeError(
                f"get_assignments of this YOLOX has a parameter {name!r} that the kit does not know. It knows: "
                + ", ".join(offered)
            )
    return arguments
