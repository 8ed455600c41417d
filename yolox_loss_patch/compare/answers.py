"""The answers of a comparison in words: verdicts, what they stand on, what is missing, and the plan of seeds and images."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from ..errors import RunError
from ..printing import in_markdown, printable
from .results import Comparison, Result
from .statistics import (
    BETTER,
    EQUAL,
    UNCLEAR,
    WORSE,
    Components,
    Difference,
    Interval,
    detectable,
    images_needed,
    power,
    seeds_needed,
)

_SENTENCES = {
    BETTER: "better than {base}",
    WORSE: "worse than {base}",
    EQUAL: "equal to {base}",
    UNCLEAR: "unclear against {base}",
}


def answers(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The answer in words for each group but the baseline: its name, the verdict, what the verdict stands on."""
    base = comparison.results[0].label
    return [(result.label, *_answer(result, base, comparison)) for result in comparison.results[1:]]


def _answer(result: Result, base: str, comparison: Comparison) -> tuple[str, str]:
    found = result.difference
    words = _SENTENCES.get(result.verdict, result.verdict).format(base=base)
    if found is None:
        return words, ""
    parts = [f"{comparison.title} {signed(found.mean)}"]
    parts += [f"95% {interval_text(found.interval)}"] if found.interval else []
    parts += (
        [f"p {p_text(result.p_holm)}" + (f" (Holm, {comparison.tests} groups)" if comparison.tests > 1 else "")]
        if found.p is not None
        else []
    )
    parts.append(f"{found.seeds} seed{'s' * (found.seeds != 1)}" + ("" if found.paired else " per group, not paired"))
    parts += [f"{found.images} images"] if found.images else []
    if result.verdict == EQUAL and found.interval90:
        parts.append(f"the 90% interval {interval_text(found.interval90)} lies within {points(comparison.margin)}")
    elif result.verdict == UNCLEAR:
        if found.p is not None and found.p < 0.05:
            parts.append(
                f"alone it would count as a difference, but among {comparison.tests} groups chance explains it"
            )
        parts.append(missing(found, comparison))
    elif result.verdict in (BETTER, WORSE) and abs(found.mean) < comparison.margin:
        parts.append(f"less than {points(comparison.margin)}")
    if result.verdict != UNCLEAR and found.se_seeds is None:
        parts.append(
            "one seed: this holds for these two trainings on other images; nothing is known about training again"
        )
    if result.verdict != UNCLEAR and found.se_images is None and found.se_seeds is not None:
        parts.append("seeds only: nothing is known about other images")
    return words, ", ".join(part for part in parts if part)


def missing(found: Difference, comparison: Comparison) -> str:
    """What is missing for a verdict, as a sentence part: seeds, images, or that the images alone rule it out."""
    margin = points(comparison.margin)
    if found.interval is None:
        return "one seed and no detections: nothing is known about other seeds or images"
    if found.se_seeds is None:
        return "one seed: the interval holds other images only, nothing is known about training again; train three seeds or more"
    components = _components(found)
    if components is None:
        return ""
    tests = comparison.tests
    seeds = seeds_needed(components, components.number, comparison.margin, tests)
    if found.images is None:
        return f"{_more(seeds, found)} show a difference of {margin}; without detections nothing is known about other images"
    if seeds is not None and seeds <= found.seeds:
        return f"these seeds and images find a difference of {margin} in 8 of 10 cases; this one lies near the margin"
    images = images_needed(components, found.seeds, comparison.margin, tests)
    on_more = "" if images is None else f", or these seeds on about {_two_digits(images)} images"
    if seeds is None:
        return (
            f"the {found.images} images alone rule it out: no number of seeds shows a difference of {margin} on them; it takes "
            f"{_seeds_and_images(components, found.seeds, comparison)}"
        )
    return f"{_more(seeds, found)} on these images show a difference of {margin} in 8 of 10 cases{on_more}"


def _more(seeds: int | None, found: Difference) -> str:
    if seeds is None:
        return "no number of seeds would"
    more = seeds - found.seeds
    return f"{more} more seed{'s' * (more != 1)}" if more > 0 else "as many seeds"


