"""YOLOX-s with varifocal loss for objectness, calibrated: foreground that it is sure of counts up to three times."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_varifocal"
        self.loss_obj = dict(type="varifocal", alpha=0.75, gamma=2.0)
