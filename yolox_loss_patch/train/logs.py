"""Logs: YOLOX's log file and lines, TensorBoard and Weights & Biases under YOLOX's tags."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch.utils.tensorboard import SummaryWriter

from ..errors import ConfigError
from ..exp.settings import settings
from ..runs.files import refuse_links
from ..runs.record import LOSS_COLUMNS
from .device import Compute

_default_sink = 0  # what loguru logs to before a training: at first the sink that it makes itself


def log_to_screen() -> None:
    """Log outside of a training: to the stream that ``sys.stderr`` is at each line."""
    global _default_sink
    with contextlib.suppress(ValueError):
        logger.remove(_default_sink)
    _default_sink = logger.add(lambda text: print(text, end="", file=sys.stderr), colorize=_is_terminal())


@contextlib.contextmanager
def log_file(folder: Path, rank: int) -> Iterator[None]:
    """YOLOX's log file and format while a run lasts; a worker logs into a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)  # each process opens a log of its own
    try:
        logger.remove(_default_sink)  # it would print every line twice
        was_on_screen = True
    except ValueError:  # the user logs to other places
        was_on_screen = False
    if rank != 0:
        sinks = [logger.add(folder / f"train_log_rank{rank}.txt")]
    else:
        line = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> | <level>{level: <8}</level> | <level>{message}</level>"
        # The stream is looked up at each line, so that a redirected stderr (a notebook, a test) gets its lines.
        screen = logger.add(lambda text: print(text, end="", file=sys.stderr), format=line, colorize=_is_terminal())
        sinks = [screen, logger.add(folder / "train_log.txt")]
    try:
        yield
    finally:
        for sink in sinks:
            logger.remove(sink)
        if was_on_screen:
            log_to_screen()


class Curves:
    """Scalars for TensorBoard or Weights & Biases.

    Args:
        exp: the experiment, whose settings Weights & Biases shows.
        losses: of the experiment, as plain data.
        args: the parsed command line; ``logger`` says which of both.
        folder: of the run.
        first_step: of this process; TensorBoard drops what an interrupted part logged from there on.
        rank: of this process; only rank 0 writes.

    Attributes:
        tblogger, wandb_logger: the writers, at most one of them not None.

    Raises:
        ConfigError: another logger.
    """

    def __init__(
        self, exp: Any, losses: Mapping[str, Any], args: argparse.Namespace, folder: Path, first_step: int, rank: int
    ) -> None:
        self.folder = folder
        self.tblogger: SummaryWriter | None = None
        self.wandb_logger: Any | None = None
        if rank != 0:
            return
        if args.logger == "tensorboard":
            self.tblogger = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)
        elif args.logger == "wandb":
            if importlib.util.find_spec("wandb") is None:
                raise ConfigError("-l wandb needs Weights & Biases, which is not installed: pip install wandb")
            from yolox.utils import WandbLogger

            options = zip(args.opts[::2], args.opts[1::2], strict=True)
            named = {key.removeprefix("wandb-"): value for key, value in options if key.startswith("wandb-")}
            self.wandb_logger = WandbLogger(config={**settings(exp), **losses}, **named)
        else:
            raise ConfigError(f"-l is tensorboard or wandb; got {args.logger!r}.")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        if self.wandb_logger is not None:
            self.wandb_logger.log_metrics(dict(scalars))
        if self.tblogger is not None:
            for tag, value in scalars.items():
                self.tblogger.add_scalar(tag, value, step)

    def keep_checkpoint(self, is_best: bool) -> None:
        """Hand the latest checkpoint to Weights & Biases."""
        if self.wandb_logger is not None:
            self.wandb_logger.save_checkpoint(str(self.folder), "latest", is_best)

    def close(self) -> None:
        """Write what is left."""
        if self.wandb_logger is not None:
            self.wandb_logger.finish()
        if self.tblogger is not None:
            self.tblogger.close()


def log_progress(
    meter: Any, compute: Compute, size: int, epoch: tuple[int, int], iteration: tuple[int, int]
) -> dict[str, float]:
    """YOLOX's line of progress.

    Args:
        meter: YOLOX's, with times, losses and the learning rate; cleared.
        compute: where the process trains.
        size: the height of the images in px.
        epoch: its number, from 1, and how many there are.
        iteration: its number within the epoch, from 1, and how many there are.

    Returns:
        The losses and the learning rate, by the name of their curve.
    """
    left = iteration[1] * epoch[1] - ((epoch[0] - 1) * iteration[1] + iteration[0])
    eta = timedelta(seconds=int(meter["iter_time"].global_avg * left))
    losses = {name: meter[name].latest for name in LOSS_COLUMNS}
    lr = meter["lr"].latest
    memory = f"mem: {torch.cuda.max_memory_allocated(compute.device) / 2**20:.0f}Mb, " if compute.is_cuda else ""
    logger.info(
        f"epoch: {epoch[0]}/{epoch[1]}, iter: {iteration[0]}/{iteration[1]}, {memory}"
        + "".join(f"{name}: {meter[name].avg:.3f}s, " for name in ("iter_time", "data_time"))
        + "".join(f"{name}: {value:.4f}, " for name, value in losses.items())
        + f"lr: {lr:.3e}, size: {size}, ETA: {eta}"
    )
    meter.clear_meters()
    return {f"train/{name}": value for name, value in {**losses, "lr": lr}.items()}


def _is_terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", lambda: False)())
