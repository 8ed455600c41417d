"""YOLOX-nano at 256 px on a small set of blood-cell photographs (BCCD: RBC, WBC, platelets), from scratch.

    yolox-loss train -f exps/bccd_nano.py -b 8 -expn bccd_giou data_dir PATH/TO/bccd loss_iou giou

BCCD is github.com/Shenggan/BCCD_Dataset (MIT), converted to COCO format: annotations/instances_{train,val}2017.json and
the folders train2017, val2017. The losses stand on the command line here, so that one file serves every comparison.
"""

import os

from yolox.exp.default.yolox_nano import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "bccd_nano"
        self.seed = 0
        # ---------------- data ---------------- #
        self.data_dir = os.environ.get("BCCD", os.path.join("datasets", "bccd"))
        self.num_classes = 3
        self.input_size = (256, 256)
        self.test_size = (256, 256)
        self.random_size = (7, 9)  # multi-scale: 224 to 288 px
        self.data_num_workers = 2
        # ---------------- augmentation ---------------- #
        self.mosaic_prob = 0.5
        self.mosaic_scale = (0.5, 1.5)
        self.enable_mixup = False
        # ---------------- training ---------------- #
        self.max_epoch = 30
        self.warmup_epochs = 2
        self.no_aug_epochs = 5
        self.basic_lr_per_img = 0.01 / 8
        self.eval_interval = 5
        self.print_interval = 5
        self.save_history_ckpt = False
