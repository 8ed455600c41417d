"""What is to be said of a training, in words: it could go on, it overfits, a class is never found, a term is dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...runs.selection import Run
from .facts import Evaluated, Training

_TERMS = {"iou_loss": "iou", "conf_loss": "obj", "cls_loss": "cls", "l1_loss": "l1"}
_LAST_PART = 0.2  # of the epochs, in which a curve is called its end
_RISE = 0.01  # of AP in the last part, from which on a longer training is worth a word
_FALL = 0.01  # of AP below its best, from which on the end is called worse
_UNMOVED = 0.001  # a term whose value stays within this share of itself did not move
_MOST_NAMES = 8


def warnings(training: Training) -> list[str]:
    """Sentences for the reader, the gravest first; none where nothing stands out."""
    run = training.run
    found = [*_status(run), *_dead_terms(run), *_end_of_ap(run), *_end_of_validation_loss(run)]
    if training.evaluated is not None:
        found += _classes(training.evaluated)
    return found


def _status(run: Run) -> list[str]:
    status, error = run.record["status"], run.record.get("error")
    if status == "finished":
        return []
    done, planned = len(run.rows), run.record.get("exp", {}).get("max_epoch", "?")
    reason = f": {error}" if error else ""
    return [f"The training is {status} after epoch {done} of {planned}{reason}."]


def _values(run: Run, column: str) -> list[tuple[int, float]]:
    """Epoch and value of the epochs in which a column was measured."""
    pairs = [(int(row["epoch"] or 0), row.get(column)) for row in run.rows]
    return [(epoch, value) for epoch, value in pairs if value is not None and math.isfinite(value)]


def _dead_terms(run: Run) -> list[str]:
    """Terms that are 0, or that did not move while the others did."""
    found = []
    resolved = run.record.get("resolved_losses") or {}
    for column, term in _TERMS.items():
        values = [value for _, value in _values(run, column)]
        switched_off = _weight(resolved.get(term)) == 0
        if column == "l1_loss" or len(values) < 3 or switched_off:
            continue  # YOLOX adds the L1 term for the last epochs only
        highest = max(map(abs, values))
        if highest == 0:
            found.append(
                f"The {term} term ({column}) is 0 in every epoch, so nothing is learned from it. Look at loss_{term}, its "
                "weights and its avg_factor."
            )
        elif max(values) - min(values) < _UNMOVED * highest:
            found.append(
                f"The {term} term ({column}) stayed at {values[-1]:.4g} from the first epoch to the last, so nothing was "
                f"learned from it. Look at loss_{term}: its gradient may be 0, or its scale tiny."
            )
    return found


def _weight(spec: Any) -> Any:
    return spec.get("loss_weight") if isinstance(spec, dict) else None


def _end_of_ap(run: Run) -> list[str]:
    """AP still rises at the end, or was better before."""
    values = _values(run, "AP")
    if len(values) < 3:
        return []
    first, last = run.rows[0]["epoch"] or 0, values[-1][0]
    start = last - max(_LAST_PART * (last - first + 1), 1)
    end = [pair for pair in values if pair[0] >= start]
    end = end if len(end) >= 3 else values[-3:]
    best_epoch, best = max(values, key=lambda pair: pair[1])
    if best <= 0:
        return ["AP is 0 in every evaluation: nothing right was detected."]
    rise = _slope(end) * (end[-1][0] - end[0][0])
    if rise > max(_RISE, 0.03 * values[-1][1]):
        return [
            f"AP was still rising at the end, by {rise:.3f} from epoch {end[0][0]} to {end[-1][0]}: a longer training (a "
            "higher max_epoch) would probably reach more."
        ]
    if best - values[-1][1] > max(_FALL, 0.05 * best):
        losses = _values(run, "total_loss")
        falling = len(losses) > 1 and losses[-1][1] < min(value for epoch, value in losses if epoch <= best_epoch)
        why = ", while the training loss went on falling: the training overfits" if falling else ""
        return [
            f"AP was best after epoch {best_epoch} with {best:.3f} and is {values[-1][1]:.3f} after epoch {last}{why}. "
            "best_ckpt.pth has the better weights; the best of many evaluations is flattered, though."
        ]
    return []


def _slope(pairs: Sequence[tuple[int, float]]) -> float:
    """Of a straight line through the values, per epoch."""
    epochs, values = np.array(pairs, dtype=float).T
    return float(np.polyfit(epochs - epochs.mean(), values, 1)[0])


def _end_of_validation_loss(run: Run) -> list[str]:
    """The loss on the validation images rises while that of the training falls."""
    found = []
    for column in ("val_total_loss", "val_stock_total_loss"):
        values, losses = _values(run, column), dict(_values(run, "total_loss"))
        if len(values) < 3 or not losses:
            continue
        epoch, lowest = min(values, key=lambda pair: pair[1])
        last_epoch, last = values[-1]
        if last > 1.05 * lowest and losses.get(last_epoch, math.inf) < losses.get(epoch, -math.inf):
            found.append(
                f"The loss on the validation images ({column}) was lowest after epoch {epoch} with {lowest:.3f} and is "
                f"{last:.3f} now, while the training loss fell: the training overfits."
            )
            break
    return found


def _classes(evaluated: Evaluated) -> list[str]:
    """Classes that are never found, and classes that nothing is known of."""
    found = []
    present = [facts for facts in evaluated.classes if facts.boxes]
    never = [facts for facts in present if facts.ap50 <= 0]
    if never and len(never) == len(present):
        found.append("No class is found at all in the last evaluation.")
    elif never:
        names = _names([f"{facts.name} ({facts.boxes})" for facts in never])
        found.append(
            f"Never found right, with their number of boxes in the validation images: {names}. Look at how many boxes of "
            "them the training images have (yolox-loss doctor)."
        )
    absent = [facts.name for facts in evaluated.classes if not facts.boxes]
    if absent:
        found.append(f"Without a box in the validation images, so that nothing is known of them: {_names(absent)}.")
    return found


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
