"""From a spec to a loss module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..losses.calibration import Calibrated, WeighedByOverlap
from ..losses.iou import BoxLoss, log_iou
from ..losses.schedule import Schedule
from ..losses.terms import OtherLoss, SumLoss, TermLoss
from .catalogue import MODIFIERS, Loss
from .registry import LOSSES, STAGE_KNOBS
from .resolve import parts_of, resolve


def build_loss(term: str, spec: Any) -> nn.Module:
    """The module of a spec. What the loss stage does around it (``target``, ``sampler``, ...) is checked only.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: ``"ciou"``, ``dict(type="varifocal", alpha=0.75)``, a config dict of MMDetection, a list of these, or
            ``"bce+0.5*dice"``.

    Returns:
        A module called as ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``. One whose
        ``loss_weight`` is a schedule asks for ``set_epoch(epoch)`` first.

    Raises:
        ConfigError: what `resolve` raises; knobs with which a loss has no calibration.
    """
    parts = [_build(term, part) for part in parts_of(resolve(term, spec))]
    return parts[0] if len(parts) == 1 else SumLoss(parts)


def _build(term: str, resolved: dict[str, Any]) -> nn.Module:
    loss = LOSSES.get(term, resolved["type"])
    return _of_kit(term, loss, resolved) if loss.from_kit else _of_user(term, loss, resolved)


def check_numbers(term: str, key: str, value: Any) -> None:
    """Refuse what only an experiment can make numbers of.

    Raises:
        ConfigError: numbers by class name or by the counts of boxes.
    """
    if isinstance(value, Mapping) or (key == "class_weight" and isinstance(value, str)):
        raise ConfigError(
            f"loss_{term}: {key} by the names of the classes or by their counts needs an experiment, whose annotation file "
            f"has them; here write a list, one number per class. Got {value!r}."
        )


def _weight(value: Any) -> float | Schedule:
    return Schedule(value) if isinstance(value, Mapping) else float(value)


def _of_kit(term: str, loss: Loss, resolved: dict[str, Any]) -> nn.Module:
    name = resolved["type"]
    knobs = {key: resolved[key] for key in loss.knobs if key in resolved}
    for key, value in knobs.items():
        check_numbers(term, key, value)
    modifiers = {key: resolved[key] for key in MODIFIERS if key in resolved}
    kernel: Any
    if loss.power is None:
        kernel = loss.kernel(**knobs) if isinstance(loss.kernel, type) else functools.partial(loss.kernel, **knobs)
    elif knobs.get("mode") == "log":
        kernel = log_iou
    else:
        kernel = BoxLoss(loss.kernel, knobs, loss.attention, **modifiers)
    module = TermLoss(
        term,
        name,
        kernel,
        knobs={**knobs, **modifiers},
        loss_weight=_weight(resolved["loss_weight"]),
        reduction=resolved["reduction"],
        whole_set=loss.whole_set,
        wants=loss.wants,
        activated=resolved.get("activated", False),
    )
    if resolved.get("by_overlap"):
        return WeighedByOverlap(module)
    if not resolved.get("calibrated"):
        return module
    try:
        # Where each anchor of all ranks counts the same, the unit is that of all of them.
        return Calibrated(module, over_ranks=resolved.get("avg_factor") == "global")
    except ValueError as error:
        knobs_in_words = ", ".join(f"{key}={value!r}" for key, value in knobs.items()) or "these knobs"
        raise ConfigError(
            f"loss_{term}: {name} cannot be calibrated with {knobs_in_words}, as {error}. Take other knobs, or leave "
            "calibrated out to train the formula as it is."
        ) from error


def _of_user(term: str, loss: Loss, resolved: dict[str, Any]) -> nn.Module:
    knobs = {key: value for key, value in resolved.items() if key not in (*STAGE_KNOBS, "type")}
    if "class_weight" not in loss.knobs:
        knobs.pop("class_weight", None)
    weight = knobs.get("loss_weight", 1.0)
    if isinstance(weight, Mapping):
        knobs.pop("loss_weight")  # a schedule is the kit's; the class has its own default, which has to be 1
        if "loss_weight" in loss.knobs:
            knobs["loss_weight"] = 1.0
    elif "loss_weight" in loss.knobs:
        weight = 1.0
    else:
        knobs.pop("loss_weight", None)
    if "reduction" not in loss.knobs:
        knobs.pop("reduction", None)
    try:
        module: nn.Module = loss.kernel(**knobs)
    except ValueError as error:
        raise ConfigError(f"loss_{term}: {resolved['type']!r} refuses its knobs, {knobs}: {error}") from error
    return module if weight == 1 else OtherLoss(module, _weight(weight))
