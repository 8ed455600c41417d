"""The loss modules of the terms, as the loss stage calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..losses.calibration import Calibrated, WeighedByOverlap, WithStock
from ..losses.terms import TermLoss
from ..specs.build import build_loss
from ..specs.registry import LOSSES


def build_term(term: str, resolved: Mapping[str, Any]) -> Any:
    """The loss of a term, brought to YOLOX's scale and meaning where its preset says so.

    Raises:
        ConfigError: knobs with which it has no calibration.
    """
    loss = build_loss(term, resolved)
    if resolved.get("preset") != "calibrated":
        return loss
    assert isinstance(loss, TermLoss)  # as all losses of the kit are
    row = LOSSES.get(term, resolved["type"])
    if row.by_overlap:
        return WeighedByOverlap(loss)
    if row.share_with_stock is not None:
        return WithStock(loss, row.share_with_stock)
    try:
        # Where each anchor of all ranks counts the same, the unit is that of all of them.
        return Calibrated(loss, over_ranks=resolved.get("avg_factor") == "global")
    except ValueError as error:
        raise ConfigError(
            f"loss_{term}: {resolved['type']} cannot be calibrated with these knobs, as {error}. Write preset='paper' to "
            "train the formula as it is."
        ) from error
