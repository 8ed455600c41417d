"""Many trainings by one command: every combination of settings and seeds, each a run of its own, through submitit."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
import torch
from tabulate import tabulate

from .compare import compare
from .config import ALIASES, LossConfig
from .errors import ConfigError, KitError, RunError
from .exp import load_exp
from .record import is_alive, plain, read_metrics, read_run, write_atomically
from .train import check_settings, choose_device, record_differences, settings

SCREEN = "screen.log"
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
    result.add_argument("--jobs", type=int, metavar="N", help="trainings at a time (default: one a GPU, one on CPU; Slurm's)")
    result.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    result.add_argument("--cluster", choices=("local", "slurm"), default="local", help="where to train (default: local)")
    slurm = result.add_argument_group("with --cluster slurm, each job")
    slurm.add_argument("--partition", help="runs in this partition (default: the cluster's)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="has so many GPUs (default: none)")
    slurm.add_argument("--time", type=int, metavar="MIN", help="has so many minutes; then it is queued again and resumes (1440)")
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
    _no_twins([_setting(key) for key, _ in found], "--set")
    return found


def _setting(key: str) -> str:
    """The key by its one name."""
    head, dot, knob = key.partition(".")
    return f"{ALIASES.get(head, head)}{dot}{knob}"


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


@dataclass(eq=False)
class Run:
    """One training of a sweep, and how far it is."""

    name: str
    folder: Path
    words: list[str]  # of ``yolox-loss train``, without --resume
    max_epoch: int
    todo: str = "train"  # or "resume", "skip", "wait" for a process that trains it already
    state: str = "queued"
    job: Any = None
    epochs: int = 0
    rows: list[dict[str, float | None]] = field(default_factory=list)
    old_stamp: str | None = None  # of a record that is not this job's
    old_log: int = 0
    ended: float | None = None
    since: tuple[float, int] | None = None  # when this job was first seen training, and its epochs then
    pace: float | None = None  # seconds an epoch in this job, with its evaluations

    def command(self) -> str:
        """What a user would type to train this run."""
        return shlex.join(["yolox-loss", "train", *(["--resume"] if self.todo == "resume" else []), *self.words])

    def plan(self) -> None:
        """Find out what is to be done, from what is in the folder."""
        record = self.read()
        self.old_stamp = record.get("updated")
        if record.get("status") == "finished":
            self.todo, self.state = "skip", "finished"
        elif _is_training(record):
            self.todo = "wait"
        else:
            self.todo = "resume" if (self.folder / "latest_ckpt.pth").is_file() else "train"

    def read(self) -> dict[str, Any]:
        """The record, {} where there is none yet; takes the epochs and metrics over from it."""
        record = read_run(self.folder) or {}
        self.rows = read_metrics(self.folder)
        # The record of a resumed run counts its epochs from the first that is new.
        self.epochs = max([int(record.get("epochs_done", 0)), *(int(row["epoch"] or 0) for row in self.rows)])
        return record

    def follow(self, waiting: str | None) -> None:
        """Take over how far the job is; ``waiting`` says why it does not run yet."""
        before = self.epochs
        record = self.read()
        if self.since is not None and self.epochs > before:
            self.pace = (time.monotonic() - self.since[0]) / (self.epochs - self.since[1])
        if waiting is not None:
            self.state, self.since, self.old_stamp = f"queued ({waiting})", None, record.get("updated")
        elif self.job is not None and record.get("updated") == self.old_stamp:
            self.state = "starting"
        else:
            self.state = str(record.get("status", "starting"))
            if self.since is None and self.state == "running":
                self.since = (time.monotonic(), self.epochs)

    def seconds_an_epoch(self) -> float | None:
        """As seen in this job, else as the record tells."""
        if self.pace is not None:
            return self.pace
        seconds = [row["seconds"] or 0.0 for row in self.rows]
        return sum(seconds) / len(seconds) if seconds else None

    def cells(self) -> list[str]:
        """Its row of the table."""
        found = [row["AP"] for row in self.rows if row.get("AP") is not None]
        pace = self.seconds_an_epoch()
        left = pace * (self.max_epoch - self.epochs) if self.state == "running" and pace is not None else None
        spent = sum(row["seconds"] or 0.0 for row in self.rows)
        return [
            self.name, self.state, f"{self.epochs}/{self.max_epoch}",
            "-" if not found else f"{found[-1]:.4f}", "-" if not found else f"{max(map(float, found)):.4f}",  # type: ignore[arg-type]
            _duration(spent) if self.rows else "-", "-" if left is None else _duration(left),
        ]  # fmt: skip

    def log(self) -> Path:
        """Where to read why it failed: the screen of the training, or of the job where that did not get so far."""
        screen = self.folder / SCREEN
        if self.job is not None and (not screen.is_file() or screen.stat().st_size <= self.old_log):
            return Path(self.job.paths.stdout)
        return screen


def _is_training(record: dict[str, Any]) -> bool:
    here = record.get("machine") == socket.gethostname()
    return record.get("status") == "running" and here and is_alive(record.get("pid"))


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
    given = [_setting(key) for key in args.opts[::2]]
    for key in ("seed", *(key for key, _ in tries)):
        if _setting(key) in given:
            where = "--seeds" if key == "seed" else "--set"
            raise ConfigError(f"{key} stands in {where} and in the trailing overrides; keep one of them.")
    base = load_exp(args.exp_file, args.name)
    common = copy.copy(base)  # nothing is built on it yet, so overrides replace values and change none
    common.merge(args.opts)
    stem = args.experiment_name or common.exp_name
    flags = _without_name(flags)
    runs: list[Run] = []
    wrong: list[str] = []
    for values in itertools.product(*(values for _, values in tries)):
        chosen = list(zip((key for key, _ in tries), values, strict=True))
        for seed in seeds:
            name = "-".join([stem, *(label(key, value) for key, value in chosen), f"seed{seed}"])
            pairs = [*zip(args.opts[::2], args.opts[1::2], strict=True), *chosen, ("seed", str(seed))]
            # A loss before its knobs, which it would replace.
            overrides = list(itertools.chain(*sorted(pairs, key=lambda pair: "." in pair[0])))
            exp = copy.copy(base)
            try:
                exp.merge(overrides)
                check_settings(exp, args)
                losses = LossConfig.from_exp(exp)
            except ConfigError as error:
                text = ", ".join(f"{key}={value}" for key, value in chosen)
                raise ConfigError(f"With {text}: {error}" if chosen else str(error)) from error
            run = Run(name, Path(exp.output_dir) / name, [*flags, "-expn", name, *overrides], exp.max_epoch)
            if name in (other.name for other in runs):
                raise ConfigError(f"Two combinations would train in one folder, {name}; the second has {dict(chosen)}.")
            facts = {"exp": settings(exp), "resolved_losses": losses.resolved(), "args": vars(args)}
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
    found = record_differences(record, plain(facts))
    return [f"{run.folder} ({record['status']}): {'; '.join(found)}"] if found else []


# ---------------------------------------------------------------------------------------------------------------------
# A job.


class Training:
    """What a job does: one training in a process of its own, with its screen output in the run's folder.

    It is pickled by value, so that the process that waits for the training does not load torch.

    Args:
        words: of ``yolox-loss train``.
        folder: of the run.
        cwd: where the sweep was started.
        environ: variables to set, or to remove (None).
        minutes: that the cluster gives the job, None where there is no limit.
    """

    def __init__(
        self, words: list[str], folder: str, cwd: str, environ: dict[str, str | None], minutes: int | None = None
    ) -> None:
        self.arguments = (words, folder, cwd, environ, minutes)
        self.words, self.folder, self.cwd, self.environ, self.minutes = self.arguments
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train to the end; returns the exit status of the training."""
        signal.signal(signal.SIGTERM, self._end)
        self.started, self.epochs_before = time.monotonic(), self._epochs()
        os.makedirs(self.folder, exist_ok=True)
        # Looked up here and not when it was submitted: the cluster may have requeued the job since.
        resume = ["--resume"] if os.path.isfile(os.path.join(self.folder, "latest_ckpt.pth")) else []
        command = [sys.executable, "-m", "yolox_loss_patch", "train", *resume, *self.words]
        environ = {**os.environ, **{key: value for key, value in self.environ.items() if value is not None}}
        for key, value in self.environ.items():
            if value is None:
                environ.pop(key, None)
        with open(os.path.join(self.folder, "screen.log"), "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            # In a session of its own: Ctrl-C and what the cluster sends to all processes reach it through this one only.
            self.child = subprocess.Popen(
                command, cwd=self.cwd, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=self._signals_of_the_child,
            )  # fmt: skip
            try:
                # Not wait(), whose lock would keep a signal's handler from waiting too.
                while (status := self.child.poll()) is None:
                    time.sleep(0.2)
            except BaseException:
                self._stop()
                raise
            if status < 0:
                log.write(f"The training was killed by {signal.Signals(-status).name}.\n".encode())
        return status

    @staticmethod
    def _signals_of_the_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in this process, see `Local.submit`
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the cluster's warning, which is for this process

    def checkpoint(self) -> Any:
        """The job's time is up: stop the training, which resumes when the cluster starts the job again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        ran = (time.monotonic() - self.started) / 60
        if self.minutes is not None and ran > 0.3 * self.minutes and self._epochs() <= self.epochs_before:
            with open(os.path.join(self.folder, "screen.log"), "a") as log:
                log.write(f"Not one epoch was finished in {ran:.0f} of the {self.minutes} minutes of this job, so it is "
                          "not queued again; give it more with --time.\n")  # fmt: skip
            return None
        return DelayedSubmission(type(self)(*self.arguments))

    def _end(self, number: int, frame: Any) -> None:
        self._stop()
        raise SystemExit(128 + number)

    def _stop(self) -> None:
        """End the training as Ctrl-C does, so that its record says so."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(60)
            except subprocess.TimeoutExpired:
                self.child.kill()

    def _epochs(self) -> int:
        try:
            with open(os.path.join(self.folder, "run.json")) as file:
                return int(json.load(file).get("epochs_done", 0))
        except (OSError, ValueError):
            return 0


# The jobs' class is sent along with each job instead of being imported there.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# ---------------------------------------------------------------------------------------------------------------------
# Where jobs run.


class Local:
    """This machine.

    Args:
        folder: for submitit's files.
        jobs: at a time, None for one a GPU, or one where there is none.
        args: YOLOX's, for the device.
    """

    poll, patience = 1.0, 0.0

    def __init__(self, folder: Path, jobs: int | None, args: argparse.Namespace) -> None:
        self.gpus = gpu_groups(args)
        self.at_once = jobs or len(self.gpus) or 1
        self.environ: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if self.at_once > 1 and not self.gpus and "OMP_NUM_THREADS" not in os.environ:
            # Each would start a thread a core, and all together would be many times slower than one after the other.
            self.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.at_once))
        self.in_use: dict[str, str] = {}
        self.folder = folder

    def describe(self) -> str:
        """Where and how many at a time."""
        device = f"GPUs {' | '.join(self.gpus)}" if self.gpus else "no GPU"
        threads = self.environ.get("OMP_NUM_THREADS")
        return f"{self.at_once} at a time on this machine ({device}{f', {threads} CPU threads each' if threads else ''})"

    def submit(self, runs: list[Run]) -> None:
        """Start the jobs of these runs."""
        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=525600, stderr_to_stdout=True)  # submitit's default ends a job in minutes
        for run in runs:
            environ = dict(self.environ)
            if self.gpus:
                load = list(self.in_use.values())
                self.in_use[run.name] = environ["CUDA_VISIBLE_DEVICES"] = min(self.gpus, key=load.count)
            # Ctrl-C in a terminal is sent to all its processes; the jobs inherit that it is ignored, and are told below.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                run.job = executor.submit(Training(run.words, str(run.folder.absolute()), os.getcwd(), environ))
            finally:
                signal.signal(signal.SIGINT, before)

    def refresh(self) -> None:
        """Nothing to ask."""

    def waiting(self, run: Run) -> str | None:
        """A local job starts at once."""
        return None

    def has_ended(self, run: Run) -> bool:
        """Whether the job's process is gone."""
        if not run.job.done():
            return False
        self.in_use.pop(run.name, None)
        return True

    def cancel(self, runs: list[Run]) -> None:
        """Tell the jobs to stop."""
        for run in runs:
            if not run.job.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(run.job.job_id), signal.SIGTERM)  # submitit's own cancel sends what is ignored


