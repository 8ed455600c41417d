"""Checkpoints, read without running code from them."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RunError


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint of YOLOX or of the kit, read without running code from it.

    Raises:
        RunError: no such file, or not a checkpoint.
    """
    if not os.path.isfile(path):
        raise RunError(f"There is no checkpoint {str(path)!r}.")
    # YOLOX writes its best AP as a numpy scalar, which torch >= 2.6 does not load by itself.
    multiarray = getattr(np, "_core", None) or np.core
    scalar = [(multiarray.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32))]
    try:
        with torch.serialization.safe_globals([*scalar, *kinds]):
            checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RunError(f"{str(path)!r} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise RunError(f"{str(path)!r} is not a YOLOX checkpoint: it has no 'model'.")
    return checkpoint


def starting_weights(args: argparse.Namespace) -> str | None:
    """A hash of the checkpoint that a training starts from; None without one, or where it is not there."""
    path = args.ckpt and Path(args.ckpt)
    return sha256(path) if path and not args.resume and path.is_file() else None


def sha256(*files: Path) -> str:
    """Sixteen hex digits of the hash of these files' bytes, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
