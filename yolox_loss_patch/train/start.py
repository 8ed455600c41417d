"""From the command line to a training: in this process, in workers that it starts, or as one of torchrun's workers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yolox.utils.dist as host_dist

from ..errors import RunError
from ..exp.device import choose_device
from ..exp.loading import load_exp
from ..exp.settings import check_settings
from .seeds import prepare_process
from .trainer import Trainer
from .workers.launch import launch, work
from .workers.place import Place, count_workers, from_torchrun, meeting_point, places_on_this_machine
from .workers.team import join

WhenFinished = Callable[[Path], None] | None


def run(args: argparse.Namespace, when_finished: WhenFinished = None) -> None:
    """Train as the parsed command line says: in one process, in ``-d N`` workers, or as one of torchrun's.

    Args:
        args: the parsed command line.
        when_finished: called with the run's folder after the training, in the worker of rank 0; a function of a module,
            for workers import it.

    Raises:
        KitError: what a user can mend.
    """
    place = from_torchrun(args)
    if place is not None and place.world > 1:
        train_as_worker(place, None, args, when_finished)
        return
    count = count_workers(args)
    if count * args.num_machines == 1:
        train_in_this_process(args, when_finished)
        return
    places = places_on_this_machine(args, count)
    exp = _load_experiment(args)  # a mistake is told once, here, and not by every worker
    check_settings(exp, args, places[0].world)
    # Spawned workers share nothing with this process: each builds its experiment, and with it the losses, itself.
    folder = Path(exp.output_dir) / args.experiment_name
    launch(train_as_worker, (args, when_finished), places, meeting_point(args), folder)


def train_as_worker(
    place: Place, store: Any | None, args: argparse.Namespace, when_finished: WhenFinished = None
) -> None:
    """Train as one of several workers.

    Args:
        place: among them.
        store: where they meet; None under torchrun.
        args: the parsed command line.
        when_finished: see `run`.
    """
    device = choose_device(args.device).type
    if device == "cuda":
        if place.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"Worker {place.local_rank} of this machine has no GPU; there are {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(place.local_rank)
    elif device == "mps":
        raise RunError("MPS has one device; train on it in one process.")
    elif store is not None:  # torchrun has set the threads
        torch.set_num_threads(max(1, torch.get_num_threads() // place.local_world))
    # YOLOX asks this group for the rank within the machine.
    host_dist._LOCAL_PROCESS_GROUP = join(place, args.dist_backend if device == "cuda" else "gloo", store)
    work(lambda: train_in_this_process(args, when_finished), print_errors=store is None)


def train_in_this_process(args: argparse.Namespace, when_finished: WhenFinished = None) -> None:
    """Train, alone or as the worker that this process has become."""
    exp = _load_experiment(args)
    check_settings(exp, args)  # the seed is used right away
    prepare_process(exp.seed)
    Trainer(exp, args, when_finished=when_finished).train()


def _load_experiment(args: argparse.Namespace) -> Any:
    exp = load_exp(args.exp_file, args.name)
    exp.merge(args.opts)
    if not args.experiment_name:
        args.experiment_name = exp.exp_name
    return exp
