"""YOLOX-nano on the digits of digits_stock.py, from a network that stock YOLOX trained on them; see bccd_finetune.py.

yolox-loss train -f exps/digits_stock.py -b 8 -expn digits_start max_epoch 60 seed 100
yolox-loss sweep -f exps/digits_finetune.py -b 8 -c YOLOX_outputs/digits_start/latest_ckpt.pth --set loss_iou=iou,ciou
"""

from digits_stock import Exp as BaseExp  # lies beside this file; YOLOX puts the folder of an experiment on the path


class Exp(BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "digits_finetune"
        self.max_epoch = 12
        self.warmup_epochs = 1
        self.no_aug_epochs = 2
        self.basic_lr_per_img = 0.015 / 8
        self.min_lr_ratio = 0.002
