"""A sweep that stops when it knows: after the planned numbers of seeds, what is settled gets no further seeds."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..compare.comparison import analyse
from ..compare.results import Comparison
from ..compare.statistics import BETTER, EQUAL, MARGIN, WORSE, is_out_of_reach
from ..errors import ConfigError
from ..exp.overrides import setting_name
from ..runs.race import PLAN, Race
from ..runs.selection import BY, REMEDIES
from .training import PlannedTraining

LOOKS = (3, 5, 8, 12)


def looks_to_take(text: str | None, seeds: int) -> tuple[int, ...]:
    """``3,5,8`` as numbers, those below the number of seeds, and that number as the last look.

    Raises:
        ConfigError: no rising whole numbers from 2 on, or none that is reached.
    """
    if text is None:
        looks = [look for look in LOOKS if look < seeds]
    else:
        words = [word.strip() for word in text.split(",")]
        looks = [int(word) for word in words if re.fullmatch(r"[0-9]+", word)]
        if len(looks) != len(words) or looks != sorted(set(looks)) or looks[0] < 2:
            raise ConfigError(f"--looks is rising numbers of seeds from 2 on, as in 3,5,8; got {text!r}.")
        if looks[-1] > seeds:
            raise ConfigError(f"--looks goes to {looks[-1]} seeds, and --seeds has {seeds}.")
    if seeds < 2:
        raise ConfigError(f"A race takes at least 2 seeds; --seeds has {seeds}.")
    return (*(look for look in looks if look < seeds), seeds)


def check_keys(keys: Sequence[str]) -> None:
    """Refuse a race between settings that a comparison does not hold against each other, before anything is trained.

    Args:
        keys: of ``--set``.

    Raises:
        ConfigError: the key that is no loss.
    """
    for key in keys:
        name = setting_name(key).partition(".")[0]
        if name not in (*BY[1:], *REMEDIES):
            raise ConfigError(
                f"A race is between losses: --set takes {', '.join((*BY[1:], *REMEDIES))} and their knobs; got {key!r}. Give "
                "what is the same for all behind the flags, and sweep over other settings without --race."
            )


def plan_race(runs: Sequence[PlannedTraining], folder: Path, looks: Sequence[int]) -> Race:
    """The plan of a race over these runs.

    Args:
        runs: of the whole grid, those of a setting one after the other in the order of the seeds.
        folder: of the sweep.
        looks: from `looks_to_take`.

    Raises:
        ConfigError: there is one setting only.
    """
    settings: dict[str, list[str]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run.name)
    if len(settings) < 2:
        raise ConfigError("A race is between settings: give at least two with --set KEY=VALUE,VALUE.")
    return Race(folder / PLAN, tuple(looks), settings, "AP", MARGIN)


def run_race(
    runs: Sequence[PlannedTraining],
    race: Race,
    train: Callable[[list[PlannedTraining]], None],
    say: Callable[[str], None] = print,
) -> list[PlannedTraining]:
    """Train up to each look, look, and go on with what is not settled.

    Args:
        runs: of the whole grid.
        race: the plan.
        train: trains runs to their end; those that fail stay unfinished.
        say: prints a line.

    Returns:
        The runs that were wanted; the others were saved.
    """
    open_settings = list(race.settings)
    wanted: list[PlannedTraining] = []
    for number, look in enumerate(race.looks, 1):
        coming = [run for run in runs if run.name in _until(race, open_settings, look)]
        wanted += [run for run in coming if run not in wanted]
        train(coming)
        finished = [run for run in wanted if run.state == "finished"]
        # A loss of which a run failed is out of the race: what is left of it are the seeds that went well.
        open_settings = [
            setting
            for setting in open_settings
            if all(run.state == "finished" for run in coming if run.setting == setting)
        ]
        if len({run.setting for run in finished}) < 2 or not open_settings:
            break
        comparison = analyse([str(run.folder) for run in finished], metric=race.metric, margin=race.margin)
        base = race.setting_of_group([run.name for run in comparison.results[0].group.runs])
        settled = settled_settings(comparison, race)
        for setting, why in settled.items():
            if setting in open_settings:
                say(f"look {number} of {len(race.looks)}, {look} seeds: {setting} is settled: {why}")
        open_settings = [setting for setting in open_settings if setting not in settled]
        rivals = [setting for setting in open_settings if setting != base]
        if look == race.looks[-1] or not rivals:
            break
        say(f"look {number} of {len(race.looks)}, {look} seeds: {len(rivals)} open: {', '.join(rivals)}")
        if base is not None and base not in open_settings:
            break  # the baseline failed: nothing can be judged any more
    saved = len(runs) - len(wanted)
    say(f"{len(wanted)} of {len(runs)} trainings were needed; {saved} were saved.")
    return wanted


def _until(race: Race, settings: Sequence[str], look: int) -> set[str]:
    return {run for setting in settings for run in race.settings[setting][:look]}


def settled_settings(comparison: Comparison, race: Race) -> dict[str, str]:
    """The settings that need no further seeds, and why.

    Besides better, worse and equal: a loss that is shown not to be better by the margin, and one for which no verdict is to be
    expected. The verdict of both stays unclear, as nothing else is said about them.
    """
    found = {}
    for result in comparison.results[1:]:
        setting = race.setting_of_group([run.name for run in result.group.runs])
        told = result.difference
        if setting is None or told is None:
            continue
        if result.verdict in (BETTER, WORSE, EQUAL):
            found[setting] = result.verdict
        elif told.interval90 is not None and told.interval90.high < race.margin:
            found[setting] = f"not better by {100 * race.margin:g} AP or more"
        elif is_out_of_reach(told, race.looks[-1], race.margin):
            found[setting] = f"no verdict is in reach with {race.looks[-1]} seeds on these {told.images} images"
    return found
