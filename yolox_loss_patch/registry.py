"""Names of losses, their knobs, and the errors for wrong ones.

A *spec* is what a user writes for a term: a name, or a dict with ``type`` and knobs. Here a spec becomes a checked,
complete dict (``resolve``) and a module (``build_loss``).
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from .errors import ConfigError
from .losses import focal, iou, l1
from .losses.terms import TermLoss

TERMS = ("obj", "cls", "iou", "l1")
_Class = TypeVar("_Class", bound=Callable[..., Any])


def nearest(word: Any, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a choice is close to the word, else nothing."""
    match = difflib.get_close_matches(str(word).lower(), list(choices), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""


@dataclass(frozen=True)
class Knob:
    """One setting of a loss: its default and what it may be.

    ``low`` and ``high`` bound a number (``open_low``: low itself is out), ``also`` are values allowed besides,
    ``choices`` are the words allowed.
    """

    default: Any
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    also: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()

    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "True or False"
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        bounds = ([low] if self.low > -math.inf else []) + ([f"at most {self.high:g}"] if self.high < math.inf else [])
        return " and ".join(["a number", *bounds]).replace("number and", "number", 1) + "".join(
            f", or {value:g}" for value in self.also
        )

    def check(self, where: str, value: Any) -> Any:
        """The value in the knob's type; `ConfigError` when it is not allowed."""
        error = ConfigError(f"{where} is {self.allowed()}; got {value!r}.")
        if self.choices:
            if value not in self.choices:
                raise ConfigError(f"{error}{nearest(value, self.choices)}")
            return value
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise error
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise error
        inside = (value > self.low if self.open_low else value >= self.low) and value <= self.high
        if not inside and value not in self.also:
            raise error
        return float(value)


@dataclass(frozen=True)
class Loss:
    """A row of the registry: what fills a term under a name."""

    build: Callable[..., nn.Module]
    knobs: Mapping[str, Knob]
    formula: str = ""
    paper: str = ""
    targets: tuple[str, ...] = ("hard",)  # of the objectness term, the default first
    own: bool = True  # False: a user's class, which checks its own knobs


_COMMON = {
    "loss_weight": Knob(1.0, low=0),
    "reduction": Knob("mean", choices=("mean", "sum", "none")),
}


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
        if name not in rows:
            raise ConfigError(
                f"loss_{term}: there is no loss {name!r}.{nearest(name, rows)} Choose one of: {', '.join(rows)}."
            )
        return rows[name]

    def add(self, terms: Iterable[str], name: str, loss: Loss) -> None:
        """Enter a loss; a name can be taken once a term."""
        terms = [check_term(term) for term in terms]
        for term in terms:
            if name in self.rows[term] or name in MMDET:
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
        reduction_override=None)``. ``loss_weight`` and ``reduction`` are handed to its constructor when it takes them;
        else they are the kit's business.
        """

        def register(cls: _Class) -> _Class:
            chosen = getattr(cls, "term", TERMS) if term is None else term
            terms = (chosen,) if isinstance(chosen, str) else tuple(chosen)
            formula = (inspect.getdoc(cls) or "").split("\n")[0]
            row = Loss(cast(Any, cls), _signature_knobs(cls), formula, targets=("hard", "iou"), own=False)
            self.add(terms, name or cls.__name__, row)
            return cls

        return register


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
    return {p.name: Knob(None if p.default is p.empty else p.default) for p in parameters}


# ---------------------------------------------------------------------------------------------------------------------
# MMDetection's names: the same losses, their own defaults, and what has no meaning here.


@dataclass(frozen=True)
class MMDetName:
    """How a class of MMDetection reads here; ``refuse`` is the reason why it does not."""

    name: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, Any] = field(default_factory=dict)
    refuse: str = ""


_SIGMOID = {"use_sigmoid": True}
MMDET = {
    "CrossEntropyLoss": MMDetName("bce", must={"use_sigmoid": True, "use_mask": False}),
    "FocalLoss": MMDetName("focal", must={"use_sigmoid": True, "activated": False}),
    "VarifocalLoss": MMDetName("varifocal", must={"use_sigmoid": True}),
    "IoULoss": MMDetName("iou", defaults={"mode": "log"}),
    "GIoULoss": MMDetName("giou"),
    "DIoULoss": MMDetName("diou"),
    # MMDetection weighs the aspect ratio only where IoU > 0.5.
    "CIoULoss": MMDetName("ciou", defaults={"gate": True}),
    "L1Loss": MMDetName("l1"),
    "EIoULoss": MMDetName(
        refuse="MMDetection's EIoULoss is Extended-IoU, another loss than Efficient-IoU (2101.08158) with the same "
        "letters; for Efficient-IoU write 'eiou'."
    ),
}
# CrossEntropyLoss is a softmax unless it is told otherwise; the other classes default to what must be.
_MUST_BE_SAID = {"CrossEntropyLoss": "use_sigmoid"}


def _from_mmdet(term: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A config dict of MMDetection as a spec of the kit."""
    cls = spec.pop("type")
    where = f"loss_{term}: {cls}"
    known = MMDET[cls]
    if known.refuse:
        raise ConfigError(f"{where}: {known.refuse}")
    for key, value in known.must.items():
        given = spec.pop(key, None if _MUST_BE_SAID.get(cls) == key else value)
        if given != value:
            raise ConfigError(
                f"{where}: only {key}={value} exists here, because YOLOX's scores are independent sigmoids; got {given!r}."
            )
    # Their guard against 0/0. Ours leaves sane values as they are, so leaving out a small one changes nothing.
    eps = spec.pop("eps", 0.0) if term == "iou" else 0.0
    if not isinstance(eps, (int, float)) or not 0 <= eps <= 1e-6:
        raise ConfigError(f"{where}: eps is at most 1e-6 (the kit's losses are finite without it); got {eps!r}.")
    if cls == "IoULoss" and spec.pop("linear", False):
        spec["mode"] = "linear"
    return {"type": known.name, **known.defaults, **spec}


