"""From a spec to checked plain data.

A *spec* is what a user writes for a term: a name, a dict with ``type`` and knobs, a list of these (their sum), or the sum
as a text. `resolve` makes of it a dict with every knob spelt out, or a list of such dicts. Two spellings of one loss give
the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..losses import focal
from . import text
from .catalogue import MODIFIERS, Loss
from .knobs import CLASS_WEIGHT, Knob, first_epoch, nearest, sampler, weight, weights_by_level
from .mmdet import MMDET, MMYOLO_IOU, REFUSED
from .plain import plain
from .registry import LOSSES, Registry, check_term

COMMON = {
    "loss_weight": Knob(1.0, parse=weight, words="a number from 0 to 1e6, or a schedule {epoch: number}"),
    "reduction": Knob("mean", choices=("mean", "sum", "none")),
}
# What the loss stage does before and after the loss itself; a user's losses have these too.
_AVG_FACTOR = Knob("num_fg", choices=("num_fg", "num_gt", "batch", "global"))
_SAMPLER = Knob(
    None,
    parse=sampler,
    words="None, or dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False); "
    "type='OHEMSampler' takes the anchors with the largest loss",
)
_LEVEL_WEIGHTS = Knob(
    None,
    parse=weights_by_level,
    words="None, or a list of numbers at least 0, one per feature map, that of the smallest stride first",
)
_START_EPOCH = Knob(
    None,
    parse=first_epoch,
    words="a whole number at least 1 (an epoch as the log counts), or None: YOLOX's no_aug_epochs",
)
_CALIBRATED = Knob(False, words="True or False: on the logit of the chance that its score stands for, with BCE's pull")
_ACTIVATED = Knob(False, words="True or False: called with scores instead of logits; for build_loss only")
_BY_OVERLAP = Knob(False, words="True or False: each box times 2 IoU, detached, the slope of YOLOX's own 1 - IoU^2")
# Knobs with a number per class, of which no calibration can be told.
_PER_CLASS = ("alpha", "pos_weight", "class_weight")


def can_be_calibrated(term: str, loss: Loss) -> bool:
    """Whether a loss has the knob ``calibrated``: it is element-wise, and of the anchor alone."""
    return (
        term in ("obj", "cls")
        and loss.from_kit
        and not loss.whole_set
        and not loss.wants
        and not isinstance(loss.kernel, type)
    )


def family_knobs(term: str, loss: Loss) -> dict[str, Knob]:
    """The knobs that a loss shares with others of its kind: the modifiers, ``by_overlap``, ``calibrated``."""
    knobs: dict[str, Knob] = {}
    if loss.power is not None:
        sets: Mapping[str, Any] = {} if loss.alias is None else loss.alias.sets
        taken = set() if loss.alias is None else {name.partition(".")[0] for name in loss.alias.renames.values()}
        defaults = {"power": loss.power, **sets}
        for name, knob in MODIFIERS.items():
            if name not in taken:
                knobs[name] = Knob(**{**vars(knob), "default": defaults.get(name, knob.default)})
        knobs["by_overlap"] = _BY_OVERLAP
    if can_be_calibrated(term, loss):
        knobs["calibrated"] = _CALIBRATED
    if loss.kernel in (focal.focal, focal.quality_focal):
        knobs["activated"] = _ACTIVATED
    return knobs


def stage_knobs(term: str, loss: Loss) -> dict[str, Knob]:
    """The settings of a term that the loss stage carries out, whatever the loss."""
    knobs: dict[str, Knob] = {}
    if not loss.whole_set:
        knobs["avg_factor"] = _AVG_FACTOR
    if term == "obj":
        knobs.update(target=Knob(loss.targets[0], choices=loss.targets), sampler=_SAMPLER, level_weights=_LEVEL_WEIGHTS)
    if term == "cls" and "class_weight" not in loss.knobs:
        knobs["class_weight"] = CLASS_WEIGHT
    if term == "l1":
        knobs["start_epoch"] = _START_EPOCH
    return knobs


def parts_of(resolved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The losses of a resolved spec: one, or the parts of a sum."""
    return [dict(resolved)] if isinstance(resolved, Mapping) else [dict(part) for part in resolved]


