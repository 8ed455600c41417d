"""Ignored regions in the loss stage: nothing is learnt there, and everywhere else exactly what was learnt before."""

import copy

import pytest
import torch
from conftest import make_batch, make_head
from yolox.models import YOLOX

import yolox_loss_patch as ylp
from yolox_loss_patch.errors import ConfigError
from yolox_loss_patch.head.fork import ForkStage
from yolox_loss_patch.head.ignored import covered_by_regions, split_regions
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.head.sampler import RandomSampler
from yolox_loss_patch.specs.config import LossConfig

# One region per image in the middle, and one in a corner of the first.
REGIONS = [[[48.0, 48.0, 50.0, 40.0], [10.0, 80.0, 30.0, 20.0]], [[60.0, 40.0, 44.0, 52.0]], [[48.0, 48.0, 96.0, 96.0]]]


def with_regions(labels, regions=REGIONS):
    """The labels with regions after the boxes of each image."""
    labels = torch.cat([labels, torch.zeros(len(labels), 3, 5)], 1)
    for rows, found in zip(labels, regions, strict=True):
        count = int((rows.sum(1) > 0).sum())
        for number, region in enumerate(found):
            rows[count + number] = torch.tensor([-1.0, *region])
    return labels


def outcome(labels, specs=None, ignores=True, use_l1=False, weigh=None):
    """The six outputs, the stage, the gradient at the head's raw outputs, the predicted boxes and the assignment."""
    features, _, images = make_batch(batch=3, empty_every=0)
    head = make_head(use_l1=use_l1)
    ylp.patch_model(head, specs or {})
    stage = stage_of(head)
    stage.ignores_regions, stage.collect = ignores, True
    seen = {}

    def spy(head, *args, **kwargs):
        args = list(args)
        args[5] = seen["outputs"] = args[5].detach().requires_grad_()
        args[6] = [part.detach().requires_grad_() for part in args[6]]
        return get_losses(head, *args, **kwargs)

    def look(found):
        seen["found"] = found
        return weigh(found) if weigh else None

    get_losses, stage.get_losses = stage.get_losses, spy
    stage.element_weights = lambda found, classes: look(found) or {}
    torch.manual_seed(0)
    results = head(features, labels, images)
    results[0].backward()
    return results, stage, seen["outputs"].grad, seen["outputs"].detach()[..., :4], seen["found"]


def lies_in(box, region):
    """COCO's measure for crowds, in plain floats: half of the box or more is in the region."""
    (x, y, w, h), (rx, ry, rw, rh) = (map(float, values) for values in (box, region))
    wide = min(x + w / 2, rx + rw / 2) - max(x - w / 2, rx - rw / 2)
    high = min(y + h / 2, ry + rh / 2) - max(y - h / 2, ry - rh / 2)
    return max(wide, 0) * max(high, 0) >= 0.5 * w * h


@pytest.mark.parametrize("assign", ["fast", "host"])
@pytest.mark.parametrize("use_l1", [False, True])
def test_ignored_anchors_have_no_gradient_and_all_others_the_same_bits(assign, use_l1):
    labels = make_batch(batch=3, empty_every=0)[1]
    specs = {"loss_assign": assign}
    stock, _, before, _, found = outcome(labels, specs, ignores=False, use_l1=use_l1)
    got, _, after, boxes, now = outcome(with_regions(labels), specs, use_l1=use_l1)
    wanted = [
        any(lies_in(box, region) for region in regions)
        for image, regions in zip(boxes, REGIONS, strict=True)
        for box in image
    ]
    ignored = torch.tensor(wanted) & ~found.fg_mask
    assert torch.equal(now.ignored, ignored) and ignored.any() and (~ignored).any()
    assert (torch.tensor(wanted) & found.fg_mask).any()  # a box in a region is learnt
    assert torch.equal(now.fg_mask, found.fg_mask) and (now.num_fg, now.num_gt) == (found.num_fg, found.num_gt)
    before, after = before.flatten(0, 1), after.flatten(0, 1)
    assert not after[ignored].any() and before[ignored].any(1).all()
    assert torch.equal(after[~ignored], before[~ignored])
    assert [torch.as_tensor(got[n]).item() for n in (1, 3, 4, 5)] == [
        torch.as_tensor(stock[n]).item() for n in (1, 3, 4, 5)
    ]
    assert float(got[2]) < float(stock[2])


def test_a_region_that_covers_no_prediction_changes_no_bit():
    labels = make_batch(batch=3, empty_every=0)[1]
    far = [[[500.0, 500.0, 20.0, 20.0]], [], []]
    stock, before = outcome(labels, ignores=False)[::2][:2]
    got, after = outcome(with_regions(labels, far))[::2][:2]
    assert torch.equal(after, before) and all(float(a) == float(b) for a, b in zip(got, stock, strict=True))


