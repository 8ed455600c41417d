"""``yolox-loss eval``: a checkpoint's COCO metrics on any device, and its predictions kept in its run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from ..data.checks import open_data
from ..errors import ConfigError, RunError
from ..exp.data import check_split_of
from ..exp.device import choose_device
from ..exp.loading import load_exp
from ..exp.settings import check_values, settings
from ..head import hosts
from ..runs.checkpoint import load_checkpoint
from ..runs.files import refuse_links
from ..runs.plain_yolox import read_plain
from ..runs.predictions import evaluation_file, predictions_file, write_evaluation, write_predictions
from ..runs.record import read_metrics, read_run
from .checkpoints import load_weights
from .evaluator import Evaluator
from .seeds import prepare_process

# What moves an evaluation besides weights and data.
_EVALUATION = ("test_conf", "nmsthre", "test_size")
# Devices and versions of torch move AP by less, another data set by more.
_SAME_AP = 0.005


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """Evaluate a checkpoint as the parsed command line says; prints COCO's summary and returns the metrics.

    Raises:
        KitError: what a user can mend.
    """
    switches = {"--trt": "trt", "--fuse": "fuse", "--speed": "speed"}
    counts = {"-d": "devices", "--num_machines": "num_machines"}
    unused = [flag for flag, name in switches.items() if getattr(args, name, False)]
    unused += [flag for flag, name in counts.items() if (getattr(args, name, None) or 1) > 1]
    if unused:
        raise ConfigError(
            f"yolox-loss eval evaluates with PyTorch in one process; leave out {', '.join(unused)}, or take YOLOX's own tool, "
            "python -m yolox.tools.eval, on CUDA."
        )
    exp = load_exp(args.exp_file, args.name)
    exp.merge(args.opts)
    prepare_process(args.seed)
    device = choose_device(args.device)
    if args.fp16 and device.type != "cuda":
        logger.warning(f"--fp16 evaluates in half precision on CUDA; on {device.type} this is full precision.")
    for name, value in (("test_conf", args.conf), ("nmsthre", args.nms)):
        if value is not None:
            setattr(exp, name, value)
    if args.tsize is not None:
        exp.test_size = (args.tsize, args.tsize)
    if args.batch_size < 1:
        raise ConfigError(f"-b is at least 1; got {args.batch_size}.")
    check_values(exp)
    folder = Path(exp.output_dir) / (args.experiment_name or exp.exp_name)
    path = Path(args.ckpt) if args.ckpt else folder / "best_ckpt.pth"
    others = sorted(other.name for other in folder.glob("*_ckpt.pth"))
    if not args.ckpt and others and not path.is_file():
        raise RunError(
            f"{folder} has no {path.name}: no evaluation found anything. Choose another with -c: {', '.join(others)}."
        )
    checkpoint = load_checkpoint(path)
    keeper = _Keeper(exp, args, path, checkpoint) if args.save else None
    model = exp.get_model()
    load_weights(model, checkpoint["model"], path, strict=True)
    model.to(device)
    host = open_data(
        lambda: exp.get_evaluator(args.batch_size, False, args.test, args.legacy),
        exp.data_dir, exp.test_ann if args.test else exp.val_ann, "test_ann" if args.test else "val_ann",
    )  # fmt: skip
    data = check_split_of(exp, host.dataloader.dataset, "val", may_be_empty=True)
    if not hosts.is_coco_evaluator(host):
        raise RunError(f"{type(host).__name__} is not YOLOX's COCO evaluator; the kit evaluates COCO data sets.")
    if keeper is not None:
        keeper.check_data(data)
    evaluator = Evaluator(host, device)
    host.dataloader.pin_memory = device.type == "cuda"
    half = args.fp16 and device.type == "cuda"
    _, _, summary = evaluator.evaluate(model, half=half)
    print(f"{path}\n{summary}")
    if keeper is not None:
        print(f"kept as {keeper.write(evaluator, data, device)}")
    return evaluator.metrics


class _Keeper:
    """The predictions that ``eval --save`` leaves in a run's folder: they must be what the run's own evaluation gives.

    Args:
        exp: the experiment that is evaluated.
        args: the parsed command line.
        path: the checkpoint's.
        checkpoint: what is in it.

    Raises:
        RunError: the checkpoint lies in no run, is of no known epoch, or would be evaluated otherwise than in its run.
    """

    def __init__(self, exp: Any, args: argparse.Namespace, path: Path, checkpoint: dict[str, Any]) -> None:
        self.exp, self.args, self.path, self.folder = exp, args, path, path.parent
        for name, used in (("--test", args.test), ("--fp16", args.fp16)):
            if used:
                raise RunError(
                    "--save keeps what a run detects in its validation images, in full precision as in training; leave out "
                    f"{name}."
                )
        record, self.rows = read_run(self.folder), read_metrics(self.folder)
        is_plain = record is None
        if record is None:
            run = read_plain(self.folder)
            if run is None:
                raise RunError(
                    f"--save keeps predictions in the folder of the checkpoint's run, but {str(self.folder)!r} holds no run: no "
                    "run.json, no train_log.txt. Leave out --save, or name a checkpoint in YOLOX_outputs/NAME."
                )
            record, self.rows = run
        if not isinstance(checkpoint.get("start_epoch"), int):
            raise RunError(f"{str(path)!r} does not say of which epoch it is (no 'start_epoch'); --save needs to know.")
        # Plain YOLOX writes this one before the epoch whose number it puts in.
        is_early = is_plain and path.name == "last_mosaic_epoch_ckpt.pth"
        self.epoch: int = checkpoint["start_epoch"] - is_early
        self.data = record.get("data", {}).get("val", {})
        here_all, there = settings(exp), record.get("exp", {})
        for key in _EVALUATION:
            here = here_all[key]
            if key in there and there[key] != here:
                raise RunError(
                    f"--save keeps predictions as the run's own evaluation makes them, but {key} is {here!r} here and "
                    f"{there[key]!r} in the run. Evaluate with '{key} {there[key]}' at the end, or without --save."
                )

    def check_data(self, data: dict[str, Any]) -> None:
        """Refuse other validation data than the run's.

        Raises:
            RunError: the annotation files differ.
        """
        if self.data and self.data.get("sha256") != data.get("sha256"):
            raise RunError(
                f"The validation data are not those of the run: {data.get('file')} has sha256 {data.get('sha256')}, the run's "
                f"{self.data.get('file')} had {self.data.get('sha256')}. Evaluate on the run's data, or without --save."
            )

    def write(self, evaluator: Evaluator, data: dict[str, Any], device: torch.device) -> Path:
        """Write the predictions and what was evaluated; returns the path of the predictions."""
        row = next((row for row in self.rows if row["epoch"] == self.epoch), {})
        before, now = row.get("AP"), evaluator.metrics["AP"]
        if before is not None and abs(before - now) > _SAME_AP:
            logger.warning(
                f"AP is {now:.4f} here and was {before:.4f} in the run after epoch {self.epoch}: the data, the experiment or "
                "the checkpoint may not be the run's."
            )
        facts = {
            "epoch": self.epoch,
            "checkpoint": self.path.name,
            "metrics": evaluator.metrics,
            **{key: getattr(self.exp, key) for key in _EVALUATION},
            "legacy": self.args.legacy,
            "device": device.type,
            "exp": settings(self.exp),
            "data": {"val": data},
        }
        refuse_links(self.folder)
        path = predictions_file(self.folder, self.epoch)
        hashes: list[str] = []
        write_predictions(path, evaluator.predictions, lambda name, digest: hashes.append(digest))
        write_evaluation(evaluation_file(self.folder, self.epoch), {**facts, "predictions_sha256": hashes[0]})
        return path
