"""Runs of plain YOLOX, without the kit, read from what they leave: the log, TensorBoard's events, checkpoints."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..specs.plain import BUILT, plain
from .checkpoint import load_checkpoint
from .predictions import read_evaluations
from .record import COLUMNS, LOSS_COLUMNS

LOG = "train_log.txt"

Row = dict[str, float | None]
# Tag -> step -> the values written for it, in the order of writing: a restarted run writes a step again.
Events = dict[str, dict[int, list[float]]]

_HEADER = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{3})?) \| [A-Z]+ *\| \S+ - ")
_EPOCH = re.compile(r"---> start train epoch(\d+)\n")  # with its end: of 12 that was cut off, 1 may be left
_ITERATION = re.compile(r"epoch: (\d+)/(\d+), iter: (\d+)/(\d+), .*, ETA: ")
_NUMBER = re.compile(rf"\b({'|'.join(LOSS_COLUMNS)}|lr): ([^\s,]+)")
_MEMORY = re.compile(r"\bmem: (\d+)Mb")
_SUMMARY = re.compile(
    r"Average (?:Precision|Recall) +\((AP|AR)\) @\[ IoU=(\S+) +\| area= *(\w+) \| maxDets=100 \] = (-?\d\.\d{3})$"
)
_METRICS = {
    ("AP", "0.50:0.95", "all"): "AP", ("AP", "0.50", "all"): "AP50", ("AP", "0.75", "all"): "AP75",
    ("AP", "0.50:0.95", "small"): "AP_small", ("AP", "0.50:0.95", "medium"): "AP_medium",
    ("AP", "0.50:0.95", "large"): "AP_large", ("AR", "0.50:0.95", "all"): "AR",
}  # fmt: skip
_TAGS = {"AP": "val/COCOAP50_95", "AP50": "val/COCOAP50"}
# The last line of a traceback: the exception's name in full, with what it says.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?$")


def read_plain(folder: Path) -> tuple[dict[str, Any], list[Row]] | None:
    """A run that has no record of the kit, in the form of one.

    What such a run cannot tell is unknown: None in the record for its losses, its seed when the experiment set none, and
    other single facts; empty for host, versions, the losses' resolved form and the data, unless ``eval --save`` looked at
    the data. Times are the machine's local ones, as in the log.

    Args:
        folder: of the run, such as ``YOLOX_outputs/NAME``.

    Returns:
        The record, with the keys of ``run.json``, and the rows of the finished epochs, with the columns of ``metrics.csv``
        that are known: losses and learning rate from the lines that were printed, to the digits of TensorBoard where it has
        them; AP to its digits too, else to the log's three. None: the folder is no run of YOLOX.

    Raises:
        RunError: a file of the run cannot be read.
    """
    path = folder / LOG
    log = _Log()
    try:
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                for time, text in _messages(file):
                    log.add(time, text)
        checkpoints = list(folder.glob("*_ckpt.pth"))
        events = _events(folder)
    except OSError as error:
        raise RunError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    if log.starts == 0 and not checkpoints and not any(tag in events for tag in _TAGS.values()):
        return None
    if log.starts:
        record = log.record()
        rows = [_row(epoch, events) for _, epoch in sorted(log.epochs.items()) if epoch.trained is not None]
    else:
        record, rows = _without_log(folder, events)
    evaluations = read_evaluations(folder)
    for evaluation in evaluations:
        row = next((row for row in rows if row["epoch"] == evaluation["epoch"]), None)
        if row is None and not log.starts:  # with a log, an epoch that is not in it is of an earlier run in this folder
            row = {"epoch": evaluation["epoch"]}
            rows.append(row)
        if row is not None:
            row.update(evaluation["metrics"])
            record["data"] = evaluation.get("data", {})
    rows = sorted(({name: row.get(name) for name in COLUMNS} for row in rows), key=lambda row: row["epoch"] or 0)
    measured = [row["AP"] for row in rows if row["AP"] is not None]
    record["best_ap"] = max(measured, default=record["best_ap"])
    return record, rows


def _facts() -> dict[str, Any]:
    """A record of which nothing is known."""
    unknown = ("error", "started", "updated", "ended", "command", "losses", "seed", "device", "threads", "machine",
               "batches_per_epoch", "best_ap")  # fmt: skip
    empty = ("resolved_losses", "exp", "args", "host", "versions", "data")
    return {"status": "interrupted", **dict.fromkeys(unknown), **{key: {} for key in empty}, "epochs_done": 0}


def _without_log(folder: Path, events: Events) -> tuple[dict[str, Any], list[Row]]:
    """What checkpoints and TensorBoard tell without the log: epochs and AP."""
    record = {**_facts(), "error": f"there is no {LOG} that tells how the run ended"}
    # YOLOX saves the latest one before the evaluation.
    for key, name, kind, known in (
        ("epochs_done", "start_epoch", int, "latest"),
        ("best_ap", "best_ap", float, "best"),
    ):
        # No such file, or cut off while it was written: YOLOX does not replace it as a whole.
        with contextlib.suppress(RunError, KeyError):
            record[key] = kind(load_checkpoint(folder / f"{known}_ckpt.pth")[name])
    steps = sorted({step for tag in _TAGS.values() for step in events.get(tag, {})})
    rows: list[Row] = [
        {"epoch": step, **{name: events.get(tag, {}).get(step, [None])[-1] for name, tag in _TAGS.items()}}
        for step in steps
    ]
    record["epochs_done"] = max([record["epochs_done"], *steps])
    return record, rows


# ---------------------------------------------------------------------------------------------------------------------
# The log.


def _messages(lines: Iterable[str]) -> Iterator[tuple[datetime, str]]:
    """The messages of a log with their times. One that was cut off by a kill may end in the middle of its line."""
    time, parts = None, [""]
    for line in lines:
        line = line.replace("\0", "")  # what a power cut leaves
        place = 0
        for header in _HEADER.finditer(line):
            parts.append(line[place : header.start()])
            if time is not None:
                yield time, "".join(parts)
            time, parts, place = datetime.fromisoformat(header[1]), [], header.end()
        parts.append(line[place:])
    if time is not None:
        yield time, "".join(parts)


@dataclass
class _Epoch:
    """An epoch as the log tells it.

    ``lines`` are the printed iterations: (step as TensorBoard counts it, values). ``metrics`` is None before the evaluation
    and empty when the log does not tell what came out.
    """

    number: int
    started: datetime
    saves: int = 0
    trained: datetime | None = None
    lines: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    memory: float | None = None
    metrics: dict[str, float] | None = None


class _Log:
    """A log, message by message. Several starts in one log are one run when the later ones resume it."""

    def __init__(self) -> None:
        self.starts = 0
        self.args: dict[str, Any] = {}
        self.exp: dict[str, Any] = {}
        self.epochs: dict[int, _Epoch] = {}
        self.current: _Epoch | None = None
        self.resumed: list[dict[str, Any]] = []
        self.error: str | None = None
        self.said_done = False
        self.started: datetime | None = None
        self.last: datetime | None = None
        self.max_epoch: int | None = None
        self.max_iter: int | None = None

    def add(self, time: datetime, text: str) -> None:
        """Take in the next message."""
        line = text.partition("\n")[0]
        if "Traceback (most recent call last)" in text or line.startswith("An error has been caught"):
            self.error = _exception(text)
        elif line.startswith("args: "):
            self._start(time, line)
        elif line.startswith("exp value:"):
            self.exp = _table(text)
            self.max_epoch = _whole(self.exp.get("max_epoch"))
        elif match := _EPOCH.match(text):
            number = int(match[1])
            self.starts = self.starts or 1  # the log's beginning is lost
            # What came from here on before is done again.
            self.epochs = {key: epoch for key, epoch in self.epochs.items() if key < number}
            self.current = self.epochs[number] = _Epoch(number, time)
        elif (match := _ITERATION.match(line)) and self.current is not None:
            self._iteration(line, *map(int, match.groups()))
        elif line.startswith("Save weights to ") and self.current is not None:
            self._saved(time, self.current)
        elif "Average forward time: " in text and self.current is not None:
            self.current.metrics = _summary(text)
        elif line.startswith("Training of experiment is done"):
            self.said_done = True
        elif line.startswith("Exception in training"):
            self.error = "an exception in training; the log does not tell which"
        self.last = time

    def _start(self, time: datetime, line: str) -> None:
        args = _namespace(line.removeprefix("args: "))
        if args.get("resume"):
            was = self.status()[0] if self.starts else None
            self.resumed.append({"epoch": self._done() if self.starts else None, "was": was})
        else:
            self.epochs, self.resumed, self.started = {}, [], None
        self.starts += 1
        self.args, self.current, self.error, self.said_done = args, None, None, False
        self.started = self.started or time

    def _iteration(self, line: str, epoch: int, max_epoch: int, iteration: int, max_iter: int) -> None:
        if self.current is None or epoch != self.current.number:
            return
        self.max_epoch, self.max_iter = max_epoch, max_iter
        self.current.trained = None  # what was saved before was the checkpoint at the end of mosaic
        values = {}
        for name, text in _NUMBER.findall(line):
            try:
                values[name] = float(text)
            except ValueError:
                continue
        self.current.lines.append(((epoch - 1) * max_iter + iteration - 1, values))
        memory = _MEMORY.search(line)
        if memory and int(memory[1]):
            self.current.memory = max(self.current.memory or 0.0, float(memory[1]))

    def _saved(self, time: datetime, epoch: _Epoch) -> None:
        """YOLOX saves first of all when an epoch is trained; but before the first epoch without mosaic it saves too."""
        epoch.saves += 1
        no_aug = _whole(self.exp.get("no_aug_epochs"))
        saves_at_start = no_aug is not None and self.max_epoch is not None and epoch.number == self.max_epoch - no_aug
        if epoch.trained is None and epoch.saves > saves_at_start:
            epoch.trained = time

    def _done(self) -> int:
        return max((epoch.number for epoch in self.epochs.values() if epoch.trained is not None), default=0)

    def status(self) -> tuple[str, str | None]:
        """How the last start ended, and why if it did not come to the end.

        YOLOX says "Training of experiment is done" after an exception and Ctrl-C too, so that alone proves nothing.
        """
        if self.error is not None:
            return "failed", self.error
        if self.said_done and self._done() >= (self.max_epoch or 0):
            return "finished", None
        where = f"in epoch {self.current.number}" if self.current is not None else "before the first epoch"
        return "interrupted", f"the log ends {where} at {self.last}: stopped, killed or still running"

    def record(self) -> dict[str, Any]:
        """The log's facts in the form of a run record."""
        status, error = self.status()
        memory = any(epoch.memory for epoch in self.epochs.values())
        facts = {
            **_facts(),
            "status": status,
            "error": error,
            "started": _iso(self.started),
            "updated": _iso(self.last),
            "ended": None if status == "interrupted" else _iso(self.last),
            "exp": self.exp,
            "args": self.args,
            "seed": self.exp.get("seed"),
            "device": "cuda" if memory else None,  # the memory that YOLOX prints is CUDA's
            "batches_per_epoch": self.max_iter,
            "epochs_done": self._done(),
        }
        return {**facts, "resumed": self.resumed} if self.resumed else facts


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _iso(time: datetime | None) -> str | None:
    return time.isoformat(timespec="seconds") if time is not None else None


