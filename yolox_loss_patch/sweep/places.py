"""Where the jobs of a sweep run: this machine, or a Slurm cluster (through submitit)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import submitit
import torch

from ..errors import ConfigError, RunError
from ..exp.device import choose_device
from ..runs.files import write_atomically
from ..runs.schema import JOB_IDS
from .job import TrainingJob
from .training import PlannedTraining

_PACKAGE = str(Path(__file__).resolve().parents[2])


def python_command() -> str:
    """The command that starts submitit's process, in which a ``queue.py`` of the current folder is not taken for Python's."""
    # Python 3.10 cannot be told; there the current folder comes first.
    return f"{shlex.quote(sys.executable)}{' -P' if sys.version_info >= (3, 11) else ''}"


class Local:
    """This machine.

    Args:
        folder: for submitit's files.
        jobs: at a time; None for one per GPU, or for one where there is no GPU.
        args: YOLOX's, for the device.
    """

    poll, patience = 1.0, 0.0

    def __init__(self, folder: Path, jobs: int | None, args: argparse.Namespace) -> None:
        self.gpus = gpu_groups(args)
        self.at_once = jobs or len(self.gpus) or 1
        self.environ: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        if self.at_once > 1 and not self.gpus and "OMP_NUM_THREADS" not in os.environ:
            # Each job would start a thread per core, and together they would be many times slower than one after the other.
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

    def submit(self, runs: list[PlannedTraining]) -> None:
        """Start the jobs of these runs."""
        executor = submitit.LocalExecutor(self.folder, python=python_command())
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
                run.job = executor.submit(
                    TrainingJob(
                        run.words, str(run.folder.absolute()), os.getcwd(), environ, _PACKAGE, sweep=os.getpid()
                    )
                )
            finally:
                signal.signal(signal.SIGINT, before)

    def refresh(self) -> None:
        """Nothing to ask."""

    def waiting(self, run: PlannedTraining) -> str | None:
        """A local job starts at once."""
        return None

    def has_ended(self, run: PlannedTraining) -> bool:
        """Whether the job's process is gone."""
        if not run.job.done():
            return False
        self.in_use.pop(run.name, None)
        return True

    def cancel(self, runs: list[PlannedTraining]) -> None:
        """Tell the jobs to stop."""
        for run in runs:
            if not run.job.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(run.job.job_id), signal.SIGTERM)  # submitit's own cancel sends what is ignored


def gpu_groups(args: argparse.Namespace) -> list[str]:
    """The GPUs of this machine as values of CUDA_VISIBLE_DEVICES, one GPU per job (``-d N``: N per job); none without CUDA.

    Raises:
        KitError: no such device, more GPUs per job than there are.
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
        if "%" in str(folder.absolute()):
            raise ConfigError(
                f"{str(folder)!r}: sbatch replaces %j, %A, %a and %t in the names of files. Choose an -expn and an output_dir "
                "without '%'."
            )
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
        # A job is requeued as often as it takes, while it makes progress (see TrainingJob.checkpoint).
        self.executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6, python=python_command())
        self.executor.update_parameters(
            job_name=name, time=self.minutes, stderr_to_stdout=True, additional_parameters={"requeue": True},
            **{key: value for key, value in given.items() if value is not None},
        )  # fmt: skip
        self.jobs, self.name = options.jobs, name
        self.file = folder / "slurm_jobs.json"
        self.ids: dict[str, str] = _read_ids(self.file)
        self.queue: dict[str, tuple[str, str]] = {}
        self.missed: dict[str, int] = {}
        self.submitted: set[str] = set()

    def describe(self) -> str:
        """Where and how many at a time."""
        many = "" if self.jobs is None else f"{self.jobs} at a time "
        return f"{many}on Slurm, {self.minutes} minutes per job"

    def submit(self, runs: list[PlannedTraining]) -> None:
        """Queue the jobs of these runs."""
        jobs = [
            TrainingJob(run.words, str(run.folder.absolute()), os.getcwd(), {}, _PACKAGE, self.minutes) for run in runs
        ]
        try:
            submitted = self.executor.submit_array(jobs)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise RunError(f"Slurm did not take the jobs: {str(error).strip()}") from error
        for run, job in zip(runs, submitted, strict=True):
            run.job = job
            self.ids[run.name] = job.job_id
            self.submitted.add(job.job_id)
            self.queue[job.job_id] = ("PENDING", "submitted")
        try:
            write_atomically(self.file, json.dumps(self.ids, indent=2).encode())
        except BaseException:  # the next sweep would not know of these jobs, and queue them a second time
            self.cancel(runs)
            raise

    def attach(self, runs: list[PlannedTraining]) -> None:
        """Find the jobs that an earlier sweep left in the queue."""
        self.refresh()
        for run in runs:
            if run.todo != "skip" and self.ids.get(run.name) in self.queue:
                run.todo, run.old_stamp = "attach", None
                run.job = submitit.SlurmJob(self.executor.folder, self.ids[run.name])

    def refresh(self) -> None:
        """Ask for the state of the user's jobs; submitit asks sacct, which not every cluster has."""
        command = ["squeue", "--me", "--array", "--noheader", "--format", "%i|%T|%r|%j"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return
        if done.returncode:
            return  # the controller is busy; the next time then
        lines = [line.strip().split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3]
        # The ids come from a file in the sweep's folder: a job of another name is another's, and is left alone.
        self.queue = {number: (state, reason) for number, state, reason, name in lines if name == self.name}
        self.missed = {
            number: self.missed.get(number, 0) + 1 for number in self.ids.values() if number not in self.queue
        }

    def waiting(self, run: PlannedTraining) -> str | None:
        """Why the job is not running."""
        state, reason = self.queue.get(run.job.job_id, ("", ""))
        return reason if state == "PENDING" else None

    def has_ended(self, run: PlannedTraining) -> bool:
        """Whether the job has left the queue."""
        return run.job.paths.result_pickle.exists() or self.missed.get(run.job.job_id, 0) > 1

    def cancel(self, runs: list[PlannedTraining]) -> None:
        """Tell Slurm to cancel those of the jobs that were queued just now, or are in the queue under this sweep's name."""
        for run in runs:
            if run.job.job_id in self.submitted or run.job.job_id in self.queue:
                run.job.cancel(check=False)


def _read_ids(file: Path) -> dict[str, str]:
    """Run -> the id of its job, as an earlier sweep wrote it down; nothing where there was none.

    Raises:
        RunError: the file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        ids = error
    if not JOB_IDS.is_right(ids):
        raise RunError(
            f"{file} is damaged: it is the name of each run with the id of its Slurm job; got {ids!r:.60}. Remove it when none "
            "of these jobs is in the queue any more (squeue --me)."
        )
    return dict(ids)