def resolve(term: str, spec: Any, registry: Registry | None = None) -> Any:
    """A spec with every knob spelt out.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: a name, a mapping with ``type`` and knobs (MMDetection's dicts too), a list of these, or a text such as
            ``bce+0.5*dice``.
        registry: where names are looked up; `LOSSES` if not given.

    Returns:
        A dict with ``type`` and every knob; for a sum a list of such dicts, in the order of the catalogue.

    Raises:
        ConfigError: an unknown name or knob, a knob of another loss, a value out of range.
    """
    registry = registry or LOSSES
    check_term(term)
    parts = [_resolve_part(term, part, registry) for part in _split(term, spec, registry)]
    if len(parts) == 1:
        return parts[0]
    starts = {part["start_epoch"] for part in parts if part.get("start_epoch") is not None}
    if len(starts) > 1:
        raise ConfigError(f"loss_l1: the parts of a sum start in one epoch; got start_epoch {sorted(starts)}.")
    for part in parts:
        if starts:
            part["start_epoch"] = next(iter(starts))
    order = registry.names(term)
    return sorted(parts, key=lambda part: (order.index(part["type"]), repr(plain(part))))


def _split(term: str, spec: Any, registry: Registry) -> list[dict[str, Any]]:
    """The parts of a spec as dicts."""
    if isinstance(spec, str):
        if spec in registry.rows[term] or not text.is_formula(spec):
            return [{"type": spec}]
        return text.parse(f"loss_{term}", spec)
    if isinstance(spec, Mapping):
        return [dict(spec)]
    if isinstance(spec, (list, tuple)) and spec:
        return [part for each in spec for part in _split(term, each, registry)]
    raise ConfigError(
        f"loss_{term} is a name such as {registry.names(term)[0]!r}, a dict with 'type', or a list of these (their sum); "
        f"got {spec!r}."
    )


_FLAG = Knob(False)
_IOU_MODE = Knob("ciou", choices=tuple(MMYOLO_IOU))
_BOX_FORMAT = Knob("xywh", choices=("xywh", "xyxy"))