# ---------------------------------------------------------------------------------------------------------------------
# From a spec to a checked dict and to a module.


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
    knobs = {**loss.knobs, **{key: knob for key, knob in _COMMON.items() if key not in loss.knobs}}
    if term == "obj":
        knobs["target"] = Knob(loss.targets[0], choices=loss.targets)
    resolved: dict[str, Any] = {"type": name}
    for key in spec:
        if key not in knobs:
            raise ConfigError(_unknown_knob(registry, term, name, key, list(knobs)))
    for key, knob in knobs.items():
        if key not in spec:
            if not loss.own and key in loss.knobs:
                continue  # the default of a user's class stays with the class
            resolved[key] = knob.default
        elif not loss.own and key in loss.knobs and key not in _COMMON:
            resolved[key] = spec[key]
        elif key == "target" and spec[key] == "iou" and "iou" not in loss.targets and name == "focal":
            raise ConfigError(
                "loss_obj: focal takes hard targets only: on a soft target it is not smallest at p = t, so the score "
                "would not learn the IoU. Use target='hard', or bce or varifocal with target='iou'."
            )
        else:
            resolved[key] = (_COMMON.get(key) or knob).check(f"loss_{term}: {key} of {name!r}", spec[key])
    return resolved


def _unknown_knob(registry: Registry, term: str, name: str, key: Any, knobs: list[str]) -> str:
    others = [
        other for other, row in registry.rows[term].items() if key in row.knobs or (key == "target" and term == "obj")
    ]
    owner = f" It is a knob of {', '.join(others)}." if others else nearest(key, knobs)
    if key == "target":
        owner = " Only loss_obj has a target."
    return f"loss_{term}: {name!r} has no knob {key!r}.{owner} Knobs of {name!r}: {', '.join(knobs)}."


def build_loss(term: str, spec: Any) -> nn.Module:
    """The module of a spec.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        spec: ``"ciou"``, ``dict(type="varifocal", alpha=0.75)``, a config dict of MMDetection.

    Returns:
        A module called as ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``.

    Raises:
        ConfigError: what `resolve` raises.
    """
    resolved = resolve(term, spec)
    resolved.pop("target", None)
    name = resolved.pop("type")
    loss = LOSSES.get(term, name)
    if loss.own:
        shared = {key: resolved.pop(key) for key in _COMMON}
        kernel = cast(Callable[..., Tensor], loss.build)
        return TermLoss(term, name, kernel, knobs=resolved, **shared)
    for key, knob in _COMMON.items():
        if key not in loss.knobs and resolved.pop(key) != knob.default:
            raise ConfigError(f"loss_{term}: the constructor of {name!r} takes no {key!r}.")
    return loss.build(**resolved)


