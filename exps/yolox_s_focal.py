"""YOLOX-s with focal loss for objectness: a loss with knobs, as a dict."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_focal"
        self.loss_obj = dict(type="focal", alpha=0.25, gamma=2.0)
