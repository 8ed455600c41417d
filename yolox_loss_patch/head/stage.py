"""The loss stage: what takes the place of the head's ``get_losses``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from ..errors import ConfigError, NonFiniteError
from ..losses.schedule import Schedule
from ..losses.state import number_of_ranks, sum_over_ranks
from ..losses.terms import LossModule, TermLoss
from ..specs.build import build_loss
from ..specs.config import LossConfig
from ..specs.registry import TERMS
from ..specs.resolve import parts_of
from . import hosts
from .assign import Assignment, AssignmentProof, Rule, fast_assign, host_assign, is_accelerator
from .assign.rule import label_error
from .facts import BatchFacts
from .ignored import covered_by_regions, split_regions
from .statistics import add_gradients, foreground_statistics
from .targets import cls_targets, l1_targets, obj_targets, split_outputs
from .terms import TermPart, term_parts, term_values
from .weights import ElementWeights, cls_weights, obj_weights, scored_weights, split_scores


class LossStage:
    """Label assignment, targets and the four loss terms of one head.

    It is no ``nn.Module``, so that the head's state_dict, its children and its trace stay what they were, and it keeps no
    reference to the head, so that a copy of a patched head works on the copy.

    Args:
        config: the losses.
        host_losses: term -> the head's loss module, where it is not YOLOX's. It trains a term that the config leaves at
            its default, so that nothing changes until you ask.

    Attributes:
        asked: the terms whose loss is not the default.
        losses: term -> its loss module.
        parts: term -> its losses, more than one where the term is a sum.
        part_values: of the last batch: the value of each part of a sum, by term and label.
        element_weights: the experiment's weights of the elements, None without.
        ignores_regions: whether labels of class -1 are ignored regions; else there are none.
        reads_scores: whether the fraction of a class is a box's confidence, see `split_scores`; else there is none.
        proof: on an accelerator, whether the fast label assignment gave the host's matches in the first batches.
        l1_is_scheduled: whether the trainer turns the L1 term on in the epoch of ``start_epoch``.
        collect: whether to fill ``stats`` and ``gradients``.
        stats: of the last batch, see `foreground_statistics`.
        gradients: summed over the backward passes until somebody clears it, see `add_gradients`.
    """

    def __init__(self, config: LossConfig, host_losses: Mapping[str, Any] | None = None) -> None:
        self.config = config
        resolved = config.resolved()
        defaults = LossConfig().resolved()
        self.losses: dict[str, Any] = {term: build_loss(term, resolved[term]) for term in TERMS}
        self.asked = [term for term in TERMS if resolved[term] != defaults[term]]
        for term, module in (host_losses or {}).items():
            if term not in self.asked:
                self.losses[term] = TermLoss(term, type(module).__name__, module)
        self.parts = {term: term_parts(term, resolved[term], self.losses[term]) for term in TERMS}
        weights = [getattr(part.loss, "loss_weight", None) for parts in self.parts.values() for part in parts]
        self._schedules = [weight for weight in weights if isinstance(weight, Schedule)]
        self.l1_start = parts_of(resolved["l1"])[0]["start_epoch"]
        self.l1_is_scheduled = False
        self.element_weights: ElementWeights | None = None
        self.ignores_regions = False
        self.reads_scores = False
        self.collect = False
        self.part_values: dict[str, Tensor] = {}
        self.stats: dict[str, Tensor | int] = {}
        self.gradients: dict[str, Tensor] = {}
        self.proof = AssignmentProof()
        self._warned_of_assignment = False

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
            x_shifts, y_shifts, expanded_strides: one ``(1, A_level)`` per level: cell indices, and strides in px.
            labels: ``(B, M, 5)``: class, cx, cy, w, h in px, rows of zeros after the last box; with ``ignores_regions``
                the regions between the two, with class -1.
            outputs: ``(B, A, 5 + C)``: decoded box in px, objectness and class logits.
            origin_preds: one ``(B, A_level, 4)`` per level: offsets before decoding; used when the head's ``use_l1`` is
                on.
            dtype: dtype of the features; the loss maths does not depend on it.

        Returns:
            total loss, 5 x box loss, objectness loss, class loss, L1 loss (0.0 when off), matched anchors per box.

        Raises:
            ConfigError: ``start_epoch`` of the L1 term under another trainer, ``loss_weights`` that do not fit.
            NonFiniteError: predictions that are not finite.
            DataError: a class that the head does not have.
        """
        self.check_schedules()
        grid = torch.cat([*x_shifts, *y_shifts, *expanded_strides], 1).view(3, -1)  # column, row, stride of each anchor
        labels, scores = split_scores(labels) if self.reads_scores else (labels, None)
        assignment = self.assign(head, imgs, outputs, labels, grid)
        if self.element_weights is not None or any(part.level_weights is not None for part in self.parts["obj"]):
            sizes = torch.tensor([level.numel() for level in expanded_strides], device=outputs.device)
            assignment.levels = torch.repeat_interleave(sizes).repeat(len(outputs))
            assignment.strides = grid[2].repeat(len(outputs))
        rows = assignment.rows
        weights = self.element_weights(assignment, head.num_classes) if self.element_weights is not None else {}
        factors = self._avg_factors(assignment, batch=len(outputs))
        facts = BatchFacts(assignment, rows, grid[2], len(outputs), imgs.shape[-2:])

        self.part_values.clear()

        def term(
            name: str,
            pred: Tensor,
            target: Callable[[TermPart], Tensor],
            weight: Callable[[TermPart, Tensor], Tensor | None],
        ) -> Tensor:
            values = term_values(name, self.parts[name], pred, target, weight, factors, facts)
            scale = hosts.BOX_WEIGHT if name == "iou" else 1
            if len(values) > 1:
                for part, value in zip(self.parts[name], values, strict=True):
                    key = f"{name} {part.label}"
                    self.part_values[key] = self.part_values.get(key, 0) + scale * value.detach()
            total = values[0]
            for value in values[1:]:
                total = total + value
            return total

        if scores is not None:
            assignment.scores = scores[assignment.image, assignment.matched_gt]
            weights = {**weights, **scored_weights(assignment.scores, weights)}
        box_weights = weights.get("bbox_weights")
        boxes, obj_logits, cls_logits = split_outputs(outputs, rows)
        loss_iou = hosts.BOX_WEIGHT * term(
            "iou", boxes, lambda part: assignment.boxes, lambda part, target: box_weights
        )
        loss_obj = term(
            "obj",
            obj_logits,
            lambda part: obj_targets(assignment, rows, part.target),
            lambda part, target: obj_weights(part, assignment, obj_logits, target, weights.get("obj_weights"), facts),
        )
        classes = cls_targets(assignment, head.num_classes)
        loss_cls = term(
            "cls",
            cls_logits,
            lambda part: classes,
            lambda part, target: cls_weights(part, target, weights.get("label_weights")),
        )
        loss_l1: Tensor | float = 0.0
        offsets = None
        if head.use_l1:
            targets = l1_targets(head, assignment.boxes, *grid[:, rows % outputs.shape[1]])
            offsets = torch.cat(origin_preds, 1).view(-1, 4)[rows]
            loss_l1 = term("l1", offsets, lambda part: targets, lambda part, target: box_weights)
        loss = loss_iou + loss_obj + loss_cls + loss_l1

        if self.collect:
            self.stats = foreground_statistics(assignment, rows, obj_logits.detach())
            if loss.requires_grad:
                px_per_cell = grid[2][rows % outputs.shape[1]].unsqueeze(1)
                add_gradients(self.gradients, loss, rows, px_per_cell, boxes, obj_logits, cls_logits, offsets)
        matched_per_box = max(assignment.num_fg, 1) / max(assignment.num_gt, 1)
        return loss, loss_iou, loss_obj, loss_cls, loss_l1, matched_per_box

    def running_state(self) -> dict[str, dict[str, Any]]:
        """What the batches so far have taught, for a resume file.

        Returns:
            Term -> the state of its loss (a running mean), for the losses that have one; and under ``assignment`` the
            proof of the fast label assignment, where there is one.
        """
        states = {term: loss.running_state() for term, loss in self.losses.items() if hasattr(loss, "running_state")}
        states["assignment"] = self.proof.to_dict()
        return {name: state for name, state in states.items() if state}

    def load_running_state(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Go on from a `running_state` of the same losses."""
        for name, state in states.items():
            if name == "assignment":
                self.proof.load(state)
            else:
                self.losses[name].load_running_state(state)

    def part_names(self) -> list[str]:
        """The keys of ``part_values``: term and label of each part of a sum."""
        sums = [(term, parts) for term, parts in self.parts.items() if len(parts) > 1]
        return list(dict.fromkeys(f"{term} {part.label}" for term, parts in sums for part in parts))

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to the losses whose ``loss_weight`` is a schedule."""
        for loss in self.losses.values():
            if isinstance(loss, LossModule):
                loss.set_epoch(epoch)

    def check_schedules(self) -> None:
        """Refuse to go on where nobody keeps a schedule.

        Raises:
            ConfigError: a ``start_epoch`` or a ``loss_weight`` schedule under a trainer that does not tell the epoch.
        """
        if self.l1_start is not None and not self.l1_is_scheduled:
            raise ConfigError(
                f"loss_l1: start_epoch={self.l1_start} is kept by the kit's trainer, which does not train this model. "
                "Train with it, or leave start_epoch out and set the head's use_l1 yourself."
            )
        for schedule in self._schedules:
            if schedule.epoch is None:
                raise ConfigError(
                    f"loss_weight {schedule.points} is a schedule, and this trainer does not tell the epoch. Train with "
                    "`yolox-loss train`, or call yolox_loss_patch.set_epoch(model, epoch) at the start of each epoch, counted "
                    "from 1."
                )

    def assign(self, head: Any, imgs: Tensor, outputs: Tensor, labels: Tensor, grid: Tensor) -> Assignment:
        """The matches of a batch, by the kit's assigner or by the host's, and the anchors in ignored regions.

        Args:
            head: whose outputs these are.
            imgs: ``(B, 3, H, W)``.
            outputs: ``(B, A, 5 + C)``: decoded box in px, objectness and class logits.
            labels: see `get_losses`.
            grid: ``(3, A)``: column, row and stride of each anchor.

        Raises:
            NonFiniteError: predictions that are not finite.
            DataError: a class that the head does not have.
        """
        if self.ignores_regions:
            boxes, is_region = split_regions(labels)
            assignment = self._assign_boxes(head, imgs, outputs, boxes, grid)
            covered = covered_by_regions(outputs.detach()[:, :, :4], labels, is_region)
            assignment.ignored = covered.flatten() & ~assignment.fg_mask
            return assignment
        return self._assign_boxes(head, imgs, outputs, labels, grid)

    def _assign_boxes(self, head: Any, imgs: Tensor, outputs: Tensor, labels: Tensor, grid: Tensor) -> Assignment:
        scene: dict[str, Any] = {
            "bbox_preds": outputs[:, :, :4],
            "obj_preds": outputs[:, :, 4:5],
            "cls_preds": outputs[:, :, 5:],
            "labels": labels,
            "x_shifts": grid[:1],
            "y_shifts": grid[1:2],
            "expanded_strides": grid[2:],
        }
        rule = self._rule(type(head))
        # A sum is as quick as can be, and finite only where every summand is. Elsewhere asking for it would wait for the device.
        if not is_accelerator(outputs.device) and not math.isfinite(float(outputs.detach().sum(dtype=torch.float32))):
            bad = non_finite(outputs)
            if bad is not None:
                raise bad
        try:
            if rule is None:
                return host_assign(head, imgs=imgs, **scene)
            if self.config.loss_assign == "auto" and is_accelerator(outputs.device):
                # There near ties could go another way than the host's: "nothing changes until you ask".
                return self.proof.assign(head, rule, imgs, scene)
            return fast_assign(rule=rule, **scene)
        except (RuntimeError, IndexError) as error:
            check_labels(labels, outputs.shape[2] - 5)
            if (bad := non_finite(outputs)) is not None:
                raise bad from error
            raise

    def _rule(self, head_class: Any) -> Rule | None:
        """The rule for the kit's assigner, None for the host's."""
        if self.config.loss_assign == "host":
            return None
        rule = hosts.assignment_rule(head_class)
        if rule is None and not self._warned_of_assignment:
            self._warned_of_assignment = True
            logger.warning(
                f"The label assignment of {head_class.__module__}.{head_class.__qualname__} is not one that the kit "
                "knows; it is used as it is (loss_assign = 'host')."
            )
        return rule

    def _avg_factors(self, assignment: Assignment, batch: int) -> dict[str | None, Any]:
        """Name of an ``avg_factor`` -> its value in this batch."""
        numbers: dict[Any, Any] = {
            "num_fg": max(assignment.num_fg, 1),
            "num_gt": max(assignment.num_gt, 1),
            "batch": batch,
            None: None,
        }
        if any(part.avg_factor == "global" for parts in self.parts.values() for part in parts):
            everywhere = sum_over_ranks(assignment.ious.new_tensor(float(assignment.num_fg)))
            # DDP averages the gradients of the ranks, so a share of the sum makes each anchor count the same.
            numbers["global"] = (everywhere / number_of_ranks()).clamp(min=1)
        return numbers


def non_finite(outputs: Tensor) -> NonFiniteError | None:
    """The error that names the terms whose predictions are not finite, None when all are.

    The label assignment stumbles over NaN in words that say nothing of it, or leaves those anchors out.

    Args:
        outputs: ``(B, A, 5 + C)``: decoded box, objectness and class logits.
    """
    terms = {"iou": outputs[..., :4], "obj": outputs[..., 4:5], "cls": outputs[..., 5:]}
    bad = [f"{term} (its predictions)" for term, pred in terms.items() if not torch.isfinite(pred).all()]
    return NonFiniteError(", ".join(bad)) if bad else None


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse a class that the head does not have.

    Args:
        labels: ``(B, M, 5)``: class and box, rows of zeros after the last box.
        num_classes: of the head.

    Raises:
        DataError: the class, the image and the row.
    """
    is_box = labels[..., 1:].sum(2) != 0
    wrong = (is_box & ((labels[..., 0] < 0) | (labels[..., 0] >= num_classes))).nonzero()
    if len(wrong):
        image, row = wrong[0].tolist()
        raise label_error(image, row, float(labels[image, row, 0]), num_classes)
