"""Specs: what they become, and what is answered to wrong ones."""

import json

import pytest

import yolox_loss_patch as ylp
from yolox_loss_patch.specs.labels import label_of
from yolox_loss_patch.specs.plain import plain
from yolox_loss_patch.specs.resolve import resolve


def test_the_defaults_are_stock_and_round_trip():
    config = ylp.LossConfig()
    assert config.to_dict() == {"loss_obj": "bce", "loss_cls": "bce", "loss_iou": "iou", "loss_l1": "l1"}
    assert config.resolved()["iou"]["power"] == 2
    other = ylp.LossConfig(loss_obj=dict(type="varifocal", alpha=0.5), loss_iou="ciou")
    assert ylp.LossConfig(**json.loads(json.dumps(other.to_dict()))) == other != config


def test_equal_is_what_would_train_the_same():
    assert ylp.LossConfig(loss_iou="ciou") == ylp.LossConfig(loss_iou={"type": "ciou", "gate": False})
    assert ylp.LossConfig(loss_iou="ciou") != ylp.LossConfig(loss_iou={"type": "ciou", "gate": True})
    assert hash(ylp.LossConfig(loss_iou="ciou")) == hash(ylp.LossConfig(loss_iou={"type": "ciou"}))


# term, spellings of one loss, its label
SPELLINGS = [
    ("iou", ["iou", dict(type="iou", mode="square"), dict(type="iou", power=2), "alpha_iou(alpha=2)"], "iou"),
    ("iou", ["alpha_ciou", dict(type="ciou", power=3), dict(type="alpha_ciou", alpha=3.0, gate=False)], "ciou(power=3)"),
    ("iou", ["inner_giou", dict(type="giou", inner=0.75), dict(type="inner_giou", ratio=0.75)], "giou(inner=0.75)"),
    ("iou", ["inner_iou", dict(type="iou", mode="linear", inner=0.75)], "iou(power=1, inner=0.75)"),
    ("iou", ["focal_eiou", dict(type="eiou", focal=0.5), dict(type="focal_eiou", gamma=0.5)], "eiou(focal=0.5)"),
    ("iou", ["wiou", dict(type="iou", power=1, wise=3), dict(type="iou", mode="linear", wise=dict(version=3, alpha=1.9))],
     "iou(power=1, wise=3)"),
    ("iou", [dict(type="wiou", momentum=0.1), dict(type="iou", power=1, wise=dict(momentum=0.1))],
     "iou(power=1, wise={'version': 3, 'alpha': 1.9, 'delta': 3, 'momentum': 0.1})"),
    ("iou", ["ciou", dict(type="ciou", focaler=(0, 1)), ["ciou"], "1*ciou", dict(type="ciou", loss_weight={3: 1.0})], "ciou"),
    ("iou", ["inner_siou(ratio=0.9)", dict(type="siou", inner=0.9, theta=4)], "siou(inner=0.9)"),
    ("obj", ["bce+0.5*dice", ["bce", dict(type="dice", loss_weight=0.5)], "0.5*dice + bce", ["bce", "0.5*dice"]], "bce+0.5*dice"),
    ("obj", ["focal(gamma=1.5, calibrated=True)", dict(type="focal", calibrated=True, gamma=1.5)],
     "focal(gamma=1.5, calibrated=True)"),
    ("cls", [dict(type="bce", loss_weight={"1": 0, "10": 1}), "bce(loss_weight={10: 1, 1: 0})"],
     "bce(loss_weight={1: 0, 10: 1})"),
]  # fmt: skip


@pytest.mark.parametrize("term,spellings,text", SPELLINGS, ids=lambda value: value if isinstance(value, str) else None)
def test_two_spellings_of_one_loss_are_equal(term, spellings, text):
    configs = [ylp.LossConfig(**{f"loss_{term}": spelling}) for spelling in spellings]
    for config in configs:
        assert config == configs[0] and hash(config) == hash(configs[0]) and str(config) == str(configs[0])
        resolved = config.resolved()[term]
        assert label_of(term, resolved) == text
        assert (
            resolve(term, text)
            == resolve(term, resolved)
            == resolve(term, json.loads(json.dumps(plain(resolved))))
            == resolved
        )


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
    ("obj", dict(type="mmdet.FocalLoss", use_sigmoid=True), "focal"),
]


@pytest.mark.parametrize("term,theirs,ours", MMDET)
def test_mmdetection_dicts_keep_their_meaning(term, theirs, ours):
    assert resolve(term, theirs) == resolve(term, ours)
    assert isinstance(ylp.build_loss(term, theirs), ylp.build_loss(term, ours).__class__)


