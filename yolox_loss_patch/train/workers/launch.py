"""Starting the workers of this machine, and ending them together."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from ...errors import KitError, RunError, break_off, exit_status
from ...runs.record import fail_run
from .place import Place
from .signals import stop_signals
from .team import TIMEOUT, announce_end, read_reason, write_reason

_BROKE_OFF = 3  # exit status of a worker: an error in words ended a training that had begun


def work(function: Callable[[], None], print_errors: bool) -> None:
    """Do a process's part. When that fails, end it at once: the others wait for it inside a collective.

    Args:
        function: the part.
        print_errors: whether this process prints what went wrong; else the process that started it does.
    """
    rank = dist.get_rank()
    try:
        function()
    except KeyboardInterrupt:
        status = 130
    except KitError as error:
        status = _BROKE_OFF if exit_status(error) == 1 else 2
        announce_end(f"rank {rank}: {error}")
        if print_errors:
            print(f"error: rank {rank}: {error}", file=sys.stderr)
    except Exception as error:
        status = 1
        announce_end(f"rank {rank}: {type(error).__name__}: {error}")
        traceback.print_exc()
    else:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def launch(
    function: Callable[..., None], args: tuple[Any, ...], places: list[Place], address: str, folder: Path
) -> None:
    """Start the workers of this machine and wait for their end.

    Args:
        function: called as ``function(place, store, *args)`` in each; it must be importable by name.
        args: its further arguments.
        places: of the workers of this machine.
        address: ``HOST:PORT`` where all workers meet, an address of the first machine; port 0 takes a free one.
        folder: of the run, whose record says so when a worker is lost.

    Raises:
        RunError: a worker ended the run; the message says which one and why.
    """
    host, _, port = address.rpartition(":")
    is_first_machine = places[0].rank == 0
    # It lives here and not in a worker, so that it is still there when a worker has died.
    if len(places) == places[0].world:
        host, store = "127.0.0.1", _local_store(int(port))
    else:
        store = dist.TCPStore(host, int(port), is_master=is_first_machine, wait_for_workers=False, timeout=TIMEOUT)
    with _safe_path():
        context = mp.start_processes(
            _start_worker,
            args=(function, args, places, host, store.port),
            nprocs=len(places),
            join=False,
            start_method="spawn",
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
            write_reason(store, text)
        elif (reason := read_reason(store)) is not None:
            text = reason
        if is_first_machine:
            fail_run(folder, context.pids(), text)
        lost = RunError(text)
        if status < 0 or status == _BROKE_OFF:
            break_off(lost)
        elif status == 1:  # a crash, whose traceback is on the screen unless it came before `work`
            print(error if isinstance(error, mp.ProcessRaisedException) else f"error: {text}", file=sys.stderr)
            raise SystemExit(1) from error
        raise lost from error


def _local_store(port: int) -> dist.TCPStore:
    """A store that only processes of this machine can reach; torch's own listens to every network without a password."""
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    os.environ.setdefault(
        "GLOO_SOCKET_IFNAME", _loopback()
    )  # the workers' own connections stay on this machine as well
    return dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=TIMEOUT, master_listen_fd=listener.detach()
    )


def _loopback() -> str:
    """The name of the network interface that does not leave this machine: ``lo``, on macOS ``lo0``."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Python does not look for modules in the current folder while a process starts: a ``queue.py`` there is not run."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _start_worker(
    local_rank: int, function: Callable[..., None], args: tuple[Any, ...], places: list[Place], host: str, port: int
) -> None:
    store = dist.TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    function(places[local_rank], store, *args)
