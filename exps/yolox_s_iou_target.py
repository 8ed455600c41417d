"""YOLOX-s whose objectness learns how well the box fits. For fine-tuning; scores get lower. See docs/which_loss.md."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_iou_target"
        self.loss_obj = dict(type="bce", target="iou")
