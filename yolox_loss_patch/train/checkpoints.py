"""Checkpoints: YOLOX's own, and the state beside them from which a run goes on exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from ..errors import RunError
from ..runs.checkpoint import load_checkpoint
from ..runs.files import copy_atomically, save_atomically

STATE = "resume_state.pth"


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | Path, strict: bool) -> None:
    """Weights of a checkpoint into a model.

    Args:
        model: YOLOX.
        weights: its state_dict, or another's to fine-tune from.
        path: of the checkpoint, for messages.
        strict: every weight must fit; else the last layers may be of another class count.

    Raises:
        RunError: the checkpoint is of another model.
    """
    expected = model.state_dict()
    wrong = [key for key, value in expected.items() if key in weights and weights[key].shape != value.shape]
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    counts = f"{len(wrong)} of another shape, {len(missing)} missing, {len(unknown)} unknown, of {len(expected)}"
    if not strict:
        retrained = [key for key in wrong if key.startswith("head.cls_preds.")]
        if retrained:
            logger.info(f"{path}: another class count; trained anew: {', '.join(retrained)}")
        wrong = [key for key in wrong if key not in retrained]
        if missing and len(missing) <= len(expected) // 2:
            logger.warning(
                f"{path} lacks {len(missing)} of {len(expected)} weights, first {missing[0]}; they start at random"
            )
            missing = []
        unknown = []
    if wrong or missing or unknown:
        if wrong:
            key = wrong[0]
            example = f"{key} is {tuple(weights[key].shape)} there and {tuple(expected[key].shape)} here"
        else:
            example = f"{missing[0]} is not in it" if missing else f"{unknown[0]} is not in this model"
        raise RunError(f"The checkpoint {str(path)!r} is of another model: {example} ({counts}).")
    fitting = {key: weights[key] for key in expected if key in weights and weights[key].shape == expected[key].shape}
    model.load_state_dict(fitting, strict=strict)


@dataclass
class Trained:
    """All that a training step changes, the random streams aside.

    Attributes:
        model: YOLOX, without the wrapper of several workers.
        stage: the loss stage in its head; some losses keep running means.
        optimizer: with its momentum.
        scaler: of the loss.
        ema: the averaged copy of the model, None without one.
    """

    model: torch.nn.Module
    stage: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: torch.nn.Module | None = None


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from.

    Attributes:
        path: of the checkpoint.
        start_epoch: how many epochs are done.
        best_ap: so far.
        ema_weights: where they differ from the model's.
        input_size: of the images, where the state for an exact resume was there.
        workers: how many processes trained before; None without that state, in which case the resume is not exact.
    """

    path: Path
    start_epoch: int
    best_ap: float
    ema_weights: dict[str, torch.Tensor] | None = None
    input_size: tuple[int, int] | None = None
    workers: int | None = None