def _namespace(text: str) -> dict[str, Any]:
    """The values of a printed ``Namespace(...)``; nothing when it is cut off."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return {}
    if not isinstance(call, ast.Call):
        return {}
    return {word.arg: _value(word.value) for word in call.keywords if word.arg is not None}


def _table(text: str) -> dict[str, Any]:
    """The settings of a printed experiment: a box of keys and values, where a long value goes over several rows."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        key, bar, value = line[1:-1].partition("│")
        if line.startswith("│") and line.endswith("│") and bar:  # whole
            if key.strip():
                rows.append([key.strip(), value.strip()])
            elif rows:
                rows[-1][1] += "\n" + value.strip()
    return {key: _value(value) for key, value in rows[1:] if key not in BUILT}


def _value(printed: str | ast.expr) -> Any:
    """A printed value as the kit's record would hold it: a literal, else the text."""
    try:
        return plain(ast.literal_eval(printed))
    except (ValueError, SyntaxError):
        return printed if isinstance(printed, str) else ast.unparse(printed)


def _summary(text: str) -> dict[str, float]:
    """The metrics of COCO's printed summary."""
    found = {}
    for line in text.splitlines():
        match = _SUMMARY.match(line.strip())
        name = _METRICS.get((match[1], match[2], match[3])) if match else None
        if match and name:
            found[name] = float(match[4])
    return found


