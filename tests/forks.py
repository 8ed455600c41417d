"""Made forks of the installed YOLOX: its files with a few lines edited."""

import shutil
from pathlib import Path

import yolox

HEAD = "models/yolo_head.py"
IOU_CALL = """        loss_iou = (
            self.iou_loss(bbox_preds.view(-1, 4)[fg_masks], reg_targets)
        ).sum() / num_fg
"""
OBJ_CALL = """        loss_obj = (
            self.bcewithlog_loss(obj_preds.view(-1, 1), obj_targets)
        ).sum() / num_fg
"""
CLS_CALL = """        loss_cls = (
            self.bcewithlog_loss(
                cls_preds.view(-1, self.num_classes)[fg_masks], cls_targets
            )
        ).sum() / num_fg
"""
SUM = "        loss = reg_weight * loss_iou + loss_obj + loss_cls + loss_l1\n"

BACKBONE = {
    "models/yolo_pafpn.py": [
        ("outputs = (pan_out2, pan_out1, pan_out0)", "outputs = (pan_out2 * 0.5, pan_out1, pan_out0 * 2.0)")
    ]
}
ORDER = {HEAD: [(IOU_CALL + OBJ_CALL, OBJ_CALL + IOU_CALL)]}
# A centre-ness branch: one logit more an anchor, with a loss of its own.
BRANCH = {
    HEAD: [
        (
            "        self.use_l1 = False\n",
            "        self.use_l1 = False\n"
            "        self.ctr_preds = nn.ModuleList([nn.Conv2d(int(256 * width), 1, 1) for _ in in_channels])\n"
            '        self.ctr_loss = nn.BCEWithLogitsLoss(reduction="none")\n',
        ),
        (
            "output = torch.cat([reg_output, obj_output, cls_output], 1)",
            "output = torch.cat([reg_output, obj_output, cls_output, self.ctr_preds[k](reg_feat)], 1)",
        ),
        ("n_ch = 5 + self.num_classes", "n_ch = 6 + self.num_classes"),
        ("cls_preds = outputs[:, :, 5:]", "ctr_preds = outputs[:, :, -1:]; cls_preds = outputs[:, :, 5:-1]"),
        (
            SUM,
            "        loss_ctr = self.ctr_loss(ctr_preds.reshape(-1, 1), obj_targets).sum() / num_fg\n"
            + SUM.replace("+ loss_l1", "+ loss_l1 + loss_ctr"),
        ),
    ]
}


def edit(text, edits):
    """The text with each (old, new) put through; every old stands in it once."""
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def make(folder, edits):
    """A folder with a whole package ``yolox``, edited; put it in front of the Python path."""
    source = Path(next(iter(yolox.__path__)))
    shutil.copytree(source, folder / "yolox", ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in edits.items():
        path = folder / "yolox" / name
        path.write_text(edit(path.read_text(), changes))
    return folder
