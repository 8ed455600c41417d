"""What the pages of the kit share: templates that need nothing from the net, pictures as data, tables that sort."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ..runs.record import now
from ..runs.selection import Run
from ..version import __version__
from .drawing import DARK, LIGHT, Panel, picture

_NUMBER = r"[+-]?\d+(?:\.\d+)?"
# The number first; after it half an interval, an epoch, a unit, or further numbers.
_LEADING = re.compile(rf"({_NUMBER})(?: ± {_NUMBER}| \(\d+\)| pairs| without pairs|\+|(?:, {_NUMBER})+)?")
_INTERVAL = re.compile(rf"\[({_NUMBER}), ({_NUMBER})\]")


def template(name: str) -> Template:
    """A template of a page, in which every value is escaped.

    Args:
        name: of the file.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(sort_value=sort_value, number_columns=_number_columns, csp_hash=_csp_hash)
    date = now().replace("T", " ").replace("+00:00", " UTC")
    environment.globals.update(made=f"Made by yolox-loss-patch {__version__} on {date}.")
    return environment.get_template(name)


def _drawn_twice(panel: Panel) -> tuple[str, str]:
    """A picture for a light page and for a dark one, as addresses."""
    return data_uri(picture(panel, LIGHT), "png"), data_uri(picture(panel, DARK), "png")


def by_section(panels: Sequence[Panel]) -> list[tuple[str, list[tuple[Panel, str, str]]]]:
    """Sections in their order, each with its pictures and their two addresses."""
    sections: dict[str, list[tuple[Panel, str, str]]] = {}
    for panel in panels:
        sections.setdefault(panel.section, []).append((panel, *_drawn_twice(panel)))
    return list(sections.items())


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


def training_command(run: Run) -> str:
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


def page_bytes(text: str) -> bytes:
    """A file's content; a folder's name need not be UTF-8, a page has to be."""
    return (text.rstrip() + "\n").encode(errors="replace")


def data_uri(content: bytes, kind: str) -> str:
    """A picture, ``png`` or ``jpeg``, as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
