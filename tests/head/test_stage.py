"""The five steps inside the loss stage: sampler, element weights, avg_factor, facts of the batch, the start of L1."""

import copy
import json
import math
import os

import pytest
import reference
import torch
from conftest import make_batch, make_head, run_head
from yolox.exp.default.yolox_nano import Exp as NanoExp

import yolox_loss_patch as ylp
from yolox_loss_patch import build_loss
from yolox_loss_patch.errors import ConfigError, PatchError
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.head.weights import ElementWeights

PLACE = {"iou": 1, "obj": 2, "cls": 3, "l1": 4}
DEFAULT = {"obj": "bce", "cls": "bce", "iou": "iou", "l1": "l1"}


def run(specs, inputs, weigh=None, **head_kwargs):
    """The outputs of a head with these losses, and what each term was called with."""
    head = make_head(**head_kwargs)
    ylp.patch_model(head, specs)
    stage = stage_of(head)
    stage.l1_is_scheduled = True
    if weigh is not None:
        stage.element_weights = ElementWeights(weigh)
    calls = {}
    for term, loss in stage.losses.items():

        def spy(pred, target, term=term, forward=loss.forward, **kwargs):
            calls[term] = {"pred": pred.detach(), "target": target, **kwargs}
            return forward(pred, target, **kwargs)

        loss.forward = spy
    return run_head(head, inputs)[0], calls


@pytest.mark.parametrize("term", PLACE)
def test_avg_factor(term):
    inputs = make_batch(batch=3, boxes=4)
    boxes = int((inputs[1].sum(2) > 0).sum())
    stock, calls = run({}, inputs, use_l1=True)
    num_fg = calls[term]["avg_factor"]
    assert num_fg == pytest.approx(float(stock[5]) * boxes)
    for factor, number in (("num_fg", num_fg), ("num_gt", boxes), ("batch", 3), ("global", num_fg)):
        got, _ = run({f"loss_{term}": dict(type=DEFAULT[term], avg_factor=factor)}, inputs, use_l1=True)
        for other, place in PLACE.items():
            scale = num_fg / number if other == term else 1
            assert float(got[place]) == pytest.approx(scale * float(stock[place]), rel=1e-5), (factor, other)


def test_element_weights_reach_their_terms():
    inputs = make_batch(batch=2, boxes=5, empty_every=0)
    stock, _ = run({}, inputs, use_l1=True)

    def twice_the_first_class(assignment):
        weights = 1.0 + (assignment.classes == 0)
        objectness = torch.ones(assignment.fg_mask.numel())
        objectness[assignment.fg_mask] = 3.0
        return {"label_weights": weights, "bbox_weights": weights, "obj_weights": objectness}

    got, calls = run({}, inputs, twice_the_first_class, use_l1=True)
    for term in ("cls", "iou", "l1"):
        weight = calls[term]["weight"]
        assert set(weight.tolist()) == {1.0, 2.0}
        loss = ylp.build_loss(term, DEFAULT[term])
        rows = (
            loss(calls[term]["pred"], calls[term]["target"], reduction_override="none").reshape(len(weight), -1).sum(1)
        )
        want = (rows * weight).sum() / calls[term]["avg_factor"] * (5 if term == "iou" else 1)
        assert float(got[PLACE[term]]) == pytest.approx(float(want), rel=1e-5)
        assert float(got[PLACE[term]]) > float(stock[PLACE[term]])
    assert calls["obj"]["weight"].sum() == calls["obj"]["target"].numel() + 2 * calls["obj"]["target"].sum()
    assert float(got[2]) > float(stock[2])
    # all weights 1: stock
    same, _ = run(
        {}, inputs, lambda a: {"label_weights": torch.ones(a.num_fg, 3), "bbox_weights": torch.ones(a.num_fg, 4)}
    )
    for place in (1, 2, 3):
        assert float(same[place]) == pytest.approx(float(stock[place]), rel=1e-6)
    for nothing in (None, {"label_weights": None}):
        assert float(run({}, inputs, lambda a, answer=nothing: answer)[0][0]) == float(run({}, inputs)[0][0])


