"""What the Python side says to a mistake: value, limit, reason; a row per mistake."""

import numpy as np
import pytest
import torch
from conftest import make_batch, make_head, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch import cli
from yolox_loss_patch.errors import DataError, NonFiniteError, PatchError


def with_label(label, assign):
    """One batch of a patched head whose second image has this class in row 1."""
    head, batch = make_head(), make_batch()
    ylp.patch_model(head, ylp.LossConfig(loss_assign=assign))
    batch[1][1, 1, 0] = label
    run_head(head, batch)


@pytest.mark.parametrize("assign", ["fast", "host"])
@pytest.mark.parametrize("label", [3, 9])
def test_a_class_out_of_range_is_named_with_image_and_row(label, assign):
    with pytest.raises(DataError, match=f"image 1 of the batch hold class {label} in row 1; .* classes 0 to 2"):
        with_label(label, assign)


def test_a_negative_class_is_named():
    with pytest.raises(DataError, match="image 1 of the batch hold class -2 in row 1"):
        with_label(-2, "fast")


@pytest.mark.parametrize("assign", ["auto", "fast", "host"])
@pytest.mark.parametrize("where,terms", [("features", r"iou \(its predictions\), obj .*, cls"), ("box weights", "iou")])
def test_nan_in_the_predictions_is_a_sentence_under_every_assigner(assign, where, terms):
    head, batch = make_head(), make_batch()
    ylp.patch_model(head, ylp.LossConfig(loss_assign=assign))
    if where == "features":
        batch[0][0][0, 0, 0, 0] = float("nan")
    else:
        torch.nn.init.constant_(head.reg_preds[0].weight, float("nan"))
    with pytest.raises(NonFiniteError, match=rf"^Not finite: {terms} \(its predictions\).*basic_lr_per_img"):
        run_head(head, batch)


class Returns(torch.nn.Module):
    """A loss of the user that returns something else than one number."""

    returned = None

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return (pred - target).abs().sum(-1) if self.returned == "vector" else self.returned


RETURNED = {"none": (None, "None"), "tuple": ((1.0, 2.0), r"\(1.0, 2.0\) \(tuple\)"), "float": (1.0, r"1.0 \(float\)"),
            "vector": ("vector", r"a tensor of shape \(")}  # fmt: skip


@pytest.mark.parametrize("term", ["iou", "obj", "cls"])
@pytest.mark.parametrize("case", RETURNED)
def test_a_loss_of_the_user_that_returns_no_number_is_named(case, term):
    returned, words = RETURNED[case]
    name = f"Returns_{term}_{case}"
    loss = type(name, (Returns,), {"returned": returned, "term": term})
    ylp.LOSSES.register_module()(loss)
    head = ylp.patch_model(make_head(), ylp.LossConfig(**{f"loss_{term}": name}))
    with pytest.raises(ylp.ConfigError, match=rf"The loss {name}\S* returned {words}.*one number"):
        run_head(head, make_batch())


BOXES = torch.rand(4, 4) + 1
# term and arguments of the call, the error, words
CALLS = {
    "avg_factor is text": ("iou", (BOXES, BOXES), {"avg_factor": "2"}, ValueError, "avg_factor is a number above 0; got '2'"),
    "avg_factor is a list": ("iou", (BOXES, BOXES), {"avg_factor": [2]}, ValueError, r"above 0; got \[2\]"),
    "avg_factor is a vector": ("iou", (BOXES, BOXES), {"avg_factor": torch.ones(4)}, ValueError, "one number; got a tensor"),
    "an array": ("iou", (np.ones((4, 4)), BOXES), {}, TypeError, "loss_iou: ciou: pred is a tensor; got ndarray"),
    "a list": ("iou", (BOXES, [[1, 2, 3, 4]]), {}, TypeError, "target is a tensor; got list"),
    "weights in a list": ("iou", (BOXES, BOXES), {"weight": [1, 1, 1, 1]}, TypeError, "weight is a tensor; got list"),
    "a row broadcasts": ("iou", (BOXES, BOXES[:1]), {}, ValueError, r"pred \(4, 4\) and target \(1, 4\) differ in shape"),
    "a column broadcasts": ("obj", (torch.rand(4, 1), torch.rand(4)), {}, ValueError, "differ in shape"),
    "one weight broadcasts": ("iou", (BOXES, BOXES), {"weight": torch.ones(1)}, ValueError, r"weight is .*; got \(1,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_a_call_that_cannot_be_is_answered(case):
    term, args, more, error, words = CALLS[case]
    with pytest.raises(error, match=words):
        ylp.build_loss(term, {"iou": "ciou", "obj": "bce"}[term])(*args, **more)


# term, spec, words: knobs at which the formula overflows or says nothing
KNOBS = [
    ("obj", dict(type="focal", gamma=1e9), "gamma of 'focal' is a number at least 0 and at most 100; got 1000000000.0"),
    ("cls", dict(type="varifocal", gamma=101), "at most 100; got 101"),
    ("obj", dict(type="quality_focal", beta=1e6), "beta of 'quality_focal' is .* at most 100"),
    ("obj", dict(type="bce", pos_weight=1e39), "pos_weight of 'bce' is .* at most 1e\\+06; got 1e\\+39"),
    ("iou", dict(type="ciou", loss_weight=1e39), "loss_weight of 'ciou' is a number from 0 to 1e6"),
    ("iou", dict(type="ciou", loss_weight={1: 1, 5: 1e39}), "loss_weight of 'ciou' is a number from 0 to 1e6"),
    ("iou", dict(type="siou", theta=1e9), "theta of 'siou' is .* at most 100"),
    ("l1", dict(type="smooth_l1", beta=1e30), "beta of 'smooth_l1' is .* at most 1e\\+06"),
    (
        "obj",
        dict(type="focal", gamma=46, calibrated=True),
        "gamma=46.0, as a pull of it is 0 .*gamma from 46",
    ),
]


@pytest.mark.parametrize("term,spec,words", KNOBS, ids=lambda value: str(value)[:40])
def test_a_knob_at_which_the_formula_overflows_is_refused(term, spec, words):
    with pytest.raises(ylp.ConfigError, match=words):
        ylp.build_loss(term, spec)


def test_loss_bbox_is_a_name_of_loss_iou():
    assert ylp.LossConfig(loss_bbox="giou") == ylp.LossConfig(loss_iou="giou") != ylp.LossConfig()
    with pytest.raises(ylp.ConfigError, match="Did you mean 'loss_bbox'"):
        ylp.LossConfig(loss_bbbox="giou")
    with pytest.raises(ylp.ConfigError, match="loss_bbox is another name of loss_iou"):
        ylp.LossConfig(loss_bbox="giou", loss_iou="ciou")


def test_list_explains_the_names_of_mmdetection(capsys):
    assert cli.main(["list", "CIoULoss"]) == 0
    text = capsys.readouterr().out
    assert "reads as ciou: dict(type='CIoULoss')" in text and "gate=True" in text and "1911.08287" in text
    assert cli.main(["list", "CrossEntropyLoss"]) == 0
    assert "dict(type='CrossEntropyLoss', use_sigmoid=True)" in capsys.readouterr().out
    assert cli.main(["list", "EIoULoss"]) == 0
    assert "does not read here" in capsys.readouterr().out


def test_a_compiled_model_says_what_to_patch():
    with pytest.raises(PatchError, match="Patch first, then compile"):
        ylp.patch_model(torch.compile(make_head()), ylp.LossConfig(loss_iou="giou"))
