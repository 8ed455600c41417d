"""Which anchors the objectness term looks at, as MMDetection's samplers choose them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomSampler:
    """A number of anchors per image, a share of them foreground, drawn from torch's generator.

    Attributes:
        num: anchors per image.
        pos_fraction: the largest share of foreground among them, in [0, 1]; what foreground does not fill is background.
        neg_pos_ub: the most background anchors per foreground anchor that was drawn (counted as at least 1); below 0: no
            bound.
    """

    num: int
    pos_fraction: float
    neg_pos_ub: float

    def __call__(self, foreground: Tensor, background: Tensor) -> Tensor:
        """Draw the anchors of a batch.

        Args:
            foreground, background: ``(B, A)`` bool; an anchor that is neither is never drawn.

        Returns:
            ``(B, A)`` fp32: 1 for the anchors drawn, 0 for the others.
        """
        noise = torch.rand(foreground.shape, device=foreground.device)
        positive = foreground.sum(1).clamp(max=int(self.num * self.pos_fraction))
        negative = self.num - positive
        if self.neg_pos_ub >= 0:
            negative = torch.minimum(negative, (self.neg_pos_ub * positive.clamp(min=1)).long())
        drawn = self._draw(noise, foreground, positive) | self._draw(noise, background, negative)
        return drawn.to(noise.dtype)

    def _draw(self, noise: Tensor, among: Tensor, count: Tensor) -> Tensor:
        """``count`` ``(B,)`` of the anchors ``among``, or all where there are fewer."""
        most = min(self.num, among.shape[1])
        order = noise.masked_fill(~among, -1.0).topk(most, dim=1).indices
        taken = torch.arange(most, device=among.device) < count.unsqueeze(1)
        return torch.zeros_like(among).scatter_(1, order, taken) & among