WRONG_WEIGHTS = [
    (lambda a: {"label_weight": torch.ones(a.num_fg)}, ["'label_weight'", "Did you mean 'label_weights'"]),
    (lambda a: {"bbox_weights": torch.ones(a.num_fg + 1)}, ["bbox_weights", "(num_fg) or (num_fg, 4)", "num_fg = "]),
    (lambda a: {"label_weights": torch.ones(a.num_fg, 5)}, ["label_weights", "(num_fg, C)", "C = 3"]),
    (lambda a: {"obj_weights": torch.ones(a.num_fg)}, ["obj_weights", "(B*A)"]),
    (lambda a: torch.ones(a.num_fg), ["returns a dict with any of obj_weights", "or None; got tensor"]),
    (lambda a: {"label_weights": "abc"}, ["label_weights is a tensor of numbers; got 'abc'"]),
]


@pytest.mark.parametrize("weigh,words", WRONG_WEIGHTS)
def test_wrong_element_weights_are_answered(weigh, words):
    with pytest.raises(ylp.ConfigError) as error:
        run({}, make_batch(), weigh)
    for word in words:
        assert word in str(error.value)


def test_the_experiments_method_is_found_and_shared_by_copies():
    class Exp(ylp.LossExp, NanoExp):
        def loss_weights(self, assignment):
            return {"bbox_weights": torch.full((assignment.num_fg,), 3.0)}

    exp = Exp()
    exp.num_classes = 3
    model = exp.get_model()
    weights = stage_of(model).element_weights
    assert weights.method.__self__ is exp
    assert stage_of(copy.deepcopy(model)).element_weights is weights  # EMA
    assert stage_of(NanoExp().get_model()) is None


SAMPLER = dict(type="RandomSampler", num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False)


def test_the_sampler_draws_anchors_of_each_image():
    inputs = make_batch(batch=3, boxes=4)
    _, calls = run({"loss_obj": dict(type="bce", sampler=SAMPLER)}, inputs)
    weight, target = (calls["obj"][key].view(3, -1) for key in ("weight", "target"))
    assert weight.sum(1).tolist() == [32, 32, 32]
    assert ((weight * target).sum(1) <= 16).all()
    _, calls = run({"loss_obj": dict(type="bce", sampler=dict(type="PseudoSampler"))}, inputs)
    assert "weight" not in calls["obj"]
    _, calls = run(
        {"loss_obj": dict(type="dice", sampler=SAMPLER)},
        inputs,
        lambda a: {"obj_weights": torch.full((a.fg_mask.numel(),), 2.0)},
    )
    assert set(calls["obj"]["weight"].unique().tolist()) == {0.0, 2.0}


WRONG = [
    (
        "obj",
        dict(type="bce", sampler=dict(SAMPLER, add_gt_as_proposals=True)),
        ["add_gt_as_proposals=True", "cells of a grid"],
    ),
    ("obj", dict(type="bce", sampler=dict(SAMPLER, number=3)), ["'number'", "Did you mean 'num'"]),
    ("obj", dict(type="bce", sampler=dict(SAMPLER, num=0)), ["num of RandomSampler", "at least 1", "0"]),
    ("obj", dict(type="bce", sampler=dict(SAMPLER, pos_fraction=2)), ["pos_fraction", "at most 1"]),
    ("obj", dict(type="bce", sampler=dict(type="IoUBalancedNegSampler")), ["sampler", "RandomSampler", "OHEMSampler"]),
    ("obj", dict(type="bce", sampler="random"), ["sampler", "'random'"]),
    ("cls", dict(type="bce", sampler=SAMPLER), ["loss_cls", "Only loss_obj has a sampler"]),
    ("iou", dict(type="giou", sampler=SAMPLER), ["loss_iou", "Only loss_obj has a sampler"]),
    ("iou", dict(type="giou", avg_factor="fg"), ["avg_factor", "num_fg, num_gt, batch, global"]),
    ("iou", dict(type="giou", avg_factor="batch", reduction="sum"), ["avg_factor", "reduction='mean'"]),
    ("obj", dict(type="dice", avg_factor="batch"), ["avg_factor", "set itself"]),
    ("obj", dict(type="dice", target="ious"), ["target"]),
    ("obj", dict(type="dice_focal", target="iou"), ["dice_focal takes hard targets only"]),
    ("l1", dict(type="l1", start_epoch=0), ["start_epoch", "at least 1"]),
    ("iou", dict(type="iou", start_epoch=1), ["Only loss_l1"]),
    ("iou", dict(type="wiou", version=4), ["version", "1, 2, 3"]),
    ("iou", dict(type="mpdiou", image_size=640), ["image_size", "(height, width)"]),
    ("obj", dict(type="ghmc", bins=2.5), ["bins", "whole number"]),
    ("obj", dict(type="ghmc", momentum=1), ["momentum", "below 1"]),
    ("obj", dict(type="bce", class_weight=[1.0]), ["no knob 'class_weight'"]),
    ("cls", dict(type="bce", class_weight=[1.0, -1]), ["class_weight", "at least 0"]),
    ("cls", dict(type="bce", class_weight=2.0), ["class_weight", "list"]),
    ("cls", dict(type="bce", class_weight={"cat": 2.0}), ["annotation file", "list"]),
    ("obj", dict(type="DiceLoss"), ["write naive_dice=True"]),
    ("cls", dict(type="DiceLoss", naive_dice=True), ["obj only", "'dice'"]),
    ("iou", dict(type="SIoULoss"), ["neg_gamma=True", "sign"]),
    ("obj", dict(type="TverskyLoss"), ["softmax", "'tversky'"]),
]


