"""The data set of an experiment, looked at before the first epoch: errors stop, warnings are told once."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from ..errors import DataError, in_words
from ..printing import printable
from .annotations import annotation_path, check_annotations, default_data_dir, read_annotations, utf8_annotations
from .cache import check_image_cache, remove_half_made_cache, room_for_cache
from .findings import ERROR, WARNING, Finding, some
from .images import image_fault
from .preflight import check_split

_PER_CATEGORY = ("categories", "category_ids", "boxes_per_category")
#: Share of a training set's boxes that mosaics may lose before that is told.
_LOST_IN_MOSAICS = 0.01


def open_data(make: Callable[[], Any], data_dir: str | None, annotation: str, where: str) -> Any:
    """Make a data set or loader, and say in words why that failed.

    Args:
        make: makes it.
        data_dir: the experiment's folder of data, None for YOLOX's own default; looked at when making fails.
        annotation: the experiment's annotation file for it.
        where: the attribute of the experiment that names the file, for the message.

    Raises:
        DataError: the folder or file is missing or unusable.
    """
    try:
        with utf8_annotations(), room_for_cache():
            return make()
    except DataError:
        raise
    except Exception as error:
        made = list(_objects_of(error))
        for part in made:
            # YOLOX's data set deletes its images when it goes, and complains on the screen when it never got that far.
            if hasattr(type(part), "__del__") and not hasattr(part, "imgs"):
                part.imgs = None
        remove_half_made_cache(error, made)
        reason = _reason(error, made, data_dir, annotation, where)
        if reason is None:
            raise
        raise DataError(*reason) from error


def _reason(
    error: Exception, made: list[Any], data_dir: str | None, annotation: str, where: str
) -> tuple[str, str] | None:
    """What went wrong and what to do, None where nothing is known of it."""
    if (fault := image_fault(error)) is not None:
        return fault
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return in_words(error), ""
    coco_sets = [part for part in made if hasattr(part, "json_file")]
    if coco_sets:
        return _why_not_coco(coco_sets[-1].data_dir, coco_sets[-1].json_file, data_dir, where, error)
    return _why_not(made, data_dir, annotation, where, error)


def _objects_of(error: BaseException) -> Iterator[Any]:
    """The objects whose methods raised an error, the outermost first."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if owner is not None:
            yield owner


def _why_not_coco(folder: str, annotation: str, data_dir: str | None, where: str, error: Exception) -> tuple[str, str]:
    """Why YOLOX could not make a COCO data set, and what to do."""
    layout = (
        f"YOLOX expects DATA_DIR/annotations/{annotation}, and the images in DATA_DIR/train2017 and DATA_DIR/val2017; set "
        f"self.data_dir and self.{where} in the experiment."
    )
    if not os.path.isdir(folder):
        origin = "it is self.data_dir of the experiment" if data_dir is not None else "self.data_dir is not set"
        return f"The data folder {str(folder)!r} does not exist ({origin}).", layout
    path = Path(folder) / "annotations" / annotation
    if not path.is_file():
        near = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        found = ", ".join(near) or "nothing"
        return f"The annotation file {str(path)!r} does not exist (self.{where}). In its folder: {found}.", layout
    try:
        findings, _ = check_annotations(read_annotations(path), "", (640, 640))
    except DataError as unreadable:
        return unreadable.text, unreadable.remedy
    errors = [finding for finding in findings if finding.level == ERROR]
    if errors:
        return f"{str(path)!r}: {errors[0].text}.", errors[0].remedy
    return f"YOLOX cannot make a data set of {str(path)!r}: {in_words(error)}.", "Bring the file into COCO's format."


def _why_not(
    made: list[Any], data_dir: str | None, annotation: str, where: str, error: Exception
) -> tuple[str, str] | None:
    """Why a data set of another kind, such as VOC, could not be made, and what to do."""
    sets = [part for part in made if hasattr(part, "root") or "ids" in getattr(part, "__dict__", {})]
    classes = [part.class_to_ind for part in made if hasattr(part, "class_to_ind")]
    if isinstance(error, KeyError) and classes:
        names = some(list(classes[-1]), 30)
        return (
            f"The class {error.args[0]!r} stands in an annotation and is not among the classes of the data set: {names}.",
            "Correct the annotation, or list your classes in VOC_CLASSES.",
        )
    if isinstance(error, OSError) and error.filename is not None:
        owner = type(sets[-1]).__name__ if sets else "The data set of the experiment"
        return (
            f"{owner} needs {str(error.filename)!r}: {error.strerror}.",
            "Correct the folder that the experiment names, or the lists in it.",
        )
    if sets:
        return (
            f"{type(sets[-1]).__name__} could not be made: {in_words(error)}.",
            "With --debug the traceback is shown.",
        )
    # The error came before a data set was made, or after: an empty one has no batches.
    reason = _why_not_coco(data_dir or default_data_dir(), annotation, data_dir, where, error)
    return None if annotation_path(data_dir, annotation).is_file() and in_words(error) in reason[0] else reason


