"""The record of a run: ``run.json`` and ``metrics.csv`` in its folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..specs.plain import plain
from .files import write_atomically
from .process import birth
from .schema import RECORD, check_fields

RUN, METRICS, PREDICTIONS = "run.json", "metrics.csv", "predictions"
_CHECKSUM = "sha256"  # the name in run.json of the hash of all else in it

LOSS_COLUMNS = ("total_loss", "iou_loss", "conf_loss", "cls_loss", "l1_loss")
AP_COLUMNS = ("AP", "AP50", "AP75", "AP90", "AP_small", "AP_medium", "AP_large", "AR")
# The loss on the validation images, without L1: with the trained losses, and with YOLOX's own.
VALIDATION_COLUMNS = tuple(
    f"{kind}_{name}" for kind in ("val", "val_stock") for name in ("total_loss", "conf_loss", "cls_loss", "iou_loss")
)
GRADIENT_COLUMNS = ("grad_box", "grad_obj_fg", "grad_obj_bg", "grad_cls", "grad_l1")
COLUMNS = (
    "epoch", *AP_COLUMNS, *LOSS_COLUMNS, *VALIDATION_COLUMNS, "fg_iou", "obj_fg", "obj_bg", *GRADIENT_COLUMNS,
    "lr", "seconds", "memory_mib"
)  # fmt: skip


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_run(folder: Path) -> dict[str, Any] | None:
    """The ``run.json`` of a folder, None where there is none.

    Raises:
        RunError: the file is there but is no record, or not the one that was written.
    """
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); the folder holds no usable run record.") from error
    if not isinstance(record, dict) or "status" not in record:
        raise RunError(f"{path} is not a run record of this kit.")
    check_fields(path, record, RECORD)
    written = record.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(record):
        raise RunError(
            f"{path} is damaged or was edited: its content does not fit the {_CHECKSUM!r} in it. Copy the run anew. If you "
            f"edited it and want it taken as it is, take the line {_CHECKSUM!r} out."
        )
    return record


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check_hash(folder: Path, name: str, content: bytes, written: Sequence[str] | None = None) -> None:
    """Refuse a file of a run that is not the one that the run wrote.

    Args:
        folder: of the run.
        name: of the file, below the folder.
        content: read before this is called, so that a run that is going on has noted the hash by then.
        written: SHA-256 of what was written; None for what ``run.json`` says, which may be nothing.

    Raises:
        RunError: the file is another.
    """
    if written is None:
        written = ((read_run(folder) or {}).get("files") or {}).get(name, [])
    if written and hashlib.sha256(content).hexdigest() not in written:
        raise RunError(
            f"{folder / name} is damaged or was edited: it is not the file that the run wrote (the sha256 in {RUN}). Copy "
            "the run anew, or leave it out."
        )


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """The rows of ``metrics.csv``, a row per epoch; None where a column was not measured.

    Raises:
        RunError: the file is cut off, damaged, or not the one that was written.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    content = path.read_bytes()
    check_hash(folder, METRICS, content)
    try:
        text = content.decode()
        columns, *lines = csv.reader(io.StringIO(text, newline=""))
    except (ValueError, csv.Error) as error:
        raise RunError(f"{path} is no table of a run ({error}). Copy the run anew.") from error
    if not text.endswith("\n") or "epoch" not in columns or len({*columns}) < len(columns):
        raise RunError(f"{path} is cut off or was edited: its first or last line is not whole. Copy the run anew.")
    rows: list[dict[str, float | None]] = []
    for epoch, line in enumerate(lines, 1):
        try:
            row = {name: float(value) if value else None for name, value in zip(columns, line, strict=True)}
        except ValueError as error:
            raise RunError(f"{path} is damaged or was edited: line {epoch + 1}: {error}. Copy the run anew.") from error
        if row["epoch"] != epoch or not all(is_measured(name, value) for name, value in row.items()):
            raise RunError(
                f"{path} is damaged or was edited: line {epoch + 1} should be epoch {epoch}, with an AP from 0 to 1 (or -1). "
                "Copy the run anew."
            )
        rows.append(row)
    return rows


def is_measured(name: str, value: float | None) -> bool:
    """Whether a column of `COLUMNS` can have this value."""
    if name in AP_COLUMNS and value is not None:
        return value == -1 or 0 <= value <= 1
    return value is None or not math.isinf(value) or name in LOSS_COLUMNS + VALIDATION_COLUMNS


def _write_run(folder: Path, data: dict[str, Any]) -> None:
    data["updated"] = now()
    # As it will be read: JSON has no tuples, and its keys are texts.
    text = json.dumps(data, indent=2, ensure_ascii=False)
    checked = {**json.loads(text), _CHECKSUM: _checksum(json.loads(text))}
    write_atomically(folder / RUN, json.dumps(checked, indent=2, ensure_ascii=False).encode())


def fail_run(folder: Path, pids: Sequence[int], error: str) -> None:
    """Write down for a process that cannot do so any more that its run failed.

    Args:
        folder: the run's folder.
        pids: the record is touched only when one of these processes wrote it, and not when the run was finished.
        error: why.
    """
    data = read_run(folder)
    if data is not None and data.get("pid") in pids and data["status"] != "finished":
        data.update(status="failed", error=error, ended=now())
        _write_run(folder, data)


class RunRecord:
    """Writes the record of one run; what is written always tells the state of the run.

    Args:
        folder: the run's folder, made if needed.
        facts: what is known when the run starts, as plain data.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.data: dict[str, Any] = {
            "status": "running",
            "error": None,
            "pid": os.getpid(),
            "pid_born": birth(os.getpid()),
            "started": now(),
            **plain(facts),
        }
        self.update()

    def update(self, **facts: Any) -> None:
        """Add facts and write the file."""
        self.data.update(plain(facts))
        _write_run(self.folder, self.data)

    def finish(self, status: str, error: str | None = None) -> None:
        """The run ended: ``finished``, ``failed`` or ``interrupted``."""
        self.update(status=status, error=error, ended=now())

    def note_file(self, name: str, digest: str) -> None:
        """Write down the SHA-256 of a file that is about to take its place; the one before counts until then."""
        hashes = self.data.get("files", {})
        known = [digest, *(other for other in hashes.get(name, []) if other != digest)]
        self.update(files={**hashes, name: known[:2]})

    def keep_epochs(self, epochs: int) -> None:
        """Drop the rows of ``metrics.csv`` and the predictions after this epoch: the run goes on from there."""
        rows = read_metrics(self.folder)
        self._write_rows(rows[:epochs])
        for row in rows[epochs:]:
            for path in (self.folder / PREDICTIONS).glob(f"epoch_{row['epoch']:.0f}.json*"):
                path.unlink(missing_ok=True)

    def add_epoch(self, row: Mapping[str, float | None]) -> None:
        """Add the row of an epoch."""
        self._write_rows([*read_metrics(self.folder), dict(row)])

    def _write_rows(self, rows: list[dict[str, float | None]]) -> None:
        # After the columns of every run, those of the parts of its sums.
        columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([columns, *([_cell(name, row.get(name)) for name in columns] for row in rows)])
        content = text.getvalue().encode()
        self.note_file(METRICS, hashlib.sha256(content).hexdigest())
        write_atomically(self.folder / METRICS, content)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if name == "epoch" else repr(float(value))
