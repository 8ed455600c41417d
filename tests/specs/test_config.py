"""Specs: what they become, and what is answered to wrong ones."""

import json

import pytest

import yolox_loss_patch as ylp
from yolox_loss_patch.specs.resolve import resolve


def test_the_defaults_are_stock_and_round_trip():
    config = ylp.LossConfig()
    assert config.to_dict() == {"loss_obj": "bce", "loss_cls": "bce", "loss_iou": "iou", "loss_l1": "l1"}
    assert config.resolved()["iou"]["mode"] == "square"
    other = ylp.LossConfig(loss_obj=dict(type="varifocal", alpha=0.5), loss_iou="ciou")
    assert ylp.LossConfig(**json.loads(json.dumps(other.to_dict()))) == other != config


def test_equal_is_what_would_train_the_same():
    assert ylp.LossConfig(loss_iou="ciou") == ylp.LossConfig(loss_iou={"type": "ciou", "gate": False})
    assert ylp.LossConfig(loss_iou="ciou") != ylp.LossConfig(loss_iou={"type": "ciou", "gate": True})
    assert hash(ylp.LossConfig(loss_iou="ciou")) == hash(ylp.LossConfig(loss_iou={"type": "ciou"}))


# spec for a term, and what it means
MMDET = [
    (
        "obj",
        dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, reduction="mean", loss_weight=1.0),
        dict(type="focal", gamma=2.0, alpha=0.25),
    ),
    # the four of MMDetection's own YOLOX config
    (
        "cls",
        dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
        dict(type="bce", reduction="sum"),
    ),
    (
        "iou",
        dict(type="IoULoss", mode="square", eps=1e-16, reduction="sum", loss_weight=5.0),
        dict(type="iou", mode="square", reduction="sum", loss_weight=5.0),
    ),
    ("l1", dict(type="L1Loss", reduction="sum", loss_weight=1.0), dict(type="l1", reduction="sum")),
    ("obj", dict(type="VarifocalLoss", use_sigmoid=True, alpha=0.75, gamma=2.0, iou_weighted=True), "varifocal"),
    ("iou", "IoULoss", dict(type="iou", mode="log")),  # MMDetection's default is the logarithm
    ("iou", dict(type="IoULoss", linear=True), dict(type="iou", mode="linear")),
    ("iou", dict(type="GIoULoss", eps=1e-7, loss_weight=2.0), dict(type="giou", loss_weight=2.0)),
    ("iou", dict(type="DIoULoss"), "diou"),
    ("iou", dict(type="CIoULoss"), dict(type="ciou", gate=True)),  # and its CIoU is gated
]


@pytest.mark.parametrize("term,theirs,ours", MMDET)
def test_mmdetection_dicts_keep_their_meaning(term, theirs, ours):
    assert resolve(term, theirs) == resolve(term, ours)
    assert isinstance(ylp.build_loss(term, theirs), ylp.build_loss(term, ours).__class__)


@pytest.mark.parametrize(
    "term,name", [(term, name) for term, names in ylp.available_losses().items() for name in names]
)
def test_every_loss_has_the_papers_preset(term, name):
    paper, default = resolve(term, dict(type=name, preset="paper")), resolve(term, name)
    calibrated = name not in ("bce", "iou") and not name.startswith("alpha") and term != "l1"
    assert default.get("preset") == ("calibrated" if calibrated else None)
    free = {"preset": None, "target": None, "constant": None}
    assert {**paper, **free} == {**default, **free}


@pytest.mark.parametrize(
    "spec,constant",
    [
        ("nwd", 12.8),
        (dict(type="nwd", constant=30), 30.0),
        (dict(type="nwd", constant=30, preset="paper"), 30.0),
        (dict(type="nwd", constant="mean", preset="paper"), "mean"),
    ],
)
def test_the_constant_of_nwd(spec, constant):
    assert resolve("iou", spec)["constant"] == constant
    assert ylp.build_loss("iou", spec).knobs["constant"] == constant


@pytest.mark.parametrize(
    "spec,target",
    [
        ("varifocal", "hard"),  # calibrated; YOLOX's class targets carry the IoU already
        (dict(type="varifocal", preset="paper"), "iou"),
        (dict(type="varifocal", target="iou"), "iou"),
        (dict(type="varifocal", preset="paper", target="hard"), "hard"),
        (dict(type="quality_focal", preset="paper"), "iou"),
        (dict(type="focal", preset="paper"), "hard"),
        ("bce", "hard"),
    ],
)
def test_the_target_of_the_objectness_term(spec, target):
    assert resolve("obj", spec)["target"] == target