@pytest.mark.parametrize("term,spec,words", WRONG)
def test_a_wrong_spec_is_answered(term, spec, words):
    with pytest.raises(ValueError) as error:
        ylp.build_loss(term, spec)
    for word in words:
        assert word in str(error.value)


MMDET = [
    ("obj", dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0), "quality_focal"),
    ("obj", dict(type="GHMC", bins=30, momentum=0.75, use_sigmoid=True), dict(type="ghmc", bins=30, momentum=0.75)),
    (
        "obj",
        dict(type="DiceLoss", use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0),
        dict(type="dice", scope="image", smooth=1.0, loss_weight=5.0),
    ),
    ("obj", dict(type="DiceLoss", naive_dice=True), dict(type="dice", scope="image", smooth=1e-3)),
    ("iou", dict(type="SIoULoss", neg_gamma=True, eps=1e-6), "siou"),
    ("l1", dict(type="SmoothL1Loss", beta=0.5, loss_weight=1.0), dict(type="smooth_l1", beta=0.5)),
    ("l1", dict(type="MSELoss", loss_weight=2.0), dict(type="l2", loss_weight=2.0)),
    ("l1", dict(type="BalancedL1Loss", alpha=0.5, gamma=1.5, beta=1.0), "balanced_l1"),
    (
        "cls",
        dict(type="CrossEntropyLoss", use_sigmoid=True, class_weight=[1.0, 2.0]),
        dict(type="bce", pos_weight=[1.0, 2.0]),
    ),
    ("cls", dict(type="CrossEntropyLoss", use_sigmoid=True, class_weight=None), "bce"),
]


@pytest.mark.parametrize("term,theirs,ours", MMDET)
def test_mmdetection_dicts_keep_their_meaning(term, theirs, ours):
    assert repr(ylp.build_loss(term, theirs)) == repr(ylp.build_loss(term, ours))


def test_a_calibrated_loss_starts_with_bces_pull_and_the_papers_without():
    """At YOLOX's start, p = 0.01 everywhere, where focal's own pull is a quarter and a fraction of a thousandth of BCE's."""
    inputs = make_batch(batch=3, boxes=4)
    pulls = {}
    for name, spec in {"bce": "bce", "calibrated": dict(type="focal", calibrated=True), "paper": "focal"}.items():
        head = make_head()
        ylp.patch_model(head, {"loss_obj": spec})
        stage = stage_of(head)
        stage.collect = True
        run_head(head, inputs)
        pulls[name] = {key: float(value) for key, value in stage.gradients.items()}
    for key in ("grad_obj_fg", "grad_obj_bg"):
        assert pulls["calibrated"][key] == pytest.approx(pulls["bce"][key], rel=0.05)
    assert pulls["paper"]["grad_obj_fg"] == pytest.approx(0.27 * pulls["bce"]["grad_obj_fg"], rel=0.1)
    assert pulls["paper"]["grad_obj_bg"] < pulls["bce"]["grad_obj_bg"] / 2000


