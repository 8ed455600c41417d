"""digits_finetune.py with a loss balance that moves: more class early, more box late, as YOLO26's progressive loss balancing.

    yolox-loss sweep -f exps/digits_balancing.py -b 8 -c YOLOX_outputs/digits_start/latest_ckpt.pth

A weight is a schedule {epoch: value} with straight lines between. Its picture is in the run's report.html. What it did
to AP, docs/data.md says (benchmarks/remedies.sh balancing).
"""

from digits_finetune import Exp as BaseExp  # lies beside this file; YOLOX puts the folder of an experiment on the path


class Exp(BaseExp):
    def __init__(self):
        super().__init__()
        self.exp_name = "digits_balancing"
        self.loss_cls = dict(type="bce", loss_weight={1: 1.5, 12: 0.5})
        self.loss_iou = dict(type="iou", loss_weight={1: 0.5, 12: 1.5})
