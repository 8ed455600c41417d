"""The kit's losses: the rows that stand beside their functions, with every knob and its default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..losses import focal, iou, l1, region, row, scores
from .knobs import Knob


@dataclass(frozen=True)
class Loss:
    """What fills a term under a name.

    Attributes:
        kernel: the function of a loss of the kit; the class of a user's loss.
        knobs: its settings.
        formula, source: one line each.
        targets: which targets of the objectness term it can have, the default first.
        whole_set: it weighs and averages over its set itself, so no ``avg_factor`` divides it.
        wants: facts of the batch that it asks the loss stage for.
        power: of a box loss of the form ``1 - IoU + penalties``, whose kernel gives the penalties: the default of the
            modifier ``power``; None for a loss of another form.
        attention: of such a loss: a factor that belongs to its formula.
        alias: for a name of another loss with modifiers set.
        from_kit: False for a user's class, which checks its own knobs.
    """

    kernel: Callable[..., Any]
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    formula: str = ""
    source: str = ""
    targets: tuple[str, ...] = ("hard",)
    whole_set: bool = False
    wants: tuple[str, ...] = ()
    power: float | None = None
    attention: Callable[..., Any] | None = None
    alias: row.Alias | None = None
    from_kit: bool = True


#: Modifier -> its knob; the default of ``power`` is the loss's own.
MODIFIERS = {
    name: Knob.of(inspect.signature(iou.BoxLoss).parameters[name].default, limits)
    for name, limits in iou.MODIFIERS.items()
}


def _knobs(entry: row.Row) -> dict[str, Knob]:
    """The knobs of a row, with the defaults of its kernel's signature."""
    defaults = entry.defaults
    return {name: Knob.of(defaults[name], limits) for name, limits in entry.limits.items()}


def _loss(entry: row.Row) -> Loss:
    return Loss(
        entry.kernel,
        _knobs(entry),
        entry.formula,
        entry.source,
        entry.targets,
        entry.whole_set,
        entry.wants,
        entry.power,
        entry.attention,
    )


def _alias(alias: row.Alias, loss: Loss) -> Loss:
    """The loss under its other name, whose knobs are modifiers of the loss."""
    knobs = {}
    for knob, target in alias.renames.items():
        modifier, _, inner = target.partition(".")
        if inner:
            default = {**_defaults(iou.Wise), **alias.sets[modifier]}[inner]
            knobs[knob] = Knob.of(default, iou.Wise.limits[inner])
        else:
            knobs[knob] = replace(MODIFIERS[modifier], default=alias.sets[modifier])
    kept = {name: knob for name, knob in loss.knobs.items() if name != "mode"}
    return replace(loss, knobs={**knobs, **kept}, formula=alias.formula, source=alias.source, alias=alias)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def kit_losses() -> list[tuple[tuple[str, ...], str, Loss]]:
    """(terms, name, loss) of every loss of the kit, in the order in which `list` shows them."""
    order = [module.__name__ for module in (focal, scores, region, iou, l1)]
    rows = sorted(row.ROWS, key=lambda entry: order.index(entry.kernel.__module__))
    losses = [(entry.terms, entry.name, _loss(entry)) for entry in rows]
    boxes = {name: loss for terms, name, loss in losses if terms == ("iou",)}
    aliases = [(("iou",), alias.name, _alias(alias, boxes[alias.of])) for alias in row.ALIASES]
    return [*losses, *aliases]
