"""Checkpoints, read without running code from them."""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RunError
from .files import file_hash
from .record import read_run


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint of YOLOX or of the kit, read without running code from it.

    Its checksums must be right, and where it lies in the folder of a run, it must be what that run wrote.

    Raises:
        RunError: no such file, not a checkpoint, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"There is no checkpoint {str(path)!r}.")
    _check_bytes(path)
    # YOLOX writes its best AP as a numpy scalar, which torch >= 2.6 does not load by itself.
    multiarray = getattr(np, "_core", None) or np.core
    scalar = [(multiarray.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32))]
    try:
        with torch.serialization.safe_globals([*scalar, *kinds]):
            checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever torch and pickle make of bytes that are no checkpoint
        raise RunError(f"{str(path)!r} cannot be read as a checkpoint: {_reason(error)}") from error
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise RunError(f"{str(path)!r} is not a YOLOX checkpoint: it has no 'model'.")
    weights = checkpoint["model"]
    if isinstance(weights, dict) and weights and all(str(key).startswith("module.") for key in weights):
        # Saved from inside DataParallel, which puts this in front of every name.
        checkpoint["model"] = {str(key).removeprefix("module."): value for key, value in weights.items()}
    return checkpoint


def _check_bytes(path: Path) -> None:
    """Refuse a file whose bytes are not those that were written.

    Raises:
        RunError: the file is empty, text, or damaged.
    """
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if not start:
        raise RunError(f"{str(path)!r} cannot be read as a checkpoint: it is empty. Copy or download it again.")
    if start.startswith(b"<"):
        raise RunError(
            f"{str(path)!r} cannot be read as a checkpoint: it is a web page, as a failed download leaves it. Download it again."
        )
    known = (read_run(path.parent) or {}).get("files", {}).get(path.name)
    with path.open("rb") as file:
        found = file_hash(file) if known else ""
    if known and found not in known:
        raise RunError(
            f"{str(path)!r} is damaged or was replaced: its sha256 is {found[:16]}, and the run wrote {known[0][:16]} "
            "(run.json). Take another checkpoint of the run with -c; or, if you replaced it, move it to another folder first."
        )
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as error:
            raise RunError(
                f"{str(path)!r} is damaged and cannot be read as a checkpoint: {error}. Copy or download it again."
            ) from error
        if damaged is not None:
            raise RunError(
                f"{str(path)!r} is damaged: the checksum of {damaged!r} in it is wrong. Take another checkpoint."
            )


def _reason(error: Exception) -> str:
    """Why torch refused a file, without its advice to load it unsafely."""
    text = str(error)
    if (name := re.search(r"(?:GLOBAL|global) '?([\w.]+)", text)) is not None:
        return (
            f"it holds a Python object ({name[1]}) besides weights, and loading that could run code of somebody else. Save "
            "the weights alone: torch.save({'model': model.state_dict()}, FILE)."
        )
    line = (text.splitlines() or [""])[0]
    return "it is no checkpoint of torch." if not line or "weights_only" in text else line


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
