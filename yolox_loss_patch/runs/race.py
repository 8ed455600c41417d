"""The plan of a race: a sweep that looks at its verdicts after so many seeds, and stops where it knows.

The plan is written before the first training, and is read by whoever judges the runs: looks that were planned share the error,
and seeds that were not planned are no evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RunError
from .files import write_atomically
from .schema import RACE, check_fields

PLAN = "race.json"


@dataclass(frozen=True)
class Race:
    """A planned race.

    Attributes:
        path: of the plan.
        looks: after how many seeds the verdicts are looked at, rising; the last is the number of seeds.
        settings: setting -> the names of its runs, in the order of the seeds.
        metric: that decides.
        margin: differences smaller than this count as equal.
    """

    path: Path = field(compare=False)
    looks: tuple[int, ...]
    settings: dict[str, list[str]]
    metric: str
    margin: float

    def write(self) -> None:
        """Write the plan, or find it written.

        Raises:
            RunError: another race was planned here, or the file cannot be written.
        """
        if self.path.is_file():
            before = read_race(self.path)
            if before != self:
                raise RunError(
                    f"{self.path} holds the plan of another race (looks {_told(before.looks)}, {len(before.settings)} settings). "
                    "A plan is not changed once it was looked at: give this race another name with -expn, or remove the file "
                    "if nothing was trained by it."
                )
            return
        facts = {"looks": list(self.looks), "settings": self.settings, "metric": self.metric, "margin": self.margin}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def setting_of(self, run: str) -> str | None:
        """The setting that a run belongs to, None for a run that was not planned."""
        return next((setting for setting, runs in self.settings.items() if run in runs), None)

    def setting_of_group(self, runs: Iterable[str]) -> str | None:
        """The setting of a group's runs, those that were not planned aside; None where there is none or several."""
        settings = {setting for run in runs if (setting := self.setting_of(run)) is not None}
        return settings.pop() if len(settings) == 1 else None

    def unplanned(self, runs: Iterable[str]) -> list[str]:
        """Those of a group's runs that stand in no place of the plan."""
        return [run for run in runs if self.setting_of(run) is None]


def read_race(path: Path) -> Race:
    """The plan in a file.

    Raises:
        RunError: the file is damaged.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as the plan of a race ({error}).") from error
    if not isinstance(facts, dict) or not facts.keys() >= RACE.keys():
        raise RunError(f"{path} is no plan of a race: it needs {', '.join(RACE)}.")
    check_fields(path, facts, RACE)
    return Race(path, tuple(facts["looks"]), facts["settings"], facts["metric"], facts["margin"])


def find_race(folders: Sequence[Path]) -> Race | None:
    """The race that runs belong to; None where they belong to none.

    Args:
        folders: of the runs. The plan lies beside them, in the folder of the sweep.

    Raises:
        RunError: the plan is damaged, or the runs belong to several.
    """
    names = {folder.name for folder in folders}
    paths = {
        path.resolve() for parent in {folder.parent for folder in folders} for path in parent.glob(f"*-sweep/{PLAN}")
    }
    found = [
        race
        for race in map(read_race, sorted(paths))
        if names & {run for runs in race.settings.values() for run in runs}
    ]
    if len(found) > 1:
        raise RunError(
            f"The runs belong to {len(found)} races: {', '.join(str(race.path) for race in found)}. Compare those of one race."
        )
    return found[0] if found else None


def _told(looks: Sequence[int]) -> str:
    return ", ".join(map(str, looks))
