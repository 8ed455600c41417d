"""From an element-wise function to the loss of a term, in MMDetection's steps.

kernel -> element weights -> reduction with ``avg_factor`` -> ``loss_weight``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .boxes import upcast

REDUCTIONS = ("none", "mean", "sum")


class TermLoss(nn.Module):
    """A loss as the loss stage calls it, and as MMDetection's are called.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``; decides the shapes that are accepted.
        name: the loss's name, for messages.
        kernel: ``kernel(pred, target, **knobs)``, element by element.
        knobs: the loss's own knobs.
        loss_weight: factor on the result.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    def __init__(
        self,
        term: str,
        name: str,
        kernel: Callable[..., Tensor],
        knobs: dict[str, Any] | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.term, self.name, self.kernel = term, name, kernel
        self.knobs = dict(knobs or {})
        self.loss_weight = loss_weight
        self.reduction = reduction

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Loss of ``pred`` against ``target``.

        Args:
            pred: ``iou``: ``(N, 4)`` boxes (cx, cy, w, h) in px; ``obj``/``cls``: logits of any shape; ``l1``: ``(N, 4)``
                encoded offsets. Half precision is computed in fp32.
            target: the same shape.
            weight: factor an element: the shape of the element-wise loss, or ``(N,)``.
            avg_factor: ``mean`` becomes sum / avg_factor.
            reduction_override: takes the place of the module's ``reduction`` for this call.

        Raises:
            ValueError: shapes that do not fit, an unknown reduction, ``sum`` with ``avg_factor``.
        """
        reduction = self.reduction if reduction_override is None else reduction_override
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is one of {', '.join(REDUCTIONS)}; got {reduction!r}")
        if reduction == "sum" and avg_factor is not None:
            raise ValueError("avg_factor goes with reduction='mean' (sum / avg_factor), not with 'sum'")
        if pred.shape != target.shape:
            raise ValueError(
                f"{self.name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape; "
                "class targets are one column a class, not class numbers"
            )
        if self.term in ("iou", "l1") and (pred.dim() != 2 or pred.shape[1] != 4):
            raise ValueError(f"{self.name}: boxes are (N, 4); got {tuple(pred.shape)}")
        with torch.autocast(pred.device.type, enabled=False):
            loss = self.kernel(*upcast(pred, target), **self.knobs)
            if weight is not None:
                loss = loss * self._fit(weight, loss)
            if reduction == "sum":
                loss = loss.sum()
            elif reduction == "mean":
                # An empty set has no mean but it has a sum: 0, with a gradient of nothing.
                loss = loss.sum() / (max(loss.numel(), 1) if avg_factor is None else avg_factor)
            return loss if self.loss_weight == 1 else self.loss_weight * loss

    def _fit(self, weight: Tensor, loss: Tensor) -> Tensor:
        """The weight in the shape of the element-wise loss."""
        weight = weight.to(loss.dtype)
        if weight.shape == loss.shape:
            return weight
        if loss.dim() == 1 and weight.shape == (*loss.shape, 4):
            return weight.mean(1)  # MMDetection hands bbox_weights over as (N, 4)
        if loss.dim() > 1 and weight.shape == loss.shape[:1]:
            return weight.view(-1, *[1] * (loss.dim() - 1))
        raise ValueError(
            f"{self.name}: weight is {tuple(loss.shape)} or {tuple(loss.shape[:1])}; got {tuple(weight.shape)}"
        )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        knobs = "".join(f", {key}={value!r}" for key, value in self.knobs.items())
        return f"{self.name}{knobs}, loss_weight={self.loss_weight}, reduction={self.reduction!r}"
