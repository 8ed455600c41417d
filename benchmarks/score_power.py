#!/usr/bin/env python3
"""Does a power on the objectness at inference repair a detector? AP of checkpoints with objectness**power as the score.

    python benchmarks/score_power.py -f exps/bccd_nano.py YOLOX_outputs/NAME/latest_ckpt.pth ...

Power 3 undoes most of what focal loss with gamma 2 does to small scores (docs/swaps.md).
"""

import argparse
import sys

import torch
from loguru import logger
from tabulate import tabulate

from yolox_loss_patch.data.checks import check_dataset, open_data
from yolox_loss_patch.doctor.report import quiet
from yolox_loss_patch.errors import KitError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head import hosts
from yolox_loss_patch.runs.checkpoint import load_checkpoint
from yolox_loss_patch.train.checkpoints import load_weights
from yolox_loss_patch.train.evaluator import coco_metrics
from yolox_loss_patch.train.seeds import prepare_process

POWERS = (0.5, 1.0, 2.0, 3.0)


@torch.no_grad()
def with_powers(model, evaluator):
    """AP and AP50 for each power; the network runs once."""
    batches = [(model(images.float()), info, ids) for images, _, info, ids in evaluator.dataloader]
    for power in POWERS:
        found = []
        for outputs, info, ids in batches:
            scored = outputs.clone()
            scored[..., 4] **= power
            rows = hosts.postprocess()(scored, evaluator.num_classes, evaluator.confthre, evaluator.nmsthre)
            found += evaluator.convert_to_coco_format(rows, info, ids)
        metrics, _ = coco_metrics(evaluator.dataloader.dataset.coco, found)
        yield power, metrics["AP"], metrics["AP50"], len(found)


def table(exp_file, checkpoints):
    """Rows of each checkpoint with each power.

    Raises:
        KitError: the experiment, the data or a checkpoint cannot be used.
    """
    prepare_process(seed=0)
    exp = load_exp(exp_file)
    with quiet():
        evaluator = open_data(lambda: exp.get_evaluator(16, False), exp.data_dir, exp.val_ann, "val_ann")
        check_dataset(evaluator.dataloader.dataset, exp.num_classes, "val", may_be_empty=True)
        model = exp.get_model().eval()
    rows = []
    for path in checkpoints:
        load_weights(model, load_checkpoint(path, torch.device("cpu"))["model"], path, strict=True)
        with quiet():
            rows += [[path, *row] for row in with_powers(model, evaluator)]
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-f", "--exp_file", required=True)
    parser.add_argument("checkpoints", nargs="+")
    args = parser.parse_args(argv)
    logger.disable("yolox_loss_patch")
    try:
        rows = table(args.exp_file, args.checkpoints)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tabulate(rows, ["checkpoint", "power", "AP", "AP50", "detections"], tablefmt="github", floatfmt=".3f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
