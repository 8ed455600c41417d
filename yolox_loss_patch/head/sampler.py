"""Which anchors the objectness term looks at, as MMDetection's samplers choose them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """A number of anchors per image, a share of them foreground.

    Attributes:
        num: anchors per image.
        pos_fraction: the largest share of foreground among them, in [0, 1]; what foreground does not fill is background.
        neg_pos_ub: the most background anchors per foreground anchor that was taken (counted as at least 1); below 0: no
            bound.
    """

    num: int
    pos_fraction: float
    neg_pos_ub: float

    def take(self, rank: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        """The anchors of highest rank, among foreground and among background.

        Args:
            rank: ``(B, A)``.
            foreground, background: ``(B, A)`` bool; an anchor that is neither is never taken.

        Returns:
            ``(B, A)`` fp32: 1 for the anchors taken, 0 for the others.
        """
        positive = foreground.sum(1).clamp(max=int(self.num * self.pos_fraction))
        negative = self.num - positive
        if self.neg_pos_ub >= 0:
            negative = torch.minimum(negative, (self.neg_pos_ub * positive.clamp(min=1)).long())
        taken = self._highest(rank, foreground, positive) | self._highest(rank, background, negative)
        return taken.to(torch.float32)

    def _highest(self, rank: Tensor, among: Tensor, count: Tensor) -> Tensor:
        """``count`` ``(B,)`` of the anchors ``among``, or all where there are fewer."""
        most = min(self.num, among.shape[1])
        order = rank.masked_fill(~among, -torch.inf).topk(most, dim=1).indices
        taken = torch.arange(most, device=among.device) < count.unsqueeze(1)
        return torch.zeros_like(among).scatter_(1, order, taken) & among


class RandomSampler(Sampler):
    """Anchors drawn from torch's generator."""

    def __call__(self, foreground: Tensor, background: Tensor) -> Tensor:
        """Draw the anchors of a batch; see `Sampler.take`."""
        noise = torch.rand(foreground.shape, device=foreground.device)
        return self.take(noise, foreground, background)


class OHEMSampler(Sampler):
    """The anchors with the largest loss, per image: online hard example mining, arXiv 1604.03540."""

    def __call__(self, foreground: Tensor, background: Tensor, loss: Tensor) -> Tensor:
        """Take the anchors of a batch by their loss ``(B, A)``; see `Sampler.take`."""
        return self.take(loss, foreground, background)


def make_sampler(knobs: Mapping[str, Any] | None) -> RandomSampler | OHEMSampler | None:
    """The sampler of a resolved config, None for all anchors."""
    if knobs is None:
        return None
    numbers = {key: value for key, value in knobs.items() if key != "type"}
    return OHEMSampler(**numbers) if knobs["type"] == "OHEMSampler" else RandomSampler(**numbers)
