"""Who may write into a run folder: one process at a time, on one machine or on several that share a file system.

The claim is a file that its owner creates with ``O_EXCL``, which is atomic on local file systems and on NFS. The owner
touches the file while it works. A claim is taken over only when its owner is provably gone (a process of this machine
that has ended), or when the file was not touched for a long time. Ages are measured with the clock of the file system, so
that the clocks of the machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from .process import birth, is_alive

#: Seconds between two touches of a claim.
HEARTBEAT = 15.0
#: Seconds without a touch after which the owner on another machine counts as gone. NFS may show a file a minute late.
STALE = 180.0
_PREFIX = ".claim."


@dataclass(frozen=True)
class Owner:
    """Who holds a claim.

    Attributes:
        pid: the process.
        machine: the name of its machine.
        is_here: whether the process can be seen from here.
        is_gone: whether the claim may be taken over.
        age: seconds since the claim was last touched.
    """

    pid: int | None
    machine: str | None
    is_here: bool
    is_gone: bool
    age: float

    def __str__(self) -> str:
        return f"Process {self.pid}" if self.is_here else f"Process {self.pid} of machine {self.machine}"


def owner_of(folder: Path) -> Owner | None:
    """Who holds the claim on a run folder, None where nobody does."""
    claims = _claims(folder)
    return _judge(claims[-1]) if claims else None


class Claim:
    """The exclusive right to write into a run folder, held until `release`.

    Args:
        folder: of the run; it is made if needed.

    Attributes:
        taken_from: the owner that left without releasing, None where the folder was free.

    Raises:
        RunError: another process holds the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken_from: Owner | None = None
        self._token = secrets.token_hex(16)
        self._released = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = self._acquire()
        except OSError as error:
            raise RunError(
                f"The run folder {str(folder)!r} cannot be written ({error.strerror or error}). Choose another with "
                "output_dir FOLDER, or another name with -expn NAME."
            ) from error
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _acquire(self) -> Path:
        while True:
            before = {path: _read(path).get("token") for path in _claims(self.folder)}
            latest = max(before, key=_number, default=None)
            if latest is not None:
                owner = _judge(latest)
                if not owner.is_gone:
                    raise RunError(self._refusal(owner))
            path = self.folder / f"{_PREFIX}{_number(latest) + 1 if latest else 1}"
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                continue  # somebody was faster: judge that claim
            with os.fdopen(handle, "w") as file:
                json.dump({"token": self._token, "pid": os.getpid(), **_whereabouts()}, file)
            now = {other: _read(other).get("token") for other in _claims(self.folder)}
            if now.items() - before.items() == {(path, self._token)}:  # nothing else has changed since it was judged
                for old in before:  # from here on their owners, should they wake up, know that they lost the folder
                    old.unlink(missing_ok=True)
                self.taken_from = owner if before else None
                return path
            path.unlink(missing_ok=True)  # two claims at one time: both step back, and try again
            time.sleep(random.uniform(0.01, 0.2))

    def _refusal(self, owner: Owner) -> str:
        text = f"{owner} is training in {self.folder} right now; choose another -expn."
        if owner.is_here:
            return text
        return (
            f"{text} It gave a sign of life {owner.age:.0f} s ago. When it is gone, the folder is free "
            f"{STALE:.0f} s after its last sign."
        )

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if self.is_held():
                    os.utime(self._path)

    def is_held(self) -> bool:
        """Whether this process still holds the folder; False when another took it over during a long pause."""
        return _read(self._path).get("token") == self._token

    def check(self) -> None:
        """Refuse to go on in a folder that another process took over.

        Raises:
            RunError: the claim is lost.
        """
        if not self.is_held():
            owner = owner_of(self.folder)
            raise RunError(
                f"{owner or 'Another process'} took over {self.folder} while this process ({os.getpid()}) gave no sign of "
                "life. This process stops and leaves the folder alone."
            )

    def release(self) -> None:
        """Give the folder back."""
        self._released.set()
        with contextlib.suppress(OSError):
            if self.is_held():
                self._path.unlink()


def _claims(folder: Path) -> list[Path]:
    """The claims in a folder, the latest last; mostly there is one or none."""
    paths = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _read(path: Path) -> dict[str, Any]:
    """What a claim says; nothing when it is gone or only half written."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _judge(path: Path) -> Owner:
    facts = _read(path)
    here = _whereabouts()
    is_here = bool(facts) and all(facts.get(key) == here[key] for key in ("machine", "boot", "pids"))
    age = _age(path)
    # A process whose birth is known is told from a later one of the same number; else only its silence counts.
    knows = is_here and facts.get("born") is not None
    alive = is_alive(facts.get("pid"), facts.get("born")) if is_here else True
    is_gone = not alive if knows else age > STALE or not alive
    return Owner(facts.get("pid"), facts.get("machine"), is_here, is_gone, age)


def _whereabouts() -> dict[str, Any]:
    """Where a process can be seen: its machine, since when that runs, and the numbering of its processes (containers)."""
    boot = pids = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink("/proc/self/ns/pid")
    return {"machine": socket.gethostname(), "boot": boot, "pids": pids, "born": birth(os.getpid())}


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system; 0 for one that is gone."""
    try:
        handle, probe = tempfile.mkstemp(dir=path.parent, prefix=".clock.")
        try:
            os.close(handle)
            return max(0.0, os.stat(probe).st_mtime - path.stat().st_mtime)
        finally:
            os.unlink(probe)
    except FileNotFoundError:
        return 0.0
