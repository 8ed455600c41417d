"""digits_stock.py with two losses swapped: varifocal for objectness (calibrated), CIoU for the boxes (by overlap).

    python scripts/make_digits.py
    python -m yolox_loss_patch train -f exps/digits_varifocal_ciou.py -b 8

The losses are all that differs from digits_stock.py: compare the two files, then the two runs.
"""

import os

from yolox.exp.default.yolox_nano import Exp as BaseExp  # depth 0.33, width 0.25, depthwise convolutions

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = os.path.splitext(os.path.basename(__file__))[0]
        self.seed = 0

        # ---------------- losses ---------------- #
        self.loss_obj = dict(type="varifocal", calibrated=True, target="hard")
        self.loss_iou = dict(type="ciou", by_overlap=True)

        # ---------------- data ------------------ #
        self.num_classes = 10
        self.data_dir = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "datasets", "digits")
        self.data_num_workers = 2
        self.input_size = (160, 160)
        self.test_size = (160, 160)
        self.random_size = (4, 6)  # times 32: 128, 160 or 192 px, drawn anew every 10 iterations

        # ------------- augmentation ------------- #
        # Little, for the pictures vary much as it is and the training is too short to see them often.
        self.flip_prob = 0.0  # a mirrored 2 is not a 2
        self.hsv_prob = 0.0
        self.mosaic_prob = 0.0
        self.enable_mixup = False

        # ------- schedule: 60 iterations of 8 images are an epoch ------- #
        self.max_epoch = 18
        self.warmup_epochs = 1
        self.no_aug_epochs = 2
        self.basic_lr_per_img = 0.03 / 8.0
        self.print_interval = 10
        self.eval_interval = 4
        self.save_history_ckpt = False
