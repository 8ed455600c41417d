"""What a setting of a loss may be, and the errors for what it may not."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..losses.iou import Wise
from ..losses.row import Limits
from .plain import as_python, is_number


def nearest(word: Any, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a choice is close to the word, else nothing."""
    match = difflib.get_close_matches(str(word).lower(), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


@dataclass(frozen=True)
class Knob:
    """One setting of a loss: its default and what it may be.

    A default of type int asks for a whole number, one of type bool for a flag.

    Attributes:
        default: the value when the spec has none.
        low, high: bounds of a number; ``open_low``, ``open_high``: the bound itself is not allowed.
        also: numbers that are allowed besides.
        choices: the words or whole numbers that are allowed.
        parse: for anything else: returns the value in its own type, or raises ValueError. None is allowed where it is
            the default.
        words: what is allowed, in words.
        required: there is no default.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[float, ...] = ()
    choices: tuple[Any, ...] = ()
    parse: Callable[[Any], Any] | None = None
    words: str = ""
    required: bool = False

    @classmethod
    def of(cls, default: Any, limits: Limits) -> Knob:
        """The knob of a parameter with this default, within the limits of the loss's row."""
        given = {key: value for key, value in vars(limits).items() if key != "kind"}
        return cls(default, parse=PARSERS[limits.kind] if limits.kind else None, **given)

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.words:
            return self.words
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if isinstance(self.default, bool):
            return "True or False"
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        bounds = ([low] if self.low > -math.inf else []) + ([high] if self.high < math.inf else [])
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return " ".join([kind, " and ".join(bounds)]).rstrip() + "".join(f", or {value:g}" for value in self.also)

    def check(self, where: str, value: Any) -> Any:
        """The value in the knob's type.

        Args:
            where: the start of the message, ``loss_obj: gamma of 'focal'``.
            value: what the user wrote.

        Raises:
            ConfigError: a value that is not allowed; the message says what is.
        """
        value = as_python(value)
        error = ConfigError(f"{where} is {self.allowed()}; got {value!r}.")
        if self.parse is not None:
            try:
                return None if value is None and self.default is None else self.parse(value)
            except ConfigError:
                raise
            except ValueError:
                raise error from None
        if self.choices:
            if value not in self.choices or isinstance(value, bool):
                words = [choice for choice in self.choices if isinstance(choice, str) and isinstance(value, str)]
                raise ConfigError(f"{error}{nearest(value, words)}")
            return type(self.choices[0])(value)
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise error
            return value
        if not is_number(value):
            raise error
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below) and value not in self.also:
            raise error
        if not isinstance(self.default, int):
            return float(value)
        if value != int(value):
            raise error
        return int(value)


def size(value: Any) -> tuple[float, float]:
    """(height, width) in px, both above 0; ValueError for anything else."""
    if not isinstance(value, Sequence) or len(value) != 2 or not all(is_number(side) and side > 0 for side in value):
        raise ValueError
    return float(value[0]), float(value[1])


def length_or_mean(value: Any) -> float | str:
    """Pixels, at least 0.001, or ``mean``, for a mean over the boxes at hand; ValueError for anything else."""
    if value == "mean":
        return "mean"
    if not is_number(value) or value < 1e-3:
        raise ValueError
    return float(value)


def first_epoch(value: Any) -> int:
    """An epoch as the log counts them, from 1; ValueError for anything else."""
    if not is_number(value) or value < 1 or value != int(value):
        raise ValueError
    return int(value)


def _factor(value: Any) -> float:
    value = as_python(value)
    if (
        not is_number(value) or not 0 <= value <= 1e6
    ):  # beyond, a sum over the anchors overflows fp32 or drowns the others
        raise ValueError
    return float(value)


def factors(value: Any) -> tuple[float, ...] | dict[str, float]:
    """One number per class, none below 0, as a list or by the class's name; ValueError for anything else."""
    if isinstance(value, str) or not isinstance(value, (Sequence, Mapping)) or not value:
        raise ValueError
    if isinstance(value, Mapping):
        return {str(name): _factor(number) for name, number in value.items()}
    return tuple(map(_factor, value))


def factor_or_factors(value: Any) -> float | tuple[float, ...] | dict[str, float]:
    """One number for all classes, or one per class; ValueError for anything else."""
    return factors(value) if isinstance(value, (Sequence, Mapping)) else _factor(value)


def share_or_shares(value: Any) -> float | tuple[float, ...] | dict[str, float]:
    """One number in [0, 1] or -1 for all classes, or one in [0, 1] per class; ValueError for anything else."""
    if as_python(value) == -1:
        return -1.0
    checked = factor_or_factors(as_python(value))
    numbers = checked.values() if isinstance(checked, dict) else checked if isinstance(checked, tuple) else (checked,)
    if any(number > 1 for number in numbers):
        raise ValueError
    return checked


def interval(value: Any) -> tuple[float, float] | None:
    """(d, u) with 0 <= d < u <= 1; None for (0, 1), which changes nothing. ValueError for anything else."""
    if not isinstance(value, Sequence) or len(value) != 2 or not all(map(is_number, value)):
        raise ValueError
    low, high = map(float, value)
    if not 0 <= low < high <= 1 or high - low < 1e-6:
        raise ValueError
    return None if (low, high) == (0, 1) else (low, high)


