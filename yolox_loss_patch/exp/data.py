"""The data of an experiment, looked at before anything is trained: what train, eval, verify, calibrate and sweep refuse."""

from __future__ import annotations

from typing import Any

from ..data.annotations import annotation_path, read_categories
from ..data.checks import check_dataset, compare_categories, open_data, refuse
from ..data.findings import Finding
from ..data.ignored import IgnoreSettings


def other_categories(exp: Any, split: str) -> list[tuple[int, str]] | None:
    """Id and name of each category of the annotation file that a split is held against; None where there is no such file.

    Args:
        exp: the experiment.
        split: ``train`` or ``val``; the file is that of the other.
    """
    path = annotation_path(getattr(exp, "data_dir", None), exp.val_ann if split == "train" else exp.train_ann)
    try:
        return read_categories(str(path), path.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # what is wrong with it is told where it is read
        return None


def category_findings(exp: Any, facts: dict[str, Any], split: str) -> list[Finding]:
    """Whether the categories of a split are those of the experiment's other annotation file.

    Args:
        exp: the experiment.
        facts: of `check_dataset`; nothing is looked at where they are empty.
        split: ``train`` or ``val``, of which the facts are.
    """
    other = other_categories(exp, split) if facts else None
    if other is None:
        return []
    ignored = IgnoreSettings.from_exp(exp).classes
    other = [(number, name) for number, name in other if name not in ignored]
    here = list(zip(facts["category_ids"], facts["categories"], strict=True))
    return compare_categories(here, other) if split == "train" else compare_categories(other, here)


def check_split_of(exp: Any, dataset: Any, split: str, may_be_empty: bool = False) -> dict[str, Any]:
    """`check_dataset` of a data set of an experiment, and whether its categories are those of the other split.

    Raises:
        DataError: what is wrong, with the remedy.
    """
    facts = check_dataset(dataset, exp.num_classes, split, may_be_empty)
    refuse(category_findings(exp, facts, split))
    return facts


def preflight(exp: Any) -> None:
    """Make both data sets of an experiment and check them, for a verb that trains in other processes.

    Args:
        exp: the experiment; it keeps the data set that it makes, so give a copy.

    Raises:
        DataError: what is wrong, with the remedy.
    """
    loader = open_data(
        lambda: exp.get_data_loader(batch_size=1, is_distributed=False), exp.data_dir, exp.train_ann, "train_ann"
    )
    check_split_of(exp, loader.dataset, "train")
    evaluator = open_data(
        lambda: exp.get_evaluator(batch_size=1, is_distributed=False), exp.data_dir, exp.val_ann, "val_ann"
    )
    check_split_of(exp, evaluator.dataloader.dataset, "val", may_be_empty=True)
