"""Put the loss stage into YOLOX and take it out again.

``apply`` works on the class, for every head of the process; ``patch_model`` on one live model. Both refuse rather than
take the place of somebody else's change, and both undo exactly what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import ConfigError, PatchError
from ..losses.terms import LossModule
from ..specs.config import LossConfig
from . import hosts
from .fork import check, make_stage
from .stage import LossStage


@dataclass(frozen=True)
class _Applied:
    config: LossConfig
    head_class: type[Any]
    original: Callable[..., Any]


class _BoundStage:
    """The ``get_losses`` of one head: what a bound method is, and can be pickled.

    A ``MethodType`` would survive deepcopy but not pickle, which looks the function up on the class: a model sent to
    another process would come out broken.
    """

    def __init__(self, head: Any, stage: LossStage) -> None:
        self.__self__ = head
        self.stage = stage

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.stage.get_losses(self.__self__, *args, **kwargs)


_applied: _Applied | None = None
# The stages of heads under `apply`. They are kept here, not on the heads, so that `revert` leaves no trace.
_stages: WeakKeyDictionary[Any, LossStage] = WeakKeyDictionary()


def _get_losses(head: Any, *args: Any, **kwargs: Any) -> Any:
    """``YOLOXHead.get_losses`` while the patch is applied."""
    if _applied is None:
        raise PatchError("YOLOXHead.get_losses is still the kit's although revert() was called; restart the process.")
    return _stage_under_apply(head, _applied.config).get_losses(head, *args, **kwargs)


def _stage_under_apply(head: Any, config: LossConfig) -> LossStage:
    stage = _stages.get(head)
    if stage is None:
        assert _applied is not None
        stage = _stages[head] = make_stage(head, _applied.original, config)
    return stage


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}.get_losses"


def apply(**specs: Any) -> None:
    """Give every YOLOX head of this process, made or to be made, these losses.

    Args:
        specs: ``loss_obj``, ``loss_cls``, ``loss_iou`` (or ``loss_bbox``), ``loss_l1``; what is left out stays stock.

    Applying the same losses again does nothing. Other processes are not reached: workers that YOLOX's launch spawns have
    the stock losses unless each calls ``apply`` itself. `LossExp` reaches them too.

    Raises:
        ConfigError: a loss or knob that does not exist.
        HostError: no YOLOX, or one whose ``get_losses`` can neither be replaced nor have its loss modules swapped.
        PatchError: other losses are applied already.
    """
    global _applied
    config = LossConfig.from_specs(specs)
    cls = hosts.head_class()
    if _applied is not None:
        if not is_applied():
            raise PatchError(f"{_qualified_name(cls)} was patched by somebody else after apply(); undo that first.")
        if config != _applied.config:
            raise PatchError(
                f"Other losses are applied already: {_applied.config}. Asked for: {config}. Call revert() first."
            )
        return
    original = cls.__dict__["get_losses"]
    if hosts.known_get_losses(original) is None:
        check(original, config)
    cls.get_losses = _get_losses
    _applied = _Applied(config, cls, original)


def is_applied() -> bool:
    """Whether ``apply`` is in force."""
    return _applied is not None and _applied.head_class.__dict__.get("get_losses") is _get_losses


def revert() -> None:
    """Undo ``apply``: the class has its own function again, the very object. Without ``apply`` it does nothing.

    Raises:
        PatchError: somebody patched over the kit; undoing would drop their change.
    """
    global _applied
    if _applied is None:
        return
    if not is_applied():
        raise PatchError(
            f"{_qualified_name(_applied.head_class)} was patched by somebody else after apply(); undo that first, then revert()."
        )
    _applied.head_class.get_losses = _applied.original
    _applied = None
    _stages.clear()


@contextmanager
def patched(**specs: Any) -> Iterator[None]:
    """``apply`` for the length of a ``with`` block; inside an ``apply`` of the same losses it changes nothing."""
    outer = is_applied()
    apply(**specs)
    try:
        yield
    finally:
        if not outer:
            revert()


def find_head(model: Any) -> Any:
    """The YOLOX head of a model, of a parallel wrapper around it, or the head itself.

    Raises:
        PatchError: there is none, or it was compiled.
    """
    model = getattr(model, "module", model)
    head = getattr(model, "head", model)
    if hasattr(model, "_orig_mod") or hasattr(head, "_orig_mod"):
        raise PatchError(
            "This model was compiled, and what was compiled has the losses that it had then. Patch first, then compile: "
            "torch.compile(patch_model(model, config))."
        )
    if not isinstance(head, hosts.head_class()):
        raise PatchError(f"{type(model).__name__} has no YOLOX head: its head is a {type(head).__name__}.")
    return head


def stage_of(model: Any) -> LossStage | None:
    """The loss stage that this model's head uses, or None when it is stock.

    Raises:
        PatchError: no YOLOX head, or somebody else's patch on it.
    """
    head = find_head(model)
    bound = _patch_on(head)
    if bound is not None:
        return bound.stage
    if is_applied():
        assert _applied is not None
        return _stage_under_apply(head, _applied.config)
    return None


def stage_with(model: Any, config: LossConfig) -> LossStage:
    """The loss stage of a model that an experiment with these losses has made.

    Raises:
        PatchError: the model has other losses, or stock's.
    """
    stage = stage_of(model)
    if stage is None or stage.config != config:
        raise PatchError(
            f"The model ({type(model).__name__}) does not have the losses of the experiment: its get_model() does not "
            "reach LossExp.get_model. Call super().get_model() in the experiment's class, or patch_model() at its end."
        )
    return stage


def _patch_on(head: Any) -> _BoundStage | None:
    """What ``patch_model`` left on this head.

    Raises:
        PatchError: there is a ``get_losses`` on the head that is not the kit's.
    """
    bound = head.__dict__.get("get_losses")
    if bound is not None and not isinstance(bound, _BoundStage):
        raise PatchError(f"The get_losses of this head was patched by somebody else ({bound!r}); undo that first.")
    return bound


def patch_model(model: Any, config: LossConfig | Mapping[str, Any] | None = None) -> Any:
    """Give one live model these losses; it takes precedence over ``apply``.

    Args:
        model: a YOLOX model, a parallel wrapper around one, or a head.
        config: a `LossConfig`, or its specs as a dict; stock losses if not given.

    Returns:
        The model. Copies of it (EMA) have the same losses; its checkpoints are stock's.

    Patching with the same losses again does nothing.

    Raises:
        PatchError: no YOLOX head, other losses patched in already, or somebody else's patch.
        HostError: a head whose ``get_losses`` can neither be replaced nor have its loss modules swapped.
    """
    head = find_head(model)
    if not isinstance(config, LossConfig):
        config = LossConfig.from_specs(config or {})
    bound = _patch_on(head)
    if bound is not None:
        if bound.stage.config == config:
            return model
        raise PatchError(
            f"The model has other losses already: {bound.stage.config}. Asked for: {config}. Call unpatch_model() first."
        )
    function = type(head).get_losses
    if function is _get_losses:
        assert _applied is not None
        function = _applied.original
    head.get_losses = _BoundStage(head, make_stage(head, function, config))
    return model


def set_epoch(model: Any, epoch: int) -> None:
    """Tell a model's losses the epoch, for ``loss_weight`` schedules under a trainer that is not the kit's.

    Args:
        model: a YOLOX model with the kit's losses, a parallel wrapper around one, a head, or a module of `build_loss`.
            Copies of the model (EMA) follow. In a distributed run every process calls this.
        epoch: counted from 1, as the log does.

    Raises:
        ConfigError: an epoch that is no whole number above 0.
        PatchError: a model with stock losses, or without a YOLOX head.
    """
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1:
        raise ConfigError(f"An epoch is a whole number at least 1, as the log counts; got {epoch!r}.")
    if isinstance(model, LossModule):
        model.set_epoch(epoch)
        return
    stage = stage_of(model)
    if stage is None:
        raise PatchError("set_epoch: this model has YOLOX's own losses. Call patch_model() or apply() first.")
    stage.set_epoch(epoch)


def unpatch_model(model: Any) -> Any:
    """Undo ``patch_model``; on a model without it, do nothing.

    Returns:
        The model.

    Raises:
        PatchError: somebody patched over the kit.
    """
    head = find_head(model)
    if _patch_on(head) is not None:
        del head.get_losses
    return model
