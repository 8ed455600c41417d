"""One planned training of a sweep: the command that trains it, what is to be done for it, and how far it is."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..runs.claim import owner_of
from ..runs.record import read_metrics, read_run
from .job import SCREEN


@dataclass(eq=False)
class PlannedTraining:
    """One training of a sweep, and how far it is.

    Attributes:
        name: of the run and of its folder.
        folder: of the run.
        words: of ``yolox-loss train``, without ``--resume``.
        max_epoch: epochs of the whole training.
        setting: the name without the seed, which the repeats of a setting share.
        todo: ``train``, ``resume``, ``skip`` (finished), ``attach`` (its job is in Slurm's queue) or ``wait`` (another
            process trains it).
        state: what the table shows.
        job: submitit's, None before it is submitted.
        epochs: finished so far.
        rows: of ``metrics.csv``.
        old_stamp: time of a record that an earlier job wrote.
        old_log: bytes of the log that an earlier job wrote.
        ended: when the job's process was found gone.
        since: when this job was first seen in training, and the epochs that were finished then.
        pace: seconds per epoch in this job, evaluations included.
    """

    name: str
    folder: Path
    words: list[str]
    max_epoch: int
    setting: str = ""
    todo: str = "train"
    state: str = "queued"
    job: Any = None
    epochs: int = 0
    rows: list[dict[str, float | None]] = field(default_factory=list)
    old_stamp: str | None = None
    old_log: int = 0
    ended: float | None = None
    since: tuple[float, int] | None = None
    pace: float | None = None

    def command(self) -> str:
        """What a user would type to train this run."""
        return shlex.join(["yolox-loss", "train", *(["--resume"] if self.todo == "resume" else []), *self.words])

    def plan(self) -> None:
        """Find out what is to be done, from what is in the folder."""
        record = self.read()
        self.old_stamp = record.get("updated")
        if record.get("status") == "finished":
            self.todo, self.state = "skip", "finished"
        elif is_in_training(self.folder):
            self.todo = "wait"
        else:
            self.todo = "resume" if (self.folder / "latest_ckpt.pth").is_file() else "train"

    def read(self) -> dict[str, Any]:
        """The record, {} where there is none yet; takes the epochs and metrics over from it."""
        record = read_run(self.folder) or {}
        try:
            self.rows = read_metrics(self.folder)
        except RunError:  # the training, or the comparison, will say what is wrong with the file
            self.rows = []
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

    def seconds_per_epoch(self) -> float | None:
        """As seen in this job, else as the record tells."""
        if self.pace is not None:
            return self.pace
        seconds = [row["seconds"] or 0.0 for row in self.rows]
        return sum(seconds) / len(seconds) if seconds else None

    def cells(self) -> list[str]:
        """The row of this training in the table."""
        found = [row["AP"] for row in self.rows if row.get("AP") is not None]
        pace = self.seconds_per_epoch()
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


def is_in_training(folder: Path) -> bool:
    """Whether a process, of this machine or of another, holds a run's folder."""
    owner = owner_of(folder)
    return owner is not None and not owner.is_gone


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
