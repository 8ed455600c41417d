"""Overrides of an experiment from the command line: every value takes the type of the setting that it replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from ..data.ignored import IGNORE_KEYS
from ..errors import ConfigError
from ..specs.config import ALIASES, KEYS, LossConfig
from ..specs.knobs import nearest
from ..specs.plain import as_python, literal

# Settings that YOLOX reads although its own Exp does not set them.
OPTIONAL = ("random_size",)
SETTINGS = (*KEYS, "loss_assign")
# Settings of the kit that change the data; an experiment that leaves them at their default does not show them.
DATA_SETTINGS = (*IGNORE_KEYS, "repeat_factor", "gt_score")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def merge(exp: Any, cfg_list: Sequence[Any]) -> None:
    """`LossExp.merge` for any experiment."""
    if len(cfg_list) % 2:
        raise ConfigError(
            f"Overrides are pairs of key and value; got {len(cfg_list)} words: {' '.join(map(str, cfg_list))}. "
            "Flags stand before them."
        )
    changes: dict[str, Any] = {}
    pairs = list(zip(cfg_list[::2], cfg_list[1::2], strict=True))
    for key, value in sorted(pairs, key=lambda pair: "." in pair[0]):  # a loss before its knobs, which it would replace
        if key.startswith("wandb-"):
            continue  # YOLOX's trainer reads these from the same list
        head, _, knob = key.partition(".")
        head = ALIASES.get(head, head)
        if head in KEYS:
            changes[head] = _spec(head, knob, changes.get(head, _current_spec(exp, head)), value)
            continue
        if not is_setting(exp, key):
            keys = [*KEYS, *_settings(exp)]
            raise ConfigError(
                f"The experiment has no setting {key!r}.{nearest(key, keys)} It has: {', '.join(sorted(set(keys)))}."
            )
        changes[key] = _convert(key, getattr(exp, key, None), value)
    if any(key in changes for key in SETTINGS):
        specs = {key: changes[key] if key in changes else _current_spec(exp, key) for key in SETTINGS}
        LossConfig.from_specs({key: spec for key, spec in specs.items() if spec is not None})
        _warn_of_inherited_knobs(exp, changes, [key for key, _ in pairs])
    for key, value in changes.items():
        setattr(exp, key, value)
    for alias, key in ALIASES.items():
        if key in changes and hasattr(exp, alias):
            setattr(exp, alias, changes[key])


def _warn_of_inherited_knobs(exp: Any, changes: Mapping[str, Any], words: Sequence[str]) -> None:
    """Warn of knobs that a loss takes over from the loss before it, after ``loss_obj.type varifocal``."""
    for key in KEYS:
        now, new = _current_spec(exp, key), changes.get(key)
        if not (isinstance(now, Mapping) and isinstance(new, Mapping)) or now.get("type") == new.get("type"):
            continue
        names = [key, *(alias for alias, name in ALIASES.items() if name == key)]
        given = {word.partition(".")[2] for word in words if word.partition(".")[0] in names}  # "": the loss as a whole
        kept = [f"{knob}={value!r}" for knob, value in now.items() if knob not in given]
        if kept and "" not in given:
            logger.warning(
                f"{key}.type {new['type']} takes the place of {now.get('type')} and keeps its {', '.join(kept)}. "
                f"For the defaults of {new['type']} write {key} {new['type']}."
            )


def _settings(exp: Any) -> list[str]:
    names = {name for name in dir(exp) if not name.startswith("_")}
    return sorted(name for name in names if is_setting(exp, name))


def setting_name(key: str) -> str:
    """The key of an override without aliases: ``loss_bbox.type`` is ``loss_iou.type``."""
    head, dot, knob = key.partition(".")
    return f"{ALIASES.get(head, head)}{dot}{knob}"


def is_setting(exp: Any, key: str) -> bool:
    """Whether an override may name this key: a public attribute that is no method."""
    if key in OPTIONAL:
        return True
    return not key.startswith("_") and hasattr(exp, key) and not callable(getattr(exp, key))


def override_value(text: str) -> Any:
    """The value that an override writes: a Python literal, ``true`` or ``false`` in any case, else the text itself."""
    return _WORDS[text.lower()] if text.lower() in ("true", "false") else literal(text)


def _current_spec(exp: Any, key: str) -> Any:
    """The spec that the experiment has now, by whichever name it was set."""
    aliases = [getattr(exp, alias, None) for alias, name in ALIASES.items() if name == key]
    return next((spec for spec in aliases if spec is not None), getattr(exp, key, None))


def _spec(key: str, knob: str, spec: Any, value: Any) -> Any:
    """The spec after ``loss_obj focal``, ``loss_obj.gamma 1.5`` or ``loss_obj {'type': 'focal'}``."""
    if isinstance(value, str):
        value = override_value(value)
    if not knob:
        return value
    spec = (
        {"type": spec}
        if isinstance(spec, str)
        else dict(spec or {"type": LossConfig.__dataclass_fields__[key].default})
    )
    spec[knob] = value
    return spec


def _convert(key: str, old: Any, value: Any) -> Any:
    """The value in the type of the setting that it replaces."""

    def wrong(allowed: str) -> ConfigError:
        return ConfigError(f"{key} is {allowed} (now {old!r}); got {value!r}.{hint}")

    hint, old = "", as_python(old)
    if isinstance(old, bool):
        if isinstance(value, bool):
            return value
        if str(value).lower() not in _WORDS:
            hint = nearest(value, ["true", "false", "yes", "no", "on", "off"])
            raise wrong("True or False")
        return _WORDS[str(value).lower()]
    if isinstance(old, (str, Path)):
        return type(old)(value)
    new = literal(value)
    if old is None or key == "ignore_classes":  # however many names there were
        return new
    if isinstance(old, (int, float)):
        if isinstance(new, bool) or not isinstance(new, (int, float)):
            raise wrong("a number")
        return float(new) if isinstance(old, float) else new
    if isinstance(old, (tuple, list)):
        if isinstance(new, (int, float)) and not isinstance(new, bool):
            new = (new,)
        if not isinstance(new, (tuple, list)) or len(new) != len(old):
            raise wrong(f"{len(old)} values, as in '{','.join(map(str, old))}'")
        if any(isinstance(n, str) != isinstance(o, str) for n, o in zip(new, old, strict=True)):
            raise wrong(f"{len(old)} values of the kind in '{','.join(map(str, old))}'")
        return type(old)(new)
    if type(new) is not type(old):
        raise wrong(f"a {type(old).__name__}")
    return new
