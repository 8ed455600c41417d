"""Which losses train: four specs, checked."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.annotations import default_data_dir, read_class_names
from ..data.counts import class_counts, weights_by_count
from ..data.ignored import IgnoreSettings
from ..errors import ConfigError, DataError
from .knobs import nearest
from .labels import label_of
from .registry import LOSSES, TERMS
from .resolve import parts_of, resolve

KEYS = tuple(f"loss_{term}" for term in TERMS)
ASSIGNERS = ("auto", "fast", "host")
ALIASES = {"loss_bbox": "loss_iou"}


@dataclass(frozen=True, eq=False, init=False)
class LossConfig:
    """The specs of the four terms; the defaults are stock YOLOX.

    Args:
        loss_obj, loss_cls, loss_iou, loss_l1: a name, a dict with ``type`` and knobs, a list of these, or ``bce+0.5*dice``.
        loss_assign: ``fast``, the kit's label assignment, which gives the matches of a known host (an unknown host's
            own is used instead); ``host``, the host's own; ``auto``, fast where it gives the host's matches: on a CPU it
            does to the bit, on an accelerator the first batches of a training show it.
        loss_bbox: another name of ``loss_iou``.

    Raises:
        ConfigError: a spec that cannot be.

    Two configs are equal when the same losses with the same knobs would train, however they were written.
    """

    loss_obj: Any = "bce"
    loss_cls: Any = "bce"
    loss_iou: Any = "iou"
    loss_l1: Any = "l1"
    loss_assign: str = "auto"

    def __init__(
        self,
        loss_obj: Any = "bce",
        loss_cls: Any = "bce",
        loss_iou: Any = "iou",
        loss_l1: Any = "l1",
        loss_assign: str = "auto",
        **more: Any,
    ) -> None:
        specs = {"loss_obj": loss_obj, "loss_cls": loss_cls, "loss_iou": loss_iou, "loss_l1": loss_l1}
        for key, spec in more.items():
            if key not in ALIASES:
                raise ConfigError(
                    f"There is no {key!r}.{nearest(key, (*KEYS, *ALIASES))} Choose from: {', '.join(KEYS)}, loss_assign."
                )
            name = ALIASES[key]
            if specs[name] != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"{key} is another name of {name}; keep one of them.")
            specs[name] = spec
        for key, spec in {**specs, "loss_assign": loss_assign}.items():
            object.__setattr__(self, key, spec)  # frozen: nobody else sets anything
        self._check()

    def _check(self) -> None:
        for term, resolved in self.resolved().items():
            for spec in parts_of(resolved):
                if spec["reduction"] == "none":
                    raise ConfigError(
                        f"loss_{term}: a term of the training loss is one number; reduction is mean or sum."
                    )
                if spec.get("activated"):
                    raise ConfigError(
                        f"loss_{term}: activated=True means scores, and the outputs of YOLOX's head are logits; leave it out. "
                        "It is for build_loss."
                    )
        if self.loss_assign not in ASSIGNERS:
            hint = nearest(self.loss_assign, ASSIGNERS)
            raise ConfigError(f"loss_assign is {', '.join(ASSIGNERS)}; got {self.loss_assign!r}.{hint}")

    @classmethod
    def from_specs(cls, specs: Mapping[str, Any]) -> LossConfig:
        """The config of ``{"loss_iou": "ciou", ...}``; ``loss_bbox`` is another name of ``loss_iou``."""
        named: dict[str, Any] = {}
        for key, spec in specs.items():
            if key not in (*KEYS, "loss_assign", *ALIASES):
                raise ConfigError(
                    f"There is no {key!r}.{nearest(key, KEYS)} Choose from: {', '.join(KEYS)}, loss_assign."
                )
            name = ALIASES.get(key, key)
            if name in named:
                raise ConfigError(f"{key} is another name of {name}; keep one of them.")
            named[name] = spec
        return cls(**named)

    @classmethod
    def from_exp(cls, exp: Any) -> LossConfig:
        """The config of an experiment: its ``loss_*`` attributes, the default where it has none.

        ``loss_bbox`` is another name of ``loss_iou``; an experiment that sets both to different losses is an error, and so
        is an attribute that looks like one of these and is none: stock would train without a word.
        Weights by class name become a list, in the order of the classes of the experiment's annotation file.
        """
        _refuse_strangers(exp)
        specs = {key: copy.deepcopy(getattr(exp, key)) for key in (*KEYS, "loss_assign") if hasattr(exp, key)}
        for alias, key in ALIASES.items():
            spec = getattr(exp, alias, None)
            if spec is None:
                continue
            default = cls.__dataclass_fields__[key].default
            given = specs.get(key, default)
            if given != default and given != spec:
                raise ConfigError(f"{alias} is another name of {key}; they say {spec!r} and {given!r}. Keep one.")
            specs[key] = copy.deepcopy(spec)
        if "loss_cls" in specs:
            specs["loss_cls"] = _with_class_numbers(exp, specs["loss_cls"])
        return cls(**specs)

    def to_dict(self) -> dict[str, Any]:
        """The four specs as they were written, as plain data: ``LossConfig(**config.to_dict()) == config``.

        ``loss_assign`` is among them where it is not the default.
        """
        specs = {key: copy.deepcopy(getattr(self, key)) for key in KEYS}
        return specs if self.loss_assign == "auto" else {**specs, "loss_assign": self.loss_assign}

    def resolved(self) -> dict[str, Any]:
        """Term -> its loss with every knob spelt out; a list of such losses for a sum."""
        return {term: resolve(term, getattr(self, f"loss_{term}")) for term in TERMS}

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LossConfig)
            and self.resolved() == other.resolved()
            and self.loss_assign == other.loss_assign
        )

    def __hash__(self) -> int:
        return hash(repr((self.resolved(), self.loss_assign)))

    def __str__(self) -> str:
        parts = [f"loss_{term}={label_of(term, resolved)}" for term, resolved in self.resolved().items()]
        return "  ".join([*parts, f"loss_assign={self.loss_assign}"])


_LIKE_A_KEY = 0.85  # los_iou, lossobj; of difflib's ratio


def _refuse_strangers(exp: Any) -> None:
    """Tell a mistyped key of an experiment, which nobody would read."""
    known = (*KEYS, "loss_assign", *ALIASES, "loss_weights")  # but class_weights may be anybody's
    strangers = [
        name
        for name in dir(exp)
        if name not in known
        and not name.startswith("_")
        and (name.lower().startswith("loss_") or difflib.get_close_matches(name.lower(), known[:-1], 1, _LIKE_A_KEY))
    ]
    theirs = _settings_of_host(exp) if strangers else set()  # a fork may have a loss_type of its own
    for name in strangers:
        if name not in theirs:
            raise ConfigError(
                f"The experiment sets {name}, which is no setting.{nearest(name, known)} Settings are: {', '.join(known)}. "
                "If it is for code of your own, give it another name, one that does not begin with loss_."
            )


def _settings_of_host(exp: Any) -> set[str]:
    """The settings that the experiment has from its YOLOX, be that the installed one or a fork."""
    for cls in type(exp).__mro__:
        if cls.__module__.partition(".")[0] == "yolox":
            return set(dir(cls()))
    return set()


# ---------------------------------------------------------------------------------------------------------------------
# Weights by class.


_PER_CLASS = ("class_weight", "pos_weight", "alpha")


def _with_class_numbers(exp: Any, spec: Any) -> Any:
    """The spec of the class term with lists where it has numbers by class name or by count, one number per class."""
    parts = parts_of(resolve("cls", spec))
    changed = False
    for part in parts:
        row = LOSSES.get("cls", part["type"])
        for key in _PER_CLASS:
            numbers = part.get(key)
            # A user's class reads its own knobs.
            is_kits = row.from_kit or key not in row.knobs
            if not is_kits or not (isinstance(numbers, (dict, tuple)) or numbers == "inverse"):
                continue
            if numbers == "inverse" or (isinstance(numbers, dict) and numbers.get("type") == "effective_number"):
                numbers = tuple(weights_by_count(numbers, _class_counts(exp)))
                part[key], changed = list(numbers), True
            if isinstance(numbers, dict):
                names = _class_names(exp)
                for name in numbers:
                    if name not in names:
                        raise ConfigError(
                            f"loss_cls: {key}: there is no class {name!r}.{nearest(name, names)} The annotation file has: "
                            f"{', '.join(names)}."
                        )
                # Of a class that is not named; class_weight has none and means 1, also where the loss stage carries it out.
                default = row.knobs[key].default if key in row.knobs else None
                numbers = tuple(numbers.get(name, 1.0 if default is None else default) for name in names)
                part[key], changed = list(numbers), True
            if len(numbers) != exp.num_classes:
                raise ConfigError(
                    f"loss_cls: {key} has {len(numbers)} numbers, and the experiment has num_classes = {exp.num_classes}."
                )
    if not changed:
        return spec
    return parts if len(parts) > 1 else parts[0]


def _class_counts(exp: Any) -> list[int]:
    """Boxes per class in the order of their numbers, from the experiment's annotation file."""
    try:
        return list(class_counts(exp).values())
    except (OSError, DataError) as error:
        raise ConfigError(
            "loss_cls has weights by the counts of boxes, which stand in the annotation file (COCO format), which cannot "
            f"be read: {error}. Set data_dir and train_ann, or write the weights as a list, one number per class."
        ) from error


def _class_names(exp: Any) -> list[str]:
    """The names of the classes in the order of their numbers, from the experiment's annotation file."""
    folder = getattr(exp, "data_dir", None) or default_data_dir()
    path = os.path.join(folder, "annotations", str(getattr(exp, "train_ann", "")))
    try:
        names = read_class_names(path, os.path.getmtime(path))
        return [name for name in names if name not in IgnoreSettings.from_exp(exp).classes]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "loss_cls has weights by class name, and the names stand in the annotation file (COCO format), which cannot "
            f"be read: {error}. Set data_dir and train_ann, or write the weights as a list, one number per class."
        ) from error
