"""YOLOX-s with alpha-CIoU for the boxes."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_alpha_ciou"
        self.loss_iou = dict(type="alpha_ciou", alpha=3.0)