def register_loss(term: str, name: str) -> Callable[[_Class], _Class]:
    """Decorator: ``LOSSES.register_module`` with the term first."""
    return LOSSES.register_module(name=name, term=term)


def available_losses() -> dict[str, list[str]]:
    """The names that can stand in a spec, for each term."""
    return {term: LOSSES.names(term) for term in TERMS}


LOSSES = Registry()
_ALPHA = Knob(3.0, low=0, open_low=True)
_BOTH = ("hard", "iou")
for _terms, _name, _loss in (
    (
        ("obj", "cls"),
        "bce",
        Loss(cast(Any, focal.bce), {}, "-t log p - (1-t) log(1-p)", "YOLOX 2107.08430", targets=_BOTH),
    ),
    (
        ("obj", "cls"),
        "focal",
        Loss(
            cast(Any, focal.focal),
            {"alpha": Knob(0.25, low=0, high=1, also=(-1.0,)), "gamma": Knob(2.0, low=0)},
            "alpha_t (1-p_t)^gamma BCE",
            "1708.02002",
        ),
    ),
    (
        ("obj", "cls"),
        "varifocal",
        Loss(
            cast(Any, focal.varifocal),
            {"alpha": Knob(0.75, low=0), "gamma": Knob(2.0, low=0), "iou_weighted": Knob(True)},
            "t > 0: t BCE(p, t); t = 0: alpha p^gamma BCE",
            "2008.13367",
            targets=("iou", "hard"),  # the paper's target is the IoU of the matched box
        ),
    ),
    (
        ("iou",),
        "iou",
        Loss(
            cast(Any, iou.iou),
            {"mode": Knob("square", choices=("square", "linear", "log"))},
            "1 - IoU^2 | 1 - IoU | -log IoU",
            "YOLOX 2107.08430, 1608.01471",
        ),
    ),
    (("iou",), "giou", Loss(cast(Any, iou.giou), {}, "1 - IoU + (|C| - U)/|C|", "1902.09630")),
    (("iou",), "diou", Loss(cast(Any, iou.diou), {}, "1 - IoU + rho2/c2", "1911.08287")),
    (
        ("iou",),
        "ciou",
        Loss(cast(Any, iou.ciou), {"gate": Knob(False)}, "1 - IoU + rho2/c2 + a v", "1911.08287, 2005.03572"),
    ),
    (("iou",), "eiou", Loss(cast(Any, iou.eiou), {}, "1 - IoU + rho2/c2 + dw2/Cw2 + dh2/Ch2", "2101.08158")),
    (("iou",), "alpha_iou", Loss(cast(Any, iou.alpha_iou), {"alpha": _ALPHA}, "1 - IoU^alpha", "2110.13675")),
    (
        ("iou",),
        "alpha_giou",
        Loss(cast(Any, iou.alpha_giou), {"alpha": _ALPHA}, "1 - IoU^alpha + ((|C| - U)/|C|)^alpha", "2110.13675"),
    ),
    (
        ("iou",),
        "alpha_diou",
        Loss(cast(Any, iou.alpha_diou), {"alpha": _ALPHA}, "1 - IoU^alpha + (rho2/c2)^alpha", "2110.13675"),
    ),
    (
        ("iou",),
        "alpha_ciou",
        Loss(cast(Any, iou.alpha_ciou), {"alpha": _ALPHA}, "1 - IoU^alpha + (rho2/c2)^alpha + (a v)^alpha", "2110.13675"),
    ),
    (
        ("iou",),
        "alpha_eiou",
        Loss(
            cast(Any, iou.alpha_eiou),
            {"alpha": _ALPHA},
            "1 - IoU^alpha + (rho2/c2)^alpha + (dw2/Cw2)^alpha + (dh2/Ch2)^alpha",
            "2110.13675, 2101.08158",
        ),
    ),
    (("l1",), "l1", Loss(cast(Any, l1.l1), {}, "|d|", "YOLOX 2107.08430")),
):
    LOSSES.add(_terms, _name, _loss)
