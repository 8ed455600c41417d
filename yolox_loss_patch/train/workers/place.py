"""Where a process stands among those that train together."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import torch

from ...errors import ConfigError, RunError
from ...exp.device import choose_device

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


def places_on_this_machine(args: argparse.Namespace, count: int) -> list[Place]:
    """The places of the ``count`` workers of this machine, as ``--num_machines`` and ``--machine_rank`` say.

    Raises:
        ConfigError: a machine rank that is not there.
    """
    if not 0 <= args.machine_rank < args.num_machines:
        last = args.num_machines - 1
        raise ConfigError(
            f"--machine_rank is 0 to {last} with --num_machines {args.num_machines}; got {args.machine_rank}."
        )
    first, world = args.machine_rank * count, args.num_machines * count
    return [Place(first + local_rank, world, local_rank, count) for local_rank in range(count)]


def count_workers(args: argparse.Namespace) -> int:
    """How many workers ``-d`` asks for on this machine.

    Raises:
        ConfigError, RunError: a number that this machine does not have.
    """
    device = choose_device(args.device).type
    if args.devices is None:
        return torch.cuda.device_count() if device == "cuda" else 1
    count: int = args.devices
    if count < 1:
        raise ConfigError(f"-d is at least 1; got {count}.")
    if device == "cuda" and count > torch.cuda.device_count():
        raise RunError(f"-d {count} asks for more GPUs than there are ({torch.cuda.device_count()}).")
    if device == "mps" and count > 1:
        raise RunError("MPS has one device; use -d 1.")
    return count


def meeting_point(args: argparse.Namespace) -> str:
    """``HOST:PORT`` of ``--dist-url``; without it a free port of this machine.

    Raises:
        ConfigError: an address of another form, or none for several machines.
    """
    url = args.dist_url
    if url in (None, "auto"):
        if args.num_machines > 1:
            raise ConfigError("Several machines need --dist-url tcp://HOST:PORT, the address of the first.")
        return "127.0.0.1:0"
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if not url.startswith("tcp://") or not host or not port.isdecimal():
        raise ConfigError(f"--dist-url is tcp://HOST:PORT, the address of the first machine; got {url!r}.")
    return f"{host}:{port}"
