"""Runs that are trained elsewhere, looked at: progress, time left and curves in the terminal. Nothing is written."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..errors import ConfigError, RunError
from ..printing import printable
from ..runs.record import read_metrics, read_run
from ..runs.selection import folders, may_be_alive
from .screen import Screen
from .training import PlannedTraining

_BARS = "▁▂▃▄▅▆▇█"
_HEADER = (*Screen.header, "AP", "total loss")


def watch(words: Sequence[str], once: bool = False, every: float = 5.0) -> None:
    """Show runs, or all runs of a sweep, until none is in training any more: progress, time left, curves. Read-only.

    Args:
        words: folders of runs, names of what lies in ``YOLOX_outputs``, globs, or the folder of a sweep (``NAME-sweep``).
        once: show them once.
        every: seconds between two looks.

    Raises:
        ConfigError: fewer than 0.5 seconds.
        RunError: there is no such folder.
    """
    if every < 0.5:
        raise ConfigError(f"--every is at least 0.5 seconds; got {every:g}.")
    in_place = sys.stdout.isatty() and not once
    drawn = 0
    while True:
        rows = [row(folder) for folder in runs_of(words)]
        text = tabulate(rows, _HEADER, disable_numparse=True)
        lines = [line[: shutil.get_terminal_size().columns - 1] for line in text.splitlines()] if in_place else [text]
        print((f"\x1b[{drawn}F\x1b[J" if drawn else "") + "\n".join(lines), flush=True)
        if once or not any(each[1] in ("running", "starting") for each in rows):
            return
        drawn = len(lines) if in_place else 0
        time.sleep(every)


def runs_of(words: Sequence[str]) -> list[Path]:
    """The folders of the runs that words stand for, each once.

    Raises:
        RunError: there is none.
    """
    found: dict[Path, None] = {}
    for word in words:
        for folder, is_named in folders(word):
            if (folder / "run.json").is_file() or (is_named and not folder.name.endswith("-sweep")):
                found[folder] = None
            elif folder.name.endswith("-sweep"):
                stem = folder.name.removesuffix("-sweep")
                found.update(
                    dict.fromkeys(sorted(path for path in folder.parent.glob(f"{stem}*-seed*") if path.is_dir()))
                )
    if not found:
        raise RunError(f"There is no run in {', '.join(map(repr, words))} yet.")
    return list(found)


def row(folder: Path) -> list[str]:
    """A line of the table: how far a run is, and its curves."""
    try:
        record, rows = read_run(folder), read_metrics(folder)
    except RunError as error:
        return [printable(folder.name), f"cannot be read: {printable(str(error))}", *[""] * (len(_HEADER) - 2)]
    if record is None:
        return [printable(folder.name), "starting", *["-"] * (len(_HEADER) - 2)]
    status = record["status"]
    if status == "running" and not may_be_alive(record):
        status = "killed"
    run = PlannedTraining(printable(folder.name), folder, [], int(record.get("exp", {}).get("max_epoch") or 0))
    run.state, run.rows, run.epochs = status, rows, int(record.get("epochs_done") or 0)
    curves = [[value for each in rows if (value := each.get(name)) is not None] for name in ("AP", "total_loss")]
    return [*run.cells(), *map(spark, curves)]


def spark(values: Sequence[float], width: int = 24) -> str:
    """A curve in a line of text: of so many values the last of each stretch, from the lowest to the highest bar."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return "-"
    step = max(1, -(-len(finite) // width))
    shown = [finite[min(end, len(finite)) - 1] for end in range(step, len(finite) + step, step)]
    low, high = min(shown), max(shown)
    place: Any = (lambda value: (value - low) / (high - low)) if high > low else (lambda value: 0.0)
    return "".join(_BARS[round(place(value) * (len(_BARS) - 1))] for value in shown)
