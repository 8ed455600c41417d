"""Offset losses for the encoded box targets of YOLOX's last epochs.

Every function takes ``pred`` and ``target`` as ``(N, 4)`` offsets in strides and returns ``(N, 4)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """``|pred - target|``, stock YOLOX."""
    return F.l1_loss(pred, target, reduction="none")


def smooth_l1(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Smooth L1 (1504.08083): ``d2/(2 beta)`` below beta, ``|d| - beta/2`` above; ``d`` is an offset in strides."""
    return F.smooth_l1_loss(pred, target, beta=beta, reduction="none")


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """The squared difference, without a half."""
    return F.mse_loss(pred, target, reduction="none")


def balanced_l1(pred: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0) -> Tensor:
    """Balanced L1 (Libra R-CNN, 1904.02701): the gradient of easy offsets raised, that of outliers capped at gamma.

    ``alpha/b (b d + 1) ln(b d/beta + 1) - alpha d`` for ``d = |pred - target|`` below beta, ``gamma d + gamma/b - alpha
    beta`` above, with ``alpha ln(b + 1) = gamma``.
    """
    d = (pred - target).abs()
    b = math.expm1(gamma / alpha)
    near = d.clamp(max=beta)  # so that the branch not taken stays small
    inlier = alpha / b * (b * near + 1) * torch.log1p(b * near / beta) - alpha * near
    return torch.where(d < beta, inlier, gamma * d + gamma / b - alpha * beta)
