"""The experiment, its model and its data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.checks import coco_dataset, inspect_dataset, open_data
from ..data.findings import ERROR, OK, WARNING, Finding, some
from ..data.images import decode_images
from ..errors import DataError, KitError
from ..exp.data import category_findings
from ..exp.loading import load_exp
from ..exp.settings import setting_findings
from ..head.patch import stage_with
from ..specs.config import LossConfig
from .report import guarded, quiet


def check_experiment(
    exp_file: str | None, name: str | None, opts: Sequence[str], decode: bool = False
) -> Iterator[Finding]:
    """What an experiment resolves to, its losses, its model and its data.

    Args:
        exp_file: an experiment file.
        name: or one of YOLOX's models.
        opts: overrides of the experiment.
        decode: decode every image, which takes minutes on a large set.
    """
    try:
        exp = load_exp(exp_file, name)
        exp.merge(list(opts))
    except KitError as error:
        yield Finding(ERROR, "experiment", str(error))
        return
    keys = ("num_classes", "input_size", "test_size", "max_epoch", "basic_lr_per_img", "ema", "seed", "data_dir")
    named = ", ".join(f"{key}={getattr(exp, key)!r}" for key in keys if hasattr(exp, key))
    yield Finding(OK, "experiment", f"{exp_file or name} as {exp.exp_name}: {named}")
    yield from guarded("settings", lambda: setting_findings(exp))
    yield from guarded("losses", lambda: [Finding(OK, "losses", str(LossConfig.from_exp(exp)))])
    yield from guarded("model", lambda: _model(exp))
    for split, annotation, make in (
        ("train", "train_ann", lambda: exp.get_data_loader(batch_size=1, is_distributed=False).dataset),
        ("val", "val_ann", lambda: exp.get_evaluator(batch_size=1, is_distributed=False).dataloader.dataset),
    ):
        yield from guarded(split, functools.partial(_data, exp, split, annotation, make, decode))


def _model(exp: Any) -> Iterator[Finding]:
    with quiet():
        model = exp.get_model()
    stage_with(model, LossConfig.from_exp(exp))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    yield Finding(OK, "model", f"{type(model).__name__} with {size:.2f} M parameters, has the losses of the experiment")
    head_classes = getattr(model.head, "num_classes", exp.num_classes)
    if head_classes != exp.num_classes:
        yield Finding(
            ERROR,
            "model",
            f"its head has {head_classes} classes, and the experiment has num_classes = {exp.num_classes}",
            "Build the head with self.num_classes.",
        )


def _data(exp: Any, split: str, annotation: str, make: Callable[[], Any], decode: bool) -> Iterator[Finding]:
    try:
        with quiet():
            dataset = open_data(make, exp.data_dir, getattr(exp, annotation), annotation)
            findings, facts = inspect_dataset(dataset, exp.num_classes, split, may_be_empty=split != "train")
    except DataError as error:
        yield Finding(ERROR, split, error.text, error.remedy)
        return
    coco_set = coco_dataset(dataset)
    if coco_set is None:
        yield Finding(WARNING, split, "is not a COCO data set of YOLOX's, so it was not looked at")
        return
    if facts:
        yield Finding(
            OK,
            split,
            f"{facts['images']} images in {facts['image_folder']}, {facts['boxes']} boxes of {len(facts['categories'])} "
            "categories",
        )
        sizes = ", ".join(f"{count} {size}" for size, count in facts["boxes_by_size"].items())
        per_class = zip(facts["categories"], facts["boxes_per_category"], strict=True)
        yield Finding(
            OK,
            split,
            f"boxes by COCO's sizes: {sizes}; {facts['crowd_boxes']} crowds; {facts['images_without_boxes']} images without "
            f"boxes; boxes per class: {some([f'{name} {count}' for name, count in per_class], 100)}",
        )
    yield from findings
    if split == "val":
        yield from category_findings(exp, facts, split)
    if decode and facts:
        yield from decode_images(Path(facts["image_folder"]), [entry[3] for entry in coco_set.annotations], split)
    if facts:
        yield from _health(Path(facts["file"]), split)


# Findings of hotcoco's health check that the kit's checks do not make, and what to do about each.
_HEALTH = {
    "extreme_aspect_ratio": "Look whether they are drawn right.",
    "near_duplicate": "Take the doubles out; an object is counted twice.",
}


def _health(path: Path, split: str) -> Iterator[Finding]:
    """Hotcoco's health check of an annotation file."""
    try:
        import hotcoco
    except ImportError as error:
        yield Finding(WARNING, split, f"no health check of {path}: {error}", "pip install hotcoco")
        return
    try:
        found = hotcoco.COCO(str(path)).healthcheck()
    except ValueError as error:  # it is stricter than YOLOX
        yield Finding(
            WARNING,
            split,
            f"{path} is not in COCO format to the letter: {error}",
            "Correct what stands at that place of the file; ids are whole numbers from 0 on.",
        )
        return
    for entry in (*found["errors"], *found["warnings"]):
        if entry["code"] in _HEALTH:
            ids = f" Ids: {some(entry['affected_ids'])}." if entry["affected_ids"] else ""
            yield Finding(WARNING, split, f"{entry['message']}{ids}", _HEALTH[entry["code"]])
