"""What the loss stage asks of an accelerator: how many operators it starts, how often it waits, how much memory it takes."""

import pytest
import torch
from conftest import load_script, make_head

import yolox_loss_patch as ylp
from yolox_loss_patch.head.assign import RULE_0_3_0, dense, fast_assign

launches = load_script("benchmarks/launches")
stage = launches.stage_benchmark()


def count(batch, boxes, kit=True, size=160, classes=3):
    head = make_head(classes)
    arguments = stage.scene(batch, size, classes, boxes, torch.device("cpu"))
    if not kit:
        return launches.count(head, arguments)
    ylp.patch_model(head, {"loss_assign": "fast"})
    with launches.as_on_an_accelerator():
        return launches.count(head, arguments)


@pytest.mark.parametrize("boxes", [0, 1, 20, 150])
def test_the_stage_waits_once_whatever_the_load(boxes):
    counting = count(4, boxes)
    assert dict(counting.waits) == {"tolist": 1}
    assert counting.operators.total() <= 210


def test_statistics_and_all_losses_wait_no_more():
    head = make_head(3)
    ylp.patch_model(head, {"loss_assign": "fast", "loss_obj": "varifocal", "loss_iou": "ciou"})
    head.get_losses.stage.collect = True
    with launches.as_on_an_accelerator():
        counting = launches.count(head, stage.scene(2, 96, 3, 4, torch.device("cpu")))
    assert counting.waits.total() == 1, counting.waits


def test_the_counter_sees_the_waits_of_stock():
    """Otherwise a count of one would prove nothing."""
    counting = count(2, 5, kit=False)
    assert counting.waits.total() > 20 and counting.operators.total() > 400
    with launches.Counting() as counting:
        x = torch.rand(8)
        x[x > 0.5].cpu()
        float(x.sum())
        x.view(2, 4)
    assert dict(counting.waits) == {"index": 1, "cpu": 1, "_local_scalar_dense": 1}
    assert counting.operators["view"] == 0


def assign(budget, batch, boxes, classes=3, size=160):
    """What the assignment alone counts."""
    _, x, y, strides, labels, outputs, _, _ = stage.scene(batch, size, classes, boxes, torch.device("cpu"))
    with launches.as_on_an_accelerator(), launches.Counting() as counting:
        fast_assign(
            bbox_preds=outputs[..., :4],
            obj_preds=outputs[..., 4:5],
            cls_preds=outputs[..., 5:],
            labels=labels,
            x_shifts=torch.cat(x, 1),
            y_shifts=torch.cat(y, 1),
            expanded_strides=torch.cat(strides, 1),
            rule=RULE_0_3_0,
            memory_budget=budget,
        )
    return counting


def test_a_crowd_is_matched_in_slices_within_the_budget():
    whole, sliced = assign(2**30, 4, 100), assign(2**22, 4, 100)
    for counting, budget in ((whole, 2**30), (sliced, 2**22)):
        assert counting.peak <= budget
        assert counting.waits.total() == 1
    assert sliced.peak < whole.peak < 2**23
    assert whole.operators.total() < 90 < sliced.operators.total()


@pytest.mark.parametrize("boxes,classes", [(150, 3), (5, 300)])
def test_the_estimate_of_memory_fits(boxes, classes, monkeypatch):
    """Whatever there is more of: boxes or classes."""
    estimates = []
    estimate = dense.bytes_per_image

    def spy(scene):
        estimates.append(estimate(scene))
        return estimates[-1]

    monkeypatch.setattr(dense, "bytes_per_image", spy)
    counting = assign(2**30, 1, boxes, classes)
    assert 0.5 * estimates[0] < counting.peak < 1.15 * estimates[0]
