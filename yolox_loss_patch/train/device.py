"""The device and the precision that a process trains in."""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ..exp.device import choose_device, local_rank
from ..head.half import half_dtype


class Compute:
    """The device and the precision that a process trains in.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        half: train in half precision, as ``--fp16`` asks.

    Attributes:
        device: the device.
        local_rank: the number of this process on its machine, and that of its GPU.
        scaler: of the loss; it does something in fp16 only.

    Raises:
        KitError: no such device.
    """

    def __init__(self, name: str, half: bool) -> None:
        self.local_rank = local_rank()
        self.device = choose_device(name)
        self.half = half
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half and self.is_cuda)

    @property
    def is_cuda(self) -> bool:
        """Whether this is CUDA, which has streams, pinned memory and fp16."""
        return self.device.type == "cuda"

    def select(self) -> None:
        """Make the device the default one of this process."""
        if self.is_cuda:
            torch.cuda.set_device(self.device)

    def autocast(self) -> torch.autocast:
        """A context in which the model computes in half precision where that was asked for."""
        return torch.autocast(self.device.type, dtype=half_dtype(self.device), enabled=self.half)

    def distributed(self, model: torch.nn.Module) -> DistributedDataParallel:
        """The model, its gradients averaged over all workers."""
        ids = [self.local_rank] if self.is_cuda else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def description(self) -> str:
        """The kind of device, with the name of a GPU."""
        return f"cuda: {torch.cuda.get_device_name(self.device)}" if self.is_cuda else self.device.type

    def peak_memory(self) -> float | None:
        """The most memory held so far in MiB: of the device on CUDA, of this process on the CPU; None elsewhere."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if self.device.type != "cpu":
            return None
        try:
            import resource
        except ImportError:  # Windows has no such count
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cpu_name() -> str:
    """The type of the CPU, and the instructions for vectors that torch uses on it."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def unwrapped(model: Any) -> Any:
    """The model itself, without the wrapper of several workers."""
    return getattr(model, "module", model)
