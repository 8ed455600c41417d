"""Many trainings by one command: every combination of settings and seeds, each a run of its own, through submitit."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import itertools
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..compare.comparison import compare
from ..errors import ConfigError, KitError, RunError
from ..exp.code import own_code
from ..exp.loading import load_exp
from ..exp.overrides import setting_name
from ..exp.settings import check_settings, loss_config, settings
from ..runs.checkpoint import starting_weights
from ..runs.differences import record_differences
from ..runs.record import read_run
from .jobs import SCREEN, Local, Run, Slurm, duration, is_training

_LABEL_LENGTH = 80  # of 255 that a folder's name may have
_CLUSTER_OPTIONS = ("partition", "gpus_per_node", "time", "cpus_per_task", "mem")


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb that are not YOLOX's."""
    result = argparse.ArgumentParser(
        prog="yolox-loss sweep",
        usage="yolox-loss sweep -f EXP [--set KEY=VALUE,VALUE,...]... [--seeds 0,1,2] [train's flags] [key value]...",
        description="Train every combination of the --set values with every seed, each in a folder of its own, then compare. "
        "Finished runs are skipped and runs that were cut off are resumed, so the same command goes on where it stopped.",
        epilog="All flags of yolox-loss train and its trailing overrides are for every run. Slurm's further settings are "
        "read by sbatch from its own environment variables, such as SBATCH_ACCOUNT; the folder of the runs must be on a "
        "file system that every node has.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUES", dest="sets",
        help="a setting and its values, as in loss_obj=bce,focal or \"loss_obj=bce,{'type':'focal','alpha':0.75}\"; "
        "can be given several times",
    )  # fmt: skip
    result.add_argument("--seeds", default="0,1,2", help="the seeds of each combination (default: 0,1,2)")
    result.add_argument(
        "--jobs", type=int, metavar="N", help="trainings at a time (default: one a GPU, one on CPU; Slurm's)"
    )
    result.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    result.add_argument(
        "--cluster", choices=("local", "slurm"), default="local", help="where to train (default: local)"
    )
    slurm = result.add_argument_group("with --cluster slurm, each job")
    slurm.add_argument("--partition", help="runs in this partition (default: the cluster's)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="has so many GPUs (default: none)")
    slurm.add_argument(
        "--time", type=int, metavar="MIN", help="has so many minutes; then it is queued again and resumes (1440)"
    )
    slurm.add_argument("--cpus-per-task", type=int, metavar="N", help="has so many cores (default: the cluster's)")
    slurm.add_argument("--mem", type=float, metavar="GB", help="has so much memory (default: the cluster's)")
    return result


# ---------------------------------------------------------------------------------------------------------------------
# What to train.


def split_values(text: str) -> list[str]:
    """The values between the commas; a comma inside ``{} [] ()`` or quotes belongs to its value.

    Raises:
        ConfigError: a bracket or quote without its other half, an empty value.
    """
    values, start, closing, quote = [], 0, "", ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            closing = {"{": "}", "[": "]", "(": ")"}[char] + closing
        elif char in "}])":
            if not closing.startswith(char):
                raise ConfigError(f"--set: {char!r} without its other half in {text!r}.")
            closing = closing[1:]
        elif char == "," and not closing:
            values.append(text[start:place])
            start = place + 1
    if closing or quote:
        raise ConfigError(f"--set: {quote or closing[0]!r} is missing in {text!r}.")
    values = [value.strip() for value in (*values, text[start:])]
    if "" in values:
        raise ConfigError(f"--set: an empty value in {text!r}; write KEY=VALUE,VALUE.")
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _no_twins(values: Sequence[Any], what: str) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ConfigError(f"{what} has {value!r} twice; each would train the same run again.")
        seen.append(value)


def settings_to_try(sets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``["loss_obj=bce,focal", ...]`` as (key, values).

    Raises:
        ConfigError: no key, no value, a key or value twice, a key that is not for ``--set``.
    """
    found: list[tuple[str, list[str]]] = []
    for text in sets:
        key, is_there, values = text.partition("=")
        key = key.strip()
        if not is_there or not key:
            raise ConfigError(f"--set is KEY=VALUE,VALUE,... as in loss_obj=bce,focal; got {text!r}.")
        if key == "seed":
            raise ConfigError("--set seed=...: the seeds of a sweep are given with --seeds 0,1,2.")
        if key in ("exp_name", "output_dir"):
            raise ConfigError(f"--set {key}=...: a sweep names its folders itself. Begin their names with -expn NAME, or "
                              "put them elsewhere with the trailing override output_dir FOLDER.")  # fmt: skip
        split = split_values(values)
        _no_twins([_literal(value) for value in split], f"--set {key}")
        found.append((key, split))
    _no_twins([setting_name(key) for key, _ in found], "--set")
    return found


def seeds_to_try(text: str) -> list[int]:
    """``0,1,2`` as numbers.

    Raises:
        ConfigError: not whole numbers from 0 on, a seed twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]+", word) for word in words):
        raise ConfigError(f"--seeds is whole numbers from 0 on, separated by commas, as in 0,1,2; got {text!r}.")
    seeds = [int(word) for word in words]
    _no_twins(seeds, "--seeds")
    return seeds


def label(key: str, value: str) -> str:
    """A setting as a part of a folder's name: ``loss_obj``, ``focal`` -> ``obj_focal``."""
    text = f"{_slug(key.removeprefix('loss_'))}_{_slug(_literal(value) if value[0] in '{[(' else value)}"
    if len(text) > _LABEL_LENGTH:
        text = f"{text[: _LABEL_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def _slug(value: Any) -> str:
    if isinstance(value, dict):
        knobs = [f"{_slug(key)}{_slug(item)}" for key, item in value.items() if key != "type"]
        return "_".join([*([_slug(value["type"])] if "type" in value else []), *knobs])
    if isinstance(value, (list, tuple)):
        return "_".join(map(_slug, value))
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(value)).strip("_")


