"""The names of losses: those of the kit, and the classes that a user registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from ..errors import ConfigError
from ..losses.terms import FACTS
from .catalogue import Loss, kit_losses
from .knobs import Knob, nearest
from .mmdet import MMDET, REFUSED

TERMS = ("obj", "cls", "iou", "l1")
STAGE_KNOBS = ("target", "sampler", "level_weights", "avg_factor", "start_epoch")
"""Settings of a term that the loss stage carries out; no parameter of a user's class may have these names."""

_Class = TypeVar("_Class", bound=Callable[..., Any])


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
            if (
                name in MMDET
                or name in REFUSED
                or (taken is not None and (taken.from_kit or _origin(taken.kernel) != _origin(loss.kernel)))
            ):
                raise ConfigError(f"loss_{term}: the name {name!r} is taken; register your loss under another.")
        for term in terms:
            self.rows[term][name] = loss

    def register_module(
        self, name: str | None = None, term: str | Iterable[str] | None = None
    ) -> Callable[[_Class], _Class]:
        """Class decorator: make a loss of the user selectable by name, as in MMDetection.

        Args:
            name: the name in specs; the class's own name if not given.
            term: the term or terms it fills; if not given, the class's attribute ``term``, else all four.

        The class is built with the knobs of the spec and called as ``loss(pred, target, weight=None, avg_factor=None,
        reduction_override=None)``. ``loss_weight`` and ``reduction`` are handed to its constructor when it takes them; else
        the kit multiplies by ``loss_weight`` (a schedule always), and the reduction is the mean that the loss stage asks for.

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
            for fact in getattr(cls, "wants", ()):
                if fact not in FACTS:
                    known = "; ".join(f"{name}: {text}" for name, text in FACTS.items())
                    raise ConfigError(
                        f"{cls.__name__}: the loss stage knows no fact {fact!r}.{nearest(fact, FACTS)} A class can want {known}."
                    )
            formula = inspect.cleandoc(cls.__doc__ or "").split("\n")[0]
            row = Loss(
                cls, knobs, formula, targets=("hard", "iou"), wants=tuple(getattr(cls, "wants", ())), from_kit=False
            )
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


def register_loss(term: str, name: str) -> Callable[[_Class], _Class]:
    """Decorator: ``LOSSES.register_module`` with the term first."""
    return LOSSES.register_module(name=name, term=term)


def available_losses() -> dict[str, list[str]]:
    """The names that can stand in a spec, for each term."""
    return {term: LOSSES.names(term) for term in TERMS}


LOSSES = Registry()
for _terms, _name, _loss in kit_losses():
    LOSSES.add(_terms, _name, _loss)
