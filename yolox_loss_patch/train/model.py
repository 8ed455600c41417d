"""The model of a training, with the losses of its experiment."""

from __future__ import annotations

from typing import Any

from loguru import logger
from yolox.utils import get_model_info

from ..exp.settings import warnings_of_losses
from ..head.half import decode_in_fp32
from ..head.patch import find_head, stage_with


def build_model(exp: Any, losses: Any, half: bool) -> tuple[Any, Any]:
    """The model of an experiment, and the loss stage in its head.

    Args:
        exp: the experiment.
        losses: that the model must have.
        half: whether it will compute in half precision.

    Raises:
        PatchError: the model has other losses.
    """
    model = exp.get_model()
    if half:
        decode_in_fp32(find_head(model))
    stage = stage_with(model, losses)
    stage.collect = True
    stage.l1_is_scheduled = True
    return model, stage


def log_model(model: Any, losses: Any, rank: int, test_size: tuple[int, int]) -> None:
    """Log the losses, what is unusual about them, and the size of the model."""
    logger.info(f"losses (rank {rank}): {losses}")
    for term, spec in losses.resolved().items():
        parts = spec if isinstance(spec, list) else [spec]  # a list is a sum
        if any(part["reduction"] == "sum" for part in parts):
            logger.warning(
                f"loss_{term}: reduction='sum' is not divided by the foreground anchors, as YOLOX's terms are, and "
                "MMDetection's in its own head: it counts some hundred times as much. For their scale write 'mean'."
            )
    if rank == 0:
        for text in warnings_of_losses(losses):
            logger.warning(text)
    logger.info(f"Model Summary: {get_model_info(model, test_size)}")
