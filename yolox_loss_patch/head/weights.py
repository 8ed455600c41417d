"""An experiment's weights of single elements: the method ``loss_weights``, and what it may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..specs.knobs import nearest
from .assign import Assignment

# What `loss_weights` may return -> its shapes, for num_fg foreground anchors, C classes, and all A anchors of B images.
SHAPES = {
    "obj_weights": (("B*A",), ("B*A", "1")),
    "label_weights": (("num_fg",), ("num_fg", "C")),
    "bbox_weights": (("num_fg",), ("num_fg", "4")),
}


class ElementWeights:
    """An experiment's ``loss_weights`` method. It belongs to the experiment: a copy of the model (EMA) shares it.

    Args:
        method: takes the `Assignment` of a batch, returns a dict with any of the names in `SHAPES`, or None.
    """

    def __init__(self, method: Callable[[Assignment], Mapping[str, Tensor] | None]) -> None:
        self.method = method

    def __deepcopy__(self, memo: Any) -> ElementWeights:
        return self

    @torch.no_grad()
    def __call__(self, assignment: Assignment, num_classes: int) -> dict[str, Tensor]:
        """The weights of a batch, checked, on the device of the assignment.

        Args:
            assignment: the matches of the batch.
            num_classes: classes of the head, C.

        Returns:
            Name -> weights of one of the shapes in `SHAPES`.

        Raises:
            ConfigError: no dict, an unknown name, no numbers, a shape that does not fit.
        """
        answer = self.method(assignment)
        if not isinstance(answer, Mapping | None):
            raise ConfigError(f"loss_weights returns a dict with any of {', '.join(SHAPES)}, or None; got {answer!r}.")
        weights = {name: weight for name, weight in (answer or {}).items() if weight is not None}
        sizes = {"num_fg": assignment.num_fg, "C": num_classes, "B*A": assignment.fg_mask.numel(), "4": 4, "1": 1}
        for name, weight in weights.items():
            if name not in SHAPES:
                known = ", ".join(SHAPES)
                raise ConfigError(f"loss_weights: there is no {name!r}.{nearest(name, SHAPES)} It returns {known}.")
            try:
                weights[name] = weight = torch.as_tensor(weight, device=assignment.fg_mask.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"loss_weights: {name} is a tensor of numbers; got {weight!r}.") from error
            if tuple(weight.shape) not in [tuple(sizes[word] for word in shape) for shape in SHAPES[name]]:
                allowed = " or ".join(f"({', '.join(shape)})" for shape in SHAPES[name])
                values = ", ".join(f"{word} = {sizes[word]}" for word in ("num_fg", "C", "B*A"))
                raise ConfigError(f"loss_weights: {name} is {allowed} with {values}; got {tuple(weight.shape)}.")
        return weights