def gpu_groups(args: argparse.Namespace) -> list[str]:
    """The GPUs of this machine as values of CUDA_VISIBLE_DEVICES, one a job (``-d N``: N a job); none off CUDA.

    Raises:
        KitError: no such device, more GPUs a job than there are.
    """
    if args.devices is not None and args.devices < 1:
        raise ConfigError(f"-d is at least 1; got {args.devices}.")
    if choose_device(args.device).type != "cuda":
        return []
    count, each = torch.cuda.device_count(), args.devices or 1
    if each > count:
        raise RunError(f"-d {each} asks for more GPUs than there are ({count}).")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    return [",".join(names[first : first + each]) for first in range(0, count - each + 1, each)]


class Slurm:
    """A Slurm cluster, with the commands of Slurm on this machine.

    Args:
        folder: for submitit's files, on a file system that the nodes have.
        options: of `parser`.
        name: of the jobs in the queue.

    Raises:
        RunError: no Slurm here.
    """

    # Files written on a node may be seen here some seconds later.
    poll, patience = 5.0, 30.0

    def __init__(self, folder: Path, options: argparse.Namespace, name: str) -> None:
        if not all(map(shutil.which, ("sbatch", "srun", "squeue", "scancel"))):
            raise RunError("--cluster slurm: sbatch, srun, squeue and scancel are not all here. Start the sweep on a machine "
                           "of the cluster, or leave --cluster out to train on this one.")  # fmt: skip
        self.at_once = sys.maxsize  # Slurm holds back what --jobs does not let run yet
        self.minutes: int = options.time or 1440
        given = {
            "partition": options.partition,
            "gpus_per_node": options.gpus_per_node,
            "cpus_per_task": options.cpus_per_task,
            # From Slurm 22.05 on, srun does not take this over from sbatch and would give one core.
            "srun_args": None if options.cpus_per_task is None else [f"--cpus-per-task={options.cpus_per_task}"],
            "array_parallelism": options.jobs,
            "mem": None if options.mem is None else f"{round(options.mem * 1024)}MB",
        }
        # A job is requeued as often as it takes, as long as it gets on (see Training.checkpoint).
        self.executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
        self.executor.update_parameters(
            job_name=name, time=self.minutes, stderr_to_stdout=True, additional_parameters={"requeue": True},
            **{key: value for key, value in given.items() if value is not None},
        )  # fmt: skip
        self.jobs = options.jobs
        self.file = folder / "slurm_jobs.json"
        self.ids: dict[str, str] = json.loads(self.file.read_text()) if self.file.is_file() else {}
        self.queue: dict[str, tuple[str, str]] = {}
        self.missed: dict[str, int] = {}

    def describe(self) -> str:
        """Where and how many at a time."""
        many = "" if self.jobs is None else f"{self.jobs} at a time "
        return f"{many}on Slurm, {self.minutes} minutes a job"

    def submit(self, runs: list[Run]) -> None:
        """Queue the jobs of these runs."""
        jobs = [Training(run.words, str(run.folder.absolute()), os.getcwd(), {}, self.minutes) for run in runs]
        try:
            submitted = self.executor.submit_array(jobs)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise RunError(f"Slurm did not take the jobs: {str(error).strip()}") from error
        for run, job in zip(runs, submitted, strict=True):
            run.job = job
            self.ids[run.name] = job.job_id
            self.queue[job.job_id] = ("PENDING", "submitted")
        write_atomically(self.file, json.dumps(self.ids, indent=2).encode())

    def attach(self, runs: list[Run]) -> None:
        """Find the jobs that an earlier sweep left in the queue."""
        self.refresh()
        for run in runs:
            if run.todo != "skip" and self.ids.get(run.name) in self.queue:
                run.todo, run.old_stamp = "attach", None
                run.job = submitit.SlurmJob(self.executor.folder, self.ids[run.name])

    def refresh(self) -> None:
        """Ask for the state of the user's jobs; submitit asks sacct, which not every cluster has."""
        command = ["squeue", "--me", "--array", "--noheader", "--format", "%i|%T|%r"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return
        if done.returncode:
            return  # the controller is busy; the next time then
        lines = [line.strip().split("|") for line in done.stdout.splitlines() if line.count("|") == 2]
        self.queue = {number: (state, reason) for number, state, reason in lines}
        self.missed = {number: self.missed.get(number, 0) + 1 for number in self.ids.values() if number not in self.queue}

    def waiting(self, run: Run) -> str | None:
        """Why the job is not running."""
        state, reason = self.queue.get(run.job.job_id, ("", ""))
        return reason if state == "PENDING" else None

    def has_ended(self, run: Run) -> bool:
        """Whether the job has left the queue."""
        return run.job.paths.result_pickle.exists() or self.missed.get(run.job.job_id, 0) > 1

    def cancel(self, runs: list[Run]) -> None:
        """Tell Slurm to cancel the jobs."""
        for run in runs:
            run.job.cancel(check=False)


# ---------------------------------------------------------------------------------------------------------------------
# The screen.


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


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
    return f"{counts}; about {_duration(left)} left"


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
        raise RunError(f"{len(failed)} of {len(runs)} runs did not finish (above is why); the same command tries them again.")


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
                coming = [run for run in queue if run.todo in ("train", "resume")][: max(0, where.at_once - len(active))]
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
        if _is_training(run.read()):
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
