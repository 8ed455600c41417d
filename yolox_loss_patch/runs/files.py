"""Files that a reader, or a process killed in between, finds old or new and never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a process killed in between, finds the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` that leaves the old file or the new one, whenever the process is killed."""
    new = path.with_name(f".{path.name}.new")
    torch.save(state, new)
    os.replace(new, path)
