"""The losses of the terms, as the loss stage calls them: a term has one loss, or the parts of a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..specs.build import check_numbers
from ..specs.labels import label_of
from ..specs.registry import LOSSES
from ..specs.resolve import parts_of
from .facts import BatchFacts
from .sampler import OHEMSampler, RandomSampler, make_sampler


@dataclass
class TermPart:
    """One loss of a term.

    Attributes:
        label: of the loss, for the log.
        loss: its module.
        reduction: ``mean`` or ``sum``.
        avg_factor: what its sum is divided by; None: nothing, or the loss divides by itself.
        target: of the objectness term: ``hard`` or ``iou``.
        sampler: of the objectness term: which anchors the loss looks at; None: all.
        level_weights: of the objectness term: a factor per feature map; None: 1 for all.
        class_weight: of the class term: a factor per class; None: 1 for all, or the loss has it itself.
    """

    label: str
    loss: Any
    reduction: str = "mean"
    avg_factor: str | None = "num_fg"
    target: str = "hard"
    sampler: RandomSampler | OHEMSampler | None = None
    level_weights: tuple[float, ...] | None = None
    class_weight: tuple[float, ...] | None = None


def term_parts(term: str, resolved: Any, module: Any) -> list[TermPart]:
    """The parts of a term.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        resolved: its resolved loss, or a list of these.
        module: what `build_loss` makes of it.
    """
    specs = parts_of(resolved)
    modules: Sequence[Any] = module.losses if len(specs) > 1 else [module]
    return [_part(term, spec, each) for spec, each in zip(specs, modules, strict=True)]


def _part(term: str, spec: Mapping[str, Any], module: Any) -> TermPart:
    class_weight = None if "class_weight" in LOSSES.get(term, spec["type"]).knobs else spec.get("class_weight")
    check_numbers(term, "class_weight", class_weight)
    return TermPart(
        label_of(term, spec),
        module,
        spec["reduction"],
        spec.get("avg_factor") if spec["reduction"] == "mean" else None,
        spec.get("target", "hard"),
        make_sampler(spec.get("sampler")),
        spec.get("level_weights"),
        class_weight,
    )


def term_values(
    term: str,
    parts: Sequence[TermPart],
    pred: Tensor,
    target: Callable[[TermPart], Tensor],
    weight: Callable[[TermPart, Tensor], Tensor | None],
    factors: Mapping[str | None, Any],
    facts: BatchFacts,
) -> list[Tensor]:
    """The value of each part of a term.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        parts: of the term.
        pred: its predictions.
        target: part -> its targets.
        weight: part and its targets -> the weights of its elements, None without.
        factors: name of an ``avg_factor`` -> its value in this batch.
        facts: of the batch, those that a loss may ask for.

    Raises:
        ConfigError: a loss that does not return one number.
    """
    values = []
    for part in parts:
        extra = {name: facts.of(term, name) for name in getattr(part.loss, "wants", ())}
        targets = target(part)
        element_weights = weight(part, targets)
        if element_weights is not None:
            extra["weight"] = element_weights
        value = part.loss(pred, targets, avg_factor=factors[part.avg_factor], **extra)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ConfigError(f"The loss {part.label} returned {_described(value)}; a term of the training loss is one number, "
                              "a tensor without dimensions. With avg_factor given, return loss.sum() / avg_factor.")  # fmt: skip
        values.append(value)
    return values


def _described(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{value!r:.60} ({type(value).__name__})"
    )