def wise(value: Any) -> dict[str, Any] | None:
    """The knobs of the modifier ``wise`` that have a meaning in its version; None for none. ValueError for anything else.

    Raises:
        ConfigError: an unknown knob, or one out of range.
    """
    given = dict(value) if isinstance(value, Mapping) else {"version": value}
    defaults = inspect.signature(Wise).parameters
    for key in given:
        if key not in Wise.limits:
            choices = ", ".join(Wise.limits)
            raise ConfigError(f"loss_iou: wise has no knob {key!r}.{nearest(key, Wise.limits)} It has: {choices}.")
    if not isinstance(value, Mapping) and value not in (1, 2, 3):
        raise ValueError
    checked = {
        key: Knob.of(defaults[key].default, limits).check(
            f"loss_iou: {key} of wise", given.get(key, defaults[key].default)
        )
        for key, limits in Wise.limits.items()
    }
    return {key: checked[key] for key in Wise.knobs[checked["version"]]}


def weight(value: Any) -> float | dict[int, float]:
    """A number at least 0, or a schedule ``{epoch: value}``; ValueError for anything else.

    A schedule that does not change is a number.
    """
    if not isinstance(value, Mapping):
        return _factor(value)
    points: dict[int, float] = {}
    for epoch, number in value.items():
        whole = int(epoch) if isinstance(epoch, str) and epoch.isdigit() else epoch  # JSON has no numbers as keys
        points[first_epoch(whole)] = _factor(number)
    if not points:
        raise ValueError
    return points[min(points)] if len(set(points.values())) == 1 else dict(sorted(points.items()))


def weights_by_level(value: Any) -> tuple[float, ...]:
    """One number per feature map, none below 0, the finest first; ValueError for anything else."""
    numbers = factors(value)
    if isinstance(numbers, dict):
        raise ValueError
    return numbers


_SAMPLER = {
    "num": Knob(256, low=1),
    "pos_fraction": Knob(0.5, low=0, high=1),
    "neg_pos_ub": Knob(-1.0, low=0, also=(-1.0,)),
}
# What can only be as it is here: the knob of MMDetection, its value, and the reason.
_FIXED = {
    "add_gt_as_proposals": (
        False,
        "YOLOX's anchors are the cells of a grid, and a ground-truth box is none. Write add_gt_as_proposals=False.",
    ),
    "loss_key": (
        "loss_cls",
        "anchors are ranked by the loss of their scores that is trained, which is loss_obj here. Leave loss_key out.",
    ),
}
_SAMPLERS = {"RandomSampler": ("add_gt_as_proposals",), "OHEMSampler": ("add_gt_as_proposals", "loss_key")}


def sampler(value: Any) -> dict[str, Any] | None:
    """A sampler's config as MMDetection writes it, every knob spelt out; None for the one that takes all anchors.

    Raises:
        ConfigError: a knob that is not allowed.
        ValueError: no config of a sampler that the kit has.
    """
    if not isinstance(value, Mapping):
        raise ValueError
    knobs = dict(value)
    name = knobs.pop("type", None)
    if name == "PseudoSampler" and not knobs:
        return None
    if name not in _SAMPLERS:
        raise ValueError
    for key in _SAMPLERS[name]:
        allowed, reason = _FIXED[key]
        given = knobs.pop(key, allowed)
        if given != allowed or type(given) is not type(allowed):
            raise ConfigError(f"loss_obj: the sampler cannot have {key}={given!r}: {reason}")
    for key in knobs:
        if key not in _SAMPLER:
            choices = [*_SAMPLER, *_SAMPLERS[name]]
            raise ConfigError(
                f"loss_obj: {name} has no knob {key!r}.{nearest(key, choices)} It has: {', '.join(choices)}."
            )
    checked = {
        key: knob.check(f"loss_obj: {key} of {name}", knobs.get(key, knob.default)) for key, knob in _SAMPLER.items()
    }
    return {"type": name, **checked}


_BETA = Knob(0.999, low=0, high=1, open_high=True)


def class_weight(value: Any) -> Any:
    """Factors per class, or how they follow from the counts of boxes; ValueError for anything else.

    Raises:
        ConfigError: a knob of ``effective_number`` that is not allowed.
    """
    if value == "inverse":
        return value
    if not isinstance(value, Mapping) or value.get("type") != "effective_number":
        return factors(value)
    for key in value:
        if key not in ("type", "beta"):
            raise ConfigError(f"class_weight: effective_number has no knob {key!r}. It has: beta.")
    beta = _BETA.check("class_weight: beta of effective_number", value.get("beta", _BETA.default))
    return {"type": "effective_number", "beta": beta}


CLASS_WEIGHT = Knob(
    None,
    parse=class_weight,
    words="None, a list of numbers at least 0, one per class, or a dict from class names to such numbers, 'inverse', or "
    "dict(type='effective_number', beta=0.999)",
)


#: `losses.row.Limits.kind` -> the parser of such a knob.
PARSERS: dict[str, Callable[[Any], Any]] = {
    "class_weight": class_weight,
    "factor_or_factors": factor_or_factors,
    "size": size,
    "length_or_mean": length_or_mean,
    "share_or_shares": share_or_shares,
    "interval": interval,
    "wise": wise,
}
