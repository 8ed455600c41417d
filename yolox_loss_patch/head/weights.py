"""Weights of single elements: an experiment's method ``loss_weights``, and what else weighs an anchor's objectness."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..specs.knobs import nearest
from .assign import Assignment
from .facts import BatchFacts
from .sampler import OHEMSampler
from .terms import TermPart

# What `loss_weights` may return -> its shapes, for num_fg foreground anchors, C classes, and all A anchors of B images.
SHAPES = {
    "obj_weights": (("B*A",), ("B*A", "1")),
    "label_weights": (("num_fg",), ("num_fg", "C")),
    "bbox_weights": (("num_fg",), ("num_fg", "4")),
}


class ElementWeights:
    """An experiment's ``loss_weights`` method. It belongs to the experiment: a copy of the model (EMA) shares it.

    Args:
        method: takes the `Assignment` of a batch, returns a dict with any of the names in `SHAPES`, or None.
    """

    def __init__(self, method: Callable[[Assignment], Mapping[str, Tensor] | None]) -> None:
        self.method = method

    def __deepcopy__(self, memo: Any) -> ElementWeights:
        return self

    @torch.no_grad()
    def __call__(self, assignment: Assignment, num_classes: int) -> dict[str, Tensor]:
        """The weights of a batch, checked, on the device of the assignment.

        Args:
            assignment: the matches of the batch.
            num_classes: classes of the head, C.

        Returns:
            Name -> weights of one of the shapes in `SHAPES`.

        Raises:
            ConfigError: no dict, an unknown name, no numbers, a shape that does not fit.
        """
        answer = self.method(assignment)
        if not isinstance(answer, Mapping | None):
            raise ConfigError(f"loss_weights returns a dict with any of {', '.join(SHAPES)}, or None; got {answer!r}.")
        weights = {name: weight for name, weight in (answer or {}).items() if weight is not None}
        sizes = {"num_fg": assignment.num_fg, "C": num_classes, "B*A": assignment.fg_mask.numel(), "4": 4, "1": 1}
        for name, weight in weights.items():
            if name not in SHAPES:
                known = ", ".join(SHAPES)
                raise ConfigError(f"loss_weights: there is no {name!r}.{nearest(name, SHAPES)} It returns {known}.")
            try:
                weights[name] = weight = torch.as_tensor(weight, device=assignment.fg_mask.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"loss_weights: {name} is a tensor of numbers; got {weight!r}.") from error
            if tuple(weight.shape) not in [tuple(sizes[word] for word in shape) for shape in SHAPES[name]]:
                allowed = " or ".join(f"({', '.join(shape)})" for shape in SHAPES[name])
                values = ", ".join(f"{word} = {sizes[word]}" for word in ("num_fg", "C", "B*A"))
                raise ConfigError(f"loss_weights: {name} is {allowed} with {values}; got {tuple(weight.shape)}.")
        return weights


def obj_weights(
    part: TermPart,
    assignment: Assignment,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    facts: BatchFacts,
) -> Tensor | None:
    """The weight of each anchor's objectness: of the experiment, of its feature map, of ignored regions, of the sampler.

    Args:
        part: the loss, with its sampler and weights by feature map.
        assignment: the matches of the batch, with levels where there are weights by feature map.
        logits: ``(B*A, 1)`` objectness.
        targets: ``(B*A, 1)``.
        weights: ``(B*A,)`` or ``(B*A, 1)`` of the experiment, None without.
        facts: of the batch, those that a loss may ask for.

    Returns:
        ``(B*A, 1)``, 0 for an anchor that is ignored or that the sampler did not take; None where every weight is 1.

    Raises:
        ConfigError: another number of weights than of feature maps, a loss that OHEMSampler cannot rank.
    """
    factors = [] if weights is None else [weights.view(-1, 1)]
    ignored = assignment.ignored
    if ignored is not None:
        factors.append((~ignored).to(assignment.ious.dtype).unsqueeze(1))
    if assignment.scores is not None:
        of_box = assignment.ious.new_ones(len(logits), 1)
        of_box[assignment.fg_mask, 0] = assignment.scores.to(of_box.dtype)
        factors.append(of_box)
    if part.level_weights is not None:
        assert assignment.levels is not None
        levels = 1 + int(assignment.levels[-1])
        if len(part.level_weights) != levels:
            raise ConfigError(
                f"loss_obj: level_weights has {len(part.level_weights)} numbers, and the head has {levels} feature maps."
            )
        factors.append(assignment.ious.new_tensor(part.level_weights)[assignment.levels].unsqueeze(1))
    product = functools.reduce(torch.mul, factors) if factors else None
    if part.sampler is None:
        return product
    shape = (facts.images, -1)
    foreground = assignment.fg_mask
    background = (~foreground if ignored is None else ~(foreground | ignored)).view(shape)
    foreground = foreground.view(shape)
    if isinstance(part.sampler, OHEMSampler):
        taken = part.sampler(foreground, background, _element_loss(part, logits, targets, product, facts).view(shape))
    else:
        taken = part.sampler(foreground, background)
    return taken.view(-1, 1) if product is None else taken.view(-1, 1) * product


def split_scores(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels with whole classes, and the confidence of each box.

    Args:
        labels: ``(B, M, 5)`` with the class plus half of what the confidence lacks to 1 in the first column.

    Returns:
        The labels with the class alone, and ``(B, M)`` confidences in [0, 1].
    """
    whole = labels[:, :, 0].floor()
    scores = 1 - 2 * (labels[:, :, 0] - whole)
    return torch.cat([whole.unsqueeze(2), labels[:, :, 1:]], 2), scores