def runs_to_make(options: argparse.Namespace, args: argparse.Namespace, flags: Sequence[str]) -> tuple[list[Run], Path]:
    """The runs of a sweep and its own folder; every combination is checked.

    Args:
        options: of `parser`.
        args: the same flags as YOLOX's own parser reads them.
        flags: words of ``yolox-loss train`` before the trailing overrides.

    Raises:
        ConfigError: a combination that cannot be trained, or two of one name.
        RunError: a folder holds another run.
    """
    if args.resume or args.start_epoch is not None:
        raise ConfigError("A sweep resumes by itself what was cut off; leave --resume and -e out.")
    if args.num_machines != 1:
        raise ConfigError("A sweep trains each run on one machine; leave --num_machines out.")
    tries, seeds = settings_to_try(options.sets), seeds_to_try(options.seeds)
    given = [setting_name(key) for key in args.opts[::2]]
    for key in ("seed", *(key for key, _ in tries)):
        if setting_name(key) in given:
            where = "--seeds" if key == "seed" else "--set"
            raise ConfigError(f"{key} stands in {where} and in the trailing overrides; keep one of them.")
    base = load_exp(args.exp_file, args.name)
    common = copy.copy(base)  # nothing is built on it yet, so overrides replace values and change none
    common.merge(args.opts)
    stem = args.experiment_name or common.exp_name
    flags = _without_name(flags)
    common_facts = {"code": own_code(base), "starting_weights": starting_weights(args)}
    runs: list[Run] = []
    wrong: list[str] = []
    for values in itertools.product(*(values for _, values in tries)):
        chosen = list(zip((key for key, _ in tries), values, strict=True))
        for seed in seeds:
            name = "-".join([stem, *(label(key, value) for key, value in chosen), f"seed{seed}"])
            pairs = [*zip(args.opts[::2], args.opts[1::2], strict=True), *chosen, ("seed", str(seed))]
            overrides = list(itertools.chain(*pairs))
            exp = copy.copy(base)
            try:
                exp.merge(overrides)
                check_settings(exp, args)
                losses = loss_config(exp)
            except ConfigError as error:
                text = ", ".join(f"{key}={value}" for key, value in chosen)
                raise ConfigError(f"With {text}: {error}" if chosen else str(error)) from error
            run = Run(name, Path(exp.output_dir) / name, [*flags, "-expn", name, *overrides], exp.max_epoch)
            if name in (other.name for other in runs):
                raise ConfigError(f"Two combinations would train in one folder, {name}; the second has {dict(chosen)}.")
            facts = {"exp": settings(exp), "resolved_losses": losses.resolved(), "args": vars(args), **common_facts}
            wrong += _conflict(run, facts)
            runs.append(run)
    if wrong:
        raise RunError("\n  ".join([
            "These folders hold other runs. Choose other names with -expn NAME, or remove the folders.", *wrong
        ]))  # fmt: skip
    return runs, Path(common.output_dir) / f"{stem}-sweep"


def _without_name(flags: Sequence[str]) -> list[str]:
    words = list(flags)
    for flag in ("-expn", "--experiment-name"):
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    return words


def _conflict(run: Run, facts: dict[str, Any]) -> list[str]:
    """Why the run cannot be made in its folder, as lines."""
    record = read_run(run.folder)
    holds_weights = any(run.folder.glob("*_ckpt.pth"))
    if record is None:
        return [f"{run.folder}: checkpoints of a run without a record"] if holds_weights else []
    if record["status"] != "finished" and not holds_weights:
        return []
    found = record_differences(record, facts)
    return [f"{run.folder} ({record['status']}): {'; '.join(found)}"] if found else []


# ---------------------------------------------------------------------------------------------------------------------
# The screen.