def test_an_image_with_regions_and_no_box():
    labels = torch.zeros(3, 4, 5)
    got, _, gradient, _, found = outcome(with_regions(labels, [*REGIONS[:2], [[48.0, 48.0, 999.0, 999.0]]]))
    assert (found.num_fg, found.num_gt) == (0, 0) and torch.isfinite(got[0])
    assert not gradient[2].any()  # all of its predictions lie in the region
    assert gradient[0].any()


@pytest.mark.parametrize(
    "spec",
    [
        "varifocal",
        dict(type="focal"),
        "ghmc",
        "dice",
        dict(type="bce", target="iou"),
        dict(type="bce", sampler=dict(type="RandomSampler", num=200)),
    ],
)
def test_with_any_objectness_loss_ignored_anchors_have_no_gradient(spec):
    labels = with_regions(make_batch(batch=3, empty_every=0)[1])
    _, _, gradient, _, found = outcome(labels, {"loss_obj": spec})
    assert not gradient.flatten(0, 1)[found.ignored].any()
    assert gradient.flatten(0, 1)[~found.ignored].any()


def test_weights_of_the_experiment_multiply():
    labels = with_regions(make_batch(batch=3, empty_every=0)[1])
    _, _, once, _, found = outcome(labels)
    _, _, twice, _, _ = outcome(labels, weigh=lambda found: {"obj_weights": torch.full((found.fg_mask.numel(),), 2.0)})
    assert torch.equal(twice[..., 4], 2 * once[..., 4]) and not twice.flatten(0, 1)[found.ignored].any()


def test_the_statistics_leave_ignored_anchors_out():
    labels = make_batch(batch=3, empty_every=0)[1]
    stock = outcome(labels, ignores=False)[1].stats
    _, stage, _, _, found = outcome(with_regions(labels))
    assert int(stage.stats["num_bg"]) == stock["num_bg"] - int(found.ignored.sum())
    assert stage.stats["num_fg"] == stock["num_fg"]
    # at the start every score is about 0.01
    assert float(stage.stats["obj_bg"] / stage.stats["num_bg"]) == pytest.approx(
        float(stock["obj_bg"] / stock["num_bg"]), rel=0.05
    )
    assert float(stage.stats["obj_bg"]) < float(stock["obj_bg"]) * 0.9


def test_the_sampler_draws_no_ignored_anchor():
    foreground = torch.zeros(2, 50, dtype=torch.bool)
    foreground[:, :4] = True
    background = ~foreground
    background[:, 4:40] = False
    drawn = RandomSampler(num=12, pos_fraction=0.5, neg_pos_ub=-1)(foreground, background)
    assert drawn[:, 4:40].sum() == 0 and drawn[:, :4].sum() == 8 and drawn[:, 40:].sum() == 16


def test_half_a_box_is_in_and_less_is_out():
    labels = torch.tensor([[[-1.0, 10.0, 10.0, 20.0, 20.0], [0.0, 50.0, 50.0, 9.0, 9.0]]])
    boxes, is_region = split_regions(labels)
    assert is_region.tolist() == [[True, False]] and not boxes[0, 0].any() and torch.equal(boxes[0, 1], labels[0, 1])
    half, less, outside, empty = [20.0, 10, 8, 8], [20.5, 10, 8, 8], [50.0, 50, 9, 9], [10.0, 10, 0, 0]
    preds = torch.tensor([[half, less, outside, empty, [float("nan")] * 4]])
    assert covered_by_regions(preds, labels, is_region).tolist() == [[True, False, False, False, False]]
    assert covered_by_regions(preds.half(), labels.half(), is_region)[0, 0]


def test_a_model_of_an_experiment_ignores_what_the_experiment_says():
    from yolox.exp.default.yolox_nano import Exp as NanoExp

    class Exp(ylp.LossExp, NanoExp):
        ignore_crowd = True

    exp = Exp()
    model = exp.get_model()
    assert isinstance(model, YOLOX) and stage_of(model).ignores_regions
    assert stage_of(copy.deepcopy(model)).ignores_regions
    exp.ignore_crowd = False
    assert not stage_of(exp.get_model()).ignores_regions


def test_a_forks_own_loss_stage_cannot_ignore(monkeypatch):
    stage = ForkStage(LossConfig(), make_head().get_losses)
    stage.ignores_regions = True
    with pytest.raises(ConfigError, match="Ignored regions cannot be had here"):
        stage.get_losses(make_head())
