"""The loss on the validation images: with the trained losses, and with YOLOX's own, which compares runs of other losses.

It is computed from the outputs of the evaluation, so the network runs once. Nothing of the training moves: the losses are
copies in eval mode, without gradients.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn

from ...data.checks import coco_dataset
from ...errors import NonFiniteError
from ...head.assign import Assignment
from ...head.patch import find_head
from ...head.stage import LossStage
from ...runs.record import VALIDATION_COLUMNS

_TERMS = ("iou_loss", "conf_loss", "cls_loss")  # as a stage gives them after the total


class ValidationLoss:
    """The loss terms of an evaluation, added up batch by batch.

    Each term is the sum over all images divided by their foreground anchors, so that it does not depend on the batch size.
    The total leaves L1 out, which YOLOX trains in the last epochs only: it would jump there.

    Args:
        stage: with the trained losses, as they are now.
        dataset: YOLOX's COCO data set of the evaluation, with the annotations scaled to the size of its images.
    """

    def __init__(self, stage: LossStage, dataset: Any) -> None:
        self.assigner = copy.deepcopy(stage)
        self.assigner.ignores_regions = False
        self.assignment: Assignment | None = None
        self.stages = {"val_": copy.deepcopy(stage), "val_stock_": LossStage(type(stage.config)())}
        for measured in self.stages.values():
            measured.collect = False
            measured.assign = lambda *_, **__: self.assignment  # type: ignore[method-assign, assignment]
            for loss in measured.losses.values():
                if isinstance(loss, nn.Module):
                    loss.eval()
        self.labels = dict(zip(map(int, dataset.ids), (row[0] for row in dataset.annotations), strict=True))
        self.sums: dict[str, float] = dict.fromkeys((*VALIDATION_COLUMNS, "num_fg"), 0.0)
        self.logits: list[list[Tensor]] = [[], []]
        self.is_finite = True
        self.device = torch.device("cpu")

    @classmethod
    def of(cls, stage: Any, dataset: Any) -> ValidationLoss | None:
        """The loss for this stage and data set; None where the host's head or its data set is another than YOLOX's."""
        coco = coco_dataset(dataset)
        known = coco is not None and hasattr(coco, "annotations") and hasattr(coco, "ids")
        return cls(stage, coco) if type(stage) is LossStage and known else None

    @contextlib.contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Keep the logits of each batch, which the head turns into probabilities in eval mode."""
        self.head = find_head(model)
        handles = []
        for logits, convolutions in zip(self.logits, (self.head.obj_preds, self.head.cls_preds), strict=True):

            def keep(_module: nn.Module, _inputs: Any, output: Tensor, kept: list[Tensor] = logits) -> None:
                kept.append(output)

            handles += [convolution.register_forward_hook(keep) for convolution in convolutions]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, images: Tensor, outputs: Tensor, ids: Sequence[int]) -> None:
        """Add a batch.

        Args:
            images: ``(B, 3, H, W)``.
            outputs: ``(B, A, 5 + C)`` of the model in eval mode: decoded box in px, probabilities.
            ids: of the images, ``(B,)``.
        """
        self.device = outputs.device
        obj, cls = (list(kept) for kept in self.logits)
        for kept in self.logits:
            kept.clear()
        if not self.is_finite or not torch.isfinite(outputs).all():
            self.is_finite = False
            return
        grids = [
            anchors(level.shape[-2:], stride, level.device)
            for level, stride in zip(obj, self.head.strides, strict=True)
        ]
        flat = [torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2).float() for levels in (obj, cls)]
        raw = torch.cat([outputs[:, :, :4], *flat], 2)
        labels = self._labels(ids, outputs.device)
        num_gt = int((labels.sum(2) > 0).sum())
        x_shifts, y_shifts, strides = ([level[part] for level in grids] for part in range(3))
        use_l1, self.head.use_l1 = self.head.use_l1, False
        try:
            places = torch.cat([torch.cat(level) for level in grids], 1)
            self.assignment = self.assigner.assign(self.head, images, raw, labels, places)
            for prefix, stage in self.stages.items():
                _, *values, ratio = stage.get_losses(
                    self.head, images, x_shifts, y_shifts, strides, labels, raw, [], raw.dtype
                )
                num_fg = round(float(ratio) * max(num_gt, 1))
                numbers = [num_fg * float(value) for value in values[: len(_TERMS)]]
                for name, number in zip(("total_loss", *_TERMS), (sum(numbers), *numbers), strict=True):
                    self.sums[f"{prefix}{name}"] += number
        except NonFiniteError:
            self.is_finite = False
            return
        finally:
            self.head.use_l1 = use_l1
        # Both stages have the same matches. Without a box YOLOX divides by 1, but there is no foreground anchor.
        self.sums["num_fg"] += num_fg if num_gt else 0

    def _labels(self, ids: Sequence[int], device: torch.device) -> Tensor:
        """``(B, M, 5)``: class, cx, cy, w, h in px of the network's input, rows of zeros after the last box."""
        boxes = [torch.as_tensor(self.labels[int(number)], dtype=torch.float32) for number in ids]
        labels = torch.zeros(len(boxes), max([1, *map(len, boxes)]), 5)
        for row, box in zip(labels, boxes, strict=True):
            corner, opposite = box[:, :2], box[:, 2:4]
            row[: len(box)] = torch.cat([box[:, 4:5], (corner + opposite) / 2, opposite - corner], 1)
        return labels.to(device)

    def means(self, distributed: bool) -> dict[str, float | None]:
        """The columns of this evaluation; None where the model's outputs are not finite."""
        names = list(self.sums)
        values = torch.tensor([*self.sums.values(), float(not self.is_finite)], dtype=torch.float64)
        if distributed:
            values = values.to(self.device)  # NCCL adds up on GPUs only
            dist.all_reduce(values)
        *sums, broken = values.tolist()
        total = dict(zip(names, sums, strict=True))
        num_fg = total.pop("num_fg")
        if broken:
            logger.warning("The loss on the validation images is unknown: the model's outputs are not finite.")
        return {name: value / num_fg if num_fg and not broken else None for name, value in total.items()}


def anchors(size: Sequence[int], stride: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cell indices and stride of a level's anchors, each ``(1, H * W)``.

    Args:
        size: height and width of the level in cells.
        stride: of the level, in px.
        device: of the result.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    strides = torch.full((1, height * width), float(stride), device=device)
    return x.reshape(1, -1).float(), y.reshape(1, -1).float(), strides
