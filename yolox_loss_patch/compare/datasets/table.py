"""Runs on several data sets in one table: a row per loss, a column per set, and a verdict over all of them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...printing import in_csv, in_markdown, printable
from ...runs.files import write_atomically
from ...runs.selection import Run, select
from ..answers import interval_text, markdown, p_text, signed
from ..comparison import analyse
from ..results import Comparison
from ..statistics import CONFIDENCE, Difference, Interval, Part, equivalent_df, half_width, holm, p_value, verdict
from ..tables import remarks


@dataclass(frozen=True)
class Row:
    """A loss on all sets.

    Attributes:
        label: of the loss.
        found: set -> the difference to the baseline there and its verdict; None where the loss was not trained.
        together: over all sets; None where a set lacks the loss, where the baselines differ, and where `over_sets` has none.
        p_holm: of ``together``, over all losses.
        verdict: of ``together``.
    """

    label: str
    found: dict[str, tuple[Difference, str] | None]
    together: Difference | None
    p_holm: float | None = None
    verdict: str = "-"


def by_data(words: Sequence[str], out: str | None = None, **options: Any) -> str:
    """Compare runs on several data sets: each set by itself, and the mean over the sets.

    Args:
        words: folders of runs, or globs, of all sets.
        out: folder for ``datasets.md``, ``datasets.csv``, and a folder with the whole comparison for each set.
        **options: of `comparison.Options`.

    Returns:
        The table as Markdown.

    Raises:
        RunError: one data set only, or runs of a set that cannot be compared.
    """
    selection = select(words)
    comparisons = {
        name: analyse([str(run.folder) for run in runs], **options) for name, runs in sets_of(selection.runs).items()
    }
    rows = table_rows(comparisons)
    text = as_text(comparisons, rows, selection.left_out)
    if out is not None:
        from ..report import write  # matplotlib and jinja2 take a second

        for name, comparison in comparisons.items():
            write(comparison, Path(out) / name)
        write_atomically(Path(out) / "datasets.md", (text + "\n").encode())
        write_atomically(Path(out) / "datasets.csv", as_csv(rows).encode())
        text += f"\n\nWritten to {out}: datasets.md, datasets.csv, {', '.join(f'{name}/' for name in comparisons)}"
    return text


def sets_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Name of a data set -> its runs. A set is what was evaluated on; it is called as the folder of its data.

    Raises:
        RunError: one set only, or a run that does not tell what it was evaluated on.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        sha = ((run.record.get("data") or {}).get("val") or {}).get("sha256")
        if sha is None:
            raise RunError(f"{run.name} does not tell what it was evaluated on; --by data takes runs of the kit.")
        found.setdefault(sha, []).append(run)
    if len(found) < 2:
        raise RunError("--by data is for runs on several data sets; all of these were evaluated on one.")
    names: dict[str, list[Run]] = {}
    for members in found.values():
        folder = Path(
            str(members[0].record.get("exp", {}).get("data_dir") or members[0].record["data"]["val"].get("file", ""))
        )
        name = re.sub(r"[^\w.-]+", "_", folder.name).strip("._") or "data"  # also the name of a folder in --out
        number = sum(other == name or other.startswith(f"{name}-") for other in names)
        names[f"{name}-{number + 1}" if number else name] = members
    return names


def table_rows(comparisons: dict[str, Comparison]) -> list[Row]:
    """A row per loss, in the order in which they come."""
    told: dict[str, dict[str, tuple[Difference, str]]] = {}
    for name, comparison in comparisons.items():
        for result in comparison.results[1:]:
            if result.difference is not None:
                told.setdefault(result.label, {})[name] = (result.difference, result.verdict + result.difference.limits)
    margin = next(iter(comparisons.values())).margin
    # A mean of differences to different baselines would mean nothing.
    is_one_baseline = len({comparison.results[0].label for comparison in comparisons.values()}) == 1
    rows = []
    for label, found in told.items():
        known = [found[name][0] for name in comparisons if name in found]
        together = over_sets(known, margin) if is_one_baseline and len(known) == len(comparisons) else None
        rows.append(Row(label, {name: found.get(name) for name in comparisons}, together))
    adjusted = holm([None if row.together is None else row.together.p for row in rows])
    return [
        row
        if row.together is None
        else Row(row.label, row.found, row.together, p, verdict(row.together, p, margin) + row.together.limits)
        for row, p in zip(rows, adjusted, strict=True)
    ]


def over_sets(found: Sequence[Difference], margin: float) -> Difference | None:
    """The mean of the differences on these sets. The sets are taken as they are: nothing is said about a further one.

    Seeds and images of different sets have nothing to do with each other, so that the variances add up. None where a difference
    has no interval, and for races: each stopped by what it saw, and no plan covers their mean.
    """
    number = len(found)
    if any(each.interval is None or each.looks > 1 for each in found):
        return None
    mean = sum(each.mean for each in found) / number
    seeds = [
        Part((each.se_seeds or 0.0) ** 2 / number**2, each.seeds - 1) for each in found if each.se_seeds is not None
    ]
    images = [
        Part((each.se_images or 0.0) ** 2 / number**2, max((each.images or 2) - 1, 1))
        for each in found
        if each.se_images is not None
    ]
    parts = [*seeds, *images]
    reach, reach90 = half_width(parts, CONFIDENCE), half_width(parts, 0.9)
    inside = p_value(abs(margin - abs(mean)), parts) / 2
    return Difference(
        mean,
        sum(each.seeds for each in found),
        all(each.paired for each in found),
        sum(each.images or 0 for each in found) if len(images) == number else None,
        math.sqrt(sum(part.variance for part in seeds)) if len(seeds) == number else None,
        math.sqrt(sum(part.variance for part in images)) if len(images) == number else None,
        Interval(mean - reach, mean + reach),
        Interval(mean - reach90, mean + reach90),
        equivalent_df(parts),
        p_value(abs(mean), parts),
        inside if abs(mean) < margin else 1 - inside,
    )


def as_text(comparisons: dict[str, Comparison], rows: Sequence[Row], left_out: Sequence[str] = ()) -> str:
    """The table as Markdown, with what has to be said of each set before it."""
    told = [f"Left out: {text}." for text in left_out]
    told += [f"{name}: {text}" for name, comparison in comparisons.items() for text in remarks(comparison)]
    first = next(iter(comparisons.values()))
    several = len(rows) > 1
    header = ["", *comparisons, "mean of the sets", "p (Holm)" if several else "p", "verdict"]
    lines = [
        [row.label, *(_cell(row.found[name]) for name in comparisons), _mean(row), p_text(row.p_holm), row.verdict]
        for row in rows
    ]
    bases = ", ".join(f"{comparison.results[0].label} ({name})" for name, comparison in comparisons.items())
    before = "".join(f"{in_markdown(printable(line))}\n\n" for line in told)
    return (
        f"{before}{first.title}, difference to the baseline, on {len(comparisons)} data sets:\n\n{markdown(header, lines)}\n\n"
        f"Baselines: {bases}. Each set has its own interval and verdict, Holm over its losses. The last three columns are about "
        "the mean of these sets, with the seeds and images of all; a further data set may differ."
    )


def _cell(found: tuple[Difference, str] | None) -> str:
    return "-" if found is None else f"{signed(found[0].mean)} {interval_text(found[0].interval)} {found[1]}"


def _mean(row: Row) -> str:
    return "-" if row.together is None else f"{signed(row.together.mean)} {interval_text(row.together.interval)}"


def as_csv(rows: Sequence[Row]) -> str:
    """A row per loss and set, and one for the mean of the sets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "set", "difference", "low", "high", "p", "p_holm", "verdict", "seeds", "images"])
    for row in rows:
        cells: list[tuple[str, Difference, float | None, str]] = [
            (in_csv(name), found[0], None, found[1]) for name, found in row.found.items() if found is not None
        ]
        if row.together is not None:
            cells.append(("mean of the sets", row.together, row.p_holm, row.verdict))
        for name, told, p, said in cells:
            ends = (None, None) if told.interval is None else (told.interval.low, told.interval.high)
            writer.writerow([in_csv(row.label), name, told.mean, *ends, told.p, p, said, told.seeds, told.images])
    return text.getvalue()
