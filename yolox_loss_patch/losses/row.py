"""The catalogue row of a loss, written beside its function.

    @loss_row(
        "obj", "cls",
        formula="alpha_t (1-p_t)^gamma BCE",
        source="1708.02002",
        limits={"alpha": Limits(low=0, high=1), "gamma": Limits(low=0)},
    )
    def focal(pred, target, alpha=0.25, gamma=2.0): ...

The row says which terms the loss can fill and what its knobs may be. The knobs' defaults stand in the signature of the
function, and nowhere else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


@dataclass(frozen=True)
class Limits:
    """What a knob may be.

    Attributes:
        low, high: bounds of a number; ``open_low``, ``open_high``: the bound itself is not allowed.
        also: numbers that are allowed besides.
        choices: the words or whole numbers that are allowed.
        kind: for a knob that is no number, no choice and no flag: the name of its parser in `specs.knobs`.
        words: what is allowed, in words, for a knob that has a ``kind``.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[float, ...] = ()
    choices: tuple[Any, ...] = ()
    kind: str = ""
    words: str = ""


@dataclass(frozen=True)
class Row:
    """What the catalogue knows of a loss.

    Attributes:
        terms: those that it can fill.
        name: in a spec.
        kernel: the function, or the class of a kernel with running state.
        formula, source: one line each.
        limits: knob -> what it may be. A parameter of the kernel that is not listed is no knob.
        targets: which targets of the objectness term it can have, the default first.
        whole_set: it weighs and averages over its set itself, so no ``avg_factor`` divides it.
        wants: facts of the batch that it asks the loss stage for.
        power: of a box loss of the form ``1 - IoU + penalties``: the kernel gives its penalties, and this is the default
            of the modifier ``power``. None: a loss of another form.
        attention: of such a loss: a factor that belongs to its formula.
    """

    terms: tuple[str, ...]
    name: str
    kernel: Callable[..., Any]
    formula: str
    source: str
    limits: Mapping[str, Limits] = field(default_factory=dict)
    targets: tuple[str, ...] = ("hard",)
    whole_set: bool = False
    wants: tuple[str, ...] = ()
    power: float | None = None
    attention: Callable[..., Any] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Knob -> its default, read from the kernel's signature."""
        parameters = inspect.signature(self.kernel).parameters
        return {knob: parameters[knob].default for knob in self.limits}


@dataclass(frozen=True)
class Alias:
    """A name for a box loss with some of its modifiers set.

    Attributes:
        name: in a spec.
        of: the name of the loss.
        formula, source: one line each.
        renames: knob of the alias -> the modifier it is, ``power``, or the knob of one, ``wise.alpha``.
        sets: modifier -> its value where the spec does not say otherwise.
    """

    name: str
    of: str
    formula: str
    source: str
    renames: Mapping[str, str]
    sets: Mapping[str, Any]


ROWS: list[Row] = []
"""All rows, in the order in which the modules of this room were imported."""
ALIASES: list[Alias] = []
"""All aliases, in the order in which they were written."""


def alias_row(
    name: str, *, of: str, formula: str, source: str, renames: Mapping[str, str], sets: Mapping[str, Any]
) -> None:
    """Enter an `Alias` into the catalogue."""
    ALIASES.append(Alias(name, of, formula, source, renames, sets))


def loss_row(
    *terms: str,
    formula: str,
    source: str,
    name: str | None = None,
    limits: Mapping[str, Limits] | None = None,
    targets: tuple[str, ...] = ("hard",),
    whole_set: bool = False,
    wants: tuple[str, ...] = (),
    power: float | None = None,
    attention: Callable[..., Any] | None = None,
) -> Callable[[_Kernel], _Kernel]:
    """Decorator: enter a function, or a class of kernels, into the catalogue.

    It can stand more than once over a function whose knobs differ from term to term.

    Args:
        terms: of ``obj``, ``cls``, ``iou``, ``l1``.
        formula, source: one line each; a source is an arXiv id where there is one.
        name: the name in a spec; the function's own if not given.
        limits, targets, whole_set, wants, power, attention: see `Row`.

    Raises:
        TypeError: a knob that the signature does not have, or that has no default there.
    """

    def enter(kernel: _Kernel) -> _Kernel:
        row = Row(
            terms=terms,
            name=name or kernel.__name__,
            kernel=kernel,
            formula=formula,
            source=source,
            limits=dict(limits or {}),
            targets=targets,
            whole_set=whole_set,
            wants=wants,
            power=power,
            attention=attention,
        )
        parameters = inspect.signature(kernel).parameters
        for knob in row.limits:
            if knob not in parameters or parameters[knob].default is inspect.Parameter.empty:
                raise TypeError(f"{row.name}: {knob!r} has limits and no default in the signature.")
        ROWS.append(row)
        return kernel

    return enter
