"""The trainings of a sweep: how far each is, the job that trains it, and where jobs run (this machine, Slurm; submitit)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
import torch

from ..errors import ConfigError, RunError
from ..exp.device import choose_device
from ..runs.files import write_atomically
from ..runs.process import is_alive
from ..runs.record import read_metrics, read_run

SCREEN = "screen.log"


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
        elif is_training(record):
            self.todo = "wait"
        else:
            self.todo = "resume" if (self.folder / "latest_ckpt.pth").is_file() else "train"

    def read(self) -> dict[str, Any]:
        """The record, {} where there is none yet; takes the epochs and metrics over from it."""
        record = read_run(self.folder) or {}
        self.rows = read_metrics(self.folder)
        self.epochs = int(record.get("epochs_done", 0))
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
            duration(spent) if self.rows else "-", "-" if left is None else duration(left),
        ]  # fmt: skip

    def log(self) -> Path:
        """Where to read why it failed: the screen of the training, or of the job where that did not get so far."""
        screen = self.folder / SCREEN
        if self.job is not None and (not screen.is_file() or screen.stat().st_size <= self.old_log):
            return Path(self.job.paths.stdout)
        return screen


def is_training(record: dict[str, Any]) -> bool:
    """Whether a process of this machine is at it."""
    here = record.get("machine") == socket.gethostname()
    return record.get("status") == "running" and here and is_alive(record.get("pid"), record.get("pid_born"))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


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
        # Unbuffered: what it prints lies in the log at once and before the error it ends with, whose line `sweep` shows.
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environ.update({key: value for key, value in self.environ.items() if value is not None})
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
            with open(os.path.join(self.folder, "run.json"), encoding="utf-8") as file:
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
        return (
            f"{self.at_once} at a time on this machine ({device}{f', {threads} CPU threads each' if threads else ''})"
        )

    def submit(self, runs: list[Run]) -> None:
        """Start the jobs of these runs."""
        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(
            timeout_min=525600, stderr_to_stdout=True
        )  # submitit's default ends a job in minutes
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
        options: of `sweep.parser`.
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
        self.missed = {
            number: self.missed.get(number, 0) + 1 for number in self.ids.values() if number not in self.queue
        }

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
