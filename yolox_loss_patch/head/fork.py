"""Forks whose ``get_losses`` was edited: it stays, and only the loss modules that it calls are swapped.

YOLOX's ``get_losses`` calls its loss modules in this order: ``self.iou_loss`` for the boxes, ``self.bcewithlog_loss``
for objectness, the same again for the classes, and ``self.l1_loss`` for the offsets while that term is on. A fork that
kept this can have other losses in their place. Whether it did is read in its source before the first batch, and checked
at every call: with one class, objectness and class look alike and only the order tells them apart.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from ..errors import ConfigError, HostError
from ..losses.boxes import overlap, upcast
from ..specs.catalogue import kit_losses
from ..specs.config import LossConfig
from ..specs.registry import LOSSES
from ..specs.resolve import parts_of
from . import hosts
from .stage import LossStage, non_finite

# Term -> the name of its predictions in the known hosts, in the order of the calls. The place of the L1 term is not
# looked at: its module serves no other.
PREDICTIONS = {"iou": "bbox_preds", "obj": "obj_preds", "cls": "cls_preds"}
_UNAVAILABLE = (
    "Not available, because it makes the targets itself: objectness targets from the IoU (target='iou'), samplers, "
    "level_weights, loss_weights, ignored regions. Not available, because it divides the terms itself: avg_factor other "
    "than num_fg, reduction='sum', the losses that average over their set ("
    + ", ".join(sorted({name for _, name, loss in kit_losses() if loss.whole_set}))
    + "). Not available, because it calls its own assigner: the fast label assignment."
)


def first_difference(function: Callable[..., Any]) -> str | None:
    """Where the calls of a ``get_losses`` first differ from YOLOX's, in words; None when they are YOLOX's."""
    try:
        source, first_line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return "it has no source that could be read"
    parameters = inspect.signature(function).parameters
    for name in ("imgs", "outputs"):
        if name not in parameters:
            return f"it has no parameter {name!r}"
    known = {hosts.LOSS_MODULES[term] for term in PREDICTIONS}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _module(node) in known]
    calls.sort(key=lambda node: (node.lineno, node.col_offset))
    for number, (term, preds) in enumerate(PREDICTIONS.items()):
        module = hosts.LOSS_MODULES[term]
        wanted = f"where YOLOX calls self.{module} for the {term} term"
        if number == len(calls):
            return f"it ends after {number} calls of loss modules, {wanted}"
        node = calls[number]
        line = f"line {first_line + node.lineno - 1}"
        if _module(node) != module:
            return f"{line} calls self.{_module(node)} {wanted}"
        if len(node.args) != 2 or node.keywords:
            return f"{line} calls self.{module} with other arguments than (pred, target)"
        names = {part.id for part in ast.walk(node.args[0]) if isinstance(part, ast.Name)}
        others = names & set(PREDICTIONS.values()) - {preds}
        if others and preds not in names:
            return f"{line} calls self.{module} with {', '.join(sorted(others))} {wanted}"
    if len(calls) > len(PREDICTIONS):
        extra = calls[len(PREDICTIONS)]
        return f"line {first_line + extra.lineno - 1} calls self.{_module(extra)} once more than YOLOX does"
    return None


def _module(node: ast.Call) -> str | None:
    """``name`` of a call ``self.name(...)``."""
    match node.func:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return None


# What the settings of a term have to be when only its module is swapped.
_POSSIBLE = {
    "target": "hard",
    "sampler": None,
    "level_weights": None,
    "class_weight": None,
    "avg_factor": "num_fg",
    "reduction": "mean",
}


def check(function: Callable[..., Any], config: LossConfig) -> None:
    """Refuse a ``get_losses`` whose loss modules cannot be swapped, and losses that a swap cannot give.

    Raises:
        HostError: its calls are not YOLOX's.
        ConfigError: the config asks for what only the kit's own loss stage can do.
    """
    where = f"{function.__module__}.{function.__qualname__}"
    difference = first_difference(function)
    if difference is not None:
        raise HostError(
            f"The kit does not know this YOLOX: {where} was edited or patched by somebody else (fingerprint "
            f"{hosts.fingerprint(function) or 'none'}), so taking its place would drop that change. Nor can its loss "
            f"modules be swapped, because it does not call them as YOLOX does: {difference}. Train this fork with its own "
            f"losses, or use a YOLOX that is known ({', '.join(hosts.KNOWN_GET_LOSSES.values())}). {hosts.INSTALL}"
        )
    asked = LossStage(config).asked
    resolved = config.resolved()
    for term in asked:
        for spec in parts_of(resolved[term]):
            row = LOSSES.get(term, spec["type"])
            # A knob of the loss itself, such as BCE's class_weight, goes with its module.
            wrong = [
                f"{key}={spec[key]!r}"
                for key, value in _POSSIBLE.items()
                if key not in row.knobs and spec.get(key, value) != value
            ]
            unknown = [fact for fact in row.wants if fact != "image_size"]
            if unknown and "avg_factor" in spec:
                wrong.append(f"{spec['type']!r}, which asks for {', '.join(unknown)},")
            if "avg_factor" not in spec:
                wrong.append(f"{spec['type']!r}, which averages over its set,")
            if wrong:
                raise ConfigError(
                    f"loss_{term}: {' and '.join(wrong)} cannot be had here, where {where} is a fork's. {_UNAVAILABLE}"
                )
    if "l1" in asked and "self.l1_loss(" not in inspect.getsource(function):
        raise ConfigError(f"loss_l1 cannot be set here: {where} is a fork's and never calls self.l1_loss.")
    warn_of_swap(where)


@functools.cache
def warn_of_swap(where: str) -> None:
    """Say once per process that only the loss modules of this ``get_losses`` are swapped, and what that rules out."""
    logger.warning(
        f"{where} is not one that the kit knows. It stays, and the kit swaps only the loss modules that it calls. {_UNAVAILABLE}"
    )


class ForkStage(LossStage):
    """The loss stage of a fork: its own ``get_losses``, with other loss modules while it runs.

    Args:
        config: the losses; a term at its default keeps the fork's module.
        original: the fork's ``get_losses``, checked by `check`.
    """

    def __init__(self, config: LossConfig, original: Callable[..., Any]) -> None:
        super().__init__(config)
        self.original = original

    def get_losses(self, head: Any, *args: Any, **kwargs: Any) -> Any:
        """What the fork's ``get_losses`` returns.

        Raises:
            HostError: it does not call the loss modules in YOLOX's order, with YOLOX's shapes.
            ConfigError: the experiment has ``loss_weights`` or ignores regions.
        """
        if self.element_weights is not None:
            raise ConfigError(f"loss_weights cannot be had here: {self.where()} is a fork's. {_UNAVAILABLE}")
        if self.reads_scores:
            raise ConfigError(f"gt_score cannot be had here: {self.where()} is a fork's. {_UNAVAILABLE}")
        if self.ignores_regions:
            raise ConfigError(f"Ignored regions cannot be had here: {self.where()} is a fork's. {_UNAVAILABLE}")
        self.check_schedules()
        inputs = inspect.signature(self.original).bind(head, *args, **kwargs).arguments
        calls = _LossCalls(self, head, inputs["imgs"], inputs["outputs"])
        # On the instance, where they hide the modules without taking their place: state_dict and children stay.
        hidden = {name: head.__dict__[name] for name in calls.modules if name in head.__dict__}
        head.__dict__.update(calls.modules)
        try:
            result = self.original(head, *args, **kwargs)
        except (RuntimeError, IndexError) as error:
            bad = non_finite(inputs["outputs"])
            if bad is None:
                raise
            raise bad from error
        finally:
            for name in calls.modules:
                del head.__dict__[name]
            head.__dict__.update(hidden)
        calls.finish()
        return result

    def part_names(self) -> list[str]:
        """None: a fork's ``get_losses`` does not tell the parts of a sum."""
        return []

    def where(self) -> str:
        """Module and name of the fork's ``get_losses``."""
        return f"{self.original.__module__}.{self.original.__qualname__}"


