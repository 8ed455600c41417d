"""Names of losses, their knobs, and the errors for wrong ones.

A *spec* is what a user writes for a term: a name, or a dict with ``type`` and knobs. Here a spec becomes a checked,
complete dict (``resolve``) and a module (``build_loss``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from ..errors import ConfigError
from ..losses.terms import TermLoss
from .catalogue import ROWS, Loss
from .knobs import Knob, first_epoch, nearest, sampler
from .mmdet import MMDET

TERMS = ("obj", "cls", "iou", "l1")
_Class = TypeVar("_Class", bound=Callable[..., Any])


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
STAGE_KNOBS = ("preset", "target", "sampler", "avg_factor", "start_epoch")


def _preset(term: str, loss: Loss) -> Knob:
    """The knob, with what its two words mean for this loss."""
    if loss.by_overlap:
        meaning = "calibrated: each box times 2 IoU, the slope of YOLOX's own 1 - IoU^2; paper: bare"
    elif loss.beside is None:
        meaning = "calibrated: on the logit of the chance that its score stands for; paper: bare"
    else:
        stock = "YOLOX's 1 - IoU^2" if term == "iou" else "BCE"
        part = "" if loss.beside == 1 else f"{loss.beside:g} of it "
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


@dataclass
class Registry:
    """name -> loss, for each term; `LOSSES` is the one of the kit."""

    rows: dict[str, dict[str, Loss]] = field(default_factory=lambda: {term: {} for term in TERMS})

    def names(self, term: str) -> list[str]:
        """The names that can fill a term."""
        return list(self.rows[check_term(term)])

    def get(self, term: str, name: Any) -> Loss:
        """The row of a name; `ConfigError` that lists the choices."""
        rows = self.rows[check_term(term)]
        if not isinstance(name, str) or name not in rows:
            raise ConfigError(
                f"loss_{term}: there is no loss {name!r}.{nearest(name, rows)} Choose one of: {', '.join(rows)}."
            )
        return rows[name]

    def add(self, terms: Iterable[str], name: str, loss: Loss) -> None:
        """Enter a loss; a name can be taken once a term.

        A class that is defined anew takes its own place: an experiment file that is read twice, a cell run again.
        """
        terms = [check_term(term) for term in terms]
        for term in terms:
            taken = self.rows[term].get(name)
            if name in MMDET or (taken is not None and (taken.own or _origin(taken.build) != _origin(loss.build))):
                raise ConfigError(f"loss_{term}: the name {name!r} is taken; register your loss under another.")
        for term in terms:
            self.rows[term][name] = loss

    def register_module(
        self, name: str | None = None, term: str | Iterable[str] | None = None
    ) -> Callable[[_Class], _Class]:
        """Class decorator: make a loss of your own selectable by name, as in MMDetection.

        Args:
            name: the name in specs; the class's own name if not given.
            term: the term or terms it fills; if not given, the class's attribute ``term``, else all four.

        The class is built with the knobs of the spec and called as ``loss(pred, target, weight=None, avg_factor=None,
        reduction_override=None)``. ``loss_weight`` and ``reduction`` are handed to its constructor when it takes them; else
        the kit multiplies by ``loss_weight``, and the reduction is the mean that the loss stage asks for.

        Raises:
            ConfigError: a name that is taken or no word, a constructor that the kit cannot read, no class.
        """
        if name is not None and not isinstance(name, str):
            raise ConfigError(f"Write @LOSSES.register_module() with its parentheses, or with a name; got {name!r}.")

        def register(cls: _Class) -> _Class:
            if not isinstance(cls, type):
                raise ConfigError(f"A loss is registered as a class; got {cls!r}.")
            chosen = getattr(cls, "term", TERMS) if term is None else term
            terms = (chosen,) if isinstance(chosen, str) else tuple(chosen)
            knobs = _signature_knobs(cls)
            for key in STAGE_KNOBS:
                if key in knobs:
                    raise ConfigError(f"{cls.__name__}: {key!r} is the loss stage's; name the parameter otherwise.")
            formula = inspect.cleandoc(cls.__doc__ or "").split("\n")[0]
            row = Loss(cls, knobs, formula, targets=("hard", "iou"), own=False)
            self.add(terms, name or cls.__name__, row)
            return cls

        return register


def _origin(cls: Any) -> tuple[str, str]:
    """Where a class was written: its file, or its module where there is none (a notebook), and its name."""
    try:
        return inspect.getfile(cls), cls.__qualname__
    except (TypeError, OSError):
        return cls.__module__, cls.__qualname__


def check_term(term: str) -> str:
    """The term itself, or an error that lists the four."""
    if term not in TERMS:
        raise ConfigError(f"A term is one of {', '.join(TERMS)}; got {term!r}.{nearest(term, TERMS)}")
    return term


def _signature_knobs(cls: Any) -> dict[str, Knob]:
    """The parameters of a user's constructor; their values are the class's own business."""
    if getattr(cls, "__init__", None) is nn.Module.__init__:
        return {}
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ConfigError(
            f"{cls.__name__}: the constructor takes *args or **kwargs, so a mistyped knob could not be told from a "
            "knob; name its parameters."
        )
    needed, checked = "no default, has to be given", "what the class allows"
    return {
        p.name: Knob(None, required=True, words=needed) if p.default is p.empty else Knob(p.default, words=checked)
        for p in parameters
    }


# ---------------------------------------------------------------------------------------------------------------------
# From a spec to a checked dict and to a module.

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
    if loss.own and not loss.has_presets and "preset" in spec:
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
            if not loss.own and key in loss.knobs:
                continue  # the default of a user's class stays with the class
            resolved[key] = knob.default
        elif not loss.own and key in loss.knobs and key not in COMMON:
            resolved[key] = spec[key]
        elif key == "target" and spec[key] == "iou" and "iou" not in loss.targets:
            raise ConfigError(
                f"loss_obj: {name} takes hard targets only: on a soft target focal is not smallest at p = t, so "
                "the score would not learn the IoU. Use target='hard', or bce, varifocal or quality_focal with 'iou'."
            )
        elif key == "reduction" and not loss.own and key not in loss.knobs and spec[key] != knob.default:
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
        if loss.own and isinstance(value, Mapping):
            raise ConfigError(
                f"loss_{term}: {key} by the names of the classes needs an experiment, whose annotation file has them; "
                f"here write a list, one number a class. Got {value!r}."
            )
    if loss.own:
        shared = {key: resolved.pop(key) for key in COMMON}
        return TermLoss(term, name, loss.build, knobs=resolved, whole_set=loss.whole_set, wants=loss.wants, **shared)
    weight = 1.0 if "loss_weight" in loss.knobs else resolved.pop("loss_weight")
    if "reduction" not in loss.knobs:
        del resolved["reduction"]
    try:
        module: nn.Module = loss.build(**resolved)
    except ValueError as error:
        raise ConfigError(f"loss_{term}: {name!r} refuses its knobs, {resolved}: {error}") from error
    if weight != 1:
        module.register_forward_hook(functools.partial(_times, weight))
    return module


def _times(weight: float, module: nn.Module, args: Any, loss: Any) -> Any:
    """The loss times ``loss_weight``, for a class that does not take it."""
    return weight * loss


def register_loss(term: str, name: str) -> Callable[[_Class], _Class]:
    """Decorator: ``LOSSES.register_module`` with the term first."""
    return LOSSES.register_module(name=name, term=term)


def available_losses() -> dict[str, list[str]]:
    """The names that can stand in a spec, for each term."""
    return {term: LOSSES.names(term) for term in TERMS}


LOSSES = Registry()
for _terms, _name, _loss in ROWS:
    LOSSES.add(_terms, _name, _loss)
