"""Losses of scores that look at more than one element, and what MMDetection's own code hands to a loss."""

import math

import pytest
import reference as ref
import torch
from conftest import make_batch, make_head, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch.head.patch import stage_of


def numbers(rows=12, columns=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pred = 3 * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    target = (torch.rand(rows, columns, generator=generator) < 0.3).double()
    return pred, target * torch.rand(rows, columns, generator=generator, dtype=torch.float64)


def by_element(function, pred, target):
    return torch.tensor(
        [[function(x, t, i, j) for j, (x, t) in enumerate(zip(*rows, strict=True))]
         for i, rows in enumerate(zip(pred.tolist(), target.tolist(), strict=True))],
        dtype=torch.float64,
    )  # fmt: skip


@pytest.mark.parametrize("mean", [0.05, 0.45, 0.8])
@pytest.mark.parametrize("term", ["obj", "cls"])
def test_slide_weighs_by_the_iou_that_it_is_given(term, mean):
    pred, target = numbers()
    ious = torch.linspace(0, 1, len(pred), dtype=torch.float64)
    loss = ylp.build_loss(term, "slide")
    facts = {"ious": ious, "mean_iou": torch.tensor(mean, dtype=torch.float64)}
    pred.requires_grad_()
    got = loss(pred, target, reduction_override="none", **facts)
    want = by_element(lambda x, t, i, j: ref.ref_slide(x, t, float(ious[i]), mean), pred, target)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(got.sum(), pred)
    slopes = by_element(
        lambda x, t, i, j: ref.slide_weight(float(ious[i]), mean) * (ref.sigmoid(x) - t), pred.detach(), target
    )
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=1e-9)


def test_slide_without_facts_reads_the_iou_off_the_targets():
    pred, target = numbers()
    ious = target.max(1).values
    mean = float(ious.sum() / (ious > 0).sum())
    loss = ylp.build_loss("cls", "slide")
    given = loss(pred, target, ious=ious, mean_iou=torch.tensor(mean, dtype=torch.float64))
    assert float(loss(pred, target)) == pytest.approx(float(given), rel=1e-12)


@pytest.mark.parametrize("term", ["obj", "cls"])
def test_the_stage_tells_slide_the_ious(term):
    head, inputs = make_head(), make_batch(batch=3, boxes=4)
    ylp.patch_model(head, {f"loss_{term}": "slide"})
    stage, seen = stage_of(head), {}
    forward = stage.losses[term].forward

    def spy(pred, target, **call):
        seen.update(pred=pred.detach(), target=target, **call)
        return forward(pred, target, **call)

    stage.losses[term].forward = spy
    outputs, _ = run_head(head, inputs)
    assert seen["ious"].shape == seen["pred"].shape[:1]
    found = seen["ious"][seen["ious"] > 0]
    assert float(seen["mean_iou"]) == pytest.approx(float(found.sum()) / seen["avg_factor"], rel=1e-5)
    rows = zip(seen["pred"].tolist(), seen["target"].tolist(), seen["ious"].tolist(), strict=True)
    mean = float(seen["mean_iou"])
    want = math.fsum(ref.ref_slide(x, t, iou, mean) for xs, ts, iou in rows for x, t in zip(xs, ts, strict=True))
    assert float(outputs[{"obj": 2, "cls": 3}[term]]) == pytest.approx(want / seen["avg_factor"], rel=1e-4)
    if term == "cls":
        torch.testing.assert_close(seen["target"].max(1).values, seen["ious"])


KNOBS = [{}, {"gamma": 5.0, "mu": 0.5, "alpha": 2.0}]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_eqlv2_follows_the_pulls_of_the_batches_before(knobs):
    loss = ylp.build_loss("cls", dict(type="eqlv2", **knobs))
    pulls = [(0.0, 0.0)] * 3
    for seed in range(4):
        pred, target = numbers(seed=seed)
        want = by_element(lambda x, t, i, j, pulls=pulls: ref.ref_eqlv2(x, t, pulls[j], **knobs), pred, target)
        pred.requires_grad_()
        got = loss(pred, target, reduction_override="none")
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        columns = zip(pred.detach().T.tolist(), target.T.tolist(), pulls, strict=True)
        pulls = [ref.eqlv2_pulls(xs, ts, before, **knobs) for xs, ts, before in columns]
        state = loss.running_state()["pulls"]
        torch.testing.assert_close(state, torch.tensor(pulls, dtype=torch.float64).T, rtol=1e-9, atol=1e-12)
    resumed = ylp.build_loss("cls", dict(type="eqlv2", **knobs))
    resumed.load_running_state(loss.running_state())
    assert torch.equal(resumed(*numbers(seed=9)), loss(*numbers(seed=9)))
    assert not loss.state_dict()


@pytest.mark.parametrize("name,extra", [("focal", {"gamma": 2.0}), ("focal", {"gamma": 0.0}), ("varifocal", {})])
def test_alpha_per_class(name, extra):
    alphas = [0.1, 0.5, 0.9]
    pred, target = numbers()
    pred.requires_grad_()
    loss = ylp.build_loss("cls", dict(type=name, alpha=alphas, **extra))
    got = loss(pred, target, reduction_override="none")
    function = getattr(ref, f"ref_{name}")
    want = by_element(lambda x, t, i, j: function(x, t, alpha=alphas[j], **extra), pred, target)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, reduction_override="none"), pred)
    with pytest.raises(ValueError, match="alpha has 3 numbers, one per class"):
        loss(pred[:, :2], target[:, :2])


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_of_the_class_targets(smoothing):
    pred, target = numbers()
    loss = ylp.build_loss("cls", dict(type="bce", label_smoothing=smoothing, pos_weight=2.0))
    want = by_element(lambda x, t, i, j: ref.ref_bce(x, t, 2, 1, smoothing), pred, target)
    torch.testing.assert_close(loss(pred, target, reduction_override="none"), want, rtol=1e-9, atol=1e-9)
    with pytest.raises(ylp.ConfigError, match="no knob 'label_smoothing'"):
        ylp.build_loss("obj", dict(type="bce", label_smoothing=0.1))


