"""COCO result files of any detector, taken as runs: one file per seed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from .predictions import inflate
from .selection import Group, Run


@dataclass(frozen=True)
class ResultFile(Run):
    """A result file as a run: no training is known of it, only what it detected."""

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.folder)

    @property
    def is_plain(self) -> bool:
        """False: it is no run of YOLOX at all."""
        return False

    def predictions(self) -> Path | None:
        """The file."""
        return self.folder


def file_groups(words: Sequence[str]) -> list[Group]:
    """The groups of ``name=file,file,...``; the n-th files of all groups are a pair.

    Raises:
        RunError: no such form, no such file, or a name or a file that stands twice.
    """
    groups: list[Group] = []
    seen: dict[Path, str] = {}
    for word in words:
        label, _, files = word.partition("=")
        paths = [Path(file.strip()) for file in files.split(",") if file.strip()]
        if not label or not paths:
            raise RunError(f"With --truth each group is NAME=FILE,FILE,...: a file per seed; got {word!r}.")
        if label in [group.label for group in groups]:
            raise RunError(f"Two groups are called {label!r}; give each a name of its own.")
        for path in paths:
            if not path.is_file():
                raise RunError(f"There is no result file {str(path)!r} (group {label!r}).")
            if path.resolve() in seen:
                raise RunError(
                    f"{str(path)!r} stands twice, in {seen[path.resolve()]!r} and {label!r}: a file is one training's result."
                )
            seen[path.resolve()] = label
        runs: list[Run] = [ResultFile(path, {"status": "finished", "losses": {}, "seed": place}, [])
                           for place, path in enumerate(paths)]  # fmt: skip
        groups.append(Group(label, runs, [f"seed {place}" for place in range(len(paths))]))
    return groups


def read_results(path: Path, images: Iterable[Mapping[str, Any]], categories: Iterable[int]) -> list[dict[str, Any]]:
    """The detections of a result file, with the image ids of the annotations.

    Args:
        path: JSON, or JSON compressed with gzip: a list of ``image_id, category_id, bbox (x, y, w, h), score``.
        images: COCO's list. An image may also be named by its file's stem, as Ultralytics does.
        categories: the known ids.

    Raises:
        RunError: the file cannot be read, or is of other images or classes.
    """
    try:
        content = path.read_bytes()
        rows = json.loads(inflate(path, content) if content[:2] == b"\x1f\x8b" else content)
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        raise RunError(f"{path} cannot be read as COCO results: {error}.") from error
    if not isinstance(rows, list):
        raise RunError(f"{path} is no list of COCO results but a {type(rows).__name__}.")
    ids, stems = set(), {}
    for item in images:
        ids.add(int(item["id"]))
        stem = Path(str(item.get("file_name", ""))).stem
        stems[stem] = int(item["id"])
        if stem.isdigit():  # Ultralytics makes a number of a stem that is one
            stems.setdefault(str(int(stem)), int(item["id"]))
    # Names first where a number is no id: 000000000139.jpg may have any id.
    by_name = any(isinstance(row, dict) and row.get("image_id") not in ids for row in rows)
    known = set(categories)
    found = []
    for place, row in enumerate(rows):
        try:
            image, category = row["image_id"], int(row["category_id"])
            box, score = [float(value) for value in row["bbox"]], float(row["score"])
            if len(box) != 4:
                raise ValueError(f"a box of {len(box)} numbers")
            if not all(map(math.isfinite, (*box, score))):
                raise ValueError("a number that is not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path}, entry {place + 1} is no COCO result ({error!r}); it needs image_id, category_id, bbox [x, y, w, h] "
                "and score."
            ) from error
        if not 0 <= score <= 1:
            raise RunError(f"{path} has a score of {score:g} in entry {place + 1}; scores lie between 0 and 1.")
        number = stems.get(Path(str(image)).stem if str(image) not in stems else str(image)) if by_name else image
        if number not in ids:
            raise RunError(f"{path} has detections in image {image!r}, which the annotations do not list.")
        if category not in known:
            raise RunError(
                f"{path} has detections of category {category}, which the annotations do not list: they have "
                f"{min(known)} to {max(known)}. A detector that counts its classes from another number has to be told so."
            )
        found.append({"image_id": int(number), "category_id": category, "bbox": box, "score": score})
    return found
