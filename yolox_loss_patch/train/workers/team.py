"""The processes of a distributed run as one of them sees them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ...errors import RunError
from ...runs.process import is_alive
from .place import Place

TIMEOUT = timedelta(minutes=30)
# Seconds that a process with a lost partner has to notice it by itself: gloo does at once, nccl may never.
PATIENCE = 10.0
_REASON, _LEFT = "yolox_loss_patch/failed", "yolox_loss_patch/left"


def join(place: Place, backend: str, store: Any | None = None) -> Any:
    """Join the others in a process group.

    Args:
        place: of this process.
        backend: ``gloo`` or ``nccl``.
        store: where they meet; torchrun's address if not given.

    Returns:
        The group of the processes on this machine.
    """
    global _team
    if store is None:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=TIMEOUT)
    first_ranks = gather(place.rank - place.local_rank)  # of each process: the first rank on its machine
    groups = {}
    for first_rank in sorted(set(first_ranks)):  # every process makes every group
        ranks = [rank for rank, other in enumerate(first_ranks) if other == first_rank]
        groups[first_rank] = dist.new_group(ranks)
    _team = Team(store)
    return groups[place.rank - place.local_rank]


def gather(value: Any) -> list[Any]:
    """This value of every process, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class Team:
    """The processes of a distributed run as one of them sees them. All of them make it together.

    Args:
        store: where they leave messages for each other; without one, only the end of a process on this machine is seen.
    """

    def __init__(self, store: Any | None) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.store = store
        self.members: list[tuple[int, str]] = gather((os.getpid(), socket.gethostname()))
        parent = multiprocessing.parent_process()
        self.parent = parent.pid if parent is not None else os.getppid()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what each process is about to train.

        Args:
            facts: plain data, nested as it comes.

        Raises:
            RunError: on every rank, with what differs.
        """
        everywhere = [_flat(other) for other in gather(facts)]
        lines = []
        for rank, other in enumerate(everywhere):
            for key in sorted({*everywhere[0], *other}):
                here, there = everywhere[0].get(key, "unset"), other.get(key, "unset")
                if here != there:
                    lines.append(f"{key} is {here!r} on rank 0 and {there!r} on rank {rank}")
        if lines:
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise RunError(
                f"The workers do not agree: {'; '.join(lines[:8])}{more}. Give each the same experiment file, command "
                "line, data and versions."
            )

    def announce(self, reason: str) -> None:
        """Tell the others why the run ends; the first reason stands."""
        write_reason(self.store, reason)

    def leave(self) -> None:
        """Tell the others that this process ends on purpose."""
        if self.store is not None:
            with contextlib.suppress(Exception):  # the store went with the process that held it
                self.store.set(f"{_LEFT}/{self.rank}", "1")

    def lost(self, wait: float = 0.0) -> str | None:
        """Which process was lost and why, None when all are there.

        Args:
            wait: seconds to look for it; a process that died is seen some tenths of a second later.
        """
        until = time.monotonic() + wait
        while True:
            reason = self.lost_parent() or read_reason(self.store)
            if reason is None:
                gone = [rank for rank in range(self.world) if not self.is_there(rank)]
                if gone:
                    named = ", ".join(f"rank {rank} (process {self.members[rank][0]})" for rank in gone)
                    reason = f"{named} ended without a word: killed, by hand or for want of memory, or crashed"
                    self.announce(reason)
            if reason is not None or time.monotonic() >= until:
                return reason
            time.sleep(0.1)

    def lost_parent(self) -> str | None:
        """That the process which started this one is gone, in words; None while it is there."""
        if os.getppid() == self.parent:
            return None
        return f"the process that started the workers ({self.parent}) ended without a word: killed, by hand or for want of memory"

    def is_there(self, rank: int) -> bool:
        """False for a process of this machine that ended without `leave`; of other machines nothing can be seen."""
        pid, machine = self.members[rank]
        if machine != self.members[self.rank][1] or is_alive(pid):
            return True
        with contextlib.suppress(Exception):
            return self.store is not None and bool(self.store.check([f"{_LEFT}/{rank}"]))
        return False

    @contextlib.contextmanager
    def watch(self, on_loss: Callable[[str], None]) -> Iterator[None]:
        """Watch the others from a thread. It ends a process that hangs although another is lost, or whose parent is gone.

        Args:
            on_loss: called with the reason before the end.
        """
        done = threading.Event()

        def look() -> None:
            while not done.wait(1.0):
                reason = self.lost()
                # A lost parent is seen here only; a lost partner makes the main thread fail, unless that hangs.
                patience = 0.0 if self.lost_parent() else PATIENCE
                if reason is not None and not done.wait(patience):
                    on_loss(reason)
                    os._exit(1)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(PATIENCE)  # a thread inside the store when the process ends aborts it


_team: Team | None = None


def current_team() -> Team | None:
    """The team of this process, None where it trains alone. In a group that YOLOX's launch made, all call this together."""
    global _team
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    if _team is None:
        _team = Team(None)
    return _team


def announce_end(reason: str) -> None:
    """Tell the others, where there are any, why this process ends the run, and that it leaves."""
    if _team is not None:
        _team.announce(reason)
        _team.leave()


def write_reason(store: Any | None, reason: str) -> None:
    """Write down in the store why the run ends; the first reason stands."""
    if store is not None:
        with contextlib.suppress(Exception):  # the store went with the process that held it
            store.compare_set(_REASON, "", reason)


def read_reason(store: Any | None) -> str | None:
    """Why the run ends, None while nobody wrote a reason."""
    with contextlib.suppress(Exception):
        if store is not None and store.check([_REASON]):
            return str(store.get(_REASON).decode())
    return None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, ``{"exp.max_epoch": 50}``."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{name}.{key}" if name else key))
    return flat
