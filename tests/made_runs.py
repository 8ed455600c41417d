"""Run folders without a training: real files with made detections, and the metrics that pycocotools gives them."""

import json

import cv2
import numpy as np
from conftest import load_script
from pycocotools.coco import COCO

from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.runs.predictions import predictions_file, write_predictions
from yolox_loss_patch.runs.record import COLUMNS
from yolox_loss_patch.specs.config import LossConfig
from yolox_loss_patch.train.evaluator import coco_metrics

script = load_script("benchmarks/verdict")
make_truth, detect = script.make_truth, script.detect


def make_data(folder, images=12):
    """Annotations and grey images; returns the record's ``data.val``."""
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    data = make_truth(folder, images=images)
    data["sha256"] = hashlib.sha256((folder / "truth.json").read_bytes()).hexdigest()
    rng = np.random.default_rng(0)
    for number in range(1, images + 1):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(90, 160, (256, 256, 3), dtype=np.uint8))
    return data


def make_run(folder, data, error=0.12, seed=0, losses=None, status="finished", epochs=4, **exp):
    """A run whose detections are off by ``error`` of the boxes' sides; evaluated every second epoch, the last is the best."""
    folder.mkdir(parents=True)
    config = LossConfig(**(losses or {}))
    record = {
        "status": status, "error": "RunError: the loss is not finite" if status == "failed" else None,
        "losses": config.to_dict(), "resolved_losses": config.resolved(),
        "exp": {"max_epoch": epochs, "input_size": [96, 96], "seed": seed, "exp_name": folder.name, **exp},
        "args": {"batch_size": 8, "fp16": False, "ckpt": None, "start_epoch": None, "devices": None, "num_machines": 1},
        "seed": seed, "host": {"name": "yolox 0.3.0 (PyPI)", "get_losses": "4e6e"}, "versions": {"torch": "2.14.1"},
        "device": "cpu", "batches_per_epoch": 3, "data": {"train": {**data, "sha256": "ab" * 32}, "val": data},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    truth, coco = Truth(data), COCO(data["file"])
    lines = [",".join(COLUMNS)]
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "total_loss": 8 / epoch, "iou_loss": 3 / epoch, "conf_loss": 3 / epoch, "cls_loss": 1 / epoch,
               "l1_loss": 1 / epoch, "fg_iou": 0.6, "obj_fg": 0.5, "obj_bg": 0.03, "lr": 0.01, "seconds": 1.5,
               "memory_mib": 900 + epoch, "grad_box": 5.0, "grad_obj_fg": 0.5, "grad_obj_bg": 0.4, "grad_cls": 0.6}  # fmt: skip
        if epoch % 2 == 0:
            found = detect(truth, error + 0.05 * (epochs - epoch), seed=1000 * seed + epoch + int(error * 1e9))
            row.update(coco_metrics(coco, found)[0])
            write_predictions(predictions_file(folder, epoch), found)
        lines.append(",".join("" if row.get(name) is None else repr(row[name]) for name in COLUMNS))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def edit(folder, **changes):
    """Change the record of a run, as somebody does who takes its checksum out; ``exp__max_epoch`` is in ``exp``."""
    record = json.loads((folder / "run.json").read_text())
    record.pop("sha256", None)
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (record[part] if part else record)[key] = value
    (folder / "run.json").write_text(json.dumps(record))
