"""The loss stage: what takes the place of the head's ``get_losses``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from . import hosts
from .assign import Assignment, Rule, fast_assign, host_assign
from .config import LossConfig
from .errors import NonFiniteError
from .registry import TERMS, build_loss

# YOLOX's fixed factor on the box loss; `loss_weight` of the iou term multiplies it.
BOX_WEIGHT = 5.0


class LossStage:
    """Label assignment, targets and the four loss terms of one head.

    It is no ``nn.Module``, so that the head's state_dict, its children and its trace stay what they were, and it keeps no
    reference to the head, so that a copy of a patched head works on the copy.

    Args:
        config: the losses.

    With ``collect`` set, ``stats`` holds after each call the mean IoU of the foreground and the mean objectness on
    foreground and background, as tensors, with the counts behind them.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        resolved = config.resolved()
        self.losses = {term: build_loss(term, getattr(config, f"loss_{term}")) for term in TERMS}
        self.divided = {term: resolved[term]["reduction"] == "mean" for term in TERMS}
        self.obj_target = resolved["obj"]["target"]
        self.collect = False
        self._told = False
        self.stats: dict[str, Tensor | int] = {}

    def get_losses(
        self,
        head: Any,
        imgs: Tensor,
        x_shifts: list[Tensor],
        y_shifts: list[Tensor],
        expanded_strides: list[Tensor],
        labels: Tensor,
        outputs: Tensor,
        origin_preds: list[Tensor],
        dtype: torch.dtype,
    ) -> tuple[Any, ...]:
        """The host's ``get_losses``, same arguments and the same six results.

        Args:
            head: the ``YOLOXHead`` whose outputs these are.
            imgs: ``(B, 3, H, W)``.
            x_shifts, y_shifts, expanded_strides: one ``(1, A_level)`` a level: cell indices, and strides in px.
            labels: ``(B, M, 5)``: class, cx, cy, w, h in px, rows of zeros after the last box.
            outputs: ``(B, A, 5 + C)``: decoded box in px, objectness and class logits.
            origin_preds: one ``(B, A_level, 4)`` a level: offsets before decoding; used when the head's ``use_l1`` is on.
            dtype: dtype of the features; the loss maths does not depend on it.

        Returns:
            total loss, 5 x box loss, objectness loss, class loss, L1 loss (0.0 when off), matched anchors per box.
        """
        bbox_preds = outputs[:, :, :4]
        obj_preds = outputs[:, :, 4:5]
        cls_preds = outputs[:, :, 5:]
        x_shift, y_shift = torch.cat(x_shifts, 1), torch.cat(y_shifts, 1)
        stride = torch.cat(expanded_strides, 1)
        scene: dict[str, Any] = {
            "bbox_preds": bbox_preds,
            "obj_preds": obj_preds,
            "cls_preds": cls_preds,
            "labels": labels,
            "x_shifts": x_shift,
            "y_shifts": y_shift,
            "expanded_strides": stride,
        }
        rule = self._rule(type(head), outputs.device)
        try:
            found = host_assign(head, imgs=imgs, **scene) if rule is None else fast_assign(rule=rule, **scene)
        except (RuntimeError, IndexError) as error:
            # The assignment is the first to stumble over NaN, in words that say nothing of it.
            terms = {"iou": bbox_preds, "obj": obj_preds, "cls": cls_preds}
            bad = [f"{term} (its predictions)" for term, pred in terms.items() if not torch.isfinite(pred).all()]
            if bad:
                raise NonFiniteError(", ".join(bad)) from error
            raise
        rows = found.fg_mask.nonzero().squeeze(1)
        num_fg = max(found.num_fg, 1)

        loss_iou = BOX_WEIGHT * self._term("iou", bbox_preds.reshape(-1, 4)[rows], found.boxes, num_fg)
        obj_logits = obj_preds.reshape(-1, 1)
        loss_obj = self._term("obj", obj_logits, self._obj_targets(found, rows), num_fg)
        cls_targets = F.one_hot(found.classes, head.num_classes) * found.ious.unsqueeze(-1)
        loss_cls = self._term("cls", cls_preds.reshape(-1, head.num_classes)[rows], cls_targets, num_fg)
        loss_l1: Tensor | float = 0.0
        if head.use_l1:
            anchor = rows % outputs.shape[1]
            l1_targets = head.get_l1_target(
                torch.zeros_like(found.boxes),
                found.boxes,
                stride[0][anchor],
                x_shifts=x_shift[0][anchor],
                y_shifts=y_shift[0][anchor],
            )
            loss_l1 = self._term("l1", torch.cat(origin_preds, 1).view(-1, 4)[rows], l1_targets, num_fg)
        loss = loss_iou + loss_obj + loss_cls + loss_l1

        if self.collect:
            self._collect(found, rows, obj_logits.detach())
        return loss, loss_iou, loss_obj, loss_cls, loss_l1, num_fg / max(found.num_gt, 1)

    def _rule(self, head_class: Any, device: torch.device) -> Rule | None:
        """The rule for the kit's own assignment, None for the host's."""
        wanted = self.config.loss_assign
        # On a GPU near ties may go another way than the host's, which would break "nothing changes until you ask".
        if wanted == "host" or (wanted == "auto" and device.type != "cpu"):
            return None
        rule = hosts.assignment_rule(head_class)
        if rule is None and not self._told:
            self._told = True
            logger.warning(
                f"The label assignment of {head_class.__module__}.{head_class.__qualname__} is not one that the kit "
                "knows; it is used as it is (loss_assign = 'host')."
            )
        return rule

    def _term(self, term: str, pred: Tensor, target: Tensor, num_fg: int) -> Tensor:
        return self.losses[term](pred, target, avg_factor=num_fg if self.divided[term] else None)

    def _obj_targets(self, found: Assignment, rows: Tensor) -> Tensor:
        """``(B*A, 1)``: 1 on foreground, or the IoU of the matched box."""
        if self.obj_target == "hard":
            return found.fg_mask.unsqueeze(-1).to(found.ious.dtype)
        targets = found.ious.new_zeros(found.fg_mask.shape[0], 1)
        targets[rows, 0] = found.ious
        return targets

    @torch.no_grad()
    def _collect(self, found: Assignment, rows: Tensor, obj_logits: Tensor) -> None:
        scores = obj_logits.float().sigmoid().squeeze(1)
        foreground = scores[rows].sum()
        self.stats = {
            "fg_iou": found.ious.float().sum(),
            "obj_fg": foreground,
            "obj_bg": scores.sum() - foreground,
            "num_fg": found.num_fg,
            "num_bg": scores.numel() - found.num_fg,
        }