class _LossCalls:
    """The calls of the loss modules during one ``get_losses``.

    Attributes:
        modules: name on the head -> what is called in its place.
    """

    def __init__(self, stage: ForkStage, head: Any, images: Tensor, outputs: Tensor) -> None:
        self.stage = stage
        self.fork_losses = hosts.loss_modules(head)
        self.facts = {"image_size": images.shape[-2:]}
        self.anchors = outputs.shape[0] * outputs.shape[1]
        self.num_classes = head.num_classes
        self.num_fg = 0
        self.pending = list(PREDICTIONS)
        self.modules: dict[str, Any] = {
            "iou_loss": functools.partial(self._call, "iou_loss"),
            "bcewithlog_loss": functools.partial(self._call, "bcewithlog_loss"),
            "l1_loss": functools.partial(self._loss, "l1"),
        }

    def _call(self, module: str, pred: Tensor, target: Tensor) -> Tensor:
        number = len(PREDICTIONS) - len(self.pending) + 1
        term = self.pending.pop(0) if self.pending else None
        expected = hosts.LOSS_MODULES[term] if term else None
        if module != expected:
            self._stop(f"call {number} of a loss module is self.{module}, where YOLOX calls "
                       + (f"self.{expected} for the {term} term" if term else "no more"))  # fmt: skip
        assert term is not None
        if term == "iou":
            self.num_fg = pred.shape[0]
        shape = {"iou": (self.num_fg, 4), "obj": (self.anchors, 1), "cls": (self.num_fg, self.num_classes)}[term]
        if not tuple(pred.shape) == tuple(target.shape) == shape:
            self._stop(
                f"call {number} of a loss module, self.{module} for the {term} term, is of {tuple(pred.shape)} against "
                f"{tuple(target.shape)}, where YOLOX's is of {shape} with {self.num_fg} foreground anchors of "
                f"{self.anchors} and {self.num_classes} classes"
            )
        if self.stage.collect:
            self._collect(term, pred.detach(), target.detach())
        return self._loss(term, pred, target)

    def _loss(self, term: str, pred: Tensor, target: Tensor) -> Tensor:
        """Element by element; the fork sums and divides."""
        if term not in self.stage.asked:
            fork_loss: Tensor = self.fork_losses[term](pred, target)
            return fork_loss
        loss = self.stage.losses[term]
        facts = {fact: self.facts[fact] for fact in getattr(loss, "wants", ())}
        value: Tensor = loss(pred, target, reduction_override="none", **facts)
        if value.shape[:1] != pred.shape[:1]:
            raise ConfigError(
                f"loss_{term} gives {tuple(value.shape)} for {tuple(pred.shape)}: only an element-wise loss can take the "
                f"place of a module, and {self.stage.where()} is a fork's. {_UNAVAILABLE}"
            )
        return value

    def finish(self) -> None:
        """Check that all calls were made.

        Raises:
            HostError: one is missing.
        """
        if self.pending:
            term = self.pending[0]
            self._stop(f"it ended without the call of self.{hosts.LOSS_MODULES[term]} for the {term} term")

    def _stop(self, difference: str) -> None:
        raise HostError(
            f"{self.stage.where()} did not call its loss modules as YOLOX does: {difference}. The losses of the "
            "experiment would go to the wrong terms; nothing was trained from this batch. Train this fork with its own losses."
        )

    @torch.no_grad()
    def _collect(self, term: str, pred: Tensor, target: Tensor) -> None:
        stats = self.stage.stats
        if term == "iou":
            stats["fg_iou"] = overlap(*upcast(pred, target)).iou.sum()
        elif term == "obj":
            scores, is_foreground = pred.float().sigmoid(), target > 0
            foreground = scores[is_foreground].sum()
            stats.update(obj_fg=foreground, obj_bg=scores.sum() - foreground)
            stats.update(num_fg=is_foreground.sum(), num_bg=(~is_foreground).sum())


def make_stage(head: Any, function: Callable[..., Any], config: LossConfig) -> LossStage:
    """The loss stage for a head with this ``get_losses`` of its class.

    Raises:
        HostError, ConfigError: as `check` raises them, for a function that the kit does not know.
    """
    if hosts.known_get_losses(function) is None:
        check(function, config)
        return ForkStage(config, function)
    edited = hosts.edited_modules(head)
    modules = hosts.loss_modules(head)
    stage = LossStage(config, host_losses={term: modules[term] for term in edited})
    kept = ", ".join(f"loss_{term} is {module}" for term, module in edited.items() if term not in stage.asked)
    if kept:
        logger.warning(
            f"The head's loss modules are not YOLOX's and stay where the losses are left at their default: {kept}."
        )
    return stage
