"""The loss on the validation images: the numbers, what it must not touch, and what it costs."""

import copy
import csv

import pytest
import torch
from conftest import EXP, assert_same, checkpoint, cli, make_head

import yolox_loss_patch as ylp
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.train.validation.loss import ValidationLoss, anchors

LOSSES = (
    {"loss_obj": "focal", "loss_iou": "wiou", "loss_cls": "ghmc"},
    {},
    {"loss_iou": "ciou", "loss_obj": "bce+0.5*dice"},
)


class Model(torch.nn.Module):
    """A head behind a backbone that makes the three levels out of the image."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = make_head(num_classes=3, seed=seed, use_l1=True)
        self.backbone = torch.nn.ModuleList(
            torch.nn.Conv2d(3, channels, stride, stride) for channels, stride in ((64, 8), (128, 16), (256, 32))
        )

    def forward(self, images, targets=None):
        return self.head([level(images) for level in self.backbone], targets, images)


class Data:
    """What a COCO data set of YOLOX holds: ids, and per image corners and class in px of the network's input."""

    def __init__(self, boxes):
        self.coco = object()
        self.ids = [10 * (place + 1) for place in range(len(boxes))]
        self.annotations = [(row.numpy(), (96, 96), (96, 96), "x.jpg") for row in boxes]


def make_data():
    rng = torch.Generator().manual_seed(3)
    boxes = []
    for number in (3, 0, 7, 1):
        corner, size = torch.rand(number, 2, generator=rng) * 60, 8 + torch.rand(number, 2, generator=rng) * 28
        classes = torch.randint(0, 3, (number, 1), generator=rng).float()
        boxes.append(torch.cat([corner, corner + size, classes], 1))
    return Data(boxes), torch.rand(4, 3, 96, 96, generator=rng) * 255


def measured(model, data, images, batch):
    loss = ValidationLoss.of(stage_of(model), data)
    model.eval()
    with torch.no_grad():
        for start in range(0, len(images), batch):
            with loss.watch(model):
                outputs = model(images[start : start + batch])
            loss.add(images[start : start + batch], outputs, data.ids[start : start + batch])
    return loss.means(distributed=False)


@pytest.mark.parametrize("losses", LOSSES)
def test_it_is_the_loss_that_the_training_would_have(losses):
    """Against the head's own forward in training mode, whose norm layers use the same statistics, on all images at once."""
    data, images = make_data()
    model = Model()
    ylp.patch_model(model, ylp.LossConfig(**losses))
    found = measured(model, data, images, batch=4)
    labels = torch.zeros(4, 7, 5)
    for row, (boxes, *_) in zip(labels, data.annotations, strict=True):
        boxes = torch.as_tensor(boxes)
        row[: len(boxes), 0] = boxes[:, 4]
        row[: len(boxes), 1:3] = (boxes[:, :2] + boxes[:, 2:4]) / 2
        row[: len(boxes), 3:] = boxes[:, 2:4] - boxes[:, :2]
    for prefix, config in (("val_", losses), ("val_stock_", {})):
        other = copy.deepcopy(model)
        ylp.unpatch_model(other)
        ylp.patch_model(other, ylp.LossConfig(**config))
        for loss in stage_of(other).losses.values():
            loss.eval()
        other.head.use_l1 = False
        other.eval()
        other.head.training = True  # the loss, with the norm layers in eval mode
        with torch.no_grad():
            total, iou, conf, cls, *_ = other(images, labels)
        expected = {"total_loss": total, "iou_loss": iou, "conf_loss": conf, "cls_loss": cls}
        for name, value in expected.items():
            assert found[prefix + name] == pytest.approx(float(value), rel=1e-5), prefix + name


def test_it_does_not_depend_on_the_batch():
    data, images = make_data()
    model = Model()
    ylp.patch_model(model, ylp.LossConfig(loss_iou="ciou", loss_obj="varifocal"))
    whole = measured(model, data, images, batch=4)
    for batch in (1, 3):
        assert measured(model, data, images, batch) == pytest.approx(whole, rel=1e-5)


def test_nothing_of_the_training_moves():
    data, images = make_data()
    model = Model()
    ylp.patch_model(model, ylp.LossConfig(loss_iou="wiou", loss_cls="ghmc"))
    stage = stage_of(model)
    stage.collect = True
    before, state = stage.running_state(), copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    measured(model, data, images, batch=2)
    assert torch.equal(torch.rand(1), expected)
    assert_same(state, model.state_dict())
    for term, values in stage.running_state().items():
        assert_same(before[term], values)
    assert not stage.gradients and not stage.stats and model.head.use_l1
    # PyTorch has no public name for the hooks of a module.
    assert all(not module._forward_hooks for module in model.modules())


def test_outputs_that_are_not_finite_give_none():
    data, images = make_data()
    model = Model()
    ylp.patch_model(model, ylp.LossConfig())
    with torch.no_grad():
        model.head.obj_preds[0].bias.fill_(float("nan"))
    assert set(measured(model, data, images, batch=2).values()) == {None}


def test_a_data_set_of_the_user_has_none():
    model = Model()
    ylp.patch_model(model, ylp.LossConfig())
    assert ValidationLoss.of(stage_of(model), object()) is None


def test_anchors_are_cells_in_rows():
    x, y, strides = anchors((2, 3), 16, torch.device("cpu"))
    assert x.tolist() == [[0, 1, 2, 0, 1, 2]] and y.tolist() == [[0, 0, 0, 1, 1, 1]] and strides.tolist() == [[16] * 6]


@pytest.mark.slow
def test_a_training_has_it_in_its_table_and_the_same_weights_without(work, digits):
    (work / "tiny.py").write_text(EXP.format(data=str(digits)))
    words = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "2", "loss_iou", "wiou")
    for name, flags in (("with", ()), ("without", ("--no-val-loss",))):
        cli(work, "train", *flags, "-expn", name, *words[1:])
    rows = {}
    for name in ("with", "without"):
        with (work / "YOLOX_outputs" / name / "metrics.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
    terms = ("total_loss", "conf_loss", "cls_loss", "iou_loss")
    last = rows["with"][-1]
    for kind in ("val", "val_stock"):
        total, *parts = (float(last[f"{kind}_{term}"]) for term in terms)
        assert min(parts) > 0 and total == pytest.approx(sum(parts), rel=1e-5)
        assert all(rows["without"][-1][f"{kind}_{term}"] == "" for term in terms)
    assert float(last["val_conf_loss"]) == pytest.approx(float(last["val_stock_conf_loss"]))
    assert last["val_iou_loss"] != last["val_stock_iou_loss"]
    pair = (checkpoint(work / "YOLOX_outputs" / name)["model"] for name in ("with", "without"))
    assert_same(*pair)