def coco_dataset(dataset: Any) -> Any | None:
    """The COCO data set inside the wrappers, None where there is none (VOC, a user's own)."""
    while dataset is not None and not hasattr(dataset, "coco"):
        dataset = getattr(dataset, "_dataset", None)
    return dataset


def inspect_dataset(
    dataset: Any, num_classes: int, split: str, may_be_empty: bool = False
) -> tuple[list[Finding], dict[str, Any]]:
    """Look at a COCO data set before training on it, and count what is in it.

    Args:
        dataset: a data set of YOLOX, wrapped or not.
        num_classes: of the experiment.
        split: its name in messages.
        may_be_empty: whether a set without any box is fine (it is for evaluation).

    Returns:
        Findings, and facts as plain data: ``file``, ``image_folder`` and those of `check_split`. Both are empty for a
        data set that is not COCO; the facts are empty where the file's structure is broken.

    Raises:
        DataError: the file is no JSON.
    """
    coco_set = coco_dataset(dataset)
    if coco_set is None:
        return [], {}
    path = Path(coco_set.data_dir) / "annotations" / coco_set.json_file
    folder = Path(coco_set.data_dir) / coco_set.name
    findings, facts = check_split(path, folder, split, tuple(coco_set.img_size))
    if not facts:
        return findings, {}
    facts = {"file": str(path.resolve()), "image_folder": str(folder.resolve()), **_without_ignored(facts, coco_set)}
    findings = [*findings, *_check_classes(facts, path, num_classes, split)]
    if not facts["boxes_kept"]:
        if may_be_empty:
            findings.append(
                Finding(
                    WARNING,
                    split,
                    f"{path} has no box, so AP cannot be measured and no best_ckpt.pth is written",
                    "Annotate the validation images, or take what you need from latest_ckpt.pth.",
                )
            )
        else:
            findings.append(
                Finding(
                    ERROR,
                    split,
                    f"{path} has no usable box in any of its {facts['images']} images; there is nothing to learn",
                    "Annotate the images.",
                )
            )
    else:
        lacking = [
            name for name, count in zip(facts["categories"], facts["boxes_per_category"], strict=True) if not count
        ]
        if lacking:
            effect = "never learned" if split == "train" else "not measured"
            findings.append(
                Finding(
                    WARNING,
                    split,
                    f"{len(lacking)} of {len(facts['categories'])} classes have no box and are {effect}: {some(lacking, 10)}",
                    "Annotate them, or take the categories out of both files.",
                )
            )
    findings += _check_label_count(dataset, facts, split)
    return findings, facts


def _without_ignored(facts: dict[str, Any], coco_set: Any) -> dict[str, Any]:
    """The facts of an annotation file without the classes that its data set ignores, and what it ignores instead."""
    if hasattr(coco_set, "scored_boxes"):
        facts = {**facts, "scored_boxes": coco_set.scored_boxes}
    if hasattr(coco_set, "repeat_factors"):
        facts = {**facts, "repeated_images": int((coco_set.repeat_factors > 1).sum())}
    if hasattr(coco_set, "ignored_regions"):
        facts = {**facts, "ignored_regions": sum(coco_set.ignored_regions)}
    ignored = getattr(coco_set, "ignored_classes", ())
    if not ignored:
        return facts
    kept = [number for number, name in enumerate(facts["categories"]) if name not in ignored]
    per_class = {key: [facts[key][number] for number in kept] for key in _PER_CATEGORY}
    return {**facts, **per_class, "boxes_kept": sum(per_class["boxes_per_category"]), "ignored_classes": list(ignored)}


def _check_classes(facts: dict[str, Any], path: Path, num_classes: int, split: str) -> Iterator[Finding]:
    names = facts["categories"]
    if len(names) == num_classes:
        return
    harm = "" if len(names) > num_classes else "; the classes without a category would never be learned"
    yield Finding(
        ERROR,
        split,
        f"{path} has {len(names)} categories ({some(names, 20)}) but the experiment has num_classes = {num_classes}{harm}",
        f"Set self.num_classes = {len(names)}.",
    )


