"""Facts of a batch that a loss may ask for by name; `losses.terms.FACTS` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .assign import Assignment


@dataclass
class BatchFacts:
    """What the loss stage knows of a batch.

    Attributes:
        assignment: the matches.
        rows: ``(num_fg,)`` the foreground anchors, counted through the batch.
        strides: ``(A,)`` the stride of each anchor of an image, in px.
        images: how many images there are.
        image_size: (H, W) in px.
    """

    assignment: Assignment
    rows: Tensor
    strides: Tensor
    images: int
    image_size: tuple[int, ...]

    def of(self, term: str, name: str) -> Any:
        """A fact for a term: objectness looks at every anchor of the batch, the others at the foreground.

        Args:
            term: ``obj``, ``cls``, ``iou`` or ``l1``.
            name: of `losses.terms.FACTS`.
        """
        ious, anchors = self.assignment.ious, len(self.strides)
        match name:
            case "images" | "image_size":
                return getattr(self, name)
            case "mean_iou":
                return ious.sum() / max(len(ious), 1)
            case "ious" if term == "obj":
                return ious.new_zeros(self.images * anchors).index_put((self.rows,), ious)
            case "ious":
                return ious
            case "image_indices":
                every = self.rows.new_tensor(range(self.images)).repeat_interleave(anchors)
            case "strides":
                every = self.strides.repeat(self.images)
            case _:
                raise KeyError(name)
        return every if term == "obj" else every[self.rows]
