"""Runs as `compare` takes them: read from their folders, held against each other, grouped by their losses."""

from __future__ import annotations

import glob
import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..specs.config import KEYS, LossConfig
from ..specs.labels import label_of
from ..specs.plain import plain
from ..specs.resolve import parts_of, resolve
from .differences import training_sizes
from .plain_yolox import LOG, read_plain
from .predictions import predictions_file
from .process import is_alive
from .record import read_metrics, read_run

OUTPUTS = Path("YOLOX_outputs")
BY = ("loss", *KEYS)
# Settings that change neither a weight nor a metric.
_IGNORED = ("output_dir", "exp_name", "print_interval", "data_num_workers", "save_history_ckpt", "seed")
# Compared by the hash of the annotations instead, or proven to give the same numbers.
_NOTED = ("data_dir", "train_ann", "val_ann", "test_ann", "loss_assign")
_ARGUMENTS = ("batch_size", "fp16", "start_epoch", "patience")
_WEIGHTS = "loss_weights()"  # of the experiment: part of the losses
# What the loss sees of the data. A user compares these with losses, so they are part of what is compared.
REMEDIES = ("ignore_crowd", "repeat_factor", "gt_score")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Run:
    """A run's folder, its record and the rows of its metrics.

    A run of plain YOLOX has a record too, made from what it left; what that cannot tell is missing there.
    """

    folder: Path
    record: dict[str, Any]
    rows: list[dict[str, float | None]]

    @property
    def name(self) -> str:
        """The folder's name, by which the run is called."""
        return self.folder.name

    @property
    def is_plain(self) -> bool:
        """Whether plain YOLOX made the run, so that its losses are unknown."""
        return self.record.get("losses") is None

    @property
    def seed(self) -> int | None:
        """The seed; None for a run of plain YOLOX that set none."""
        return self.record.get("seed")

    def evaluated(self) -> list[dict[str, float | None]]:
        """The rows of the epochs that were evaluated."""
        return [row for row in self.rows if row.get("AP") is not None]

    def last(self) -> dict[str, float | None]:
        """The row of the last epoch that was evaluated."""
        return self.evaluated()[-1]

    def best(self) -> dict[str, float | None]:
        """The row of the epoch with the best AP, the first of equals: the one that ``best_ckpt.pth`` comes from."""
        return max(self.evaluated(), key=lambda row: row["AP"] or 0.0)

    def end(self, metric: str) -> list[float]:
        """A metric in the last epochs that were evaluated one after the other, in their order; five at most."""
        values: list[float] = []
        for row, later in zip(reversed(self.evaluated()), [None, *reversed(self.evaluated())], strict=False):
            value = row.get(metric)
            if value is None or value < 0 or (later is not None and (later["epoch"] or 0) - (row["epoch"] or 0) != 1):
                break
            values.append(value)
        return values[:5][::-1]

    def predictions(self) -> Path | None:
        """What the last evaluation detected, if it was kept."""
        path = predictions_file(self.folder, int(self.last()["epoch"] or 0))
        return path if path.is_file() else None

    def seconds_per_iteration(self) -> float | None:
        """Training time of the median epoch over its batches."""
        seconds = sorted(row["seconds"] for row in self.rows if row.get("seconds") is not None)  # type: ignore[type-var]
        batches = self.record.get("batches_per_epoch")
        return float(seconds[len(seconds) // 2]) / batches if seconds and batches else None  # type: ignore[arg-type]

    def peak_memory(self) -> float | None:
        """In MiB: of the device on CUDA, of the process on the CPU."""
        return max((row["memory_mib"] for row in self.rows if row.get("memory_mib") is not None), default=None)  # type: ignore[type-var]


@dataclass(frozen=True)
class Group:
    """Runs that are repeats of each other, as far as the comparison goes: they differ in the seed only.

    ``units`` names each run's repeat: its seed, and with ``--by`` one term the losses of the others. The repeats of two
    groups that have the same name are a pair.
    """

    label: str
    runs: list[Run]
    units: list[str]


@dataclass
class Selection:
    """The runs that can be compared and what is to be said of the rest."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------------
# From words to runs.


def select(words: Sequence[str]) -> Selection:
    """The runs of a command line: folders, or globs, also of what lies in ``YOLOX_outputs``.

    Failed and unfinished runs are named and left out; so is what a glob finds besides runs.

    Raises:
        RunError: a folder that was named and is no run, or cannot be read.
    """
    selection = Selection()
    seen: set[Path] = set()
    for word in words:
        for path, named in folders(word):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                run = read(path)
            except RunError as error:
                if named:
                    raise
                selection.left_out.append(f"{path.name}: {error}")
                continue
            why = _unfit(run)
            if why is None:
                selection.runs.append(run)
            else:
                selection.left_out.append(f"{run.name}: {why}")
    names = [run.name for run in selection.runs]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise RunError(f"Two of the folders are called {twins[0]}; rename one, or the table could not tell them apart.")
    return selection


def folders(word: str) -> list[tuple[Path, bool]]:
    """The folders that a word stands for, and whether it names them one by one.

    Args:
        word: a folder or a glob, also of what lies in ``YOLOX_outputs``.

    Raises:
        RunError: there is none.
    """
    for candidate in (Path(word), OUTPUTS / word):
        if candidate.is_dir():
            return [(candidate, True)]
    if not glob.has_magic(word):
        there = f" {OUTPUTS} holds: {', '.join(_run_names(OUTPUTS)) or 'no run'}." if OUTPUTS.is_dir() else ""
        raise RunError(f"There is no folder {word!r}, here or in {OUTPUTS}.{there}")
    found = sorted(glob.glob(word)) or sorted(glob.glob(str(OUTPUTS / word)))
    folders = [Path(path) for path in found if Path(path).is_dir()]
    if not folders:
        raise RunError(f"No folder fits {word!r}, here or in {OUTPUTS}.")
    return [(path, False) for path in folders]


def _run_names(folder: Path) -> list[str]:
    return sorted({path.parent.name for name in ("run.json", LOG) for path in folder.glob(f"*/{name}")})


def read(folder: Path) -> Run:
    """A run by its folder.

    Raises:
        RunError: no run, or a record that cannot be read.
    """
    record = read_run(folder)
    if record is not None:
        if not isinstance(record.get("resolved_losses"), dict) or not isinstance(record.get("exp"), dict):
            raise RunError(f"{folder / 'run.json'} is cut off or was edited: it has no 'resolved_losses' or no 'exp'.")
        rows = read_metrics(folder)
        _check_rows(folder, record, rows)
        return Run(folder, record, rows)
    made_without_the_kit = read_plain(folder)
    if made_without_the_kit is not None:
        return Run(folder, *made_without_the_kit)
    inside = _run_names(folder)
    if inside:
        raise RunError(
            f"{str(folder)!r} is no run but holds some: {', '.join(inside)}. Say '{folder}/*' for all of them."
        )
    raise RunError(f"{str(folder)!r} is no run: it has neither a run.json nor YOLOX's {LOG}.")


def _check_rows(folder: Path, record: dict[str, Any], rows: Sequence[Any]) -> None:
    """Refuse a table that lacks epochs, which a run that has ended has written down.

    Raises:
        RunError: so many rows, so many epochs.
    """
    done = record.get("epochs_done")
    # An end between an epoch's row and its checkpoint leaves a row more.
    more = 0 if record["status"] == "finished" else 1
    if record["status"] != "running" and done is not None and not done <= len(rows) <= done + more:
        raise RunError(
            f"{folder / 'metrics.csv'} is cut off or was edited: it has {len(rows)} rows, and run.json tells of {done} epochs. "
            "Copy the run anew."
        )


def may_be_alive(record: dict[str, Any]) -> bool:
    """Whether a run that says it is running may be so; of another machine nobody here knows."""
    here = record.get("machine") == socket.gethostname()
    return not here or is_alive(record.get("pid"), record.get("pid_born"))


def _unfit(run: Run) -> str | None:
    """Why a run cannot be compared, if so."""
    status, epochs = run.record["status"], run.record.get("exp", {}).get("max_epoch", "?")
    if status == "failed":
        return f"failed after epoch {len(run.rows)} of {epochs} ({run.record.get('error') or 'no reason recorded'})"
    if status != "finished":
        done = f"after epoch {len(run.rows)} of {epochs}"
        if status == "running" and may_be_alive(run.record):
            return f"{status} {done}"
        return f"{'killed' if status == 'running' else status} {done}; --resume would finish it"
    if not run.evaluated():
        return "finished without an evaluation"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# What makes a run what it is.


def facts(run: Run) -> dict[str, Any]:
    """Everything besides losses and seed that moves a result; what a run of plain YOLOX cannot tell is `UNKNOWN`."""
    record = run.record
    known: dict[str, Any] = {}
    known.update(
        {key: value for key, value in record.get("exp", {}).items() if key not in (*_IGNORED, *_NOTED, *REMEDIES)}
    )
    known["random_size"] = training_sizes(record.get("exp", {})) or UNKNOWN
    args = record.get("args") or {}
    known.update(
        {name: args.get(key) for key, name in zip(_ARGUMENTS, ("-b", "--fp16", "-e", "--patience"), strict=True)}
    )
    known["-c"] = record.get("starting_weights") or (None if args.get("resume") else args.get("ckpt"))
    known.update({f"code of {name}": code for name, code in record.get("code", {}).items() if name != _WEIGHTS})
    known["workers"] = record.get("workers") or (args.get("devices") or 1) * (args.get("num_machines") or 1)
    resumed = record.get("resumed") or []
    inexact = [part for part in resumed if not (isinstance(part, dict) and part.get("exact"))]
    changed = [line for part in inexact if isinstance(part, dict) for line in part.get("changed", [])]
    known["resumed"] = "no" if not inexact else f"yes ({'; '.join(changed)})" if changed else "yes"
    host = record.get("host") or {}
    known["host"] = host.get("name", UNKNOWN)
    known["host's get_losses"] = host.get("get_losses", UNKNOWN)
    for split in ("train", "val"):
        sha = (record.get("data") or {}).get(split, {}).get("sha256")
        known[f"{split} annotations (sha256)"] = sha[:12] if sha else UNKNOWN
    return {key: plain(value) for key, value in known.items() if not (value is None and run.is_plain)}


def surroundings(run: Run) -> dict[str, Any]:
    """What may move the last digits: device and versions."""
    record = run.record
    known = {key: record.get(key) for key in ("device", "machine", "threads")}
    known.update({key: record.get("exp", {}).get(key) for key in _NOTED})
    known.update({f"{key} version": value for key, value in (record.get("versions") or {}).items()})
    return {key: plain(value) for key, value in known.items() if value is not None}


def differing(runs: Sequence[Run], of: Any) -> dict[str, list[str]]:
    """Fact -> its value in each run, for the facts (`facts` or `surroundings`) in which known values differ."""
    tables = [of(run) for run in runs]
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table.get(key, _absent(key, run)) for table, run in zip(tables, runs, strict=True)]
        known = {json.dumps(value, sort_keys=True) for value in values if value != UNKNOWN}
        if len(known) > 1:
            found[key] = [str(value) for value in values]
    return found


def _absent(key: str, run: Run) -> str:
    """What a run says of a fact that it does not tell: code of a function or class may not be needed, or not be recorded."""
    is_code = key.startswith("code of ")
    is_unknown = run.is_plain or (is_code and ("code" not in run.record or not key.endswith("()")))
    return UNKNOWN if is_unknown else "-"


def unknown(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Run of plain YOLOX -> the facts that the others tell and it does not."""
    told = dict.fromkeys(key for run in runs for key, value in facts(run).items() if value != UNKNOWN)
    return {
        run.name: ["losses", *(key for key in told if facts(run).get(key, UNKNOWN) == UNKNOWN)]
        for run in runs
        if run.is_plain
    }


# ---------------------------------------------------------------------------------------------------------------------
# Groups.


def group(runs: Sequence[Run], by: str = "loss") -> list[Group]:
    """Runs of the same losses together, or of the same loss of one term.

    Args:
        runs: to be grouped; those of plain YOLOX by their names without a trailing number.
        by: ``loss`` for all terms; ``loss_obj`` and so on for one, where a repeat is then a seed with the other terms' losses.

    Raises:
        RunError: two runs of a group with the same seed.
    """
    if by not in BY:
        raise RunError(f"--by is one of {', '.join(BY)}; got {by!r}.")
    terms = [by.removeprefix("loss_")] if by != "loss" else [key.removeprefix("loss_") for key in KEYS]
    members: dict[str, list[tuple[Run, str]]] = {}
    labels: dict[str, str] = {}
    for run in runs:
        resolved = run.record.get("resolved_losses") or {}
        if run.is_plain:
            key = label = f"{_stem(run.name)} (plain YOLOX, losses {UNKNOWN})"
            others = ""
        else:
            weights = run.record.get("code", {}).get(_WEIGHTS)
            more = [weights, remedies(run.record)] if by == "loss" else []
            key = json.dumps([*(resolved.get(term) for term in terms), *more], sort_keys=True)
            label = loss_label(run.record, terms, whole=by == "loss")
            rest = [term for term in resolved if term not in terms]
            others = "" if by == "loss" else " ".join(filter(None, (loss_label(run.record, rest, whole=True), weights)))
        if key not in labels:
            taken = [other for other in labels.values() if other == label or other.startswith(f"{label} #")]
            labels[key] = f"{label} #{len(taken) + 1}" if taken else label
        unit = UNKNOWN if run.seed is None else f"seed {run.seed}"
        members.setdefault(key, []).append((run, f"{unit}, {others}" if others else unit))
    groups = [
        Group(labels[key], [run for run, _ in pairs], [unit for _, unit in pairs]) for key, pairs in members.items()
    ]
    for repeats in groups:
        for unit in repeats.units:
            same = [run.name for run, other in zip(repeats.runs, repeats.units, strict=True) if other == unit]
            if unit != UNKNOWN and len(same) > 1:
                raise RunError(
                    f"{' and '.join(same)} are the same run twice: {repeats.label}, {unit}. Counted as two they would make the "
                    "differences look surer than they are; leave one out, or train with another seed."
                )
    return groups


def _stem(name: str) -> str:
    """A name without the number at its end, which tells repeats apart."""
    return re.sub(r"[-_.]?(seed|s|run)?[-_]?\d+$", "", name) or name


def remedies(record: dict[str, Any]) -> dict[str, Any]:
    """The settings for faulty data that a run was trained with: name -> value, without those that are off."""
    exp = record.get("exp", {})
    return {key: plain(exp[key]) for key in REMEDIES if exp.get(key)}


def _as_written(record: dict[str, Any], term: str, resolved: Any) -> Any:
    """The resolved loss with its numbers per class as the experiment wrote them: by name, or by a word such as ``inverse``."""
    try:
        written = parts_of(resolve(term, (record.get("losses") or {}).get(f"loss_{term}", resolved)))
    except ConfigError:  # of a class that is not registered here
        return resolved
    parts = parts_of(resolved)
    if [part["type"] for part in written] != [part.get("type") for part in parts]:
        return resolved
    told = [
        {key: other[key] if isinstance(value, list) and isinstance(other.get(key), (str, dict)) else value
         for key, value in part.items()}
        for part, other in zip(parts, written, strict=True)
    ]  # fmt: skip
    return told if len(told) > 1 else told[0]


def loss_label(record: dict[str, Any], terms: Sequence[str], whole: bool) -> str:
    """The losses of these terms in a few words: those that are not stock's, with the knobs that are not their default.

    Args:
        record: of a run.
        terms: to be named.
        whole: name also the element weights of the experiment (`yolox_loss_patch.LossExp`) and the settings for faulty data.
    """
    stock = LossConfig().resolved()
    parts = []
    for term in terms:
        resolved = record["resolved_losses"].get(term) or {}
        if resolved and plain(resolved) != plain(stock[term]):
            parts.append(f"{term} {label_of(term, _as_written(record, term, resolved))}")
    if whole and _WEIGHTS in record.get("code", {}):
        parts.append(_WEIGHTS)
    if whole:
        parts += [key if value is True else f"{key}={value}" for key, value in remedies(record).items()]
    return " + ".join(parts) or "stock"