def plan_text(comparison: Comparison) -> str:
    """How many seeds and images find which difference, from what the runs at hand vary by."""
    known = [result.difference.components for result in comparison.results[1:]
             if result.difference is not None and result.difference.components is not None]  # fmt: skip
    if not known:
        raise RunError(
            "--plan needs the detections of two groups with two seeds or more each, from which it takes how seeds and images "
            "vary; train two seeds of stock and of another loss, or make detections with yolox-loss eval --save."
        )
    number, tests = known[0].number, comparison.tests
    seeds_part, images_part, both = (
        sum(getattr(part, name) for part in known) / len(known) for name in ("seeds", "images", "both")
    )
    pooled = Components(seeds_part, images_part, both, number)
    margin, sizes = comparison.margin, [round(number * times) for times in (1, 2, 5, 10)]
    seeds = seeds_needed(pooled, number, margin, tests)
    answer = (
        f"{seeds} seeds on the {number} images at hand."
        if seeds is not None
        else f"no number of seeds on the {number} images at hand; {_seeds_and_images(pooled, 10, comparison)}."
    )
    of_what = "" if comparison.title == "AP" else f" in {comparison.title}"
    rows = [
        [str(count), *(f"{detectable(pooled, count, size, tests):.4f}" for size in sizes)]
        for count in (3, 5, 8, 12, 20)
    ]
    spread = [f"{name} {value**0.5:.4f}" for name, value in
              (("seeds", pooled.seeds), ("images", pooled.images), ("both together", pooled.both))]  # fmt: skip
    return "\n\n".join(
        [
            f"A difference of {points(margin)}{of_what} is found in 8 of 10 cases with: {answer}",
            f"The smallest difference that is found in 8 of 10 cases, among {tests} {'losses' if tests > 1 else 'loss'}:",
            markdown(["seeds", *(f"{size} images" for size in sizes)], rows),
            f"Equal losses are found equal in {_chance_equal(pooled, 3, margin):.0%} of cases with 3 seeds and in "
            f"{_chance_equal(pooled, 10, margin):.0%} with 10 on the images at hand.",
            f"From {len(known)} difference{'s' * (len(known) != 1)} of the runs at hand; standard deviation of a difference by "
            f"{', '.join(spread)}. Few runs give a rough plan.",
        ]
    )


def _chance_equal(components: Components, seeds: int, margin: float) -> float:
    """The chance that the 90% interval of two equal losses lies within the margin."""
    # Both ends have to lie inside: what is left of a one-sided test of 5% on either side.
    return max(0.0, 2 * power(components, seeds, components.number, margin, tests=1, level=0.05) - 1)


def takes(found: Difference, comparison: Comparison) -> str:
    """The seeds and images with which a difference of the margin would be found, in a cell."""
    components = _components(found)
    if components is None:
        return "?"
    seeds = seeds_needed(components, components.number, comparison.margin, comparison.tests)
    if found.images is None:
        return "?" if seeds is None else f"{seeds} seeds"
    if seeds is None:
        return _seeds_and_images(components, found.seeds, comparison)
    return f"{seeds} seeds"


def _components(found: Difference) -> Components | None:
    """What a difference varies by; without detections the seeds alone."""
    if found.components is not None:
        return found.components
    if found.se_seeds is not None and found.se_images is None:
        return Components(found.se_seeds**2 * found.seeds, 0.0, 0.0, 1)
    return None


def _seeds_and_images(components: Components, seeds: int, comparison: Comparison) -> str:
    """As many seeds as there are or ten, or more where these do not suffice, with the images that they need."""
    for count in (max(seeds, 10), 30, 100, 300, 1000):
        images = images_needed(components, count, comparison.margin, comparison.tests)
        if images is not None:
            return f"{count} seeds on about {_two_digits(images)} images"
    return "more than 1000 seeds"


def _two_digits(number: int) -> int:
    """Two digits are as many as a forecast has."""
    return int(float(f"{number:.2g}"))


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.4f}"


def interval_text(interval: Interval | None) -> str:
    """An interval, ``-`` where there is none."""
    return "-" if interval is None else f"[{signed(interval.low)}, {signed(interval.high)}]"


def points(margin: float) -> str:
    """A margin in points of AP."""
    return f"{100 * margin:g} AP"


def p_text(value: float | None) -> str:
    """A p value, ``-`` where there is none."""
    return "-" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells hold names out of files, with bars, tags and worse."""
    header, *rows = [[in_markdown(printable(cell)).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)
