"""The record of a run: ``run.json`` and ``metrics.csv`` in its folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..specs.plain import plain
from .files import write_atomically
from .process import birth

RUN, METRICS, PREDICTIONS = "run.json", "metrics.csv", "predictions"

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
        RunError: the file is there but is no record.
    """
    path = folder / RUN
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); the folder holds no usable run record.") from error
    if not isinstance(record, dict) or "status" not in record:
        raise RunError(f"{path} is not a run record of this kit.")
    return record


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """The rows of ``metrics.csv``, a row per epoch; None where a column was not measured."""
    path = folder / METRICS
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {key: float(value) if value else None for key, value in row.items() if key is not None}
            for row in csv.DictReader(file)
        ]


def predictions_file(folder: Path, epoch: int) -> Path:
    """Where a run keeps what the evaluation after this epoch detected."""
    return folder / PREDICTIONS / f"epoch_{epoch}.json.gz"


def write_predictions(path: Path, predictions: list[dict[str, Any]]) -> None:
    """Keep detections as COCO results, compressed: ``image_id, category_id, bbox (x, y, w, h), score``."""
    rows = [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in predictions]
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime 0: the same predictions are the same file.
    write_atomically(path, gzip.compress(json.dumps(rows, separators=(",", ":")).encode(), mtime=0))


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The detections of a file that `write_predictions` wrote.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); make it anew with yolox-loss eval --save.") from error
    return rows


def evaluation_file(folder: Path, epoch: int) -> Path:
    """Where ``eval --save`` writes down what it evaluated, beside the predictions of this epoch."""
    return folder / PREDICTIONS / f"epoch_{epoch}.json"


def write_evaluation(path: Path, facts: Mapping[str, Any]) -> None:
    """Write down an evaluation: epoch, metrics, data, thresholds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(facts), indent=2, ensure_ascii=False).encode())


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """What ``eval --save`` wrote down in a run's folder, by epoch.

    Raises:
        RunError: a file cannot be read.
    """
    found = []
    for path in (folder / PREDICTIONS).glob("epoch_*.json"):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            found.append({**facts, "epoch": int(facts["epoch"]), "metrics": dict(facts["metrics"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error!r}); make it anew with yolox-loss eval --save.") from error
    return sorted(found, key=lambda facts: facts["epoch"])


def _write_run(folder: Path, data: dict[str, Any]) -> None:
    data["updated"] = now()
    write_atomically(folder / RUN, json.dumps(data, indent=2, ensure_ascii=False).encode())


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

    def keep_epochs(self, epochs: int) -> None:
        """Drop the rows of ``metrics.csv`` and the predictions after this epoch: the run goes on from there."""
        rows = read_metrics(self.folder)
        self._write_rows([row for row in rows if (row["epoch"] or 0) <= epochs])
        for row in rows:
            if (row["epoch"] or 0) > epochs:
                for path in (predictions_file, evaluation_file):
                    path(self.folder, int(row["epoch"] or 0)).unlink(missing_ok=True)

    def add_epoch(self, row: Mapping[str, float | None]) -> None:
        """Add the row of an epoch."""
        self._write_rows([*read_metrics(self.folder), dict(row)])

    def _write_rows(self, rows: list[dict[str, float | None]]) -> None:
        # After the columns of every run, those of the parts of its sums.
        columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([columns, *([_cell(name, row.get(name)) for name in columns] for row in rows)])
        write_atomically(self.folder / METRICS, text.getvalue().encode())


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if name == "epoch" else repr(float(value))
