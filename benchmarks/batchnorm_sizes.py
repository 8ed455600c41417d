#!/usr/bin/env python3
"""How much does AP hang on the sizes of the last batches? AP of checkpoints whose batch norm saw one size only.

    python benchmarks/batchnorm_sizes.py -f exps/digits_finetune.py -c YOLOX_outputs/NAME/latest_ckpt.pth --sizes 128 160 192

The weights stay; the running means and variances are taken anew from training images of each size (no mosaic, an epoch
of them). With multi-scale training they are those of whatever sizes came last: docs/which_loss.md.
"""

import argparse
import sys

import torch
from loguru import logger
from tabulate import tabulate
from tqdm import tqdm

from yolox_loss_patch.data.checks import check_dataset, open_data
from yolox_loss_patch.doctor.report import quiet
from yolox_loss_patch.errors import KitError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.runs.checkpoint import load_checkpoint
from yolox_loss_patch.train.checkpoints import load_weights
from yolox_loss_patch.train.evaluator import Evaluator
from yolox_loss_patch.train.seeds import prepare_process

BATCH = 8
METRICS = ("AP", "AP50", "AP75", "AP90")


@torch.no_grad()
def refresh(model, exp, size):
    """Take the statistics of every batch norm from an epoch of training images of this size."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    with quiet():
        loader = open_data(
            lambda: exp.get_data_loader(BATCH, False, no_aug=True), exp.data_dir, exp.train_ann, "train_ann"
        )
        check_dataset(loader.dataset, exp.num_classes, "train")
    model.train()
    for _, (images, targets, *_rest) in zip(
        tqdm(range(len(loader.dataset) // BATCH), desc=f"{size} px", leave=False), loader, strict=False
    ):
        model(*exp.preprocess(images.float(), targets.float(), (size, size)))


def evaluated(model, exp):
    """The metrics of the model at the experiment's test_size."""
    with quiet():
        host = open_data(lambda: exp.get_evaluator(BATCH, False), exp.data_dir, exp.val_ann, "val_ann")
        check_dataset(host.dataloader.dataset, exp.num_classes, "val", may_be_empty=True)
        evaluator = Evaluator(host, torch.device("cpu"))
        evaluator.evaluate(model.eval(), half=False)
    return [evaluator.metrics[name] for name in METRICS]


def table(exp_file, checkpoints, sizes, opts):
    """A row for each checkpoint as it is and with the statistics of each size.

    Raises:
        KitError: the experiment, an override, the data or a checkpoint cannot be used.
    """
    exp = load_exp(exp_file)
    exp.merge(opts)
    prepare_process(seed=0)
    rows = []
    for path in checkpoints:
        for size in (None, *sizes):
            with quiet():
                model = exp.get_model()
            load_weights(model, load_checkpoint(path, torch.device("cpu"))["model"], path, strict=True)
            if size is not None:
                refresh(model, exp, size)
            rows.append([path, size or "as trained", *evaluated(model, exp)])
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-f", "--exp_file", required=True)
    parser.add_argument("-c", "--ckpt", nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="pixels, multiples of 32")
    parser.add_argument("opts", nargs="*", default=[], help="overrides, as in training")
    args = parser.parse_intermixed_args(argv)
    if wrong := [size for size in args.sizes if size < 32 or size % 32]:
        parser.error(f"--sizes are multiples of 32; got {wrong[0]}")
    logger.disable("yolox_loss_patch")
    try:
        rows = table(args.exp_file, args.ckpt, args.sizes, args.opts)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tabulate(rows, ["checkpoint", "batch norm of", *METRICS], tablefmt="github", floatfmt=".3f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
