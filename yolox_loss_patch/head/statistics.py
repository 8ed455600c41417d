"""What the loss stage counts for the logs of a training: scores, IoU, and how hard each term pulls at the network."""

from __future__ import annotations

import torch
from torch import Tensor

from .assign import Assignment


@torch.no_grad()
def foreground_statistics(assignment: Assignment, rows: Tensor, obj_logits: Tensor) -> dict[str, Tensor | int]:
    """Sums over a batch and the counts behind them.

    Args:
        assignment: the matches.
        rows: ``(num_fg,)`` the foreground anchors, counted through the batch.
        obj_logits: ``(B*A, 1)``.

    Returns:
        ``fg_iou`` the sum of IoUs of the foreground, ``obj_fg`` and ``obj_bg`` the sums of objectness on foreground and
        background, ``num_fg`` and ``num_bg`` how many anchors that is. Ignored anchors are neither.
    """
    scores = obj_logits.float().sigmoid().squeeze(1)
    num_bg: Tensor | int = scores.numel() - assignment.num_fg
    if assignment.ignored is not None:
        scores, num_bg = scores.masked_fill(assignment.ignored, 0.0), num_bg - assignment.ignored.sum()
    foreground = scores[rows].sum()
    return {
        "fg_iou": assignment.ious.float().sum(),
        "obj_fg": foreground,
        "obj_bg": scores.sum() - foreground,
        "num_fg": assignment.num_fg,
        "num_bg": num_bg,
    }


def add_gradients(
    sums: dict[str, Tensor],
    loss: Tensor,
    rows: Tensor,
    stride: Tensor,
    boxes: Tensor,
    obj_logits: Tensor,
    cls_logits: Tensor,
    offsets: Tensor | None,
) -> None:
    """Let the backward pass of this batch add each term's pull at the head's raw outputs to ``sums``.

    A pull is the L1 norm of the gradient of the total loss at the offsets before decoding, or at the logits. A factor on
    the loss (loss scaling) is divided out.

    Args:
        sums: gets ``grad_box``, ``grad_obj_fg``, ``grad_obj_bg``, ``grad_cls`` and, with offsets, ``grad_l1``.
        loss: the total loss.
        rows: ``(num_fg,)`` the foreground anchors, counted through the batch.
        stride: ``(num_fg, 1)`` px per cell of the foreground anchors.
        boxes: ``(num_fg, 4)`` decoded predictions in px.
        obj_logits: ``(B*A, 1)``.
        cls_logits: ``(num_fg, C)``.
        offsets: ``(num_fg, 4)`` predictions before decoding, None while the L1 term is off.
    """
    loss_gradients: list[Tensor] = []  # the gradient of the loss itself: 1, or what loss scaling makes of it
    loss.register_hook(lambda gradient: loss_gradients.append(gradient.detach()))

    def add(**pulls: Tensor) -> None:
        for name, pull in pulls.items():
            sums[name] = sums.get(name, 0) + pull / loss_gradients[0]

    def add_obj(gradient: Tensor) -> None:
        size = gradient.abs()
        foreground = size[rows].sum()
        add(grad_obj_fg=foreground, grad_obj_bg=size.sum() - foreground)

    # A centre moves by stride px per unit of its offset, a side by its length.
    px_per_unit = torch.cat([stride, stride, boxes.detach()[:, 2:]], 1)
    boxes.register_hook(lambda gradient: add(grad_box=(gradient * px_per_unit).abs().sum()))
    obj_logits.register_hook(add_obj)
    cls_logits.register_hook(lambda gradient: add(grad_cls=gradient.abs().sum()))
    if offsets is not None and offsets.requires_grad:  # the box branch may be frozen
        offsets.register_hook(lambda gradient: add(grad_l1=gradient.abs().sum()))
