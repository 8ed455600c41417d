"""A loss weight that changes with the epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Schedule:
    """``{epoch: value}``: straight lines between the epochs given, constant before the first and after the last.

    A copy is the same object: the EMA copy of a model follows the epoch of the model.

    Args:
        points: epoch, counted from 1 as the log does -> value, at least 0.

    Attributes:
        epoch: the current one; None: nobody has told it yet.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        self.points = dict(sorted(points.items()))
        self.epoch: int | None = None

    def __deepcopy__(self, memo: Any) -> Schedule:
        return self

    def __repr__(self) -> str:
        return repr(self.points)

    def at(self, epoch: int) -> float:
        """The value in an epoch."""
        before = [key for key in self.points if key <= epoch]
        after = [key for key in self.points if key >= epoch]
        if not before or not after:
            return self.points[after[0] if after else before[-1]]
        start, end = before[-1], after[0]
        share = 0.0 if start == end else (epoch - start) / (end - start)
        return (1 - share) * self.points[start] + share * self.points[end]

    def value(self) -> float:
        """The value in the current epoch.

        Raises:
            ValueError: nobody has told the epoch.
        """
        if self.epoch is None:
            raise ValueError(
                f"loss_weight {self.points} is a schedule, and nobody has told the epoch. Train with the kit's trainer, or "
                "call yolox_loss_patch.set_epoch(model, epoch) at the start of each epoch, counted from 1."
            )
        return self.at(self.epoch)