def _check_label_count(dataset: Any, facts: dict[str, Any], split: str) -> Iterator[Finding]:
    """Boxes that do not fit into the labels of an image, of which YOLOX's transform keeps ``max_labels``."""
    most = getattr(getattr(dataset, "preproc", None), "max_labels", None)
    if split != "train" or not isinstance(most, int):
        return
    counts = np.zeros(1 + max(map(int, facts["boxes_per_image"])))
    for boxes, images in facts["boxes_per_image"].items():
        counts[int(boxes)] = images
    lost = int((np.clip(np.arange(len(counts)) - most, 0, None) * counts).sum())
    remedy = "Give the TrainTransform in the experiment's get_data_loader a larger max_labels."
    if lost:
        yield Finding(
            WARNING,
            split,
            f"{int(counts[most + 1 :].sum())} images have more boxes than the {most} labels that the transform keeps: "
            f"{lost} boxes are lost in every epoch",
            remedy,
        )
    if getattr(dataset, "enable_mosaic", False) and getattr(dataset, "mosaic_prob", 1.0) > 0:
        share = counts / counts.sum()
        four = np.convolve(np.convolve(share, share), np.convolve(share, share))
        mean = float((np.arange(len(four)) * four).sum())
        gone = float((np.clip(np.arange(len(four)) - most, 0, None) * four).sum())
        if mean and gone / mean > _LOST_IN_MOSAICS:
            yield Finding(
                WARNING,
                split,
                f"a mosaic of four images has {mean:.0f} boxes on average and keeps {most} labels: up to {gone:.0f} of them "
                f"({gone / mean:.0%}) are lost",
                remedy,
            )


def check_dataset(dataset: Any, num_classes: int, split: str, may_be_empty: bool = False) -> dict[str, Any]:
    """`inspect_dataset` for the verbs that go on with the data: an error stops, warnings are logged.

    Returns:
        The facts.

    Raises:
        DataError: every error that was found, with its remedy.
    """
    findings, facts = inspect_dataset(dataset, num_classes, split, may_be_empty)
    refuse(findings)
    if facts:
        check_image_cache(coco_dataset(dataset), split)
        more = f", {facts['ignored_regions']} ignored regions" if "ignored_regions" in facts else ""
        logger.info(
            f"{split}: {facts['images']} images ({facts['images_without_boxes']} without boxes), {facts['boxes']} boxes "
            f"({facts['boxes_of_zero_size']} of zero size, {facts['boxes_with_centre_outside']} with the centre outside the "
            f"image), {len(facts['categories'])} categories{more}"
        )
        per_class = zip(facts["categories"], facts["boxes_per_category"], strict=True)
        logger.info(
            printable(f"{split}: boxes per class: {some([f'{name} {count}' for name, count in per_class], 100)}")
        )
    return {key: value for key, value in facts.items() if key != "boxes_per_image"}


def refuse(findings: list[Finding]) -> None:
    """Log warnings; raise errors.

    Raises:
        DataError: all errors, each with its remedy.
    """
    errors = [finding for finding in findings if finding.level == ERROR]
    if errors:
        lines = [f"{finding.check}: {finding.text}. {finding.remedy}" for finding in errors]
        raise DataError("\n  ".join(lines))
    for finding in findings:
        if finding.level == WARNING:
            logger.warning(printable(f"{finding.check}: {finding.text}. {finding.remedy}"))


def compare_categories(train: list[tuple[int, str]], val: list[tuple[int, str]]) -> list[Finding]:
    """Whether both annotation files number the same classes alike.

    Args:
        train: id and name of each category of the training set, by ascending ids.
        val: the same of the validation set.
    """
    if train == val:
        return []
    differ = sorted({*train} ^ {*val})
    return [
        Finding(
            ERROR,
            "classes",
            "YOLOX numbers the categories of each file by their ids, and those of train and val differ: "
            f"{some([f'{name} (id {number}) in {_side((number, name), train)} only' for number, name in differ], 6)}",
            "Give both annotation files the same categories with the same ids and names.",
        )
    ]


def _side(category: tuple[int, str], train: list[tuple[int, str]]) -> str:
    return "train" if category in train else "val"


def file_names(dataset: Any, ids: list[int]) -> list[str]:
    """The files of these image ids, or the ids where the data set cannot tell."""
    coco_set = coco_dataset(dataset)
    if coco_set is None:
        return [str(number) for number in ids]
    return [str(coco_set.coco.imgs.get(number, {}).get("file_name", number)) for number in ids]
