"""How many boxes each class has in the training annotations, and what follows: weights by class."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from .annotations import annotation_path, check_annotations, read_annotations
from .ignored import IgnoreSettings


def class_counts(exp: Any) -> dict[str, int]:
    """Name -> boxes that an experiment trains on, in the order of the class numbers.

    Args:
        exp: the experiment; its ``data_dir``, ``train_ann`` and ``input_size`` are read, and what it ignores.

    Raises:
        DataError: no annotation file in COCO format.
        OSError: no file.
    """
    path = annotation_path(getattr(exp, "data_dir", None), getattr(exp, "train_ann", ""))
    size = tuple(getattr(exp, "input_size", (640, 640)))
    return dict(_class_counts(str(path), os.path.getmtime(path), size, IgnoreSettings.from_exp(exp)))


@functools.lru_cache(maxsize=4)
def _class_counts(
    path: str, changed: float, input_size: tuple[int, int], ignored: IgnoreSettings
) -> tuple[tuple[str, int], ...]:
    """Read once, as the annotations of a large set take seconds."""
    coco = read_annotations(path)
    findings, facts = check_annotations(coco, "train", input_size)
    if not facts:
        raise DataError(findings[0].text, findings[0].remedy)
    if ignored.crowd:
        kept = [item for item in coco["annotations"] if not item.get("ignore")]
        _, facts = check_annotations({**coco, "annotations": kept}, "train", input_size)
    counts = zip(facts["categories"], facts["boxes_per_category"], strict=True)
    return tuple((name, count) for name, count in counts if name not in ignored.classes)


def inverse_weights(counts: Sequence[int]) -> list[float]:
    """``N / (C n_c)`` for C classes with n_c of N boxes: the mean over boxes is 1.

    A class without boxes has weight 1 and does not count.
    """
    seen = [count for count in counts if count]
    return [sum(seen) / (len(seen) * count) if count else 1.0 for count in counts]


def effective_number_weights(counts: Sequence[int], beta: float) -> list[float]:
    """``(1 - beta) / (1 - beta**n_c)``, scaled so that the mean over classes is 1, as in the paper. arXiv 1901.05555.

    A class without boxes has weight 1 and does not count.

    Args:
        counts: boxes per class.
        beta: in [0, 1); 0 gives equal weights, near 1 those of the inverse count.
    """
    raw = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    seen = sum(1 for count in counts if count)
    return [value * seen / sum(raw) if value else 1.0 for value in raw]


def weights_by_count(scheme: str | Mapping[str, Any], counts: Sequence[int]) -> list[float]:
    """The weights of ``"inverse"`` or of ``{"type": "effective_number", "beta": beta}``."""
    return inverse_weights(counts) if isinstance(scheme, str) else effective_number_weights(counts, scheme["beta"])