def test_the_class_term_has_no_target():
    assert "target" not in resolve("cls", "bce")


# term, spec, words of the answer
WRONG = [
    ("obj", "focl", ["'focl'", "Did you mean 'focal'", "bce, focal, varifocal"]),
    ("iou", "focal", ["'focal'", "giou"]),  # a loss of another term
    ("obj", dict(type="focal", gama=1.0), ["'gama'", "Did you mean 'gamma'"]),
    ("obj", dict(type="focal", iou_weighted=True), ["'iou_weighted'", "knob of varifocal"]),
    ("iou", dict(type="iou", alpha=2.0), ["'alpha'", "alpha_iou"]),
    ("obj", dict(type="focal", gamma=-1), ["gamma", "at least 0", "-1"]),
    ("obj", dict(type="focal", gamma=True), ["gamma", "True"]),
    ("obj", dict(type="focal", gamma="2"), ["gamma", "'2'"]),
    ("obj", dict(type="focal", gamma=float("nan")), ["gamma", "nan"]),
    ("obj", dict(type="focal", alpha=1.5), ["alpha", "at most 1", "-1"]),
    ("obj", dict(type="focal", target="iou"), ["hard targets only", "varifocal"]),
    ("obj", dict(type="bce", target="ious"), ["target", "hard, iou", "Did you mean 'iou'"]),
    ("cls", dict(type="bce", target="iou"), ["Only loss_obj has a target"]),
    ("obj", dict(type="focal", preset="papers"), ["preset", "calibrated, paper", "Did you mean 'paper'"]),
    ("iou", dict(type="ciou", preset=1), ["preset", "calibrated, paper"]),
    ("iou", dict(type="iou", mode="sqare"), ["square, linear, log", "Did you mean 'square'"]),
    ("iou", dict(type="ciou", gate=1), ["gate", "True or False"]),
    ("iou", dict(type="alpha_iou", alpha=0), ["alpha", "above 0"]),
    ("iou", dict(type="giou", loss_weight=-1), ["loss_weight", "-1"]),
    ("iou", dict(type="nwd", constant=0), ["constant", "at least 0.001", "'mean'"]),
    ("iou", dict(type="nwd", constant="median"), ["constant", "'mean'", "'median'"]),
    ("iou", dict(type="giou", reduction="avg"), ["reduction", "mean, sum, none"]),
    ("iou", dict(gamma=1), ["no 'type'"]),
    ("obj", 5, ["5", "a name such as"]),
    ("obj", None, ["None"]),
    ("iou", "EIoULoss", ["Extended-IoU", "'eiou'"]),
    ("cls", dict(type="CrossEntropyLoss"), ["use_sigmoid"]),
    ("cls", dict(type="FocalLoss", use_sigmoid=False), ["use_sigmoid"]),
    ("iou", dict(type="GIoULoss", eps=0.1), ["eps", "0.1"]),
    ("box", "giou", ["obj, cls, iou, l1", "'box'"]),
]


@pytest.mark.parametrize("term,spec,words", WRONG)
def test_a_wrong_spec_is_answered(term, spec, words):
    with pytest.raises(ValueError) as error:
        ylp.build_loss(term, spec)
    for word in words:
        assert word in str(error.value)


def test_a_term_of_the_training_loss_is_a_number():
    with pytest.raises(ValueError, match="reduction is mean or sum"):
        ylp.LossConfig(loss_iou=dict(type="giou", reduction="none"))


class Plain:
    """An experiment that knows nothing of the kit."""


def test_from_exp_reads_attributes_and_the_alias():
    exp = Plain()
    assert ylp.LossConfig.from_exp(exp) == ylp.LossConfig()
    exp.loss_bbox = "giou"
    assert ylp.LossConfig.from_exp(exp) == ylp.LossConfig(loss_iou="giou")
    exp.loss_iou = "giou"
    assert ylp.LossConfig.from_exp(exp) == ylp.LossConfig(loss_iou="giou")
    exp.loss_iou = "ciou"
    with pytest.raises(ValueError, match="loss_bbox is another name of loss_iou"):
        ylp.LossConfig.from_exp(exp)
