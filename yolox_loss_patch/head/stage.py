"""The loss stage: what takes the place of the head's ``get_losses``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from ..errors import ConfigError, NonFiniteError
from ..losses.calibration import Calibrated, WeighedByOverlap, WithStock
from ..losses.derivatives import has_no_custom_gradient
from ..losses.state import number_of_ranks, sum_over_ranks
from ..losses.terms import TermLoss
from ..specs.build import build_loss
from ..specs.config import LossConfig
from ..specs.knobs import nearest
from ..specs.registry import LOSSES, TERMS
from . import hosts
from .assign import Assignment, Rule, fast_assign, host_assign
from .sampler import RandomSampler

# YOLOX's fixed factor on the box loss; `loss_weight` of the iou term multiplies it.
BOX_WEIGHT = 5.0

# What an experiment's `loss_weights` may return: the shapes of each, for num_fg foreground anchors, C classes, and all
# A anchors of the B images; the term or terms that it goes to.
WEIGHTS = {
    "obj_weights": (("B*A",), ("B*A", "1")),
    "label_weights": (("num_fg",), ("num_fg", "C")),
    "bbox_weights": (("num_fg",), ("num_fg", "4")),
}


class _Split(torch.autograd.Function):
    """What the terms need of the head's outputs, with one gradient tensor for all three.

    Slicing and indexing would each give back a tensor of the size of all outputs, nearly all zeros, to be added up.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = outputs.reshape(-1, outputs.shape[-1])
        ctx.save_for_backward(rows)
        ctx.shape = outputs.shape
        found = flat[rows]
        # Objectness stays a view with gaps, as in YOLOX: on a CPU the sigmoid of a packed copy differs in the last bit.
        return found[:, :4].contiguous(), flat[:, 4:5], found[:, 5:].contiguous()

    @staticmethod
    def backward(ctx: Any, boxes: Tensor, obj: Tensor, cls: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        gradient = obj.new_zeros(ctx.shape)
        flat = gradient.view(-1, ctx.shape[-1])
        flat[:, 4:5] = obj
        flat[rows, :4] = boxes
        flat[rows, 5:] = cls
        return gradient, None


def _split(outputs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``(num_fg, 4)`` of the foreground, objectness ``(B*A, 1)`` of all anchors, classes ``(num_fg, C)``."""
    if has_no_custom_gradient():
        flat = outputs.reshape(-1, outputs.shape[-1])
        return flat[rows, :4], flat[:, 4:5], flat[rows, 5:]
    parts: tuple[Tensor, Tensor, Tensor] = _Split.apply(outputs, rows)
    return parts


def non_finite(outputs: Tensor) -> NonFiniteError | None:
    """The error that names the terms whose predictions are not finite, None when all are.

    The label assignment is the first to stumble over NaN, in words that say nothing of it.
    """
    terms = {"iou": outputs[..., :4], "obj": outputs[..., 4:5], "cls": outputs[..., 5:]}
    bad = [f"{term} (its predictions)" for term, pred in terms.items() if not torch.isfinite(pred).all()]
    return NonFiniteError(", ".join(bad)) if bad else None


class ElementWeights:
    """An experiment's ``loss_weights`` method. It belongs to the experiment: a copy of the model (EMA) shares it."""

    def __init__(self, method: Callable[[Assignment], Mapping[str, Tensor] | None]) -> None:
        self.method = method

    def __deepcopy__(self, memo: Any) -> ElementWeights:
        return self

    @torch.no_grad()
    def __call__(self, found: Assignment, num_classes: int) -> dict[str, Tensor]:
        """The weights of a batch, checked.

        Raises:
            ConfigError: no dict, an unknown name, no numbers, a shape that does not fit.
        """
        answer = self.method(found)
        if not isinstance(answer, Mapping | None):
            raise ConfigError(f"loss_weights returns a dict with any of {', '.join(WEIGHTS)}, or None; got {answer!r}.")
        weights = {name: weight for name, weight in (answer or {}).items() if weight is not None}
        sizes = {"num_fg": found.num_fg, "C": num_classes, "B*A": found.fg_mask.numel(), "4": 4, "1": 1}
        for name, weight in weights.items():
            if name not in WEIGHTS:
                known = ", ".join(WEIGHTS)
                raise ConfigError(f"loss_weights: there is no {name!r}.{nearest(name, WEIGHTS)} It returns {known}.")
            try:
                weights[name] = weight = torch.as_tensor(weight, device=found.fg_mask.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"loss_weights: {name} is a tensor of numbers; got {weight!r}.") from error
            if tuple(weight.shape) not in [tuple(sizes[word] for word in shape) for shape in WEIGHTS[name]]:
                allowed = " or ".join(f"({', '.join(shape)})" for shape in WEIGHTS[name])
                values = ", ".join(f"{word} = {sizes[word]}" for word in ("num_fg", "C", "B*A"))
                raise ConfigError(f"loss_weights: {name} is {allowed} with {values}; got {tuple(weight.shape)}.")
        return weights


def build_term(term: str, resolved: Mapping[str, Any]) -> Any:
    """The loss of a term, brought to YOLOX's scale and meaning where its preset says so.

    Raises:
        ConfigError: knobs with which it has no calibration.
    """
    loss = build_loss(term, resolved)
    if resolved.get("preset") != "calibrated":
        return loss
    assert isinstance(loss, TermLoss)  # as all losses of the kit are
    row = LOSSES.get(term, resolved["type"])
    if row.by_overlap:
        return WeighedByOverlap(loss)
    if row.share_with_stock is not None:
        return WithStock(loss, row.share_with_stock)
    try:
        # Where each anchor of all ranks counts the same, the unit is that of all of them.
        return Calibrated(loss, over_ranks=resolved.get("avg_factor") == "global")
    except ValueError as error:
        raise ConfigError(
            f"loss_{term}: {resolved['type']} cannot be calibrated with these knobs, as {error}. Write preset='paper' to "
            "train the formula as it is."
        ) from error


class LossStage:
    """Label assignment, targets and the four loss terms of one head.

    It is no ``nn.Module``, so that the head's state_dict, its children and its trace stay what they were, and it keeps no
    reference to the head, so that a copy of a patched head works on the copy.

    Args:
        config: the losses.
        own: term -> the fork's own loss module, where it is not YOLOX's. It trains a term that the config leaves at its
            default, so that nothing changes until you ask.

    With ``collect`` set, ``stats`` holds after each call the mean IoU of the foreground and the mean objectness on
    foreground and background, as tensors, with the counts behind them, and ``gradients`` sums over the backward passes
    how hard each term pulls at the network: the L1 norm of the gradient of the total loss at the head's raw outputs (the
    offsets before decoding, the logits), objectness on foreground and background apart.

    Attributes:
        asked: the terms whose loss is not the default.
        element_weights: the experiment's weights of the elements, None without.
        l1_is_scheduled: whether the trainer turns the L1 term on in the epoch of ``start_epoch``.
    """

    def __init__(self, config: LossConfig, own: Mapping[str, Any] | None = None) -> None:
        self.config = config
        resolved = config.resolved()
        defaults = LossConfig().resolved()
        self.losses: dict[str, Any] = {term: build_term(term, resolved[term]) for term in TERMS}
        self.asked = [term for term in TERMS if resolved[term] != defaults[term]]
        for term, module in (own or {}).items():
            if term not in self.asked:
                self.losses[term] = TermLoss(term, type(module).__name__, module)
        self.divided = {term: resolved[term]["reduction"] == "mean" for term in TERMS}
        self.avg_factor = {
            term: resolved[term].get("avg_factor", "num_fg" if isinstance(loss, WithStock) else None)
            for term, loss in self.losses.items()
        }
        self.obj_target = resolved["obj"]["target"]
        knobs = resolved["obj"]["sampler"]
        self.sampler = None if knobs is None else RandomSampler(**{k: v for k, v in knobs.items() if k != "type"})
        self.l1_start = resolved["l1"]["start_epoch"]
        self.l1_is_scheduled = False
        self.element_weights: ElementWeights | None = None
        self.collect = False
        self._told = False
        self.stats: dict[str, Tensor | int] = {}
        self.gradients: dict[str, Tensor] = {}

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
            bad = non_finite(outputs)
            if bad is None:
                raise
            raise bad from error
        rows = found.fg_mask.nonzero().squeeze(1)
        num_fg = max(found.num_fg, 1)
        if self.l1_start is not None and not self.l1_is_scheduled:
            raise ConfigError(
                f"loss_l1: start_epoch={self.l1_start} is kept by the kit's trainer, which does not train this model. "
                "Train with it, or leave start_epoch out and set the head's use_l1 yourself."
            )
        weights = self.element_weights(found, head.num_classes) if self.element_weights is not None else {}
        factors = self._avg_factors(found, batch=len(outputs))
        facts = {"images": len(outputs), "image_size": imgs.shape[-2:]}

        def term(name: str, pred: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
            loss = self.losses[name]
            wanted = {fact: facts[fact] for fact in getattr(loss, "wants", ())}
            if weight is not None:
                wanted["weight"] = weight
            value: Tensor = loss(pred, target, avg_factor=factors[name], **wanted)
            return value

        box_weights = weights.get("bbox_weights")
        boxes, obj_logits, cls_logits = _split(outputs, rows)
        loss_iou = BOX_WEIGHT * term("iou", boxes, found.boxes, box_weights)
        obj_weights = self._sampled(found, len(outputs), weights.get("obj_weights"))
        loss_obj = term("obj", obj_logits, self._obj_targets(found, rows), obj_weights)
        cls_targets = F.one_hot(found.classes, head.num_classes) * found.ious.unsqueeze(-1)
        loss_cls = term("cls", cls_logits, cls_targets, weights.get("label_weights"))
        loss_l1: Tensor | float = 0.0
        offsets = None
        if head.use_l1:
            l1_targets = self._l1_targets(head, found, rows % outputs.shape[1], stride, x_shift, y_shift)
            offsets = torch.cat(origin_preds, 1).view(-1, 4)[rows]
            loss_l1 = term("l1", offsets, l1_targets, box_weights)
        loss = loss_iou + loss_obj + loss_cls + loss_l1

        if self.collect:
            self._collect(found, rows, obj_logits.detach())
            if loss.requires_grad:
                cells = stride[0][rows % outputs.shape[1]].unsqueeze(1)
                self._collect_gradients(loss, rows, cells, boxes, obj_logits, cls_logits, offsets)
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

    def _avg_factors(self, found: Assignment, batch: int) -> dict[str, Any]:
        """What each term is divided by; None where the reduction is not a mean, or the loss's own business."""
        numbers: dict[Any, Any] = {
            "num_fg": max(found.num_fg, 1),
            "num_gt": max(found.num_gt, 1),
            "batch": batch,
            None: None,
        }
        if "global" in self.avg_factor.values():
            everywhere = sum_over_ranks(found.ious.new_tensor(float(found.num_fg)))
            # DDP averages the gradients of the ranks, so a share of the sum makes each anchor count the same.
            numbers["global"] = (everywhere / number_of_ranks()).clamp(min=1)
        return {term: numbers[self.avg_factor[term]] if self.divided[term] else None for term in TERMS}

    def _sampled(self, found: Assignment, batch: int, weights: Tensor | None) -> Tensor | None:
        """The objectness term's weights ``(B*A, 1)``, 0 where the sampler did not draw the anchor."""
        if self.sampler is not None:
            drawn = self.sampler(found.fg_mask.view(batch, -1)).view(-1)
            weights = drawn if weights is None else drawn * weights.view(-1)
        return None if weights is None else weights.view(-1, 1)

    def running_state(self) -> dict[str, dict[str, Tensor]]:
        """What the losses have learnt from the batches so far (a running mean), by term, for a resume file."""
        states = {term: loss.running_state() for term, loss in self.losses.items() if hasattr(loss, "running_state")}
        return {term: state for term, state in states.items() if state}

    def load_running_state(self, states: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on from a `running_state` of the same losses."""
        for term, state in states.items():
            self.losses[term].load_running_state(state)

    def _obj_targets(self, found: Assignment, rows: Tensor) -> Tensor:
        """``(B*A, 1)``: 1 on foreground, or the IoU of the matched box."""
        if self.obj_target == "hard":
            return found.fg_mask.unsqueeze(-1).to(found.ious.dtype)
        targets = found.ious.new_zeros(found.fg_mask.shape[0], 1)
        targets[rows, 0] = found.ious
        return targets

    @staticmethod
    def _l1_targets(
        head: Any, found: Assignment, anchor: Tensor, stride: Tensor, x_shift: Tensor, y_shift: Tensor
    ) -> Tensor:
        """``(num_fg, 4)``: the matched boxes as the offsets that the head's ``get_l1_target`` makes of them."""
        targets: Tensor = head.get_l1_target(
            torch.zeros_like(found.boxes),
            found.boxes,
            stride[0][anchor],
            x_shifts=x_shift[0][anchor],
            y_shifts=y_shift[0][anchor],
        )
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

    def _collect_gradients(
        self,
        loss: Tensor,
        rows: Tensor,
        stride: Tensor,
        boxes: Tensor,
        obj_logits: Tensor,
        cls_logits: Tensor,
        offsets: Tensor | None,
    ) -> None:
        """Let the backward pass of this batch add to ``gradients``."""
        came: list[Tensor] = []  # the gradient of the loss itself: 1, or what loss scaling makes of it
        loss.register_hook(lambda gradient: came.append(gradient.detach()))

        def add(**pulls: Tensor) -> None:
            for name, pull in pulls.items():
                self.gradients[name] = self.gradients.get(name, 0) + pull / came[0]

        def obj(gradient: Tensor) -> None:
            size = gradient.abs()
            foreground = size[rows].sum()
            add(grad_obj_fg=foreground, grad_obj_bg=size.sum() - foreground)

        # A centre moves by stride px a unit of its offset, a side by its own length.
        raw = torch.cat([stride, stride, boxes.detach()[:, 2:]], 1)
        boxes.register_hook(lambda gradient: add(grad_box=(gradient * raw).abs().sum()))
        obj_logits.register_hook(obj)
        cls_logits.register_hook(lambda gradient: add(grad_cls=gradient.abs().sum()))
        if offsets is not None and offsets.requires_grad:  # the box branch may be frozen
            offsets.register_hook(lambda gradient: add(grad_l1=gradient.abs().sum()))
