"""The device that an experiment trains on."""

from __future__ import annotations

import importlib

import torch

from ..errors import ConfigError, RunError


def choose_device(name: str) -> torch.device:
    """The device of a run.

    Args:
        name: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``cuda`` or ``mps``.

    Raises:
        RunError: the device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if name not in there:
        raise ConfigError(f"--device is auto, cpu, cuda or mps; got {name!r}.")
    if not there[name]:
        available = [device for device, ok in there.items() if ok]
        raise RunError(f"There is no {name} device on this machine for this torch; available: {', '.join(available)}.")
    return torch.device(name, local_rank() if name == "cuda" else None)  # type: ignore[arg-type]


def local_rank() -> int:
    """The rank of this process within its machine, which is also the number of its GPU."""
    rank: int = importlib.import_module("yolox.utils.dist").get_local_rank()
    return rank
