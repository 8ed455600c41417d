"""The fast assignment: a known host's rule for the whole batch at once, in one of two ways."""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import assign_dense
from .rule import Assignment, Rule
from .scene import Scene
from .sparse import assign_sparse, find_levels

DEFAULT_MEMORY_BUDGET = 256 * 1024**2


@torch.no_grad()
def fast_assign(
    *,
    bbox_preds: Tensor,
    obj_preds: Tensor,
    cls_preds: Tensor,
    labels: Tensor,
    x_shifts: Tensor,
    y_shifts: Tensor,
    expanded_strides: Tensor,
    rule: Rule,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Assignment:
    """Assign the whole batch by a known host's rule: the host's answer in fp32 at a fraction of its time and memory.

    Half precision is computed in fp32, fp64 stays; autocast is off. A prediction that is not finite never matches by
    IoU. Where no anchor of an image is a candidate, its boxes match nothing (the hosts stop with an error there).

    Args:
        bbox_preds: (B, A, 4) decoded predictions, (cx, cy, w, h) in pixels.
        obj_preds: (B, A, 1) objectness logits.
        cls_preds: (B, A, C) class logits.
        labels: (B, M, 5) rows of (class, cx, cy, w, h), zero rows below the last box.
        x_shifts, y_shifts: (1, A) column and row of each anchor in its feature map.
        expanded_strides: (1, A) stride of each anchor in pixels.
        rule: the host's rule.
        memory_budget: bytes that the temporary tensors of an accelerator may take together, beyond the inputs and the
            result; a smaller one is slower. One image's [boxes, anchors] tensors are the least it can do with. A CPU
            never has such tensors and works in pieces of the size of its cache, whatever the budget.

    Returns:
        The matches; `ious` and `boxes` in fp32 (fp64 where the predictions are fp64).

    Raises:
        ValueError: on a CPU, the labels hold a class that the head does not have.
    """
    with torch.autocast(device_type=bbox_preds.device.type, enabled=False):
        scene = make_scene(
            bbox_preds=bbox_preds,
            obj_preds=obj_preds,
            cls_preds=cls_preds,
            labels=labels,
            x_shifts=x_shifts,
            y_shifts=y_shifts,
            expanded_strides=expanded_strides,
            rule=rule,
            memory_budget=memory_budget,
        )
        # Without whole grids of anchors there are no windows to look in.
        levels = find_levels(scene) if bbox_preds.device.type == "cpu" else None
        return assign_dense(scene) if levels is None else assign_sparse(scene, levels)


def make_scene(
    *,
    bbox_preds: Tensor,
    obj_preds: Tensor,
    cls_preds: Tensor,
    labels: Tensor,
    x_shifts: Tensor,
    y_shifts: Tensor,
    expanded_strides: Tensor,
    rule: Rule,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Scene:
    """The arguments of `fast_assign`, detached, as its two ways use them."""
    dtype = torch.float64 if bbox_preds.dtype == torch.float64 else torch.float32
    return Scene(
        boxes=bbox_preds.detach().flatten(0, 1),
        obj=obj_preds.detach().flatten(),
        cls=cls_preds.detach().flatten(0, 1),
        labels=labels,
        x=x_shifts[0].to(dtype),
        y=y_shifts[0].to(dtype),
        stride=expanded_strides[0].to(dtype),
        rule=rule,
        dtype=dtype,
        batch=bbox_preds.shape[0],
        anchors=bbox_preds.shape[1],
        budget=memory_budget,
    )
