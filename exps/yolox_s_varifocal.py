"""YOLOX-s with varifocal loss for objectness, which then learns the IoU of the matched box."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_varifocal"
        self.loss_obj = dict(type="varifocal", alpha=0.75, gamma=2.0, target="iou")
