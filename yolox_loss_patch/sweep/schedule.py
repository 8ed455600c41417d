"""The order in which the trainings of a sweep run: jobs are kept going until each training is finished or has failed."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..compare.comparison import compare
from ..errors import KitError, RunError
from ..printing import printable
from .job import SCREEN
from .places import Local, Slurm
from .plan import check_options, planned_trainings, seeds_to_try, settings_to_try
from .race import check_keys, looks_to_take, plan_race, run_race
from .screen import Screen
from .training import PlannedTraining, is_in_training


def sweep(options: argparse.Namespace, args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Train every combination of settings and seeds that is not finished yet, then compare.

    Args:
        options: of `parser`.
        args: YOLOX's own arguments of a training.
        flags: the words that ``args`` came from, without the trailing overrides.

    Raises:
        KitError: what a user can mend, and runs that did not finish.
    """
    check_options(options)
    if options.race:
        check_keys([key for key, _ in settings_to_try(options.sets)])
    runs, folder = planned_trainings(options, args, flags)
    race = None
    if options.race:
        race = plan_race(runs, folder, looks_to_take(options.looks, len(seeds_to_try(options.seeds))))
    for run in runs:
        run.plan()
    if options.dry_run:
        for run in runs:
            text = {"skip": "skip (finished)", "wait": "wait (another process trains it)"}.get(run.todo, run.todo)
            print(f"{run.name}: {text}\n    {run.command()}")
        return
    where: Local | Slurm
    if options.cluster == "slurm":
        where = Slurm(folder / "jobs", options, folder.name)
        where.attach(runs)
    else:
        where = Local(folder / "jobs", options.jobs, args)
    kinds = {"skip": "finished before", "resume": "to resume", "train": "to train", "attach": "in the queue already",
             "wait": "in training by another process"}  # fmt: skip
    counts = ((sum(run.todo == todo for run in runs), text) for todo, text in kinds.items())
    found = ", ".join(f"{count} {text}" for count, text in counts if count)
    print(f"{len(runs)} runs: {found}; {where.describe()}", flush=True)
    screen = Screen()
    if race is None:
        _train_all(runs, where, screen)
        screen.end(runs)
    else:
        race.write()

        def train(coming: list[PlannedTraining]) -> None:
            _train_all(coming, where, screen)
            screen.end(coming)

        runs = run_race(runs, race, train)
    failed = [run for run in runs if run.state != "finished"]
    for run in failed:
        print(f"{run.name} failed: {_last_line(run.log())}\n    {run.log()}")
    if len(failed) < len(runs):
        try:
            print(compare([str(run.folder) for run in runs if run.state == "finished"], out=str(folder)))
        except KitError as error:
            print(f"No comparison: {error}")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(runs)} runs did not finish (above is why); the same command tries them again."
        )


def _train_all(runs: list[PlannedTraining], where: Local | Slurm, screen: Screen) -> None:
    """Keep jobs going until each run is finished or has failed."""
    left = [run for run in runs if run.todo != "skip"]
    active = [run for run in left if run.todo in ("wait", "attach")]
    queue = [run for run in left if run not in active]
    with _other_ends_are_ctrl_c():
        try:
            while queue or active:
                where.refresh()
                for run in list(active):
                    if has_ended(run, where):
                        active.remove(run)
                        if run.state == "queued":
                            queue.append(run)
                for run in queue:
                    run.plan()  # another sweep may have been here
                active += [run for run in queue if run.todo == "wait"]
                coming = [run for run in queue if run.todo in ("train", "resume")][
                    : max(0, where.at_once - len(active))
                ]
                queue = [run for run in queue if run.todo in ("train", "resume") and run not in coming]
                if coming:
                    for run in coming:
                        with contextlib.suppress(OSError):
                            run.old_log = (run.folder / SCREEN).stat().st_size
                    where.submit(coming)
                    active += coming
                for run in active:
                    if run.ended is None:
                        run.follow(None if run.job is None else where.waiting(run))
                screen.show(runs)
                if active:
                    time.sleep(where.poll)
        except BaseException as error:
            _cancel([run for run in active if run.job is not None], where)
            if isinstance(error, KeyboardInterrupt):
                screen.drawn = []  # what was printed since stands below it
                screen.end(runs)
                print("Interrupted; the jobs were stopped. The same command goes on where they were.", flush=True)
            raise


def has_ended(run: PlannedTraining, where: Local | Slurm) -> bool:
    """Whether nothing more comes from this run; its state is then finished, failed, or queued for another try."""
    if run.job is None:
        run.read()
        if is_in_training(run.folder):
            return False
        run.plan()
        run.state = "finished" if run.todo == "skip" else "queued"
        return True
    if not where.has_ended(run):
        return False
    run.ended = run.ended or time.monotonic()
    finished = run.read().get("status") == "finished"
    if not finished and time.monotonic() - run.ended < where.patience:
        return False
    run.state = "finished" if finished else "failed"
    return True


def _cancel(runs: list[PlannedTraining], where: Local | Slurm) -> None:
    """Stop jobs and wait until they are gone, so that their records tell. Nobody may be there any more to read about it."""
    if not runs:
        return
    where.cancel(runs)
    with contextlib.suppress(OSError):
        print(f"Stopping {len(runs)} jobs ...", flush=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        left = [run for run in runs if not where.has_ended(run)]
        if not left:
            for run in runs:
                run.follow(None)
            return
        time.sleep(1)
        where.refresh()
        where.cancel(left)  # again: a job that was just starting may have missed it
    print(f"Still there: {', '.join(run.name for run in left)}", flush=True)


@contextlib.contextmanager
def _other_ends_are_ctrl_c() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed unless nohup ignores it, end a sweep as Ctrl-C does."""
    numbers = [signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:
        numbers.append(hang_up)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 10_000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "it left no output"
    said = (printable(line).removeprefix("error: ")[:500] for line in reversed(lines) if line.strip())
    return next(said, "it left no output")
