"""Seeds: what makes a training repeatable."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist

from ..data.loader import seed_everything
from ..runs.record import read_run


def prepare_process(seed: int | None) -> None:
    """Seeds, threads and warnings of a process that trains or evaluates.

    Args:
        seed: of the experiment; None for a run that need not be repeatable.
    """
    if seed is not None:
        seed_everything(seed, 0, 0)
    torch.backends.cudnn.deterministic = seed is not None
    torch.backends.cudnn.benchmark = seed is None
    cv2.setNumThreads(0)  # the loader's workers are the parallelism
    # YOLOX 0.3.0 asks for autocast by its old name in every assignment.
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.autocast.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*meshgrid.*indexing.*", category=UserWarning)
    warnings.filterwarnings("ignore", message=r".*TypedStorage is deprecated.*", category=UserWarning)


def deterministic_flags() -> dict[str, Any]:
    """The flags of torch that move the last bits of a result."""
    return {
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }


def choose_seed(seed: int | None, folder: Path, resume: bool) -> int:
    """The seed of a run, the same on every rank and in every part of a resumed run.

    Args:
        seed: of the experiment; without one a resumed run keeps its seed, and a new run gets a random one.
        folder: of the run.
        resume: whether the run goes on.
    """
    if seed is not None:
        return int(seed)
    before = read_run(folder) if resume else None
    known = before.get("seed") if before else None
    box = [int(known) if known is not None else random.SystemRandom().randrange(2**31)]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box, 0)
    return box[0]


def seed_epoch(seed: int, rank: int, epoch: int) -> None:
    """Set all random streams from the seed, the rank and the number of the epoch (from 0), so that a resume repeats them."""
    seed_everything(seed, rank, 2**31 + epoch)