def scored_weights(scores: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the box and class terms, times the confidence of each foreground anchor's box.

    Args:
        scores: ``(num_fg,)``.
        weights: of the experiment, by the names in `SHAPES`.
    """
    result = {}
    for name in ("bbox_weights", "label_weights"):
        given = weights.get(name)
        of_box = scores if given is None or given.dim() == 1 else scores.unsqueeze(1)
        result[name] = of_box if given is None else of_box * given
    return result


def cls_weights(part: TermPart, targets: Tensor, weights: Tensor | None) -> Tensor | None:
    """The weight of each class score of the foreground: of the experiment, and of the class.

    Args:
        part: the loss, with its weights by class.
        targets: ``(num_fg, C)``.
        weights: ``(num_fg,)`` or ``(num_fg, C)`` of the experiment, None without.

    Returns:
        ``(num_fg, C)`` or ``(num_fg,)``; None where every weight is 1.

    Raises:
        ConfigError: another number of weights than of classes.
    """
    if part.class_weight is None:
        return weights
    if len(part.class_weight) != targets.shape[1]:
        raise ConfigError(
            f"loss_cls: class_weight has {len(part.class_weight)} numbers, and the head has {targets.shape[1]} classes."
        )
    of_class = targets.new_tensor(part.class_weight).expand_as(targets)
    return of_class if weights is None else of_class * weights.view(len(targets), -1)


@torch.no_grad()
def _element_loss(part: TermPart, logits: Tensor, targets: Tensor, weights: Tensor | None, facts: BatchFacts) -> Tensor:
    """How much each anchor costs, ``(B*A, 1)``, as it is trained."""
    wanted = {name: facts.of("obj", name) for name in getattr(part.loss, "wants", ())}
    value: Tensor = part.loss(logits.detach(), targets, weight=weights, reduction_override="none", **wanted)
    if value.shape != logits.shape:
        raise ConfigError(
            "loss_obj: OHEMSampler ranks anchors by their loss, and with reduction_override='none' this loss gives "
            f"{tuple(value.shape)} for {tuple(logits.shape)}. Give one number per anchor, or take RandomSampler."
        )
    return value