class Screen:
    """The table of the runs: redrawn in place on a terminal, a line for each change elsewhere."""

    header = ("run", "status", "epoch", "AP last", "AP best", "time", "ETA")

    def __init__(self) -> None:
        self.in_place = sys.stdout.isatty()
        self.drawn: list[str] = []
        self.told: dict[str, str] = {}

    def show(self, runs: list[Run]) -> None:
        """What is new."""
        if self.in_place:
            self._redraw([*self._rows(runs), _summary(runs)])
            return
        for run in runs:
            name, state, epoch, last, best, spent, left = run.cells()
            change = f"{state} {epoch}"
            if name not in self.told and state in ("queued", "finished"):
                self.told[name] = change  # said by the line above the table
            if self.told.get(name) != change:
                self.told[name] = change
                known = [] if last == "-" else [f"AP last {last}, best {best}"]
                known += [] if spent == "-" else [f"time {spent}"]
                known += [] if left == "-" else [f"ETA {left}"]
                print(f"{time.strftime('%H:%M:%S')} {name}: {', '.join([state, f'epoch {epoch}', *known])}", flush=True)

    def end(self, runs: list[Run]) -> None:
        """The whole table."""
        print(f"{self._clear()}\n{self.table(runs)}\n", flush=True)

    def table(self, runs: list[Run]) -> str:
        """All rows."""
        return tabulate([run.cells() for run in runs], self.header, disable_numparse=True)

    def _rows(self, runs: list[Run]) -> list[str]:
        """The rows that fit on the terminal: where they are too many, what is at work first."""
        room = max(shutil.get_terminal_size().lines - 5, 3)
        if len(runs) > room:
            rank = {"finished": 2, "queued": 3}
            shown = sorted(runs, key=lambda run: rank.get(run.state, 1 if run.state == "failed" else 0))[:room]
            return [*self.table([run for run in runs if run in shown]).splitlines(), f"... and {len(runs) - room} more"]
        return self.table(runs).splitlines()

    def _redraw(self, lines: list[str]) -> None:
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in lines]
        if lines != self.drawn:
            print(self._clear() + "\n".join(lines), flush=True)
            self.drawn = lines

    def _clear(self) -> str:
        """What takes away the table that is drawn: up to its first line, then clear to the end of the screen."""
        lines, self.drawn = len(self.drawn), []
        return f"\x1b[{lines}F\x1b[J" if lines else ""


def _summary(runs: list[Run]) -> str:
    states = [run.state.split(" ")[0] for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    paces = [pace for pace in (run.seconds_an_epoch() for run in runs) if pace is not None]
    open_runs = [run for run in runs if run.state not in ("finished", "failed")]
    if not open_runs or not paces:
        return counts
    epochs = sum(run.max_epoch - run.epochs for run in open_runs)
    left = epochs * sum(paces) / len(paces) / max(1, states.count("running"))
    return f"{counts}; about {duration(left)} left"


# ---------------------------------------------------------------------------------------------------------------------
# The sweep.


def sweep(options: argparse.Namespace, args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Train every combination of settings and seeds that is not finished yet, then compare.

    Args:
        options: of `parser`.
        args: YOLOX's own arguments of a training.
        flags: the words that ``args`` came from, without the trailing overrides.

    Raises:
        KitError: what a user can mend, and runs that did not finish.
    """
    _check_options(options)
    runs, folder = runs_to_make(options, args, flags)
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
    _train_all(runs, where, screen)
    screen.end(runs)
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


def _check_options(options: argparse.Namespace) -> None:
    for key in ("jobs", *_CLUSTER_OPTIONS):
        value, flag = getattr(options, key), f"--{key.replace('_', '-')}"
        if isinstance(value, (int, float)) and value <= 0:
            raise ConfigError(f"{flag} is a number above 0; got {value}.")
        if value is not None and key in _CLUSTER_OPTIONS and options.cluster != "slurm":
            raise ConfigError(f"{flag} is for a cluster; add --cluster slurm, or leave it out.")


def _train_all(runs: list[Run], where: Local | Slurm, screen: Screen) -> None:
    """Keep jobs going until each run is finished or has failed."""
    left = [run for run in runs if run.todo != "skip"]
    active = [run for run in left if run.todo in ("wait", "attach")]
    queue = [run for run in left if run not in active]
    with _sigterm_is_ctrl_c():
        try:
            while queue or active:
                where.refresh()
                for run in list(active):
                    if _has_ended(run, where):
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


def _has_ended(run: Run, where: Local | Slurm) -> bool:
    """Whether nothing more comes from this run; its state is then finished, failed, or queued for another try."""
    if run.job is None:
        if is_training(run.read()):
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


def _cancel(runs: list[Run], where: Local | Slurm) -> None:
    """Stop jobs and wait until they are gone, so that their records tell."""
    if not runs:
        return
    print(f"Stopping {len(runs)} jobs ...", flush=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        left = [run for run in runs if not where.has_ended(run)]
        if not left:
            for run in runs:
                run.follow(None)
            return
        where.cancel(left)  # again: a job that was just starting may have missed it
        time.sleep(2)
        where.refresh()
    print(f"Still there: {', '.join(run.name for run in left)}", flush=True)


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 10_000))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "it left no output"
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "it left no output")