SCORED = [("focal", "FocalLoss", {}), ("quality_focal", "QualityFocalLoss", {"beta": 1.5})]


@pytest.mark.parametrize("name,theirs,knobs", SCORED)
def test_activated_takes_scores(name, theirs, knobs):
    pred, target = numbers()
    scores = torch.sigmoid(pred).requires_grad_()
    for spec in (
        dict(type=name, activated=True, **knobs),
        dict(type=theirs, use_sigmoid=True, activated=True, **knobs),
    ):
        loss = ylp.build_loss("cls", spec)
        got = loss(scores, target, reduction_override="none")
        plain = ylp.build_loss("cls", dict(type=name, **knobs))(pred, target, reduction_override="none")
        torch.testing.assert_close(got, plain, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(got.sum(), scores)
        leaf = pred.clone().requires_grad_()
        from_logits = ylp.build_loss("cls", dict(type=name, **knobs))
        (by_logit,) = torch.autograd.grad(from_logits(leaf, target, reduction_override="sum"), leaf)
        torch.testing.assert_close(gradient * (scores * (1 - scores)).detach(), by_logit, rtol=1e-7, atol=1e-10)
        ends = torch.tensor([[0.0, 1.0]], requires_grad=True)
        value = loss(ends, torch.tensor([[1.0, 0.0]]))
        value.backward()
        assert value.isfinite() and ends.grad.isfinite().all()
        with pytest.raises(ylp.ConfigError, match="outputs of YOLOX's head are logits"):
            ylp.LossConfig(loss_cls=spec)
        with pytest.raises(ylp.ConfigError, match="calibrated starts from logits"):
            ylp.build_loss("cls", dict(type=name, activated=True, calibrated=True))


WHOLE = [
    "bce",
    "focal",
    "varifocal",
    "quality_focal",
    "poly",
    "ghmc",
    dict(type="focal", calibrated=True),
    "bce+0.5*focal",
]


@pytest.mark.parametrize("spec", WHOLE, ids=str)
def test_whole_numbers_name_the_class_of_each_row(spec):
    pred, _ = numbers(rows=5)
    classes = torch.tensor([0, 2, 3, -1, 1])  # 3 is MMDetection's background
    wanted = torch.zeros(5, 3, dtype=torch.float64)
    wanted[0, 0] = wanted[1, 2] = wanted[4, 1] = 1
    for dtype in (torch.int64, torch.int32, torch.int16):
        got, want = (ylp.build_loss("cls", spec)(pred, target) for target in (classes.to(dtype), wanted))
        assert float(got) == pytest.approx(float(want), rel=1e-12)
    one, nothing = ylp.build_loss("obj", spec), torch.zeros(2, 1)
    assert float(one(nothing, torch.tensor([0, 1]))) == pytest.approx(float(one(nothing, torch.tensor([[1.0], [0.0]]))))
    for wrong in (4, -2):
        with pytest.raises(ValueError, match="Class numbers are 0 to 2, and 3 or -1 for none"):
            ylp.build_loss("cls", spec)(pred, torch.tensor([0, 1, 2, 0, wrong]))


@pytest.mark.parametrize("spec", ["bce", "focal", "dice", "ghmc", "poly", "bce+0.5*dice"], ids=str)
def test_weights_as_mmdetection_hands_them_over(spec):
    pred, target = numbers()
    rows = torch.linspace(0, 2, len(pred), dtype=torch.float64)
    each = torch.rand(len(pred), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for forms in ((rows, rows[:, None], rows[:, None].expand(-1, 3)), (each, each.reshape(-1))):
        values = [float(ylp.build_loss("cls", spec)(pred, target, weight)) for weight in forms]
        assert values == pytest.approx([values[0]] * len(values), rel=1e-12)


@pytest.mark.parametrize("spec", ["ciou", "nwd", dict(type="ciou", by_overlap=True), "ciou+nwd"], ids=str)
def test_weights_of_boxes_as_mmdetection_hands_them_over(spec):
    pred, target = (
        torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) * 9 + 3 for s in (1, 2)
    )
    weight = torch.linspace(0, 2, 6, dtype=torch.float64)
    loss = ylp.build_loss("iou", spec)
    values = [float(loss(pred, target, form)) for form in (weight, weight[:, None], weight[:, None].expand(-1, 4))]
    assert values == pytest.approx([values[0]] * 3, rel=1e-12) and values[0] > 0


REFUSED = [
    ("cls", "softmax", "independent sigmoids"),
    ("cls", "seesaw", "independent sigmoids"),
    ("cls", dict(type="SeesawLoss", p=0.8, q=2.0, num_classes=80), "independent sigmoids"),
    ("iou", "dfl", "predict a distribution"),
    ("iou", dict(type="mmdet.DistributionFocalLoss", loss_weight=0.25), "predict a distribution"),
]


@pytest.mark.parametrize("term,spec,reason", REFUSED, ids=str)
def test_what_cannot_be_is_refused_with_the_reason(term, spec, reason):
    with pytest.raises(ylp.ConfigError, match=reason):
        ylp.build_loss(term, spec)
