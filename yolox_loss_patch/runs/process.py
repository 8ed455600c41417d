"""Whether a process of this machine is alive, and the one it is taken for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def is_alive(pid: Any, born: Any = None) -> bool:
    """Whether a process of this machine has this number, and is the one that was born then (`birth`), if that is known."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return born is None or birth(int(pid)) in (born, None)


def birth(pid: int) -> str | None:
    """When a process began, to tell it from a later one with the same number; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None
