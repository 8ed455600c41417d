"""The table of a sweep on the screen: redrawn in place on a terminal, a line for each change in a log file."""

from __future__ import annotations

import shutil
import sys
import time

from tabulate import tabulate

from .training import PlannedTraining, duration


class Screen:
    """The table of the runs: redrawn in place on a terminal, a line for each change elsewhere."""

    header = ("run", "status", "epoch", "AP last", "AP best", "time", "ETA")

    def __init__(self) -> None:
        self.in_place = sys.stdout.isatty()
        self.drawn: list[str] = []
        self.told: dict[str, str] = {}

    def show(self, runs: list[PlannedTraining]) -> None:
        """Print what has changed since the last call."""
        if self.in_place:
            self._redraw([*self._rows(runs), _summary(runs)])
            return
        for run in runs:
            name, state, epoch, last, best, spent, left = run.cells()
            change = f"{state} {epoch}"
            if name not in self.told and state in ("queued", "finished"):
                self.told[name] = change  # the line above the table has said so
            if self.told.get(name) != change:
                self.told[name] = change
                known = [] if last == "-" else [f"AP last {last}, best {best}"]
                known += [] if spent == "-" else [f"time {spent}"]
                known += [] if left == "-" else [f"ETA {left}"]
                print(f"{time.strftime('%H:%M:%S')} {name}: {', '.join([state, f'epoch {epoch}', *known])}", flush=True)

    def end(self, runs: list[PlannedTraining]) -> None:
        """Print the whole table."""
        print(f"{self._clear()}\n{self.table(runs)}\n", flush=True)

    def table(self, runs: list[PlannedTraining]) -> str:
        """The table with a row per training."""
        return tabulate([run.cells() for run in runs], self.header, disable_numparse=True)

    def _rows(self, runs: list[PlannedTraining]) -> list[str]:
        """The rows that fit on the terminal: where there are too many, those in training come first."""
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
        """The control characters that remove the drawn table: up to its first line, then clear to the end of the screen."""
        lines, self.drawn = len(self.drawn), []
        return f"\x1b[{lines}F\x1b[J" if lines else ""


def _summary(runs: list[PlannedTraining]) -> str:
    states = [run.state.split(" ")[0] for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    paces = [pace for pace in (run.seconds_per_epoch() for run in runs) if pace is not None]
    open_runs = [run for run in runs if run.state not in ("finished", "failed")]
    if not open_runs or not paces:
        return counts
    epochs = sum(run.max_epoch - run.epochs for run in open_runs)
    left = epochs * sum(paces) / len(paces) / max(1, states.count("running"))
    return f"{counts}; about {duration(left)} left"
