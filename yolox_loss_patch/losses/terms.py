"""From an element-wise function to the loss of a term, in MMDetection's steps.

kernel -> element weights -> reduction with ``avg_factor`` -> ``loss_weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .boxes import upcast
from .schedule import Schedule
from .state import RunningKernel

REDUCTIONS = ("none", "mean", "sum")
#: What a loss can ask the loss stage for, by name. A row is an anchor: for objectness each of the batch, ordered by image,
#: else each of the foreground.
FACTS = {
    "images": "how many images the batch has",
    "image_size": "(H, W) of the input images in px",
    "ious": "(rows,) the IoU of each row's box with its ground truth, 0 in the background",
    "mean_iou": "the mean IoU of the foreground, one number; 0 without foreground",
    "image_indices": "(rows,) the place of each row's image in the batch",
    "strides": "(rows,) the stride of each row's cell in px",
}


class Call(NamedTuple):
    """The arguments of one call of a loss module; see `LossModule.forward`."""

    pred: Tensor
    target: Tensor
    weight: Tensor | None
    avg_factor: float | Tensor | None
    reduction: str | None
    facts: dict[str, Any]


class LossModule(nn.Module):
    """A loss as the loss stage calls it, and as MMDetection's are called. Subclasses write `compute`.

    Attributes:
        wants: facts of the batch for the loss stage to pass along, of `FACTS`.
    """

    wants: tuple[str, ...] = ()
    whole_set: bool = False

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        **facts: Any,
    ) -> Tensor:
        """Loss of ``pred`` against ``target``.

        Args:
            pred: ``iou``: ``(N, 4)`` boxes (cx, cy, w, h) in px; ``obj``/``cls``: logits of any shape; ``l1``:
                ``(N, 4)`` encoded offsets in strides. Half precision is computed in fp32.
            target: the same shape; of ``obj``/``cls`` in [0, 1]. For logits ``(N, C)`` also whole numbers ``(N,)``: the
                class of each row; C (MMDetection's background) or -1 is none.
            weight: factor per element: the shape of the element-wise loss, ``(N,)``, ``(N, 1)``, or flat ``(N*C,)``; of
                ``iou`` also ``(N, 4)``, whose mean counts. A loss of a whole set (Dice, GHM-C) weighs the element's part
                in its sums.
            avg_factor: above 0; ``mean`` becomes sum / avg_factor.
            reduction_override: takes the place of the module's ``reduction`` for this call.
            facts: of the batch, those named in ``wants``.

        Returns:
            One number, or with reduction ``none`` the loss of each element.

        Raises:
            TypeError: an array or a list in place of a tensor.
            ValueError: shapes that do not fit, an unknown reduction, ``sum`` with ``avg_factor``, an ``avg_factor`` that
                is not one number above 0 (a tensor's value is not looked at, which would wait for the device).
        """
        if type(pred) is not Tensor or type(target) is not Tensor or weight is not None:  # the usual call costs least
            for name, value in (("pred", pred), ("target", target), ("weight", weight)):
                if not isinstance(value, Tensor) and (value is not None or name != "weight"):
                    raise TypeError(f"{self._label()}: {name} is a tensor; got {type(value).__name__}")
        if target.dim() == 1 and pred.dim() == 2 and not (target.is_floating_point() or target.dtype == torch.bool):
            target = _one_per_class(target, pred.shape[1])
        return self.compute(Call(pred, target, weight, avg_factor, reduction_override, facts))

    def compute(self, call: Call) -> Tensor:
        """The loss of a call."""
        raise NotImplementedError

    def _label(self) -> str:
        """The loss's name, for messages."""
        return str(getattr(self, "_where", type(self).__name__))

    def running_state(self) -> dict[str, Tensor]:
        """What the loss has learnt from the batches so far; empty for most losses."""
        return {}

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state`."""

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to a loss whose ``loss_weight`` is a schedule."""


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, Real) and bool(value > 0)  # type: ignore[operator]


def _one_per_class(target: Tensor, num_classes: int) -> Tensor:
    """Class numbers ``(N,)`` as targets ``(N, C)``; C and -1 are no class."""
    if target.numel() and (int(target.min()) < -1 or int(target.max()) > num_classes):
        raise ValueError(
            f"Class numbers are 0 to {num_classes - 1}, and {num_classes} or -1 for none; got {int(target.min())} to "
            f"{int(target.max())}"
        )
    return (target.unsqueeze(1) == torch.arange(num_classes, device=target.device)).float()


def weighed(loss: Tensor, loss_weight: float | Schedule) -> Tensor:
    """The loss times its weight in the current epoch."""
    factor = loss_weight.value() if isinstance(loss_weight, Schedule) else loss_weight
    return loss if factor == 1 else factor * loss


class TermLoss(LossModule):
    """One loss of the kit for one term.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``; decides the shapes that are accepted.
        name: the loss's name, for messages.
        kernel: ``kernel(pred, target, **facts)``, element by element, with its knobs bound.
        knobs: those of the kernel, for ``print(model)``.
        whole_set: the kernel weighs and averages over the set itself: it is called as ``kernel(pred, target, weight,
            **facts)``. For the loss stage: no ``avg_factor`` divides it.
        wants: see `LossModule`.
        loss_weight: factor on the result, at least 0, or a schedule.
        reduction: ``none``, ``mean`` or ``sum``.
        activated: the loss is called with scores in [0, 1] instead of logits.
    """

    def __init__(
        self,
        term: str,
        name: str,
        kernel: Callable[..., Tensor],
        knobs: Mapping[str, Any] | None = None,
        loss_weight: float | Schedule = 1.0,
        reduction: str = "mean",
        whole_set: bool = False,
        wants: tuple[str, ...] = (),
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.activated = activated
        self.term, self.name = term, name
        self._where = f"loss_{term}: {name}"
        self.knobs = dict(knobs or {})
        self.kernel = kernel
        self.whole_set, self.wants = whole_set, wants
        self.loss_weight = loss_weight
        self.reduction = reduction

    def compute(self, call: Call) -> Tensor:
        """The loss of a call."""
        reduction = self._check(call)
        device = call.pred.device.type
        # Entering the context takes longer than asking; meta tensors and some devices have none.
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._reduced(call, reduction)
        return self._reduced(call, reduction)

    def _check(self, call: Call) -> str:
        """The reduction of a call; ValueError where its arguments do not fit."""
        pred, target, avg_factor = call.pred, call.target, call.avg_factor
        reduction = self.reduction if call.reduction is None else call.reduction
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is one of {', '.join(REDUCTIONS)}; got {reduction!r}")
        if reduction == "sum" and avg_factor is not None:
            raise ValueError("avg_factor goes with reduction='mean' (sum / avg_factor), not with 'sum'")
        if isinstance(avg_factor, Tensor):
            if avg_factor.numel() != 1:
                raise ValueError(f"{self._where}: avg_factor is one number; got a tensor {tuple(avg_factor.shape)}")
        elif avg_factor is not None and not _is_above_zero(avg_factor):
            raise ValueError(f"{self._where}: avg_factor is a number above 0; got {avg_factor!r}")
        if pred.shape != target.shape:
            raise ValueError(
                f"{self._where}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape; "
                "class targets are one column per class, or whole numbers (N,) for logits (N, C)"
            )
        if self.term in ("iou", "l1") and (pred.dim() != 2 or pred.shape[1] != 4):
            raise ValueError(
                f"{self._where}: {'boxes' if self.term == 'iou' else 'offsets'} are (N, 4); got {tuple(pred.shape)}"
            )
        return reduction

    def _reduced(self, call: Call, reduction: str) -> Tensor:
        pred, target = upcast(call.pred, call.target)
        if self.activated:
            limits = torch.finfo(pred.dtype)
            pred = torch.logit(pred.clamp(limits.tiny, 1 - limits.eps / 2))
        loss = self._elements(pred, target, call.weight, call.facts)
        if reduction == "sum":
            loss = loss.sum()
        elif reduction == "mean":
            # An empty set has no mean but it has a sum: 0, with a gradient of nothing.
            loss = loss.sum() / (max(loss.numel(), 1) if call.avg_factor is None else call.avg_factor)
        return weighed(loss, self.loss_weight)

    def _elements(self, pred: Tensor, target: Tensor, weight: Tensor | None, facts: dict[str, Any]) -> Tensor:
        """The weighted loss before its reduction."""
        if self.whole_set:
            weight = None if weight is None else self.fit(weight, pred).expand_as(pred)
            return self.kernel(pred, target, weight, **facts)
        loss = self.kernel(pred, target, **facts)
        return loss if weight is None else loss * self.fit(weight, loss)

    def running_state(self) -> dict[str, Tensor]:
        """What the loss has learnt from the batches so far; empty for most losses."""
        return self.kernel.running_state() if isinstance(self.kernel, RunningKernel) else {}

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state`.

        Raises:
            ValueError: the state is of another loss, or of other knobs.
        """
        if isinstance(self.kernel, RunningKernel):
            self.kernel.load_running_state(state)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to a ``loss_weight`` that is a schedule."""
        if isinstance(self.loss_weight, Schedule):
            self.loss_weight.epoch = epoch

    def fit(self, weight: Tensor, loss: Tensor) -> Tensor:
        """The weight in the shape of the element-wise loss.

        Raises:
            ValueError: a shape that does not fit.
        """
        weight = weight.to(loss.dtype)
        if weight.shape == loss.shape:
            return weight
        if self.term == "iou" and weight.shape == (*loss.shape, 4):
            return weight.mean(1)  # MMDetection hands bbox_weights over as (N, 4)
        if loss.dim() and weight.shape in (loss.shape[:1], (len(loss), 1)):
            return weight.reshape(-1, *[1] * (loss.dim() - 1))
        if loss.dim() == 2 and weight.shape == (loss.numel(),):
            return weight.view(loss.shape)  # as MMDetection reshapes the weights of its scores
        allowed = [tuple(loss.shape), *([(*loss.shape, 4)] if self.term == "iou" else []), (*loss.shape[:1], 1)]
        if loss.dim() == 2:
            allowed = [allowed[0], tuple(loss.shape[:1]), (len(loss), 1), (loss.numel(),)]
        raise ValueError(f"{self._where}: weight is {' or '.join(map(str, allowed))}; got {tuple(weight.shape)}")

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        knobs = "".join(f", {key}={value!r}" for key, value in self.knobs.items())
        return f"{self.name}{knobs}, loss_weight={self.loss_weight}, reduction={self.reduction!r}"


class OtherLoss(LossModule):
    """A user's loss with a ``loss_weight`` that its class does not take.

    Args:
        loss: called as `LossModule` is.
        loss_weight: factor on its result, at least 0, or a schedule.
    """

    def __init__(self, loss: nn.Module, loss_weight: float | Schedule) -> None:
        super().__init__()
        self.loss, self.loss_weight = loss, loss_weight
        self.wants = tuple(getattr(loss, "wants", ()))

    def compute(self, call: Call) -> Tensor:
        """The loss of a call."""
        return weighed(call_module(self.loss, call), self.loss_weight)

    def running_state(self) -> dict[str, Tensor]:
        """The running state of the user's class, where it has one."""
        return state_of(self.loss)

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state`."""
        load_state(self.loss, state)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to a ``loss_weight`` that is a schedule."""
        if isinstance(self.loss_weight, Schedule):
            self.loss_weight.epoch = epoch


class SumLoss(LossModule):
    """The sum of several losses of one term, each with its own weight, reduction and knobs.

    Args:
        losses: modules called as `LossModule` is.
    """

    def __init__(self, losses: Sequence[nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.wants = tuple(dict.fromkeys(fact for loss in losses for fact in getattr(loss, "wants", ())))

    def compute(self, call: Call) -> Tensor:
        """The sum. ``avg_factor`` divides the parts whose reduction is ``mean`` and that are not of a whole set.

        Raises:
            ValueError: reduction ``none`` with a part that is one number for the whole set.
        """
        if call.reduction == "none" and any(getattr(loss, "whole_set", False) for loss in self.losses):
            raise ValueError(
                "A sum with a loss of a whole set has no loss of each element; use reduction mean or sum, or build its parts."
            )
        values = []
        for loss in self.losses:
            is_divided = not getattr(loss, "whole_set", False)
            is_divided &= call.reduction == "mean" or (call.reduction is None and reduction_of(loss) == "mean")
            part = call._replace(
                facts={fact: call.facts[fact] for fact in getattr(loss, "wants", ()) if fact in call.facts}
            )
            values.append(call_module(loss, part if is_divided else part._replace(avg_factor=None)))
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    def running_state(self) -> dict[str, Tensor]:
        """The running states of the parts, each under the number of its part."""
        return {
            f"{number}.{key}": value for number, loss in enumerate(self.losses) for key, value in state_of(loss).items()
        }

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state` of the same sum."""
        for number, loss in enumerate(self.losses):
            part = {key.partition(".")[2]: state[key] for key in state if key.partition(".")[0] == str(number)}
            if part:
                load_state(loss, part)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, counted from 1, to the parts whose ``loss_weight`` is a schedule."""
        for loss in self.losses:
            if isinstance(loss, LossModule):
                loss.set_epoch(epoch)


def call_module(loss: nn.Module, call: Call) -> Tensor:
    """A call of a loss module, of the kit or of a user."""
    value: Tensor = loss(call.pred, call.target, call.weight, call.avg_factor, call.reduction, **call.facts)
    return value


def reduction_of(loss: nn.Module) -> str:
    """The reduction that a loss module has when a call does not say otherwise."""
    inner = getattr(loss, "loss", loss)
    return str(getattr(inner, "reduction", "mean"))


def state_of(loss: Any) -> dict[str, Tensor]:
    """The running state of a loss module, of the kit or of a user; empty where it has none."""
    state: dict[str, Tensor] = loss.running_state() if hasattr(loss, "running_state") else {}
    return state


def load_state(loss: Any, state: dict[str, Tensor]) -> None:
    """Let a loss module go on from its `state_of`."""
    if state and hasattr(loss, "load_running_state"):
        loss.load_running_state(state)
