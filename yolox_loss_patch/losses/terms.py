"""From an element-wise function to the loss of a term, in MMDetection's steps.

kernel -> element weights -> reduction with ``avg_factor`` -> ``loss_weight``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .boxes import upcast
from .state import RunningKernel

REDUCTIONS = ("none", "mean", "sum")


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
        wants: facts of the batch for the loss stage to pass along, of ``image_size`` (H, W) and ``images`` (a number).
    """

    wants: tuple[str, ...] = ()

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
            target: the same shape; of ``obj``/``cls`` in [0, 1].
            weight: factor per element: the shape of the element-wise loss, or ``(N,)``. A loss of a whole set (Dice,
                GHM-C) weighs the element's part in its sums.
            avg_factor: above 0; ``mean`` becomes sum / avg_factor.
            reduction_override: takes the place of the module's ``reduction`` for this call.
            facts: of the batch, those named in ``wants``.

        Returns:
            One number, or with reduction ``none`` the loss of each element.

        Raises:
            ValueError: shapes that do not fit, an unknown reduction, ``sum`` with ``avg_factor``, an ``avg_factor`` that
                is not one number above 0 (a tensor's value is not looked at, which would wait for the device).
        """
        return self.compute(Call(pred, target, weight, avg_factor, reduction_override, facts))

    def compute(self, call: Call) -> Tensor:
        """The loss of a call."""
        raise NotImplementedError

    def running_state(self) -> dict[str, Tensor]:
        """What the loss has learnt from the batches so far; empty for most losses."""
        return {}

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `running_state`."""


class TermLoss(LossModule):
    """One loss of the kit for one term.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``; decides the shapes that are accepted.
        name: the loss's name, for messages.
        kernel: ``kernel(pred, target, **knobs)``, element by element; a class (`RunningKernel`) is built with the knobs
            and then called without them.
        knobs: the loss's own knobs.
        whole_set: the kernel weighs and averages over the set itself: it is called as ``kernel(pred, target, weight,
            **knobs)``. For the loss stage: no ``avg_factor`` divides it.
        wants: see `LossModule`; a knob of that name comes first.
        loss_weight: factor on the result.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    def __init__(
        self,
        term: str,
        name: str,
        kernel: Callable[..., Tensor] | type[RunningKernel],
        knobs: dict[str, Any] | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        whole_set: bool = False,
        wants: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.term, self.name = term, name
        self._where = f"loss_{term}: {name}"
        self.knobs = dict(knobs or {})
        self.kernel = kernel(**self.knobs) if isinstance(kernel, type) else kernel
        # What goes with every call: a module has its knobs, and for one that is None the batch may know a value.
        self._given = {} if isinstance(kernel, type) else {k: v for k, v in self.knobs.items() if v is not None}
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
        elif avg_factor is not None and not avg_factor > 0:
            raise ValueError(f"{self._where}: avg_factor is a number above 0; got {avg_factor!r}")
        if pred.shape != target.shape:
            raise ValueError(
                f"{self._where}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape; "
                "class targets are one column per class, not class numbers"
            )
        if self.term in ("iou", "l1") and (pred.dim() != 2 or pred.shape[1] != 4):
            raise ValueError(
                f"{self._where}: {'boxes' if self.term == 'iou' else 'offsets'} are (N, 4); got {tuple(pred.shape)}"
            )
        return reduction

    def _reduced(self, call: Call, reduction: str) -> Tensor:
        loss = self._elements(*upcast(call.pred, call.target), call.weight, call.facts)
        if reduction == "sum":
            loss = loss.sum()
        elif reduction == "mean":
            # An empty set has no mean but it has a sum: 0, with a gradient of nothing.
            loss = loss.sum() / (max(loss.numel(), 1) if call.avg_factor is None else call.avg_factor)
        return loss if self.loss_weight == 1 else self.loss_weight * loss

    def _elements(self, pred: Tensor, target: Tensor, weight: Tensor | None, facts: dict[str, Any]) -> Tensor:
        """The weighted loss before its reduction."""
        knobs = {**facts, **self._given}
        if self.whole_set:
            weight = None if weight is None else self.fit(weight, pred).expand_as(pred)
            return self.kernel(pred, target, weight, **knobs)
        loss = self.kernel(pred, target, **knobs)
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
        if loss.dim() > 1 and weight.shape == loss.shape[:1]:
            return weight.view(-1, *[1] * (loss.dim() - 1))
        other = (*loss.shape, 4) if self.term == "iou" else tuple(loss.shape[:1])
        raise ValueError(f"{self._where}: weight is {tuple(loss.shape)} or {other}; got {tuple(weight.shape)}")

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        knobs = "".join(f", {key}={value!r}" for key, value in self.knobs.items())
        return f"{self.name}{knobs}, loss_weight={self.loss_weight}, reduction={self.reduction!r}"
