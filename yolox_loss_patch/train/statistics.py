"""The statistics of an epoch: loss terms, quality of the foreground, pulls of the terms, time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loguru import logger

from ..errors import RunError
from ..runs.record import GRADIENT_COLUMNS, LOSS_COLUMNS
from .device import Compute

_STAGE = ("fg_iou", "obj_fg", "obj_bg", "num_fg", "num_bg")
_TERMS = {"iou_loss": "iou", "conf_loss": "obj", "cls_loss": "cls", "l1_loss": "l1"}


class EpochStatistics:
    """Sums over the steps of one epoch, from its start on.

    Args:
        stage: the loss stage, whose statistics are counted.
        compute: where the process trains.
    """

    def __init__(self, stage: Any, compute: Compute) -> None:
        self.stage = stage
        self.compute = compute
        self.started = time.perf_counter()
        self.seconds = 0.0
        self.steps = 0
        self.parts = stage.part_names()
        self.sums: dict[str, float] = dict.fromkeys((*LOSS_COLUMNS, *_STAGE, *self.parts), 0.0)
        stage.gradients.clear()

    def add(self, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Count a step, in one transfer from the device.

        Args:
            outputs: of the model, with the loss terms.

        Returns:
            The loss terms as numbers.
        """
        values = [
            *(outputs[name] for name in LOSS_COLUMNS),
            *(self.stage.stats[name] for name in _STAGE),
            *(self.stage.part_values.get(name, 0.0) for name in self.parts),
        ]
        device = self.compute.device
        numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device).detach() for value in values])
        named = dict(zip((*LOSS_COLUMNS, *_STAGE, *self.parts), numbers.tolist(), strict=True))
        for name, number in named.items():
            self.sums[name] += number
        self.steps += 1
        return {name: named[name] for name in LOSS_COLUMNS}

    def join(self, world: int) -> None:
        """Add up the epoch of all ranks, so that the losses in the record are those of whole batches."""
        self._add_gradients()
        if world == 1:
            return
        sums = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=self.compute.device)
        dist.all_reduce(sums)
        self.sums = dict(zip(self.sums, sums.tolist(), strict=True))
        for name in (*LOSS_COLUMNS, *GRADIENT_COLUMNS, *self.parts):
            self.sums[name] /= world

    def _add_gradients(self) -> None:
        unknown = 0.0 if self.stage.gradients else math.nan  # a fork's own get_losses does not tell
        self.sums.update({name: float(self.stage.gradients.get(name, unknown)) for name in GRADIENT_COLUMNS})

    def row(self, epoch: int, lr: float) -> dict[str, float | None]:
        """The epoch's row of ``metrics.csv``, as far as training gives it.

        Args:
            epoch: its number, from 1.
            lr: the last learning rate.
        """
        sums = self.sums
        row: dict[str, float | None] = {
            "epoch": epoch,
            **{name: sums[name] / self.steps for name in LOSS_COLUMNS},
            "fg_iou": _mean(sums["fg_iou"], sums["num_fg"]),
            "obj_fg": _mean(sums["obj_fg"], sums["num_fg"]),
            "obj_bg": _mean(sums["obj_bg"], sums["num_bg"]),
            **{name: _mean(sums[name], self.steps) for name in GRADIENT_COLUMNS},
            "lr": lr,
            **{name: sums[name] / self.steps for name in self.parts},
        }
        if self.parts:
            logger.info(f"epoch {epoch}: " + ", ".join(f"{name} {_text(row[name])}" for name in self.parts))
        logger.info(
            f"epoch {epoch}: mean foreground IoU {_text(row['fg_iou'])}, mean objectness on foreground "
            f"{_text(row['obj_fg'])}, on background {_text(row['obj_bg'])}"
        )
        self.seconds = row["seconds"] = time.perf_counter() - self.started
        row["memory_mib"] = self.compute.peak_memory()
        return row


def not_finite_terms(losses: Mapping[str, float]) -> str | None:
    """The loss terms that are infinite or not a number, in words; None when all are finite."""
    bad = [name for name in LOSS_COLUMNS[1:] if not math.isfinite(losses[name])]
    if not bad and math.isfinite(losses["total_loss"]):
        return None
    return ", ".join(f"{_TERMS[name]} ({name} = {losses[name]})" for name in bad) or "the sum of the terms"


def not_finite_error(terms: str, epoch: int, iteration: int, iterations: int, files: str, folder: Path) -> RunError:
    """The error that says where the loss became infinite or not a number, and what to do.

    Args:
        terms: those that are not finite.
        epoch: its number, from 1.
        iteration: its number within the epoch, from 1.
        iterations: how many an epoch has.
        files: the images of the batch.
        folder: of the run.
    """
    kept = folder / "latest_ckpt.pth"
    last = f"the last good checkpoint is {kept} (epoch {epoch - 1})" if kept.is_file() else "there is no checkpoint yet"
    return RunError(
        f"The loss is not finite: {terms} in epoch {epoch}, iteration {iteration} of {iterations}, images {files}. No step "
        f"was made from it; {last}. "
        "Often the learning rate is too high for this loss: lower basic_lr_per_img or the term's loss_weight."
    )


def average_norms(*models: torch.nn.Module) -> None:
    """The mean of all ranks' running statistics into the norm layers of each.

    So every rank evaluates the model that rank 0 saves, and a resumed run starts every rank from the same statistics.
    """
    norms = [module for model in models for module in model.modules()
             if isinstance(module, torch.nn.modules.batchnorm._NormBase)]  # fmt: skip
    values = [buffer for module in norms for buffer in module.buffers() if buffer.is_floating_point()]
    if not values:
        return
    mean = torch.cat([value.flatten() for value in values])
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for value, part in zip(values, mean.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


class StageClock:
    """Measures the time in the loss stage, for ``--profile``.

    Args:
        stage: whose ``get_losses`` is measured from now on.
        compute: where it runs.
    """

    def __init__(self, stage: Any, compute: Compute) -> None:
        self.seconds = 0.0
        get_losses = stage.get_losses

        def timed(*args: Any, **kwargs: Any) -> Any:
            compute.synchronize()
            started = time.perf_counter()
            result = get_losses(*args, **kwargs)
            compute.synchronize()
            self.seconds += time.perf_counter() - started
            return result

        stage.get_losses = timed

    def report(self, epoch_seconds: float) -> None:
        """Log the share of the loss stage in an epoch, and start again from zero."""
        logger.info(
            f"profile: the loss stage (forward) took {self.seconds:.3f} s, "
            f"{100 * self.seconds / epoch_seconds:.1f}% of the epoch's {epoch_seconds:.2f} s of training"
        )
        self.seconds = 0.0


def _mean(total: float, count: float) -> float | None:
    return total / count if count and not math.isnan(total) else None


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