class Checkpoints:
    """The checkpoints in the folder of a run.

    Args:
        folder: of the run.
        device: to load to.
        note_hash: called with the name of a checkpoint and its SHA-256 before it is there.
    """

    def __init__(
        self, folder: Path, device: torch.device, note_hash: Callable[[str, str], None] = lambda name, digest: None
    ) -> None:
        self.folder = folder
        self.note_hash = note_hash
        self.device = device

    def save(
        self,
        trained: Trained,
        epoch: int,
        best_ap: float,
        input_size: tuple[int, int],
        workers: int,
        names: Sequence[str],
    ) -> None:
        """Write YOLOX's checkpoints under YOLOX's names, and beside them what an exact resume needs.

        A checkpoint holds the EMA weights, as YOLOX's do. The weights in training go into a file of their own. That file
        is written before the checkpoint and renamed after it, so that one of its two names always fits.

        Args:
            trained: what was trained.
            epoch: how many epochs are done.
            best_ap: so far.
            input_size: of the next images, (height, width).
            workers: how many processes train.
            names: of further copies of the checkpoint: ``best``, ``last_epoch``.
        """
        shown = trained.model if trained.ema is None else trained.ema
        checkpoint = {
            "start_epoch": epoch,
            "model": shown.state_dict(),
            "optimizer": trained.optimizer.state_dict(),
            "best_ap": best_ap,
        }
        state = {
            "epoch": epoch,
            "model": trained.model.state_dict(),
            "scaler": trained.scaler.state_dict(),
            "input_size": input_size,
            "losses": trained.stage.running_state(),
            "workers": workers,
        }
        coming = self.folder / f".{STATE}.next"
        save_atomically(state, coming)
        latest = self.folder / "latest_ckpt.pth"
        save_atomically(checkpoint, latest, partial(self.note_hash, latest.name))
        os.replace(coming, self.folder / STATE)
        for name in (f"{name}_ckpt.pth" for name in names):
            copy_atomically(latest, self.folder / name, partial(self.note_hash, name))
        logger.info(f"Saved to {self.folder}: {', '.join(['latest', *names])}")

    def fine_tune(self, model: torch.nn.Module, path: str) -> None:
        """Start a model from the weights of another run.

        Raises:
            RunError: no checkpoint, or one of another model.
        """
        logger.info(f"loading checkpoint for fine tuning: {path}")
        load_weights(model, load_checkpoint(path, self.device)["model"], path, strict=False)

    def resume(self, trained: Trained, ckpt: str | None, epoch: int | None) -> Resumed:
        """Put the state of a run into a model and its optimizer.

        Args:
            trained: gets what the checkpoint holds, all but the EMA.
            ckpt: the checkpoint; None for the run's latest.
            epoch: the number of epochs that count as done; None for the checkpoint's.

        Raises:
            RunError: there is no checkpoint, or it is of another model.
        """
        path = Path(ckpt) if ckpt is not None else self.folder / "latest_ckpt.pth"
        if not path.is_file():
            raise RunError(f"There is nothing to resume: {path} does not exist. Start the run without --resume.")
        checkpoint = load_checkpoint(path, self.device)
        missing = [key for key in ("optimizer", *(["start_epoch"] if epoch is None else [])) if key not in checkpoint]
        if missing:
            raise RunError(
                f"{str(path)!r} holds no state to resume from (no {' and no '.join(map(repr, missing))}). To start from its "
                "weights, give it with -c and leave out --resume."
            )
        load_weights(trained.model, checkpoint["model"], path, strict=True)
        try:
            trained.optimizer.load_state_dict(checkpoint["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"The optimizer in {str(path)!r} is not that of this experiment ({error}). To start from its weights, give it "
                "with -c and leave out --resume."
            ) from error
        best_ap = float(checkpoint.get("best_ap", 0.0))
        if epoch is None:
            epoch = int(checkpoint["start_epoch"])
        state = self.read_state(path, epoch)
        if state is None:
            return Resumed(path, epoch, best_ap)
        trained.model.load_state_dict(state["model"])
        trained.scaler.load_state_dict(state["scaler"])
        trained.stage.load_running_state(state["losses"])
        input_size = tuple(state["input_size"])
        return Resumed(path, epoch, best_ap, checkpoint["model"], input_size, state.get("workers", 1))

    def read_state(self, path: Path, epoch: int) -> dict[str, Any] | None:
        """The state for an exact resume that lies beside a checkpoint, None where none fits this number of epochs."""
        for name in (STATE, f".{STATE}.next"):
            if path.name == "latest_ckpt.pth" and (path.parent / name).is_file():
                try:
                    state = load_checkpoint(path.parent / name, self.device)
                except RunError as error:
                    raise RunError(
                        f"{error} The checkpoint {path.name} beside it is whole: remove {name}, and --resume goes on from the "
                        "EMA weights, but not as if the run had never been stopped."
                    ) from error
                if state.get("epoch") == epoch:
                    return state
        return None
