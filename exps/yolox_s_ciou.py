"""YOLOX-s with CIoU for the boxes: a loss by its name."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_ciou"
        self.loss_iou = "ciou"
