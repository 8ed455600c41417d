"""YOLOX-s for one class, from a checkpoint: one input size, YOLOX's own box loss at twice the weight. See docs/which_loss.md."""

from yolox.exp.default.yolox_s import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "yolox_s_one_class"
        self.num_classes = 1
        self.random_size = (20, 20)  # times 32 px: 640 at every iteration, as test_size
        self.loss_iou = dict(type="iou", loss_weight=2.0)