EVERY = [(term, name) for term, names in ylp.available_losses().items() for name in names]
_KIND = {"ghmc": "set", "dice": "set", "tversky": "set", "dice_focal": "set"}


# What slide makes of the IoUs that the stage tells it: tests/losses/test_more_scores.py.
@pytest.mark.parametrize("term,name", [each for each in EVERY if each[1] != "slide"])
def test_a_name_means_its_formula(term, name):
    """A patched head's term is the float64 reference, summed over targets captured from the head, and so is its gradient."""
    inputs = make_batch(batch=3, boxes=4)
    found, calls = run({f"loss_{term}": name}, inputs, use_l1=True)
    call = calls[term]
    pred, target = call["pred"].double(), call["target"].double()
    function = getattr(reference, f"ref_{name}")
    is_set = name in _KIND
    scale = 1.0 if is_set else (5 if term == "iou" else 1) / call["avg_factor"]
    knobs = {"image_size": tuple(call["image_size"])} if name == "mpdiou" else {}
    if name == "wiou":  # it moves the running mean before it uses it
        ious = [reference.box_iou(*pair) for pair in zip(pred.tolist(), target.tolist(), strict=True)]
        knobs = {"mean": reference.wiou_mean(ious)}
    if is_set:
        want = function(pred.flatten().tolist(), target.flatten().tolist())
    elif term == "iou":
        want = sum(function(p, t, **knobs) for p, t in zip(pred.tolist(), target.tolist(), strict=True))
    else:
        pairs = zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True)
        want = sum(function(p, t, **knobs) for p, t in pairs)
    assert float(found[PLACE[term]]) == pytest.approx(scale * want, rel=1e-4)
    if is_set:
        return
    # The gradient at the predictions of the captured batch, in size and direction.
    module = build_loss(term, name)
    facts = {"image_size": call["image_size"]} if name == "mpdiou" else {}
    pred = pred.requires_grad_()
    (gradient,) = torch.autograd.grad(module(pred, target, avg_factor=float(call["avg_factor"]), **facts), pred)
    rows = range(0, len(pred), max(1, len(pred) // 12))
    for row in rows:
        if term == "iou":
            slopes = reference.sides(function, tuple(pred[row].tolist()), tuple(target[row].tolist()), **knobs)
        else:
            each = zip(pred[row].tolist(), target[row].tolist(), strict=True)
            slopes = [reference.sides(function, p, t, **knobs)[0] for p, t in each]
        for got, (left, right) in zip((gradient[row] * float(call["avg_factor"])).tolist(), slopes, strict=True):
            low, high = min(left, right), max(left, right)
            slack = 1e-6 * max(1.0, abs(low), abs(high))
            assert low - slack <= got <= high + slack, (name, row)


# the box losses of power 1
POWER_1 = [
    *("giou", "diou", "ciou", "eiou", "focal_eiou", "siou", "wiou", "mpdiou", "shape_iou", "piou"),
    *("inner_iou", "inner_giou", "inner_diou", "inner_ciou", "inner_eiou", "inner_siou"),
]


@pytest.mark.parametrize("name", POWER_1)
def test_by_overlap_weighs_each_box_by_twice_its_iou(name):
    inputs = make_batch(batch=3, boxes=4)
    got, calls = run({"loss_iou": dict(type=name, by_overlap=True)}, inputs)
    call = calls["iou"]
    facts = {"image_size": call["image_size"]} if "image_size" in call else {}
    bare = build_loss("iou", name)(call["pred"], call["target"], reduction_override="none", **facts)
    boxes = zip(call["pred"].tolist(), call["target"].tolist(), strict=True)
    slope = torch.tensor([2 * reference.box_iou(*pair) for pair in boxes])
    assert float(got[1]) == pytest.approx(5 * float((bare * slope).sum()) / call["avg_factor"], rel=1e-5)
    twice, _ = run({"loss_iou": dict(type=name, by_overlap=True, loss_weight=2.0)}, inputs)
    assert float(twice[1]) == pytest.approx(2 * float(got[1]), rel=1e-6)
    weights = torch.linspace(0, 2, len(bare))
    for shape in (weights, weights[:, None].expand(-1, 4)):
        weighed, _ = run(
            {"loss_iou": dict(type=name, by_overlap=True)}, inputs, lambda found, shape=shape: {"bbox_weights": shape}
        )
        assert float(weighed[1]) == pytest.approx(
            5 * float((bare * slope * weights).sum()) / call["avg_factor"], rel=1e-5
        )


@pytest.mark.parametrize("name", POWER_1)
def test_by_overlap_pulls_as_yoloxs_own(name):
    """Up to what its penalties add, and what its own focus moves between bad and good boxes."""
    loss = build_loss("iou", dict(type=name, by_overlap=True)).eval()
    facts = {"image_size": (640, 640)} if name == "mpdiou" else {}
    target = (100.0, 100.0, 40.0, 40.0)
    for overlap in (0.9, 0.5, 0.2):
        shifted = [100 + 40 * (1 - overlap) / (1 + overlap), *target[1:]]
        box = torch.tensor([shifted], dtype=torch.float64, requires_grad=True)
        value = loss(box, torch.tensor([target], dtype=torch.float64), reduction_override="sum", **facts)
        (gradient,) = torch.autograd.grad(value, box)
        (bare,) = reference.grad(getattr(reference, f"ref_{name}"), shifted, target, indices=[0])
        (stock,) = reference.grad(reference.ref_iou, shifted, target, indices=[0])
        assert float(gradient[0, 0]) == pytest.approx(2 * overlap * bare, rel=1e-6)
        if name == "giou":  # whose penalty is flat for a box moved along an axis
            assert float(gradient[0, 0]) == pytest.approx(stock, rel=1e-6)
        elif name not in ("wiou", "piou", "focal_eiou"):
            assert 0.99 < float(gradient[0, 0]) / stock < 1.5
    apart = torch.tensor([[900.0, 100.0, 40.0, 40.0]], requires_grad=True)
    loss(apart, torch.tensor([target]), reduction_override="sum", **facts).backward()
    assert not apart.grad.any()


def test_knobs_without_a_calibration_are_answered():
    with pytest.raises(
        ConfigError, match=r"focal cannot be calibrated with alpha=.*a pull of it is 0.*leave calibrated out"
    ):
        run({"loss_obj": dict(type="focal", alpha=0.0, calibrated=True)}, make_batch())
    run({"loss_obj": dict(type="focal", alpha=0.0)}, make_batch())


def test_mpdiou_takes_the_size_of_the_batch():
    for height, width in ((96, 160), (192, 96)):
        inputs = make_batch(height=height, width=width)
        own, _ = run({"loss_iou": "mpdiou"}, inputs)
        given, _ = run({"loss_iou": dict(type="mpdiou", image_size=(height, width))}, inputs)
        other, _ = run({"loss_iou": dict(type="mpdiou", image_size=(64, 64))}, inputs)
        assert float(own[1]) == float(given[1]) != float(other[1])
    with pytest.raises(ValueError, match="image_size"):
        ylp.build_loss("iou", "mpdiou")(torch.ones(1, 4), torch.ones(1, 4))


def test_nwd_by_the_mean_size_of_the_matched_boxes():
    inputs = make_batch(batch=3, boxes=4)
    _, calls = run({}, inputs)
    size = calls["iou"]["target"][:, 2:].prod(1).sqrt().mean()
    written, _ = run({"loss_iou": dict(type="nwd", constant=float(size))}, inputs)
    by_mean, _ = run({"loss_iou": dict(type="nwd", constant="mean")}, inputs)
    paper, _ = run({"loss_iou": "nwd"}, inputs)
    assert float(by_mean[1]) == pytest.approx(float(written[1]), rel=1e-6)
    assert (
        float(paper[1]) == float(run({"loss_iou": dict(type="nwd", constant=12.8)}, inputs)[0][1]) != float(by_mean[1])
    )


@pytest.mark.parametrize("name", ["dice", "tversky", "ghmc", "dice_focal"])
def test_a_loss_of_a_whole_set_is_not_divided(name):
    inputs = make_batch(batch=3, boxes=4)
    got, calls = run({"loss_obj": name}, inputs)
    module = ylp.build_loss("obj", name)
    assert float(got[2]) == pytest.approx(float(module(calls["obj"]["pred"], calls["obj"]["target"])), rel=1e-6)
    if name != "ghmc":
        got, calls = run({"loss_obj": dict(type=name, scope="image")}, inputs)
        assert calls["obj"]["images"] == 3
    with pytest.raises(ConfigError, match="averages over its set itself"):
        run({"loss_obj": dict(type=name, avg_factor="batch")}, inputs)


# term, sum, its parts alone
SUMS = [
    ("obj", "bce+0.5*dice", ["bce", dict(type="dice", loss_weight=0.5)]),
    ("obj", ["bce", dict(type="dice", scope="image"), "varifocal"], ["bce", dict(type="dice", scope="image"), "varifocal"]),
    ("cls", "bce+0.2*ghmc", ["bce", dict(type="ghmc", loss_weight=0.2)]),
    ("iou", "iou+nwd(constant='mean')", ["iou", dict(type="nwd", constant="mean")]),
    ("iou", [dict(type="ciou", avg_factor="batch"), dict(type="giou", reduction="sum", loss_weight=0.1)],
     [dict(type="ciou", avg_factor="batch"), dict(type="giou", reduction="sum", loss_weight=0.1)]),
    ("l1", "l1+smooth_l1(beta=0.5)", ["l1", dict(type="smooth_l1", beta=0.5)]),
    ("obj", [dict(type="bce", sampler=dict(type="PseudoSampler")), dict(type="FocalLoss", use_sigmoid=True)], ["bce", "focal"]),
]  # fmt: skip


@pytest.mark.parametrize("term,spec,alone", SUMS, ids=lambda value: str(value) if isinstance(value, str) else None)
def test_a_sum_is_the_sum_of_its_parts_as_they_are_alone(term, spec, alone):
    inputs = make_batch(batch=3, boxes=4)
    parts = [run({f"loss_{term}": part}, inputs, use_l1=True)[0][PLACE[term]] for part in alone]
    head = make_head(use_l1=True)
    ylp.patch_model(head, {f"loss_{term}": spec})
    outputs, gradients = run_head(head, inputs)
    assert float(outputs[PLACE[term]]) == pytest.approx(float(sum(parts)), rel=1e-6)
    values = stage_of(head).part_values
    assert len(values) == len(alone) and all(key.startswith(f"{term} ") for key in values)
    assert float(sum(values.values())) == pytest.approx(float(outputs[PLACE[term]]), rel=1e-6)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_a_sum_has_the_samplers_and_targets_of_its_parts():
    head = make_head()
    ylp.patch_model(head, {"loss_obj": [dict(type="bce", sampler=SAMPLER), "quality_focal"]})
    bce, quality = stage_of(head).parts["obj"]
    assert (bce.target, quality.target, quality.sampler) == ("hard", "iou", None)
    assert bce.sampler.num == 32


SCHEDULED = {"loss_iou": [dict(type="iou", loss_weight={1: 1, 31: 0}), dict(type="ciou", loss_weight={1: 0, 31: 1})]}


def test_a_schedule_goes_from_one_loss_to_another():
    inputs = make_batch()
    stock, ciou = (float(run({"loss_iou": name}, inputs)[0][1]) for name in ("iou", "ciou"))
    head = make_head()
    ylp.patch_model(head, SCHEDULED)
    with pytest.raises(ConfigError, match=r"is a schedule, and this trainer does not tell the epoch.*set_epoch"):
        run_head(head, inputs)
    average = copy.deepcopy(head)  # EMA: made before the first epoch
    for epoch, share in ((1, 0.0), (2, 1 / 30), (16, 0.5), (31, 1.0), (99, 1.0), (4, 0.1)):
        ylp.set_epoch(head, epoch)
        for each in (head, average):
            assert float(run_head(each, inputs)[0][1]) == pytest.approx((1 - share) * stock + share * ciou, rel=1e-5)
    with pytest.raises(ConfigError, match="whole number at least 1"):
        ylp.set_epoch(head, 0)
    with pytest.raises(PatchError, match="YOLOX's own losses"):
        ylp.set_epoch(make_head(), 1)


def test_a_schedule_under_apply_and_in_a_module_alone():
    inputs = make_batch()
    with ylp.patched(loss_cls="bce(loss_weight={1: 0, 3: 4})"):
        head = make_head()
        ylp.set_epoch(head, 2)
        twice = float(run_head(head, inputs)[0][3])
    assert twice == pytest.approx(2 * float(run({}, inputs)[0][3]), rel=1e-6)
    module = build_loss("cls", dict(type="bce", loss_weight={2: 0.5, 4: 1}))
    pred, target = torch.zeros(3, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match="nobody has told the epoch"):
        module(pred, target)
    for epoch, weight in ((1, 0.5), (3, 0.75), (9, 1.0)):
        ylp.set_epoch(module, epoch)
        assert float(module(pred, target)) == pytest.approx(weight * math.log(2))


def test_state_of_the_stage():
    head, twin = make_head(), make_head()
    for each in (head, twin):
        ylp.patch_model(each, {"loss_iou": "wiou", "loss_obj": dict(type="ghmc", momentum=0.5)})
    run_head(head, make_batch())
    state = stage_of(head).running_state()
    assert set(state) == {"iou", "obj"}
    stage_of(twin).load_running_state(state)
    assert float(run_head(head, make_batch())[0][0]) == float(run_head(twin, make_batch())[0][0])
    assert stage_of(ylp.patch_model(make_head())).running_state() == {}


def test_start_epoch_without_the_trainer_is_an_error():
    head = make_head(use_l1=True)
    ylp.patch_model(head, {"loss_l1": dict(type="l1", start_epoch=3)})
    with pytest.raises(ylp.ConfigError, match="start_epoch=3 is kept by the kit's trainer"):
        run_head(head, make_batch())


def test_class_weights_by_name(tmp_path):
    class Exp(ylp.LossExp, NanoExp):
        def __init__(self):
            super().__init__()
            self.num_classes = 3
            self.data_dir = str(tmp_path)
            self.train_ann = "train.json"

    (tmp_path / "annotations").mkdir()
    categories = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 9, "name": "cow"}]
    (tmp_path / "annotations" / "train.json").write_text(json.dumps({"categories": categories}))
    exp = Exp()
    for key in ("class_weight", "pos_weight"):
        exp.loss_cls = dict(type="bce", reduction="sum", **{key: {"cow": 4, "dog": 2.5}})
        want = ylp.LossConfig(loss_cls=dict(type="bce", reduction="sum", **{key: [1.0, 2.5, 4.0]}))
        assert ylp.LossConfig.from_exp(exp) == want
        assert stage_of(exp.get_model()).config == want
        exp.model = None
        del exp.model
    wrong = [
        ({"cwo": 2.0}, "Did you mean 'cow'"),
        ({"cow": -2.0}, "at least 0"),
        ([1.0, 2.0], "2 numbers, and the experiment has num_classes = 3"),
    ]
    for weights, answer in wrong:
        exp.loss_cls = dict(type="bce", class_weight=weights)
        with pytest.raises(ylp.ConfigError, match=answer):
            ylp.LossConfig.from_exp(exp)
    exp.loss_cls, exp.train_ann = dict(type="bce", class_weight={"cow": 2.0}), "absent.json"
    with pytest.raises(ylp.ConfigError, match="annotation file"):
        ylp.LossConfig.from_exp(exp)


STEPS = int(os.environ.get("STEPS", "20"))  # 200 were run by hand


@pytest.mark.slow
@pytest.mark.parametrize("term,name", EVERY)
def test_training_under_autocast_stays_finite(term, name):
    head = make_head(use_l1=True)
    for convs in (head.cls_convs, head.reg_convs):  # the losses are looked at, not the network below the last layers
        for level in range(len(convs)):
            convs[level] = torch.nn.Identity()
    ylp.patch_model(head, {f"loss_{term}": name})
    # YOLOX's rate for two images is 0.0003. (MPDIoU is quadratic in the distance: at 0.01 it diverges on so small images.)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    for step in range(STEPS):
        features, labels, images = make_batch(
            batch=2, height=64, width=64, boxes=4, seed=step % 8, empty_every=step % 3
        )
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = head(features, labels, images)
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in outputs), (step, outputs)
        outputs[0].backward()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None), step
        optimizer.step()