@pytest.mark.parametrize(
    "spec,target",
    [
        ("varifocal", "iou"),  # as in its paper
        (dict(type="varifocal", target="hard"), "hard"),  # the YOLOX article's
        ("quality_focal", "iou"),
        (dict(type="VarifocalLoss", use_sigmoid=True), "iou"),
        ("focal", "hard"),
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
    ("iou", dict(type="nwd", power=2), ["no knob 'power'", "1 - IoU + penalties", "'nwd'"]),
    ("iou", dict(type="iou", mode="log", inner=0.7), ["inner has no meaning for mode='log'"]),
    ("iou", dict(type="iou", mode="linear", power=3), ["mode='linear' is power=1", "power=3"]),
    ("iou", dict(type="alpha_ciou", power=2), ["Its power is set by alpha", "'ciou'"]),
    ("iou", dict(type="wiou", wise=2), ["wise is set by version"]),
    ("iou", dict(type="ciou", power=0), ["power", "above 0"]),
    ("iou", dict(type="ciou", inner=0), ["inner", "above 0"]),
    ("iou", dict(type="ciou", focaler=(0.5, 0.5)), ["focaler", "0 <= d < u <= 1"]),
    ("iou", dict(type="ciou", focaler=0.5), ["focaler", "(d, u)"]),
    ("iou", dict(type="ciou", focal=-1), ["focal", "at least 0"]),
    ("iou", dict(type="ciou", wise=4), ["wise", "1, 2, 3"]),
    ("iou", dict(type="ciou", wise=dict(version=3, alhpa=2)), ["'alhpa'", "Did you mean 'alpha'"]),
    ("iou", dict(type="ciou", power=2, by_overlap=True), ["by_overlap is for box losses of power 1", "power=2"]),
    ("iou", dict(type="iou", by_overlap=True), ["by_overlap", "power=2"]),
    ("iou", dict(type="nwd", by_overlap=True), ["no knob 'by_overlap'"]),
    ("obj", "bce+", ["'bce+' cannot be read", "bce+0.5*dice"]),
    ("obj", "bce-dice", ["no loss 'bce-dice'"]),
    ("obj", "bce+0.5*dise", ["no loss 'dise'", "Did you mean 'dice'"]),
    ("obj", "bce+-1*dice", ["loss_weight", "from 0 to 1e6", "-1"]),
    ("obj", "bce*2", ["cannot be read"]),
    ("obj", "focal(2)", ["cannot be read"]),
    ("obj", dict(type="bce+dice", gamma=1), ["a sum has no knobs of its own"]),
    ("obj", [], ["a list of these", "[]"]),
    ("obj", ["bce", 5], ["5"]),
    ("obj", dict(type="bce", loss_weight={}), ["loss_weight", "{epoch: number}"]),
    ("obj", dict(type="bce", loss_weight={0: 1, 3: 2}), ["loss_weight", "{epoch: number}"]),
    ("obj", dict(type="bce", loss_weight={1: -1, 3: 2}), ["loss_weight"]),
    ("obj", dict(type="bce", loss_weight={1: "a"}), ["loss_weight"]),
    ("l1", ["l1", dict(type="l2", start_epoch=2), dict(type="smooth_l1", start_epoch=3)], ["start in one epoch"]),
    ("obj", dict(type="focal", gamma=-1), ["gamma", "at least 0", "-1"]),
    ("obj", dict(type="focal", gamma=True), ["gamma", "True"]),
    ("obj", dict(type="focal", gamma="2"), ["gamma", "'2'"]),
    ("obj", dict(type="focal", gamma=float("nan")), ["gamma", "nan"]),
    ("obj", dict(type="focal", alpha=1.5), ["alpha", "at most 1", "-1"]),
    ("obj", dict(type="focal", target="iou"), ["hard targets only", "varifocal"]),
    ("obj", dict(type="bce", target="ious"), ["target", "hard, iou", "Did you mean 'iou'"]),
    ("cls", dict(type="bce", target="iou"), ["Only loss_obj has a target"]),
    ("obj", dict(type="focal", preset="paper"), ["no knob 'preset'"]),
    ("obj", dict(type="focal", calibrated="yes"), ["calibrated", "True or False", "'yes'"]),
    ("obj", dict(type="dice", calibrated=True), ["no knob 'calibrated'", "'bce+dice'"]),
    ("iou", dict(type="ciou", calibrated=True), ["no knob 'calibrated'"]),
    ("cls", dict(type="bce", class_weight=[1, 2], calibrated=True), ["class_weight per class"]),
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
