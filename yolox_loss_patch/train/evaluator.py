"""COCO evaluation on any device, with the whole AP family and the predictions kept."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from loguru import logger
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from ..data.loader import explained
from ..head import hosts
from ..runs.record import AP_COLUMNS
from .validation.loss import ValidationLoss


def coco_metrics(truth: Any, predictions: list[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """COCO metrics of predictions.

    Args:
        truth: a ``pycocotools.coco.COCO`` with the annotations.
        predictions: COCO results: ``image_id, category_id, bbox (x, y, w, h), score``.

    Returns:
        The AP family by the names of `record.AP_COLUMNS` in [0, 1] (-1: no box of that size), and COCO's summary.
    """
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        evaluation = COCOeval(truth, truth.loadRes(predictions) if predictions else _nothing(truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        text.truncate(0)
        text.seek(0)
        evaluation.summarize()
    stats = [float(value) for value in evaluation.stats]
    at90 = evaluation.eval["precision"][8, :, :, 0, 2]  # IoU .50, .55, ... .90; all recalls and classes; all sizes
    ap90 = float(at90[at90 > -1].mean()) if (at90 > -1).any() else -1.0
    if not predictions:
        text.write("No detection above the score threshold.")
    values = (stats[0], stats[1], stats[2], ap90, stats[3], stats[4], stats[5], stats[8])
    return dict(zip(AP_COLUMNS, values, strict=True)), text.getvalue()


def _nothing(truth: Any) -> COCO:
    """Results without a detection, which ``loadRes`` cannot read."""
    results = COCO()
    results.dataset = {**truth.dataset, "annotations": []}
    results.createIndex()
    return results


class Evaluator:
    """Takes the place of YOLOX's ``COCOEvaluator``, which runs on CUDA only.

    Args:
        host: the evaluator of the experiment; its loader, sizes and thresholds are used.
        device: where the model is.

    After `evaluate`: ``metrics`` and ``predictions`` (on rank 0), and ``losses`` where ``stage`` is set.

    Attributes:
        stage: the loss stage in training, whose losses are measured on the validation images too; None: they are not.
    """

    def __init__(self, host: Any, device: torch.device) -> None:
        self.host = host
        self.device = device
        self.metrics: dict[str, float] = {}
        self.predictions: list[dict[str, Any]] = []
        self.stage: Any = None
        self.losses: dict[str, float | None] = {}

    @torch.no_grad()
    def evaluate(
        self, model: torch.nn.Module, distributed: bool = False, half: bool = False, **_: Any
    ) -> tuple[float, float, str]:
        """AP50:95, AP50 and a summary, as YOLOX's; the model is put into eval mode, and into fp16 for ``half``."""
        host = self.host
        model = model.eval()
        if half:
            model = model.half()
        rank = dist.get_rank() if distributed else 0
        found: list[dict[str, Any]] = []
        seen: list[int] = []
        known = len(host.dataloader.dataset.class_ids)
        broken = 0
        started = time.perf_counter()
        loss = None if self.stage is None else ValidationLoss.of(self.stage, host.dataloader.dataset)
        for images, _labels, info, ids in tqdm(
            explained(host.dataloader), desc="evaluate", total=len(host.dataloader), leave=False, disable=rank != 0
        ):
            images = images.to(self.device, torch.float16 if half else torch.float32)
            with contextlib.nullcontext() if loss is None else loss.watch(model):
                outputs = model(images).float()
            if loss is not None:
                loss.add(images, outputs, [int(number) for number in np.asarray(ids).flatten()])
            broken += int((~torch.isfinite(outputs).flatten(1).all(1)).sum())
            outputs = hosts.postprocess()(outputs, host.num_classes, host.confthre, host.nmsthre)
            # A class that no category stands for (num_classes above the data's) can be detected but not be right.
            outputs = [None if rows is None else rows[rows[:, 6] < known] for rows in outputs]
            found.extend(host.convert_to_coco_format(outputs, info, ids))
            seen.extend(int(number) for number in np.asarray(ids).flatten())
        seconds = time.perf_counter() - started
        if broken:
            logger.warning(
                f"The model's boxes or scores are not finite in {broken} of {len(seen)} images: its training has diverged, and "
                "what is measured here says nothing of its losses. Train with a lower basic_lr_per_img or longer warmup_epochs."
            )
        self.losses = {} if loss is None else loss.means(distributed)
        if distributed:
            found, seen = _gather(found, seen)
        if rank != 0:
            return 0.0, 0.0, ""
        self.predictions = found
        self.metrics, summary = coco_metrics(host.dataloader.dataset.coco, found)
        speed = f"{1000 * seconds / max(len(seen), 1):.2f} ms an image, with loading\n"
        return self.metrics["AP"], self.metrics["AP50"], speed + summary


def _gather(found: list[dict[str, Any]], seen: list[int]) -> tuple[list[dict[str, Any]], list[int]]:
    """All ranks' predictions on rank 0, every image once: the distributed sampler repeats some to fill the last batch."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (found, seen))
    everything: list[dict[str, Any]] = []
    done: set[int] = set()
    for predictions, ids in parts:
        new = set(ids) - done
        everything.extend(row for row in predictions if row["image_id"] in new)
        done |= new
    return everything, sorted(done)
