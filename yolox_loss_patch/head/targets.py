"""What each term is compared with: predictions of the foreground out of the head's outputs, and their targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..losses.derivatives import has_no_custom_gradient
from .assign import Assignment


class SplitOutputs(torch.autograd.Function):
    """What the terms need of the head's outputs, with one gradient tensor for all three.

    Slicing and indexing would each give back a tensor of the size of all outputs, nearly all zeros, to be added up.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `split_outputs`."""
        flat = outputs.reshape(-1, outputs.shape[-1])
        ctx.save_for_backward(rows)
        ctx.shape = outputs.shape
        # Objectness stays a view with gaps, as in YOLOX: on a CPU the sigmoid of a packed copy differs in the last bit.
        return flat[:, :4][rows], flat[:, 4:5], flat[:, 5:][rows]

    @staticmethod
    def backward(ctx: Any, boxes: Tensor, obj: Tensor, cls: Tensor) -> tuple[Tensor, None]:
        """The gradient of the outputs."""
        (rows,) = ctx.saved_tensors
        gradient = obj.new_zeros(ctx.shape)
        flat = gradient.view(-1, ctx.shape[-1])
        flat[:, 4:5] = obj
        flat[rows, :4] = boxes
        flat[rows, 5:] = cls
        return gradient, None


def split_outputs(outputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The predictions that the terms need.

    Args:
        outputs: ``(B, A, 5 + C)``: decoded box in px, objectness and class logits.
        rows: ``(num_fg,)`` the foreground anchors, counted through the batch.

    Returns:
        Boxes ``(num_fg, 4)`` of the foreground, objectness ``(B*A, 1)`` of all anchors, classes ``(num_fg, C)``.
    """
    if has_no_custom_gradient():
        flat = outputs.reshape(-1, outputs.shape[-1])
        return flat[rows, :4], flat[:, 4:5], flat[rows, 5:]
    parts: tuple[Tensor, Tensor, Tensor] = SplitOutputs.apply(outputs, rows)
    return parts


def obj_targets(assignment: Assignment, rows: Tensor, kind: str) -> Tensor:
    """``(B*A, 1)``: 0 on background; on foreground 1 (``kind`` "hard") or the IoU with the matched box ("iou")."""
    if kind == "hard":
        return assignment.fg_mask.unsqueeze(-1).to(assignment.ious.dtype)
    targets = assignment.ious.new_zeros(assignment.fg_mask.shape[0], 1)
    targets[rows, 0] = assignment.ious
    return targets


def cls_targets(assignment: Assignment, num_classes: int) -> Tensor:
    """``(num_fg, C)``: the IoU with the matched box in the column of its class, 0 in the others."""
    targets = assignment.ious.new_zeros(assignment.num_fg, num_classes)
    return targets.scatter_(1, assignment.classes.unsqueeze(1), assignment.ious.unsqueeze(1))


def l1_targets(head: Any, boxes: Tensor, x_shifts: Tensor, y_shifts: Tensor, stride: Tensor) -> Tensor:
    """``(num_fg, 4)``: the matched boxes as the offsets that the head's ``get_l1_target`` makes of them.

    Args:
        head: the ``YOLOXHead``.
        boxes: ``(num_fg, 4)`` matched boxes (cx, cy, w, h) in px.
        x_shifts, y_shifts, stride: ``(num_fg,)`` of the foreground anchors: cell indices, and px per cell.
    """
    targets: Tensor = head.get_l1_target(torch.zeros_like(boxes), boxes, stride, x_shifts=x_shifts, y_shifts=y_shifts)
    return targets
