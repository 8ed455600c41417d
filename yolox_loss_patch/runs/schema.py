"""What the files of a run may hold: they are checked before they are believed, as they may be damaged or a stranger's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RunError

STATUS = ("running", "finished", "failed", "interrupted")


class Field(NamedTuple):
    """What a value may be.

    Attributes:
        is_right: whether it is so.
        words: the same in words, after "is".
    """

    is_right: Callable[[Any], bool]
    words: str


def is_whole(value: Any, low: float = -math.inf) -> bool:
    """Whether this is a whole number of at least ``low``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: Any) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_nothing(field: Field) -> Field:
    return Field(lambda value: value is None or field.is_right(value), f"{field.words} or null")


def _list_of(field: Field, plural: str) -> Field:
    return Field(lambda value: isinstance(value, list) and all(map(field.is_right, value)), f"a list of {plural}")


def _table_of(field: Field, plural: str) -> Field:
    return Field(
        lambda value: isinstance(value, dict) and all(map(field.is_right, value.values())), f"a table of {plural}"
    )


_TEXT = Field(_is_text, "a text")
_WHOLE = Field(is_whole, "a whole number")
_COUNT = Field(lambda value: is_whole(value, 0), "a whole number from 0 on")
_FROM_ONE = Field(lambda value: is_whole(value, 1), "a whole number from 1 on")
_TABLE = Field(lambda value: isinstance(value, dict), "a table")
_HASHES = _table_of(_list_of(_TEXT, "texts"), "lists of texts")
_SPEC = Field(
    lambda value: (
        isinstance(value, dict)
        or (isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value))
    ),
    "a table or a list of tables",
)

# Names of run.json -> what they may be. Other names are left alone: a later version of the kit may write them.
RECORD = {
    "status": Field(lambda value: value in STATUS, f"one of {', '.join(STATUS)}"),
    "error": _or_nothing(_TEXT),
    "pid": _or_nothing(_WHOLE),
    "started": _TEXT,
    "ended": _TEXT,
    "updated": _TEXT,
    "command": _list_of(_TEXT, "texts"),
    "losses": _or_nothing(_TABLE),
    "resolved_losses": _table_of(_SPEC, "tables"),
    "exp": _TABLE,
    "exp.max_epoch": _FROM_ONE,
    "exp.input_size": _list_of(_FROM_ONE, "whole numbers from 1 on"),
    "exp.random_size": _or_nothing(_list_of(_WHOLE, "whole numbers")),
    "exp.multiscale_range": _COUNT,
    "code": _table_of(_TEXT, "texts"),
    "args": _TABLE,
    "args.devices": _or_nothing(_FROM_ONE),
    "args.num_machines": _or_nothing(_FROM_ONE),
    "starting_weights": _or_nothing(_TEXT),
    "seed": _or_nothing(_WHOLE),
    "host": _TABLE,
    "versions": _table_of(_TEXT, "texts"),
    "device": _TEXT,
    "machine": _TEXT,
    "threads": _FROM_ONE,
    "workers": _FROM_ONE,
    "batches_per_epoch": _FROM_ONE,
    "epochs_done": _COUNT,
    "best_ap": Field(is_number, "a number"),
    "resumed": _list_of(_TABLE, "tables"),
    "stopped_early": _TABLE,
    "stopped_early.epoch": _FROM_ONE,
    "data": _table_of(_TABLE, "tables"),
    "data.train.sha256": _or_nothing(_TEXT),
    "data.val.sha256": _or_nothing(_TEXT),
    "data.val.file": _TEXT,
    "data.val.image_folder": _TEXT,
    "data.val.ignored_classes": _list_of(_TEXT, "texts"),
    "files": _HASHES,
}

DETECTION = {
    "image_id": _WHOLE,
    "category_id": _WHOLE,
    "bbox": Field(
        lambda value: isinstance(value, list) and len(value) == 4 and all(map(is_number, value)), "[x, y, w, h]"
    ),
    "score": Field(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
}

RACE = {
    "looks": Field(
        lambda value: (
            isinstance(value, list)
            and bool(value)
            and all(is_whole(look, 2) for look in value)
            and value == sorted(set(value))
        ),
        "a list of rising numbers of seeds from 2 on",
    ),
    "settings": _table_of(_list_of(_TEXT, "texts"), "lists of texts"),
    "metric": _TEXT,
    "margin": Field(lambda value: is_number(value) and 0 < value < 1, "a number above 0 and below 1"),
}

JOB_IDS = _table_of(_TEXT, "texts")


def check_fields(path: Path, values: Mapping[str, Any], fields: Mapping[str, Field], where: str = "") -> None:
    """Refuse a value of a file that it cannot have; a name that is not there is not asked for.

    Args:
        path: of the file, for the message.
        values: what the file holds.
        fields: name -> what it may be; a name with dots is so many levels down.
        where: what part of the file ``values`` is, for the message.

    Raises:
        RunError: the first that is wrong: file, name, value, and what is allowed.
    """
    for name, field in fields.items():
        *parts, key = name.split(".")
        table: Any = values
        for part in parts:
            table = table.get(part) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping) or key not in table or field.is_right(table[key]):
            continue
        raise RunError(
            f"{path} is damaged or was edited: {where}{name!r} is {table[key]!r:.60}, and it can only be {field.words}. Copy "
            "the run anew, or leave it out."
        )
