"""The files of a comparison: Markdown, CSV, pictures, and a page that needs nothing but itself."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ..errors import RunError
from ..runs.files import write_atomically
from ..runs.selection import Run
from .answers import answers
from .figures import ANSWER, overview, panels
from .images import Picture, image_rows, images_overview
from .pages import by_section, data_uri, page_bytes, template, training_command
from .results import Comparison
from .statistics import BETTER, EQUAL, WORSE
from .tables import as_csv, as_json, as_text, remarks, shared_columns, tables

_SIGNS = {BETTER: ("better", "▲"), WORSE: ("worse", "▼"), EQUAL: ("same", "=")}


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``comparison.html``, ``.md``, ``.csv``, ``.json``, ``.png``, and ``comparison_images.png`` where images differ.

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
        "comparison.html": page_bytes(page(comparison, out, rows)),
        "comparison.md": page_bytes(as_text(comparison)),
        "comparison.csv": page_bytes(as_csv(comparison)),
        "comparison.json": page_bytes(as_json(comparison)),
        "comparison.png": overview(comparison),
        "comparison_images.png": images_overview(rows) if rows else None,
    }
    with _answered(out):
        for name, content in files.items():
            if content is None:
                (out / name).unlink(missing_ok=True)
            else:
                write_atomically(out / name, content)  # a link of that name is replaced, and not followed
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
    drawn = dict(by_section(panels(comparison)))
    signs = [_SIGNS.get(result.verdict, ("unsure", "?")) for result in comparison.results[1:]]
    return template("report.html.j2").render(
        comparison=comparison,
        answers=[(*sign, *told) for sign, told in zip(signs, answers(comparison), strict=True)],
        remarks=remarks(comparison),
        tables=[*_fact_tables(comparison), *tables(comparison)],
        answer=drawn.pop(ANSWER, []),
        sections=list(drawn.items()),
        images=[(name, [(side.title, data_uri(side.jpeg(), "jpeg")) for side in pictures]) for name, pictures in rows],
        command=shlex.join([*comparison.command, "--out", str(out)]),
        trained=[(run.name, training_command(run)) for run in comparison.runs],
        surroundings=_surroundings(comparison.runs),
        links=_links(comparison.runs, out),
    )


def _links(runs: Sequence[Run], out: Path) -> dict[str, str]:
    """Run -> the address of its own page as seen from the comparison's folder, for the runs that have one."""
    found = {}
    for run in runs:
        page = run.folder / "report.html"
        if page.is_file():
            with suppress(ValueError):  # on another drive of Windows
                found[run.name] = quote(os.path.relpath(page.resolve(), out.resolve()).replace(os.sep, "/"))
    return found


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


def _surroundings(runs: Sequence[Run]) -> list[str]:
    """Host, versions and device of the trainings, each with the number of runs."""
    told = []
    for run in runs:
        parts = [str((run.record.get("host") or {}).get("name") or "an unknown YOLOX")]
        parts += [f"{name} {version}" for name, version in (run.record.get("versions") or {}).items()]
        parts += [f"on {run.record['device']}"] if run.record.get("device") else []
        told.append(", ".join(parts))
    return [f"{number} run{'s' * (number != 1)}: {text}" for text, number in Counter(told).items()]
