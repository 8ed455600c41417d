"""Which way a gradient is asked for."""

from __future__ import annotations

import torch


def has_no_custom_gradient() -> bool:
    """Whether a custom gradient does not serve here: under ``torch.func`` and in forward mode.

    There a loss takes plain steps, which every transform knows. `torch.autograd.Function.apply` asks the same question of
    itself in these words; torch has no public one.
    """
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
