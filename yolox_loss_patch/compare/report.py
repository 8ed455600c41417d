"""The files of a comparison: Markdown, CSV, pictures, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import RunError
from ..runs.record import now
from ..runs.selection import Run
from ..version import __version__
from .drawing import DARK, LIGHT
from .figures import ANSWER, overview, panels, picture
from .images import Picture, image_rows, images_overview
from .results import Comparison
from .statistics import BETTER, NO_DIFFERENCE, WORSE
from .tables import answers, as_csv, as_text, remarks, shared_columns, tables

_SIGNS = {BETTER: ("better", "▲"), WORSE: ("worse", "▼"), NO_DIFFERENCE: ("same", "≈")}
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
# The number first; after it half an interval, an epoch, a unit, or further numbers.
_LEADING = re.compile(rf"({_NUMBER})(?: ± {_NUMBER}| \(\d+\)| pairs| without pairs|\+|(?:, {_NUMBER})+)?")
_INTERVAL = re.compile(rf"\[({_NUMBER}), ({_NUMBER})\]")


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``comparison.html``, ``.md``, ``.csv``, ``.png`` and, where runs differ in images, ``comparison_images.png``.

    Args:
        comparison: what is written.
        out: a folder, made if needed; what an earlier comparison left in it is replaced.

    Returns:
        The files.

    Raises:
        RunError: ``out`` cannot be written to.
    """
    with _answered(out):
        out.mkdir(parents=True, exist_ok=True)
    rows = image_rows(comparison)
    files = {
        "comparison.html": _text(page(comparison, out, rows)),
        "comparison.md": _text(as_text(comparison)),
        "comparison.csv": _text(as_csv(comparison)),
        "comparison.png": overview(comparison),
        "comparison_images.png": images_overview(rows) if rows else None,
    }
    with _answered(out):
        for name, content in files.items():
            if content is None:
                (out / name).unlink(missing_ok=True)
            else:
                (out / name).write_bytes(content)
    return [out / name for name, content in files.items() if content is not None]


@contextmanager
def _answered(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"--out is a folder that can be made and written to; got {str(out)!r}: {error.strerror}."
        ) from error


def page(comparison: Comparison, out: Path, rows: Sequence[tuple[str, list[Picture]]]) -> str:
    """The page.

    Args:
        comparison: what is shown.
        out: the folder, for the command that makes it again.
        rows: the images, from `images.image_rows`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(sort_value=sort_value, number_columns=_number_columns, csp_hash=_csp_hash)
    drawn = [
        (panel, _data(picture(panel, LIGHT), "png"), _data(picture(panel, DARK), "png")) for panel in panels(comparison)
    ]
    signs = [_SIGNS.get(result.verdict, ("unsure", "?")) for result in comparison.results[1:]]
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        answers=[(*sign, *told) for sign, told in zip(signs, answers(comparison), strict=True)],
        remarks=remarks(comparison),
        tables=[*_fact_tables(comparison), *tables(comparison)],
        answer=[item for item in drawn if item[0].section == ANSWER],
        sections=_by_section([item for item in drawn if item[0].section != ANSWER]),
        images=[(name, [(side.title, _data(side.jpeg(), "jpeg")) for side in pictures]) for name, pictures in rows],
        command=shlex.join([*comparison.command, "--out", str(out)]),
        trained=[(run.name, _trained(run)) for run in comparison.runs],
        made=_surroundings(comparison.runs),
        version=__version__,
        date=now().replace("T", " ").replace("+00:00", " UTC"),
    )


def sort_value(text: str) -> float | None:
    """The number by which a cell is sorted: the mean of ``0.31 ± 0.02``, the middle of an interval; None for words.

    The baseline differs from itself by 0.
    """
    if text == "baseline":
        return 0.0
    if interval := _INTERVAL.fullmatch(text):
        return (float(interval[1]) + float(interval[2])) / 2
    number = _LEADING.fullmatch(text)
    return float(number[1]) if number else None


def _number_columns(rows: list[list[str]]) -> list[bool]:
    """Which columns hold nothing but numbers and empty cells; the first one names the row."""
    columns = list(zip(*rows, strict=True))[1:]
    return [
        False,
        *(all(cell in ("", "-", "?") or sort_value(cell) is not None for cell in column) for column in columns),
    ]


def _fact_tables(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]], str]]:
    """What runs differ in besides losses and seed."""
    names = [run.name for run in comparison.runs]
    found = []
    for title, values, note in (
        ("Differs besides losses and seed", comparison.differs, "A difference in AP may come from here (--anyway)."),
        ("Differs in device or versions", comparison.noted, "These may move the last digits."),
    ):
        if values:
            found.append((title, *shared_columns(values, names), note))
    return found


def _by_section(drawn: list[Any]) -> list[tuple[str, list[Any]]]:
    sections: dict[str, list[Any]] = {}
    for item in drawn:
        sections.setdefault(item[0].section, []).append(item)
    return list(sections.items())


def _trained(run: Run) -> str:
    """The command that trained a run, as far as its record tells."""
    words = [str(word) for word in run.record.get("command") or []]
    if not words:
        return "unknown"
    program = Path(words[0])
    if program.name == "__main__.py":
        start = ["python", "-m", "yolox_loss_patch"]
    else:
        start = ["python", words[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*start, *words[1:]])


def _surroundings(runs: Sequence[Run]) -> list[str]:
    """Host, versions and device of the trainings, each with the number of runs."""
    told = []
    for run in runs:
        parts = [str((run.record.get("host") or {}).get("name") or "an unknown YOLOX")]
        parts += [f"{name} {version}" for name, version in (run.record.get("versions") or {}).items()]
        parts += [f"on {run.record['device']}"] if run.record.get("device") else []
        told.append(", ".join(parts))
    return [f"{number} run{'s' * (number != 1)}: {text}" for text, number in Counter(told).items()]


def _text(text: str) -> bytes:
    """A file's content; a folder's name need not be UTF-8, a page has to be."""
    return (text.rstrip() + "\n").encode(errors="replace")


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
