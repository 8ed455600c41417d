"""From a spec to a loss module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..losses.terms import TermLoss
from .registry import LOSSES, STAGE_KNOBS
from .resolve import COMMON, resolve


def build_loss(term: str, spec: Any) -> nn.Module:
    """The module of a spec: the formula. What the loss stage does around it (``preset``, ``target``, ...) is checked only.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: ``"ciou"``, ``dict(type="varifocal", alpha=0.75)``, a config dict of MMDetection.

    Returns:
        A module called as ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``.

    Raises:
        ConfigError: what `resolve` raises.
    """
    resolved = resolve(term, spec)
    loss = LOSSES.get(term, resolved["type"])
    if loss.published and "preset" not in spec:
        resolved = resolve(term, {**({"type": spec} if isinstance(spec, str) else spec), "preset": "paper"})
    resolved = {key: value for key, value in resolved.items() if key not in STAGE_KNOBS}
    name = resolved.pop("type")
    for key, value in resolved.items():
        if loss.from_kit and isinstance(value, Mapping):
            raise ConfigError(
                f"loss_{term}: {key} by the names of the classes needs an experiment, whose annotation file has them; "
                f"here write a list, one number a class. Got {value!r}."
            )
    if loss.from_kit:
        shared = {key: resolved.pop(key) for key in COMMON}
        return TermLoss(term, name, loss.kernel, knobs=resolved, whole_set=loss.whole_set, wants=loss.wants, **shared)
    weight = 1.0 if "loss_weight" in loss.knobs else resolved.pop("loss_weight")
    if "reduction" not in loss.knobs:
        del resolved["reduction"]
    try:
        module: nn.Module = loss.kernel(**resolved)
    except ValueError as error:
        raise ConfigError(f"loss_{term}: {name!r} refuses its knobs, {resolved}: {error}") from error
    if weight != 1:
        module.register_forward_hook(functools.partial(_times, weight))
    return module


def _times(weight: float, module: nn.Module, args: Any, loss: Any) -> Any:
    """The loss times ``loss_weight``, for a class that does not take it."""
    return weight * loss
