"""What a run detected in its validation images, kept per evaluation, and what ``eval --save`` wrote down beside it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..specs.plain import plain
from .files import write_atomically
from .record import PREDICTIONS, check_hash, is_measured
from .schema import DETECTION, check_fields, is_number

MOST_BYTES = 2**30  # of a file of detections: COCO's test set with 300 detections per image takes less


def predictions_file(folder: Path, epoch: int) -> Path:
    """Where a run keeps what the evaluation after this epoch detected."""
    return folder / PREDICTIONS / f"epoch_{epoch}.json.gz"


def write_predictions(
    path: Path, predictions: list[dict[str, Any]], note_hash: Callable[[str, str], None] = lambda name, digest: None
) -> None:
    """Keep detections as COCO results, compressed: ``image_id, category_id, bbox (x, y, w, h), score``.

    Args:
        path: of the file.
        predictions: COCO results; further keys are left out.
        note_hash: called with the file's name below the run's folder, and its SHA-256, before it is written.
    """
    rows = [{key: row[key] for key in DETECTION} for row in predictions]
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime 0: the same predictions are the same file.
    content = gzip.compress(json.dumps(rows, separators=(",", ":")).encode(), mtime=0)
    note_hash(f"{PREDICTIONS}/{path.name}", hashlib.sha256(content).hexdigest())
    write_atomically(path, content)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The detections of a file that `write_predictions` wrote.

    Raises:
        RunError: the file cannot be read, is damaged, or inflates to more than `MOST_BYTES`.
    """
    try:
        content = path.read_bytes()
        rows: Any = json.loads(inflate(path, content))
    except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); make it anew with yolox-loss eval --save.") from error
    folder = path.parent.parent
    kept = path.with_name(path.name.removesuffix(".gz"))  # what `eval --save` wrote beside it
    written = read_evaluation(kept).get("predictions_sha256") if kept.is_file() else None
    check_hash(folder, f"{PREDICTIONS}/{path.name}", content, None if written is None else [written])
    if not isinstance(rows, list):
        raise RunError(f"{path} holds no list of detections; make it anew with yolox-loss eval --save.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() >= DETECTION.keys():
            raise RunError(f"{path}, entry {number}, is no detection with {', '.join(DETECTION)}.")
        check_fields(path, row, DETECTION, f"entry {number}: ")
    return rows


def inflate(path: Path, content: bytes) -> bytes:
    """The content of a gzip file.

    Raises:
        RunError: it would take more than `MOST_BYTES`: a few kilobytes can inflate to more than a machine has.
        OSError, EOFError, zlib.error: it is no gzip file, or is cut off.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise RunError(
            f"{path} inflates to more than {MOST_BYTES / 2**30:g} GiB, which no detections need; it is not read."
        )
    return data


def evaluation_file(folder: Path, epoch: int) -> Path:
    """Where ``eval --save`` writes down what it evaluated, beside the predictions of this epoch."""
    return folder / PREDICTIONS / f"epoch_{epoch}.json"


def write_evaluation(path: Path, facts: Mapping[str, Any]) -> None:
    """Write down an evaluation: epoch, metrics, data, thresholds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(facts), indent=2, ensure_ascii=False).encode())


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `write_evaluation` wrote.

    Raises:
        RunError: the file cannot be read.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): value for name, value in facts["metrics"].items()}
        epoch = int(facts["epoch"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error!r}); make it anew with yolox-loss eval --save.") from error
    if not all(is_number(value) and is_measured(name, value) for name, value in metrics.items()):
        raise RunError(f"{path} is damaged or was edited: its metrics are no numbers. Make it anew with eval --save.")
    return {**facts, "epoch": epoch, "metrics": metrics}


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """What ``eval --save`` wrote down in a run's folder, by epoch.

    Raises:
        RunError: a file cannot be read.
    """
    found = [read_evaluation(path) for path in (folder / PREDICTIONS).glob("epoch_*.json")]
    return sorted(found, key=lambda facts: facts["epoch"])
