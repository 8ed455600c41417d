"""Offset losses for the encoded box targets of YOLOX's last epochs.

Every function takes ``pred`` and ``target`` as ``(N, 4)`` offsets in strides and returns ``(N, 4)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .row import Limits, loss_row


@loss_row("l1", formula="|d|", source="YOLOX 2107.08430")
def l1(pred: Tensor, target: Tensor) -> Tensor:
    """``|pred - target|``, stock YOLOX.

    Args:
        pred: ``(N, 4)`` offsets in strides.
        target: ``(N, 4)``.

    Returns:
        ``(N, 4)``, at least 0.

    YOLOX 2107.08430.
    """
    return F.l1_loss(pred, target, reduction="none")


@loss_row(
    "l1",
    formula="|d| < beta: d2/(2 beta), else |d| - beta/2",
    source="1504.08083",
    limits={"beta": Limits(low=1e-6, high=1e6)},
)
def smooth_l1(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1: ``d2/(2 beta)`` below beta, ``|d| - beta/2`` above, with ``d = pred - target``.

    Args:
        pred: ``(N, 4)`` offsets in strides.
        target: ``(N, 4)``.
        beta: in strides, at least 1e-6.

    Returns:
        ``(N, 4)``, at least 0.

    arXiv 1504.08083.
    """
    return F.smooth_l1_loss(pred, target, beta=beta, reduction="none")


@loss_row("l1", formula="d2", source="squared error")
def l2(pred: Tensor, target: Tensor) -> Tensor:
    """The squared difference, without a half.

    Args:
        pred: ``(N, 4)`` offsets in strides.
        target: ``(N, 4)``.

    Returns:
        ``(N, 4)``, at least 0.
    """
    return F.mse_loss(pred, target, reduction="none")


@loss_row(
    "l1",
    formula="|d| < beta: alpha/b (b|d| + 1) ln(b|d|/beta + 1) - alpha|d|, else gamma|d| + gamma/b - alpha beta",
    source="1904.02701",
    # Within these, exp(gamma/alpha) has room in fp32.
    limits={
        "alpha": Limits(low=0.1, high=1e6),
        "gamma": Limits(low=0, high=3, open_low=True),
        "beta": Limits(low=1e-3, high=1e6),
    },
)
def balanced_l1(pred: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0) -> Tensor:
    """Balanced L1 of Libra R-CNN: the gradient of easy offsets raised, that of outliers capped at gamma.

    ``alpha/b (b d + 1) ln(b d/beta + 1) - alpha d`` for ``d = |pred - target|`` below beta, ``gamma d + gamma/b - alpha
    beta`` above, with ``alpha ln(b + 1) = gamma``.

    Args:
        pred: ``(N, 4)`` offsets in strides.
        target: ``(N, 4)``.
        alpha: at least 0.1; a smaller one raises the gradient of easy offsets more.
        gamma: the largest gradient, in (0, 3].
        beta: in strides, at least 1e-3: where the outliers start.

    Returns:
        ``(N, 4)``, at least 0.

    arXiv 1904.02701.
    """
    d = (pred - target).abs()
    b = math.expm1(gamma / alpha)
    near = d.clamp(max=beta)  # so that the branch not taken stays small
    inlier = alpha / b * (b * near + 1) * torch.log1p(b * near / beta) - alpha * near
    return torch.where(d < beta, inlier, gamma * d + gamma / b - alpha * beta)