def _from_mmdet(term: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A config dict of MMDetection as a spec of the kit."""
    cls = mmdet_name(spec.pop("type"))
    where = f"loss_{term}: {cls}"
    known = MMDET[cls]
    if known.refuse:
        raise ConfigError(f"{where}: {known.refuse}")
    if known.terms and term not in known.terms:
        raise ConfigError(
            f"{where} keeps MMDetection's meaning for {', '.join(known.terms)} only; here write {known.name!r}."
        )
    for key, value in known.must.items():
        if key in known.said and key not in spec:
            raise ConfigError(f"{where}: write {key}={value}, which is not the default there; {known.why}.")
        given = spec.pop(key, value)
        if given != value:
            why = known.reasons.get(key, known.why)
            raise ConfigError(f"{where}: only {key}={value} exists here, because {why}; got {given!r}.")
    spec = {known.renamed.get(key, key): value for key, value in spec.items()}
    if term == "iou":
        _check_eps(where, spec.pop("eps", 0.0))
    if cls == "IoULoss" and _FLAG.check(f"{where}: linear", spec.pop("linear", False)):
        spec["mode"] = "linear"
    return {"type": known.name, **known.defaults, **{key: value for key, value in spec.items() if value is not None}}


_MMYOLO_KEYS = {"iou_mode", "bbox_format", "return_iou", "siou_theta"}


def _from_mmyolo(spec: dict[str, Any]) -> dict[str, Any]:
    """A config dict of MMYOLO's IoULoss as a spec of the kit.

    ``bbox_format`` says how MMYOLO hands boxes over and ``return_iou`` what it returns besides; neither is part of the
    formula. Here boxes are (cx, cy, w, h) and the loss alone is returned.
    """
    spec.pop("type")
    where = "loss_iou: MMYOLO's IoULoss"
    mode = _IOU_MODE.check(f"{where}: iou_mode", spec.pop("iou_mode", "ciou"))
    _BOX_FORMAT.check(f"{where}: bbox_format", spec.pop("bbox_format", "xywh"))
    _FLAG.check(f"{where}: return_iou", spec.pop("return_iou", True))
    theta = spec.pop("siou_theta", 4.0)
    _check_eps(where, spec.pop("eps", 1e-7))
    return {**MMYOLO_IOU[mode], **({"theta": theta} if mode == "siou" else {}), **spec}


def _check_eps(where: str, eps: Any) -> None:
    """Their guard against 0/0. Ours leaves sane values as they are, so leaving out a small one changes nothing."""
    if not isinstance(eps, (int, float)) or not 0 <= eps <= 1e-6:
        raise ConfigError(f"{where}: eps is at most 1e-6 (the kit's losses are finite without it); got {eps!r}.")


def mmdet_name(name: str) -> str:
    """The name of a class of MMDetection or MMYOLO without its registry in front."""
    return name.removeprefix("mmdet.").removeprefix("mmyolo.").removeprefix("mmrotate.")


def _resolve_part(term: str, spec: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """One loss with every knob spelt out."""
    spec = dict(spec)
    if "type" not in spec:
        raise ConfigError(f"loss_{term}: the dict has no 'type'. Choose one of: {', '.join(registry.names(term))}.")
    name = spec["type"]
    if isinstance(name, str) and mmdet_name(name) in MMDET:
        is_mmyolo = name == "mmyolo.IoULoss" or (mmdet_name(name) == "IoULoss" and not _MMYOLO_KEYS.isdisjoint(spec))
        spec = _from_mmyolo(spec) if is_mmyolo else _from_mmdet(term, spec)
    elif isinstance(name, str) and name.lower() in REFUSED and name not in registry.rows[term]:
        raise ConfigError(f"loss_{term}: {name!r}: {REFUSED[name.lower()]}")
    name = spec.pop("type")
    if isinstance(name, str) and name not in registry.rows[term] and text.is_formula(name):
        raise ConfigError(f"loss_{term}: a sum has no knobs of its own; write them with its parts: 0.5*dice(smooth=2).")
    loss = registry.get(term, name)
    knobs = {**loss.knobs, **{key: knob for key, knob in COMMON.items() if key not in loss.knobs}}
    knobs.update(family_knobs(term, loss))
    knobs.update(stage_knobs(term, loss))
    for key in spec:
        if key not in knobs:
            raise ConfigError(_unknown_knob(registry, term, name, key, list(knobs)))
    if loss.alias is not None:
        return _resolve_part(term, _spelt_out(term, spec, loss), registry)
    resolved: dict[str, Any] = {"type": name}
    for key, knob in knobs.items():
        if key not in spec:
            if knob.required:
                raise ConfigError(f"loss_{term}: {name!r} needs {key!r}: its constructor has no default for it.")
            if not loss.from_kit and key in loss.knobs:
                continue  # the default of a user's class stays with the class
            resolved[key] = knob.default
        elif not loss.from_kit and key in loss.knobs and key not in COMMON:
            resolved[key] = spec[key]
        elif key == "target" and spec[key] == "iou" and "iou" not in loss.targets:
            raise ConfigError(
                f"loss_obj: {name} takes hard targets only: on a soft target focal is not smallest at p = t, so "
                "the score would not learn the IoU. Use target='hard', or bce, varifocal or quality_focal with 'iou'."
            )
        elif key == "reduction" and not loss.from_kit and key not in loss.knobs and spec[key] != knob.default:
            raise ConfigError(f"loss_{term}: the constructor of {name!r} takes no {key!r}, so it is {knob.default!r}.")
        else:
            resolved[key] = (COMMON.get(key) or knob).check(f"loss_{term}: {key} of {name!r}", spec[key])
    ranks = (resolved.get("sampler") or {}).get("type") == "OHEMSampler"
    if ranks and (loss.whole_set or (loss.from_kit and isinstance(loss.kernel, type))):
        raise ConfigError(
            f"loss_obj: OHEMSampler ranks anchors by their loss, and {name!r} has no loss of a single anchor that could be "
            "asked for without changing it. Take RandomSampler, or an element-wise loss such as bce or focal."
        )
    if resolved.get("avg_factor", "num_fg") != "num_fg" and resolved["reduction"] != "mean":
        raise ConfigError(f"loss_{term}: avg_factor goes with reduction='mean' (sum / avg_factor); leave one out.")
    if loss.power is not None:
        _check_modifiers(loss, spec, resolved)
    if resolved.get("calibrated") and resolved.get("activated"):
        raise ConfigError(
            f"loss_{term}: calibrated starts from logits, and activated says that there are none; leave one out."
        )
    if resolved.get("calibrated"):
        for key in _PER_CLASS:
            if key in loss.knobs and isinstance(resolved.get(key), (tuple, dict)):
                raise ConfigError(
                    f"loss_{term}: {name!r} cannot be calibrated with {key} per class: its curve would differ from class to "
                    "class. Give one number, or leave calibrated out."
                )
    return resolved


def _spelt_out(term: str, spec: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """The spec of an alias as a spec of the loss that it stands for."""
    alias = loss.alias
    assert alias is not None
    found = {"type": alias.of, **copy.deepcopy(dict(alias.sets))}
    for key, value in spec.items():
        modifier, _, inner = alias.renames.get(key, key).partition(".")
        if key in alias.renames:
            value = loss.knobs[key].check(f"loss_{term}: {key} of {alias.name!r}", value)
        if inner:
            found[modifier][inner] = value
        else:
            found[modifier] = value
    return found


_MODES = {"square": 2.0, "linear": 1.0}


def _check_modifiers(loss: Loss, spec: Mapping[str, Any], resolved: dict[str, Any]) -> None:
    """Refuse modifiers without a meaning, and leave in `resolved` what is left of ``mode`` and the modifiers."""
    mode = resolved.get("mode")
    if mode == "log":
        for key in (*MODIFIERS, "by_overlap"):
            if key in spec:
                raise ConfigError(
                    f"loss_iou: {key} has no meaning for mode='log': -log IoU is not of the form 1 - IoU. Leave one out."
                )
            del resolved[key]
        return
    if mode is not None:
        power = _MODES[mode]
        if "power" in spec and "mode" in spec and resolved["power"] != power:
            raise ConfigError(
                f"loss_iou: mode={mode!r} is power={power:g}; got power={resolved['power']:g} as well. Leave one out."
            )
        if "power" not in spec:
            resolved["power"] = power
        del resolved["mode"]
    if resolved["by_overlap"] and resolved["power"] != 1:
        raise ConfigError(
            "loss_iou: by_overlap is for box losses of power 1: 2 IoU gives their 1 - IoU the slope of 1 - IoU^2; got "
            f"power={resolved['power']:g}. Leave one out."
        )


_NO_MODIFIER = "A modifier is for box losses of the form 1 - IoU + penalties, and {name!r} has another form."


def _unknown_knob(registry: Registry, term: str, name: str, key: Any, knobs: list[str]) -> str:
    loss = registry.get(term, name)
    others = [other for other, row in registry.rows[term].items() if key in row.knobs]
    owner = f" It is a knob of {', '.join(others)}." if others else nearest(key, knobs)
    reasons = {
        "target": "Only loss_obj has a target.",
        "level_weights": "Only loss_obj has weights by feature map; for the others write a loss_weights method.",
        "sampler": "Only loss_obj has a sampler: the other terms look at the foreground anchors, all of them.",
        "start_epoch": "Only loss_l1 starts later than the training.",
        "avg_factor": "It averages over its set itself, so nothing else divides it.",
    }
    if term == "iou":
        reasons.update(dict.fromkeys((*MODIFIERS, "by_overlap"), _NO_MODIFIER.format(name=name)))
    if loss.alias is not None:
        renamed = [knob for knob, target in loss.alias.renames.items() if target.partition(".")[0] == key]
        if renamed:
            reasons[key] = f"Its {key} is set by {', '.join(renamed)}; or write {loss.alias.of!r} with {key}."
    if not loss.from_kit:
        reasons["calibrated"] = "The kit calibrates its own losses only."
    elif term in ("obj", "cls"):
        reasons["calibrated"] = (
            "Only an element-wise loss of the anchor alone can be calibrated: the score of others stands for no chance. "
            f"In a sum with BCE it stays one: 'bce+{name}'."
        )
    if key in reasons:
        owner = f" {reasons[key]}"
    return f"loss_{term}: {name!r} has no knob {key!r}.{owner} Knobs of {name!r}: {', '.join(knobs)}."
