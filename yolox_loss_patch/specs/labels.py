"""The label of a loss: the shortest text that, typed in, gives the same loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .knobs import wise
from .plain import plain
from .registry import LOSSES
from .resolve import resolve

# What a setting is when nothing is said, for the classes of a user, which need not be registered where a label is read.
_USUAL = {
    "loss_weight": 1.0,
    "reduction": "mean",
    "avg_factor": "num_fg",
    "target": "hard",
    "sampler": None,
    "level_weights": None,
    "start_epoch": None,
}


def label_of(term: str, resolved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The label of a resolved loss: ``ciou(power=3)``, ``bce+0.5*dice``.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        resolved: what `resolve` gives, or what a run record has of it.

    Returns:
        A spec as text; for a name that is no Python word, the spec as a literal.
    """
    parts = [resolved] if isinstance(resolved, Mapping) else list(resolved)
    told = [_told(term, part) for part in parts]
    if all(name.replace(".", "_").isidentifier() for name, _ in told):
        return "+".join(_text(name, knobs) for name, knobs in told)
    specs = [{"type": name, **knobs} for name, knobs in told]
    return repr(specs[0] if len(specs) == 1 else specs)


def _told(term: str, part: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a part and its knobs that are not what they are when nothing is said."""
    name = str(part.get("type"))
    row = LOSSES.rows[term].get(name)
    usual: Mapping[str, Any] = _USUAL
    if row is not None and row.from_kit:
        only = resolve(term, name)
        assert isinstance(only, Mapping)
        usual = only
    elif row is not None:
        usual = {**_USUAL, "target": row.targets[0]}
    knobs = {key: value for key, value in part.items() if key != "type"}
    told = {key: value for key, value in knobs.items() if key not in usual or plain(usual[key]) != plain(value)}
    version = told["wise"].get("version") if isinstance(told.get("wise"), Mapping) else None
    if version is not None and wise(version) == told["wise"]:
        told["wise"] = version
    return name, told


def _text(name: str, knobs: dict[str, Any]) -> str:
    knobs = dict(knobs)
    weight = knobs.get("loss_weight")
    factor = ""
    if isinstance(weight, (int, float)):
        factor = f"{_written(knobs.pop('loss_weight'))}*"
    inner = ", ".join(f"{key}={_written(value)}" for key, value in knobs.items())
    return f"{factor}{name}({inner})" if inner else f"{factor}{name}"


def _written(value: Any) -> str:
    """A value as Python reads it, a whole number without its point."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{key if _is_number(key) else repr(key)}: {_written(item)}" for key, item in value.items())
            + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_written, value)) + "]"
    return repr(value)


def _is_number(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key.isdigit())
