"""The processes that train together: where each stands, whether they agree, and that they end together.

YOLOX's own launch needs CUDA; and when one of its workers dies, the others wait for it, or are ended without a word.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from ..errors import ConfigError, KitError, RunError
from ..runs.process import is_alive
from ..runs.record import fail_run

TIMEOUT = timedelta(minutes=30)
# Seconds that a process with a lost partner has to notice it by itself: gloo does at once, nccl may never.
PATIENCE = 10.0
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together.

    Attributes:
        rank: its number among all, from 0.
        world: how many they are.
        local_rank: its number on its machine, and that of its GPU.
        local_world: how many there are on its machine.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int


def from_torchrun(args: argparse.Namespace) -> Place | None:
    """The place that torchrun gave this process, None when torchrun did not start it.

    Args:
        args: of YOLOX's ``tools.train``; what they say of workers and machines must fit.

    Raises:
        RunError: half of torchrun's environment.
        ConfigError: flags at odds with it.
    """
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    # Clusters set these two for a single process as well; it may spawn workers of its own.
    if env["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in env:
        return None
    missing = [name for name in _TORCHRUN if not env.get(name)]
    if missing:
        raise RunError(
            f"RANK and WORLD_SIZE are set, as torchrun sets them, but {', '.join(missing)} not. Start the workers with "
            "torchrun; or unset RANK and WORLD_SIZE to train here, with -d N in several workers."
        )
    try:
        place = Place(*(int(env[name]) for name in _TORCHRUN[:4]))
    except ValueError as error:
        values = ", ".join(f"{name}={env[name]!r}" for name in _TORCHRUN[:4])
        raise RunError(f"torchrun's variables are whole numbers; got {values}.") from error
    if args.devices is not None and args.devices != place.local_world:
        raise ConfigError(
            f"torchrun started {place.local_world} workers on this machine and -d asks for {args.devices}. Leave -d out, "
            "or start without torchrun."
        )
    for flag, value, default in (
        ("--num_machines", args.num_machines, 1),
        ("--machine_rank", args.machine_rank, 0),
        ("--dist-url", args.dist_url, None),
    ):
        if value != default:
            raise ConfigError(f"Under torchrun the machines are torchrun's business; leave {flag} {value} out.")
    return place


# ---------------------------------------------------------------------------------------------------------------------
# Joining and ending.


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
    first_of_machine = gather(place.rank - place.local_rank)
    own = None
    for first in sorted(set(first_of_machine)):  # every process makes every group
        group = dist.new_group([rank for rank, other in enumerate(first_of_machine) if other == first])
        if first == place.rank - place.local_rank:
            own = group
    _team = Team(store)
    return own


def gather(value: Any) -> list[Any]:
    """This value of every process, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def work(function: Callable[[], None], tell: bool) -> None:
    """Do a process's part. When that fails, end it at once: the others wait for it inside a collective.

    Args:
        function: the part.
        tell: whether this process says on the screen what went wrong; else the one that started it does.
    """
    rank = dist.get_rank()
    try:
        function()
    except KeyboardInterrupt:
        status = 130
    except KitError as error:
        status = 2
        _announce(f"rank {rank}: {error}")
        if tell:
            print(f"error: rank {rank}: {error}", file=sys.stderr)
    except Exception as error:
        status = 1
        _announce(f"rank {rank}: {type(error).__name__}: {error}")
        traceback.print_exc()
    else:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def launch(function: Callable[..., None], args: tuple[Any, ...], places: list[Place], where: str, folder: Path) -> None:
    """Start the workers of this machine and wait for their end.

    Args:
        function: called as ``function(place, store, *args)`` in each; it must be importable by name.
        args: its further arguments.
        places: of the workers of this machine.
        where: ``HOST:PORT`` where all workers meet, an address of the first machine; port 0 takes a free one.
        folder: of the run, whose record says so when a worker is lost.

    Raises:
        RunError: a worker ended the run; the message says which one and why.
    """
    host, _, port = where.rpartition(":")
    first = places[0].rank == 0
    # It lives here and not in a worker, so that it is still there when a worker has died.
    store = dist.TCPStore(host, int(port), is_master=first, wait_for_workers=False, timeout=TIMEOUT)
    context = mp.start_processes(
        _start, args=(function, args, places, host, store.port), nprocs=len(places), join=False, start_method="spawn"
    )
    try:
        with stop_signals():
            while not context.join():
                pass
    except KeyboardInterrupt:
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join(30)
            process.kill()
        raise
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
        rank = places[error.error_index].rank
        status = getattr(error, "exit_code", 1)
        if status == 130:
            raise KeyboardInterrupt from error
        text = f"rank {rank} ended with exit status {status}"
        if status < 0:
            name = getattr(error, "signal_name", None) or f"signal {-status}"
            text = f"rank {rank} was ended by {name}" + (", by hand or for want of memory" if name == "SIGKILL" else "")
            _say(store, text)
        elif (announced := _said(store)) is not None:
            text = announced
        if first:
            fail_run(folder, context.pids(), text)
        if status == 1:  # a crash, whose traceback is on the screen unless it came before `work`
            print(error if isinstance(error, mp.ProcessRaisedException) else f"error: {text}", file=sys.stderr)
            raise SystemExit(1) from error
        raise RunError(text) from error


