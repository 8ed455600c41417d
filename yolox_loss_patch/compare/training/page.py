"""``yolox-loss report RUN``: ``report.html`` and ``results.png`` in the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RunError
from ...runs.files import write_atomically
from ...runs.selection import Run, folders, loss_label, read
from ...specs.config import KEYS
from ..drawing import sheet
from ..pages import by_section, data_uri, page_bytes, template, training_command
from .facts import Evaluated, ShownImage, Training, examine
from .figures import image_picture, panels
from .warnings import warnings

PAGE, PICTURE = "report.html", "results.png"
_MOST_CONFUSIONS = 12
_MOST_ROWS = 400  # classes in the table


def report(folder: Path) -> list[Path]:
    """Write the page of a training and the picture with all its curves into the run's folder.

    Args:
        folder: of a run, of the kit or of plain YOLOX, finished or not.

    Returns:
        The files.

    Raises:
        RunError: the folder is no run, or cannot be written to.
    """
    training = examine(read(folder))
    drawn = panels(training)
    files = {PAGE: page_bytes(page(training, drawn))}
    if drawn:
        files[PICTURE] = sheet(drawn)
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise RunError(f"{str(folder)!r} cannot be written to: {error.strerror}.") from error
    return [folder / name for name in files]


def report_all(words: Sequence[str]) -> list[Path]:
    """Write the page of each of these runs.

    Args:
        words: folders or globs, also of what lies in ``YOLOX_outputs``; what a glob finds besides runs is left out.

    Returns:
        The pages.

    Raises:
        RunError: no run, or one that was named and cannot be read or written to.
    """
    pages: list[Path] = []
    for word in words:
        for folder, named in folders(word):
            try:
                pages.append(report(folder)[0])
            except RunError:
                if named:
                    raise
    if not pages:
        raise RunError(f"None of these is a run: {', '.join(words)}.")
    return pages


def page(training: Training, drawn: Sequence[Any]) -> str:
    """The page of a training.

    Args:
        training: the facts.
        drawn: its pictures, from `figures.panels`.
    """
    run, evaluated = training.run, training.evaluated
    return template("training.html.j2").render(
        run=run,
        heads=_heads(run, evaluated),
        trained=_trained(run),
        warnings=warnings(training),
        missing=training.missing,
        sections=by_section(drawn),
        tables=[] if evaluated is None else _tables(evaluated),
        images=[] if evaluated is None else _images(evaluated),
        evaluated=evaluated,
        command=f"yolox-loss report {run.folder}",
        training_command=training_command(run),
    )


def _heads(run: Run, evaluated: Evaluated | None) -> list[tuple[str, str, str]]:
    """The numbers on top of the page: name, value, and a note."""
    found = []
    measured = run.evaluated()
    if measured:
        last, best = run.last(), run.best()
        after = f"after epoch {last['epoch']:.0f}"
        found.append(("AP", _number(last["AP"]), after))
        found.append(("AP50", _number(last.get("AP50")), after))
        if best["epoch"] != last["epoch"]:
            found.append(("best AP", _number(best["AP"]), f"after epoch {best['epoch']:.0f}"))
    if evaluated is not None and evaluated.curves is not None and evaluated.curves.best is not None:
        curves = evaluated.curves
        found.append(("best F1", _number(curves.best_f1), f"at score {curves.best:.3g}, mean over classes"))
    return found


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value < 0 else f"{value:.{digits}f}"


def _trained(run: Run) -> list[tuple[str, str]]:
    """What was trained, in five lines."""
    record = run.record
    exp, args, data = record.get("exp") or {}, record.get("args") or {}, record.get("data") or {}
    return [
        ("Losses", _losses(run)),
        ("Training", _listed(
            f"epoch {len(run.rows)} of {exp.get('max_epoch', '?')}",
            _told("batch size", args.get("batch_size")),
            _told("learning rate per image", exp.get("basic_lr_per_img")),
            "fp16" if args.get("fp16") else None,
            _told("seed", run.seed),
            _told("starting from", args.get("ckpt")),
            _duration(record),
        )),
        ("Model", _listed(
            _told("depth", exp.get("depth")),
            _told("width", exp.get("width")),
            _told("classes", exp.get("num_classes")),
            _told("images of", _size(exp.get("input_size"))),
            _told("evaluated at", _size(exp.get("test_size"))),
        )),
        ("Data", _listed(*(
            f"{name}: {facts['images']} images, {facts['boxes']} boxes ({Path(str(facts.get('file', '?'))).name})"
            for name, facts in data.items() if isinstance(facts, dict) and {"images", "boxes"} <= facts.keys()
        ))),
        ("Versions", _listed(
            (record.get("host") or {}).get("name"),
            *(f"{name} {version}" for name, version in (record.get("versions") or {}).items()),
            _told("on", record.get("device")),
        )),
    ]  # fmt: skip


def _losses(run: Run) -> str:
    if run.is_plain:
        return "unknown: the run was made without the kit, most likely with YOLOX's own losses"
    terms = [key.removeprefix("loss_") for key in KEYS]
    label = loss_label(run.record, terms, whole=True)
    return "YOLOX's own (stock)" if label == "stock" else f"{label}; all others are YOLOX's own"


def _told(name: str, value: Any) -> str | None:
    return None if value is None else f"{name} {value}"


def _listed(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part) or "unknown"


def _size(sides: Any) -> str | None:
    return f"{sides[0]} x {sides[1]} px" if isinstance(sides, (list, tuple)) and len(sides) == 2 else None


def _duration(record: dict[str, Any]) -> str | None:
    try:
        seconds = (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
    if seconds < 90:
        return f"in {seconds:.0f} s"
    return f"in {seconds / 60:.0f} min" if seconds < 5400 else f"in {seconds / 3600:.1f} h"


def _tables(evaluated: Evaluated) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Title, header, rows, note."""
    header = [
        "class",
        "boxes",
        "AP",
        "AP50",
        "AP small",
        "AP medium",
        "AP large",
        "best threshold",
        "precision",
        "recall",
        "F1",
    ]
    rows = [
        [
            facts.name, str(facts.boxes), *(_number(value) for value in (facts.ap, facts.ap50, facts.small, facts.medium,
            facts.large)), "-" if facts.threshold is None else f"{facts.threshold:.3f}",
            *(_number(value) if facts.boxes else "-" for value in (facts.precision, facts.recall, facts.f1)),
        ]
        for facts in evaluated.classes
    ]  # fmt: skip
    note = "Precision, recall and F1 (IoU 0.5) are those at the best threshold of the class, where its F1 is highest."
    if len(rows) > _MOST_ROWS:
        note += f" The {_MOST_ROWS} classes with most boxes of {len(rows)} are shown."
        order = sorted(range(len(rows)), key=lambda place: -evaluated.classes[place].boxes)[:_MOST_ROWS]
        rows = [rows[place] for place in sorted(order)]
    found = [("Classes", header, rows, note)]
    confusions = _confusions(evaluated)
    if confusions:
        note = "Of the detections above the best threshold; how often, and as a share of the boxes of the class."
        found.append(("Classes taken for another", ["truth", "detected as", "boxes", "share"], confusions, note))
    return found


def _confusions(evaluated: Evaluated) -> list[list[str]]:
    """The most frequent confusions of a class with another."""
    counts, names = evaluated.confusion, [facts.name for facts in evaluated.classes]
    between = counts[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-between, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    places = [divmod(int(place), len(names)) for place in order] if len(names) else []
    return [
        [names[row], names[column], str(between[row, column]), f"{between[row, column] / counts[row].sum():.3f}"]
        for row, column in places
        if between[row, column]
    ]


def _images(evaluated: Evaluated) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Title, and of each image its name, what is in it in words, and its address; those that cannot be read are left out."""
    found = []
    for title, images in (("Worst", evaluated.worst), ("Best", evaluated.best)):
        shown = [
            (image.name, _in_words(image), data_uri(content, "jpeg"))
            for image in images
            if (content := image_picture(image)) is not None
        ]
        if shown:
            found.append((title, shown))
    return found


def _in_words(image: ShownImage) -> str:
    return f"F1 {image.f1:.2f}: {image.right} right, {image.wrong} wrong, {image.missed} missed"
