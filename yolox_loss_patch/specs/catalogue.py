"""The kit's losses: the rows that stand beside their functions, with every knob and its default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..losses import focal, iou, l1, region, row
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
        calibrated: whether the loss stage trains it as `Calibrated` unless its ``preset`` is ``paper``.
        share_with_stock: its share in `WithStock`, where it cannot stand alone, unless its ``preset`` is ``paper``.
        by_overlap: whether the loss stage trains it as `WeighedByOverlap` unless its ``preset`` is ``paper``.
        published: settings that ``preset="paper"`` has otherwise than the defaults.
        from_kit: False for a user's class, which checks its own knobs.
    """

    kernel: Callable[..., Any]
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    formula: str = ""
    source: str = ""
    targets: tuple[str, ...] = ("hard",)
    whole_set: bool = False
    wants: tuple[str, ...] = ()
    calibrated: bool = False
    share_with_stock: float | None = None
    by_overlap: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    from_kit: bool = True

    @property
    def has_presets(self) -> bool:
        """Whether the default is another than the paper's."""
        return self.calibrated or self.by_overlap or self.share_with_stock is not None


def _knobs(entry: row.Row) -> dict[str, Knob]:
    """The knobs of a row, with the defaults of its kernel's signature."""
    defaults = entry.defaults
    return {name: Knob.of(defaults[name], limits) for name, limits in entry.limits.items()}


# Which losses are trained otherwise than as published unless their preset says so.
_CALIBRATED = ("focal", "varifocal", "quality_focal")
# GHM-C does not fade as BCE does: at 1 it would outweigh BCE in the end.
_WITH_STOCK = {"ghmc": 0.2, "dice": 1.0, "tversky": 1.0, "dice_focal": 1.0, "nwd": 1.0}
_PUBLISHED = {"varifocal": {"target": "iou"}, "quality_focal": {"target": "iou"}}


def _loss(entry: row.Row) -> Loss:
    return Loss(
        entry.kernel,
        _knobs(entry),
        entry.formula,
        entry.source,
        entry.targets,
        entry.whole_set,
        entry.wants,
        calibrated=entry.name in _CALIBRATED,
        share_with_stock=_WITH_STOCK.get(entry.name),
        by_overlap="iou" in entry.terms and entry.name not in ("iou", "nwd") and not entry.name.startswith("alpha"),
        published=_PUBLISHED.get(entry.name, {}),
    )


def kit_losses() -> list[tuple[tuple[str, ...], str, Loss]]:
    """(terms, name, loss) of every loss of the kit, in the order in which `list` shows them."""
    order = [module.__name__ for module in (focal, region, iou, l1)]
    rows = sorted(row.ROWS, key=lambda entry: order.index(entry.kernel.__module__))
    return [(entry.terms, entry.name, _loss(entry)) for entry in rows]