def _exception(text: str) -> str:
    """The exception of a traceback as one line; several that follow from each other end with the one that ended the run."""
    found, inside = "", False
    for line in text.splitlines()[1:]:
        if line[:1].isspace() or line.startswith("Traceback"):
            inside = True
        elif inside and _EXCEPTION.match(line):
            found, inside = line, False
    return found or "an error that the log does not name"


# ---------------------------------------------------------------------------------------------------------------------
# TensorBoard, which has the digits that the log rounds off.


def _events(folder: Path) -> Events:
    """TensorBoard's scalars; none where it is not installed or was not used."""
    # Before 0.3.0 YOLOX wrote them into the run's folder itself.
    files = sorted([*folder.glob("tensorboard/events.out.tfevents.*"), *folder.glob("events.out.tfevents.*")])
    if not files:
        return {}
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        return {}
    found: Events = {}
    for file in files:  # a file per start of the training
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0})  # 0: all of them
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(tag):
                found.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return found


def _exact(printed: float, tolerance: float, written: list[float]) -> float:
    """The printed value with all its digits: the last one written that rounds to it."""
    return next((value for value in reversed(written) if abs(value - printed) <= tolerance), printed)


def _row(epoch: _Epoch, events: Events) -> Row:
    row: Row = {"epoch": epoch.number}
    values: dict[str, list[float]] = {}
    for step, printed in epoch.lines:
        for name, value in printed.items():
            tolerance = 0.05001 if name != "lr" else 0.000501 * abs(value)
            values.setdefault(name, []).append(_exact(value, tolerance, events.get(f"train/{name}", {}).get(step, [])))
    for name in LOSS_COLUMNS:
        row[name] = sum(values[name]) / len(values[name]) if name in values else None
    row["lr"] = values["lr"][-1] if "lr" in values else None
    if epoch.trained is not None:
        row["seconds"] = (epoch.trained - epoch.started).total_seconds()
    row["memory_mib"] = epoch.memory
    if epoch.metrics is not None:
        row.update(epoch.metrics)
        for name, tag in _TAGS.items():
            written = events.get(tag, {}).get(epoch.number, [])
            if name in epoch.metrics:
                row[name] = _exact(epoch.metrics[name], 0.000501, written)
            elif written:  # no detection at all, or another evaluator than COCO's: the log prints no number then
                row[name] = written[-1]
    return row
