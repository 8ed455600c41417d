"""The data of a training: checked sets, the loader from a given epoch on, the evaluator."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from ..data.checks import file_names, open_data
from ..data.ignored import IGNORE_KEYS, IgnoreSettings
from ..data.loader import Prefetcher, training_loader
from ..errors import ConfigError, RunError
from ..exp.data import check_split_of
from ..head import hosts
from ..runs.predictions import predictions_file, write_predictions
from .device import Compute
from .evaluator import Evaluator


class TrainingData:
    """The training and the validation set of an experiment, checked before an epoch is lost.

    Args:
        exp: the experiment.
        args: the parsed command line.
        compute: where the process trains.
        world: how many processes train together.
        mosaic: whether the first epoch to train has mosaic.

    Attributes:
        batches_per_epoch: of this process.
        facts: what is in both sets, for the record.
        evaluator: the kit's where the experiment has YOLOX's COCO evaluator, else the experiment's own.

    Raises:
        KitError: data that cannot be trained on.
    """

    def __init__(self, exp: Any, args: argparse.Namespace, compute: Compute, world: int, mosaic: bool) -> None:
        self.compute = compute
        self.world = world
        self.loader = open_data(
            lambda: exp.get_data_loader(
                batch_size=args.batch_size, is_distributed=world > 1, no_aug=not mosaic, cache_img=args.cache
            ),
            exp.data_dir, exp.train_ann, "train_ann",
        )  # fmt: skip
        self.batches_per_epoch = len(self.loader)
        if not self.batches_per_epoch:
            raise RunError(
                f"The training set gives no batch of {args.batch_size} images a worker; lower the batch size with -b."
            )
        self.facts = {"train": check_split_of(exp, self.loader.dataset, "train")}
        if IgnoreSettings.from_exp(exp) and "ignored_regions" not in self.facts["train"]:
            raise ConfigError(
                f"The labels have no ignored regions, which {' or '.join(IGNORE_KEYS)} ask for: the experiment's "
                "get_data_loader() does not reach LossExp.get_data_loader. Call super().get_data_loader() in it."
            )
        if exp.gt_score and "scored_boxes" not in self.facts["train"]:
            raise ConfigError(
                "The labels have no scores, which gt_score asks for: the experiment's get_data_loader() does not reach "
                "LossExp.get_data_loader. Call super().get_data_loader() in it."
            )
        evaluator = open_data(
            lambda: exp.get_evaluator(batch_size=args.batch_size, is_distributed=world > 1),
            exp.data_dir, exp.val_ann, "val_ann",
        )  # fmt: skip
        validation = evaluator.dataloader.dataset
        self.facts["val"] = check_split_of(exp, validation, "val", may_be_empty=True)
        if hosts.is_coco_evaluator(evaluator):
            evaluator = Evaluator(evaluator, compute.device)
            evaluator.host.dataloader.pin_memory = compute.is_cuda
        elif not compute.is_cuda and type(evaluator).__module__.split(".")[0] == "yolox":
            raise RunError(
                f"YOLOX's {type(evaluator).__name__} evaluates on CUDA only, and this training is on {compute.device.type}. "
                "Train on CUDA, or give the data as COCO (yolox.evaluators.COCOEvaluator), which the kit evaluates on any device."
            )
        elif not compute.is_cuda:
            logger.warning(f"{type(evaluator).__name__} is not the kit's and may need CUDA.")
        self.evaluator = evaluator

    def to_agree_on(self) -> dict[str, Any]:
        """What must be the same in every worker."""
        keys = ("sha256", "images", "boxes")
        data = {split: {key: facts.get(key) for key in keys} for split, facts in self.facts.items()}
        return {"data": data, "batches an epoch": self.batches_per_epoch}

    def batches(self, seed: int, rank: int, *, start: int, mosaic_until: int) -> Prefetcher:
        """The endless batches of this process.

        Args:
            seed: of the run.
            rank: of this process.
            start: the first epoch to train, from 0.
            mosaic_until: the first epoch without mosaic, from 0.
        """
        loader = training_loader(
            self.loader,
            seed=seed,
            rank=rank,
            world=self.world,
            start=start * self.batches_per_epoch,
            mosaic_until=mosaic_until * self.batches_per_epoch,
            pin_memory=self.compute.is_cuda,
        )
        return Prefetcher(loader, self.compute.device)

    def measure_losses_of(self, stage: Any) -> None:
        """Measure this stage's losses in the next evaluation too; none where it is None."""
        if isinstance(self.evaluator, Evaluator):
            self.evaluator.stage = stage

    def keep_predictions(
        self, folder: Path, epoch: int, note_hash: Callable[[str, str], None]
    ) -> dict[str, float | None]:
        """Write what the evaluation after this epoch detected; returns what was measured, nothing by another evaluator.

        Args:
            folder: of the run.
            epoch: its number, from 1.
            note_hash: called with the name of the file and its SHA-256 before it is there.
        """
        if not isinstance(self.evaluator, Evaluator):
            return {}
        write_predictions(predictions_file(folder, epoch), self.evaluator.predictions, note_hash)
        return {**self.evaluator.metrics, **self.evaluator.losses}

    def files(self, ids: list[int]) -> str:
        """The files of these image ids, for a message."""
        return ", ".join(file_names(self.loader.dataset, ids))