def _start(
    local_rank: int, function: Callable[..., None], args: tuple[Any, ...], places: list[Place], host: str, port: int
) -> None:
    store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    function(places[local_rank], store, *args)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM stops as Ctrl-C does; what comes after the first of either is ignored, so that the end can be recorded.

    Yields:
        A function to call when the end has another reason: from then on all are ignored.
    """
    stopped = False

    def end() -> None:
        nonlocal stopped
        stopped = True

    def stop(number: int, _: Any) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt(*([f"stopped by {signal.Signals(number).name}"] if number != signal.SIGINT else []))

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and notebooks have their own
        numbers.append(signal.SIGINT)
    old: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield end
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# Knowing of each other.


class Team:
    """The processes of a distributed run as one of them sees them. Made by all of them together.

    Args:
        store: where they leave word for each other; without one, only the end of a process on this machine is seen.
    """

    def __init__(self, store: Any | None) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.store = store
        self.members: list[tuple[int, str]] = gather((os.getpid(), socket.gethostname()))

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

    def announce(self, text: str) -> None:
        """Leave word why the run ends; the first word stands."""
        _say(self.store, text)

    def leave(self) -> None:
        """This process is about to end, and nobody need wonder why."""
        if self.store is not None:
            with contextlib.suppress(Exception):  # the store went with the process that held it
                self.store.set(f"yolox_loss_patch/left/{self.rank}", "1")

    def lost(self, wait: float = 0.0) -> str | None:
        """Which process was lost and why, None when all are there.

        Args:
            wait: seconds to look for it; a process that died is seen some tenths of a second later.
        """
        until = time.monotonic() + wait
        while True:
            text = _said(self.store)
            if text is None:
                gone = [rank for rank in range(self.world) if not self.is_there(rank)]
                if gone:
                    named = ", ".join(f"rank {rank} (process {self.members[rank][0]})" for rank in gone)
                    text = f"{named} ended without a word: killed, by hand or for want of memory, or crashed"
                    self.announce(text)
            if text is not None or time.monotonic() >= until:
                return text
            time.sleep(0.1)

    def is_there(self, rank: int) -> bool:
        """False for a process of this machine that ended without `leave`; of other machines nothing can be seen."""
        pid, machine = self.members[rank]
        if machine != self.members[self.rank][1] or is_alive(pid):
            return True
        with contextlib.suppress(Exception):
            return self.store is not None and bool(self.store.check([f"yolox_loss_patch/left/{rank}"]))
        return False

    @contextlib.contextmanager
    def watch(self, on_loss: Callable[[str], None]) -> Iterator[None]:
        """Look after the others from a thread; a process that hangs although one of them is lost is ended.

        Args:
            on_loss: called with the reason before the end.
        """
        done = threading.Event()

        def look() -> None:
            while not done.wait(1.0):
                text = self.lost()
                if text is not None and not done.wait(PATIENCE):
                    on_loss(text)
                    os._exit(2)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(PATIENCE)  # a thread inside the store when the process ends aborts it


_team: Team | None = None


def team() -> Team | None:
    """The team of this process, None where it trains alone. In a group that YOLOX's launch made, all call this together."""
    global _team
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    if _team is None:
        _team = Team(None)
    return _team


def _announce(text: str) -> None:
    if _team is not None:
        _team.announce(text)
        _team.leave()


def _say(store: Any | None, text: str) -> None:
    if store is not None:
        with contextlib.suppress(Exception):  # the store went with the process that held it
            store.compare_set("yolox_loss_patch/failed", "", text)


def _said(store: Any | None) -> str | None:
    with contextlib.suppress(Exception):
        if store is not None and store.check(["yolox_loss_patch/failed"]):
            return str(store.get("yolox_loss_patch/failed").decode())
    return None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, ``{"exp.max_epoch": 50}``."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{name}.{key}" if name else key))
    return flat
