"""From a spec to checked plain data.

A *spec* is what a user writes for a term: a name, or a dict with ``type`` and knobs. `resolve` makes of it a dict with
every knob spelt out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from .catalogue import Loss
from .knobs import Knob, first_epoch, nearest, sampler
from .mmdet import MMDET
from .registry import LOSSES, Registry, check_term

COMMON = {
    "loss_weight": Knob(1.0, low=0),
    "reduction": Knob("mean", choices=("mean", "sum", "none")),
}
# What the loss stage does before and after the loss itself; a user's own losses have these too.
_AVG_FACTOR = Knob("num_fg", choices=("num_fg", "num_gt", "batch", "global"))
_PRESET = Knob("calibrated", choices=("calibrated", "paper"))
_SAMPLER = Knob(
    None,
    parse=sampler,
    words="None, or dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False)",
)
_START_EPOCH = Knob(
    None,
    parse=first_epoch,
    words="a whole number at least 1 (an epoch as the log counts), or None: YOLOX's no_aug_epochs",
)


def _preset(term: str, loss: Loss) -> Knob:
    """The knob, with what its two words mean for this loss."""
    if loss.by_overlap:
        meaning = "calibrated: each box times 2 IoU, the slope of YOLOX's own 1 - IoU^2; paper: bare"
    elif loss.share_with_stock is None:
        meaning = "calibrated: on the logit of the chance that its score stands for; paper: bare"
    else:
        stock = "YOLOX's 1 - IoU^2" if term == "iou" else "BCE"
        part = "" if loss.share_with_stock == 1 else f"{loss.share_with_stock:g} of it "
        meaning = f"calibrated: {part}beside {stock}; paper: alone"
    published = "".join(f", {key} = {value}" for key, value in loss.published.items())
    return replace(_PRESET, words=f"one of calibrated, paper ({meaning}{published})")


def stage_knobs(term: str, loss: Loss) -> dict[str, Knob]:
    """The settings of a term that the loss stage carries out, whatever the loss."""
    knobs = {"preset": _preset(term, loss)} if loss.has_presets else {}
    if not loss.whole_set:
        knobs["avg_factor"] = _AVG_FACTOR
    if term == "obj":
        knobs.update(target=Knob(loss.targets[0], choices=loss.targets), sampler=_SAMPLER)
    if term == "l1":
        knobs["start_epoch"] = _START_EPOCH
    return knobs


_FLAG = Knob(False)


def _from_mmdet(term: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A config dict of MMDetection as a spec of the kit."""
    cls = spec.pop("type")
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
    # Their guard against 0/0. Ours leaves sane values as they are, so leaving out a small one changes nothing.
    eps = spec.pop("eps", 0.0) if term == "iou" else 0.0
    if not isinstance(eps, (int, float)) or not 0 <= eps <= 1e-6:
        raise ConfigError(f"{where}: eps is at most 1e-6 (the kit's losses are finite without it); got {eps!r}.")
    if cls == "IoULoss" and _FLAG.check(f"{where}: linear", spec.pop("linear", False)):
        spec["mode"] = "linear"
    return {"type": known.name, **known.defaults, **{key: value for key, value in spec.items() if value is not None}}


def resolve(term: str, spec: Any, registry: Registry | None = None) -> dict[str, Any]:
    """A spec with every knob spelt out.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: a name, or a mapping with ``type`` and knobs; MMDetection's dicts too.
        registry: where names are looked up; `LOSSES` if not given.

    Raises:
        ConfigError: an unknown name or knob, a knob of another loss, a value out of range.
    """
    registry = registry or LOSSES
    check_term(term)
    if isinstance(spec, str):
        spec = {"type": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"loss_{term} is a name such as {registry.names(term)[0]!r} or a dict with 'type'; got {spec!r}."
        )
    spec = dict(spec)
    if "type" not in spec:
        raise ConfigError(f"loss_{term}: the dict has no 'type'. Choose one of: {', '.join(registry.names(term))}.")
    name = spec["type"]
    if isinstance(name, str) and name in MMDET:
        spec = _from_mmdet(term, spec)
    name = spec.pop("type")
    loss = registry.get(term, name)
    knobs = {**loss.knobs, **{key: knob for key, knob in COMMON.items() if key not in loss.knobs}}
    knobs.update(stage_knobs(term, loss))
    if loss.from_kit and not loss.has_presets and "preset" in spec:
        # Both presets are the formula: it can be said of every loss of the kit, and changes nothing.
        _PRESET.check(f"loss_{term}: preset of {name!r}", spec.pop("preset"))
    resolved: dict[str, Any] = {"type": name}
    for key in spec:
        if key not in knobs:
            raise ConfigError(_unknown_knob(registry, term, name, key, list(knobs)))
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
    if resolved.get("preset") == "paper":
        resolved.update({key: value for key, value in loss.published.items() if key in resolved and key not in spec})
    if resolved.get("avg_factor", "num_fg") != "num_fg" and resolved["reduction"] != "mean":
        raise ConfigError(f"loss_{term}: avg_factor goes with reduction='mean' (sum / avg_factor); leave one out.")
    return resolved


def _unknown_knob(registry: Registry, term: str, name: str, key: Any, knobs: list[str]) -> str:
    others = [other for other, row in registry.rows[term].items() if key in row.knobs]
    owner = f" It is a knob of {', '.join(others)}." if others else nearest(key, knobs)
    reasons = {
        "preset": "The kit calibrates its own losses only.",
        "target": "Only loss_obj has a target.",
        "sampler": "Only loss_obj has a sampler: the other terms look at the foreground anchors, all of them.",
        "start_epoch": "Only loss_l1 starts later than the training.",
        "avg_factor": "It averages over its set itself, so nothing else divides it.",
    }
    if key in reasons:
        owner = f" {reasons[key]}"
    return f"loss_{term}: {name!r} has no knob {key!r}.{owner} Knobs of {name!r}: {', '.join(knobs)}."
