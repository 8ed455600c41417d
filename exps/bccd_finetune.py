"""YOLOX-nano on the blood cells of bccd_nano.py, from a network that stock YOLOX trained on them.

    yolox-loss train -f exps/bccd_nano.py -b 8 -expn bccd_start max_epoch 90 seed 100
    yolox-loss sweep -f exps/bccd_finetune.py -b 8 -c YOLOX_outputs/bccd_start/latest_ckpt.pth --set loss_iou=iou,ciou

Half the learning rate, and a last one near zero: at YOLOX's 0.05 of the first, a training as short as this ends wherever
the last steps leave it, and AP moves by 0.03 from one epoch to the next. So seeds differ less here than from scratch.
"""

from bccd_nano import Exp as BaseExp  # lies beside this file; YOLOX puts the folder of an experiment on the path


class Exp(BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "bccd_finetune"
        self.max_epoch = 20
        self.warmup_epochs = 1
        self.no_aug_epochs = 4
        self.basic_lr_per_img = 0.005 / 8
        self.min_lr_ratio = 0.002
