"""Hard examples: the anchors that cost most per image, and weights by feature map."""

import pytest
import torch
from conftest import make_batch, make_head

import yolox_loss_patch as ylp
from yolox_loss_patch.errors import ConfigError
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.head.weights import ElementWeights
from yolox_loss_patch.specs.resolve import resolve

LEVELS = [144, 36, 9]  # anchors of a 96 px image at strides 8, 16, 32


def run(spec, weigh=None, batch=3):
    """What the objectness loss was called with in the last call, ``(B, A)`` each, and its value."""
    features, labels, images = make_batch(batch=batch, boxes=4)
    head = make_head()
    ylp.patch_model(head, {"loss_obj": spec})
    stage = stage_of(head)
    if weigh is not None:
        stage.element_weights = ElementWeights(weigh)
    seen = {}

    def spy(pred, target, **kwargs):
        seen.update(pred=pred.detach(), target=target, weight=kwargs.get("weight"), avg_factor=kwargs.get("avg_factor"))
        return forward(pred, target, **kwargs)

    forward, stage.losses["obj"].forward = stage.losses["obj"].forward, spy
    seen["value"] = head(features, labels, images)[2].detach()
    return {
        key: value.view(batch, -1) if torch.is_tensor(value) and value.dim() else value for key, value in seen.items()
    }


def hardest(cost, among, count):
    """The indices of the ``count`` largest costs among some, by plain sorting."""
    return set(sorted((n for n in range(len(cost)) if among[n]), key=lambda n: -cost[n])[: int(count)])


def bce(logit, target):
    p = torch.sigmoid(logit.double())
    return -(target * p.log() + (1 - target) * (1 - p).log())


@pytest.mark.parametrize(("num", "fraction", "bound"), [(32, 0.5, -1), (32, 0.1, -1), (32, 0.5, 1), (500, 0.5, -1)])
def test_the_hardest_anchors_of_each_image_are_taken(num, fraction, bound):
    sampler = dict(type="OHEMSampler", num=num, pos_fraction=fraction, neg_pos_ub=bound)
    seen = run(dict(type="bce", sampler=sampler))
    for logits, target, weight in zip(seen["pred"], seen["target"], seen["weight"], strict=True):
        cost = bce(logits, target).tolist()
        foreground = target.bool().tolist()
        positive = min(sum(foreground), int(num * fraction))
        negative = num - positive if bound < 0 else min(num - positive, bound * max(positive, 1))
        wanted = hardest(cost, foreground, positive) | hardest(cost, [not is_fg for is_fg in foreground], negative)
        assert set(weight.nonzero().flatten().tolist()) == wanted
        assert set(weight.unique().tolist()) <= {0.0, 1.0}
    want = (bce(seen["pred"], seen["target"]) * seen["weight"]).sum() / seen["avg_factor"]
    assert float(seen["value"]) == pytest.approx(float(want), rel=1e-5)


def test_the_rank_is_that_of_the_loss_that_is_trained():
    """With focal loss other background anchors are hard than foreground ones, and element weights count."""
    taken = {}
    for name, spec in (("bce", "bce"), ("varifocal", "varifocal")):
        taken[name] = run(dict(type=spec, sampler=dict(type="OHEMSampler", num=20, pos_fraction=0.3)))["weight"] > 0
    assert taken["bce"].sum() == taken["varifocal"].sum()

    def coarse_only(assignment):
        return {"obj_weights": (assignment.levels == 2).float() * 100 + 1}

    seen = run(dict(type="bce", sampler=dict(type="OHEMSampler", num=20, pos_fraction=0.3)), coarse_only)
    chosen = seen["weight"] > 0
    assert set(seen["weight"].unique().tolist()) <= {0.0, 1.0, 101.0}
    background = seen["target"] == 0
    assert (chosen[:, -9:] | ~background[:, -9:]).all()  # every background anchor of the coarsest map


def test_level_weights_multiply_each_feature_map():
    plain, seen = run("bce"), run(dict(type="bce", level_weights=[4.0, 1.0, 0.4]))
    wanted = torch.tensor([4.0] * LEVELS[0] + [1.0] * LEVELS[1] + [0.4] * LEVELS[2])
    assert plain["weight"] is None and torch.equal(seen["weight"], wanted.expand(3, -1))
    assert seen["avg_factor"] == plain["avg_factor"]
    cost = bce(seen["pred"], seen["target"]) * wanted
    assert float(seen["value"]) == pytest.approx(float(cost.sum() / seen["avg_factor"]), rel=1e-5)
    # weights of 1 are stock's value
    assert torch.equal(run(dict(type="bce", level_weights=[1, 1, 1]))["value"], plain["value"])


def test_loss_weights_sees_levels_and_strides():
    seen = {}

    def look(assignment):
        seen["found"] = assignment

    run("bce", look)
    found = seen["found"]
    levels = torch.repeat_interleave(torch.arange(3), torch.tensor(LEVELS)).repeat(3)
    assert torch.equal(found.levels, levels) and torch.equal(found.strides, 8.0 * 2**levels)
    assert found.strides[found.fg_mask].shape == (found.num_fg,)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dict(type="bce", level_weights=[1.0, 2.0]), "level_weights has 2 numbers, and the head has 3 feature maps"),
        (dict(type="bce", level_weights=4.0), "level_weights of 'bce' is None, or a list"),
        (dict(type="bce", level_weights=[1, -1, 1]), "at least 0"),
        (dict(type="dice", sampler=dict(type="OHEMSampler")), "'dice' has no loss of a single anchor"),
        (dict(type="ghmc", sampler=dict(type="OHEMSampler")), "'ghmc' has no loss of a single anchor"),
        (dict(type="bce", sampler=dict(type="OHEMSampler", loss_key="loss_bbox")), "Leave loss_key out"),
        (dict(type="bce", sampler=dict(type="OHEMSampler", add_gt_as_proposals=True)), "cells of a grid"),
        (
            dict(type="bce", sampler=dict(type="OHEMSampler", nums=3)),
            "OHEMSampler has no knob 'nums'. Did you mean 'num'",
        ),
        (dict(type="bce", sampler=dict(type="RandomSampler", loss_key="loss_cls")), "has no knob 'loss_key'"),
    ],
)
def test_what_cannot_be_is_told(spec, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace("?", r"\?")):
        run(spec)


def test_mmdetections_default_knobs_are_accepted():
    config = dict(
        type="OHEMSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=False, loss_key="loss_cls"
    )
    knobs = resolve("obj", dict(type="bce", sampler=config))["sampler"]
    assert knobs == dict(type="OHEMSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1.0)
    with pytest.raises(ConfigError, match="Only loss_obj has weights by feature map"):
        resolve("cls", dict(type="bce", level_weights=[1, 1, 1]))


def test_a_loss_of_the_user_that_cannot_be_ranked_is_told():
    @ylp.LOSSES.register_module("OneNumber")
    class OneNumber(torch.nn.Module):
        term = "obj"

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            return (pred - target).abs().mean()

    with pytest.raises(ConfigError, match=r"this loss gives \(\) for \(567, 1\)"):
        run(dict(type="OneNumber", sampler=dict(type="OHEMSampler")))
