"""YOLOX-s with YOLOX's box loss at twice the weight: to fine-tune with, above all for one class, see docs/which_loss.md."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_box_weight"
        self.loss_iou = dict(type="iou", loss_weight=2.0)
