"""A template for your own data. Copy it, change what stands under the first banner, train:

    yolox-loss train -f my_exp.py -b 16

Everything YOLOX's Exp has can be set here as well; the most used settings are below.
"""

from yolox.exp import Exp as BaseExp

import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):  # LossExp first
    def __init__(self):
        super().__init__()
        # ======================= frequently modified ======================= #
        self.exp_name = "my_exp"  # the run's folder: YOLOX_outputs/my_exp
        # Data in COCO format: DIR/annotations/*.json, images in DIR/train2017 and DIR/val2017
        self.data_dir = "datasets/my_data"
        self.train_ann = "instances_train2017.json"
        self.val_ann = "instances_val2017.json"
        self.num_classes = 80
        # The size of the model: nano .33/.25 (depthwise, see yolox_nano), tiny .33/.375, s .33/.50, m .67/.75, l 1/1, x 1.33/1.25
        self.depth = 0.33
        self.width = 0.50

        # The losses. Left out, a term is YOLOX's own. `yolox-loss list` prints all names and knobs, docs/losses.md says
        # when to use which. A dict sets knobs; MMDetection's dicts work as they stand.
        # Objectness: "bce", "focal", "varifocal", "quality_focal", "ghmc", "dice", "tversky", "dice_focal"
        self.loss_obj = "bce"
        # self.loss_obj = dict(type="bce", target="iou")               # the score learns the IoU of the matched box
        # self.loss_obj = "varifocal"                                  # as published: the target is the IoU
        # self.loss_obj = dict(type="varifocal", calibrated=True, target="hard")   # weight and score as BCE's
        # self.loss_obj = dict(type="focal", alpha=0.25, gamma=2.0)
        # self.loss_obj = "bce+0.5*dice"                               # a sum; or a list of dicts
        # Boxes: "iou", "giou", "diou", "ciou", "eiou", "alpha_ciou", "siou", "wiou", "shape_iou", "inner_ciou", ...
        self.loss_iou = "iou"
        # self.loss_iou = dict(type="ciou", by_overlap=True)           # with the slope of "iou"
        # self.loss_iou = dict(type="mpdiou", inner=0.75)              # modifiers: power, inner, focaler, focal, wise
        # self.loss_iou = dict(type="alpha_ciou", alpha=3.0)
        # self.loss_iou = dict(type="giou", loss_weight=1.0)           # times YOLOX's fixed 5.0

        # ======================== possibly modified ======================== #
        self.loss_cls = "bce"
        self.loss_l1 = (
            "l1"  # in the last no_aug_epochs, as in YOLOX; dict(type="smooth_l1", start_epoch=1) from the start
        )
        self.seed = None  # a number makes the run repeatable
        self.input_size = (640, 640)
        self.test_size = (640, 640)
        self.max_epoch = 300
        self.warmup_epochs = 5
        self.no_aug_epochs = 15
        self.basic_lr_per_img = 0.01 / 64.0
        self.eval_interval = 10
        self.print_interval = 10
        self.data_num_workers = 4
