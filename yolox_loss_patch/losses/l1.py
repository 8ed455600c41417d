"""Offset losses for the encoded box targets of YOLOX's last epochs, element by element: ``(N, 4)`` in, ``(N, 4)`` out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """``|pred - target|``, stock YOLOX."""
    return F.l1_loss(pred, target, reduction="none")
