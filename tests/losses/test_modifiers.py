"""Modifiers of box losses: each alone and together, against a scalar reference of its own, and their ties."""

import itertools
import math
import random

import pytest
import reference as ref
import torch

import yolox_loss_patch as ylp

NAMES = ("iou", "giou", "diou", "ciou", "eiou", "siou", "mpdiou")
IMAGE = (480, 640)


def pairs():
    """Boxes that overlap, touch not at all, and lie within each other; none square, every penalty above 0."""
    rng = random.Random(22)
    found = []
    for shift in (0.05, 0.2, 0.5, 0.9, 1.6, 4.0):
        for _ in range(3):
            x, y, w, h = rng.uniform(100, 300), rng.uniform(100, 300), rng.uniform(20, 90), rng.uniform(100, 190)
            pred = (x + shift * w, y - shift * h * 0.7, w * rng.uniform(0.6, 1.6), h * rng.uniform(0.6, 1.6))
            found.append((pred, (x, y, w, h)))
    found.append(((200.0, 210.0, 30.0, 41.0), (204.0, 207.0, 120.0, 90.0)))
    return found


SINGLE = [{"power": 3.0}, {"power": 0.5}, {"power": 1.5}, {"inner": 0.75}, {"inner": 1.3}, {"focaler": (0.0, 0.95)},
          {"focaler": (0.2, 0.7)}, {"focal": 0.5}, {"focal": 2.0}, {"wise": 1}, {"wise": 2},
          {"wise": dict(version=3, alpha=1.6, delta=4.0, momentum=0.3)}]  # fmt: skip
TOGETHER = [
    {"power": 2.0, "inner": 0.8, "focaler": (0.05, 0.9), "focal": 0.5, "wise": 2},
    {"inner": 1.2, "focal": 1.0, "wise": 3},
    {"power": 3.0, "focaler": (0.1, 0.9), "wise": 1},
]


@pytest.mark.parametrize("modifiers", [*SINGLE, *TOGETHER], ids=str)
def test_modifiers_are_those_of_the_formula(modifiers):
    boxes = pairs()
    target = torch.tensor([t for _, t in boxes], dtype=torch.float64)
    for name in NAMES:
        extra = {"image_size": IMAGE} if name == "mpdiou" else {}
        pred = torch.tensor([p for p, _ in boxes], dtype=torch.float64, requires_grad=True)
        spec = {"type": name, "power": 1.0, **extra, **modifiers}
        module = ylp.build_loss("iou", spec)
        values = module(pred, target, reduction_override="none")
        (gradient,) = torch.autograd.grad(values.sum(), pred)
        knobs = {"power": 1, **modifiers}
        if "wise" in knobs:
            wise = ylp.LossConfig(loss_iou=spec).resolved()["iou"]["wise"]
            knobs["wise"] = wise
            if wise["version"] > 1:
                ious = [ref.box_iou(p, t) for p, t in boxes]
                knobs["mean"] = ref.wiou_mean(ious, momentum=wise["momentum"])
        penalties = ref.penalties_of(name, **extra)

        def function(p, t, frozen=None, penalties=penalties, knobs=knobs):
            return ref.ref_box(p, t, penalties, frozen=frozen, **knobs)

        for (p, t), value, slope in zip(boxes, values.tolist(), gradient.tolist(), strict=True):
            where = f"{spec} at {p} against {t}"
            want = ref.exact(function, p, t)
            assert abs(value - want) <= 1e-9 * max(1.0, abs(want)), where
            disjoint = ref.box_iou(p, t) == 0
            if knobs["power"] < 1 and disjoint:
                continue  # IoU**power has an infinite slope there; the kit's is 0
            if knobs.get("focal") and disjoint:
                assert not any(slope), where
                continue
            for got, (left, right) in zip(slope, ref.sides(function, p, t), strict=True):
                low, high = min(left, right), max(left, right)
                slack = 1e-6 * max(1.0, abs(low), abs(high))
                assert math.isfinite(got) and low - slack <= got <= high + slack, where


def test_one_modifier_alone_is_the_published_loss():
    """Against the references of the papers, which know nothing of modifiers."""
    ties = [
        (dict(type="ciou", power=3), ref.ref_alpha_ciou, {}),
        (dict(type="giou", power=2), ref.ref_alpha_giou, {"alpha": 2}),
        (dict(type="siou", inner=0.75), ref.ref_inner_siou, {}),
        (dict(type="eiou", focal=0.5), ref.ref_focal_eiou, {}),
        (dict(type="iou", power=1, wise=1), ref.ref_wiou, {"version": 1}),
        (dict(type="iou", mode="linear", inner=1.2), ref.ref_inner_iou, {"ratio": 1.2}),
    ]
    for (spec, function, knobs), (pred, target) in itertools.product(ties, pairs()):
        value = ylp.build_loss("iou", spec)(torch.tensor([pred]).double(), torch.tensor([target]).double())
        assert float(value) == pytest.approx(ref.exact(function, pred, target, **knobs), rel=1e-6)


@pytest.mark.parametrize("name", [*NAMES, "shape_iou", "piou"])
def test_any_modifiers_are_finite_on_hostile_boxes(name):
    """Zero size, identical, disjoint, concentric, 1e-3 to 4096 px, in fp32 and fp64."""
    boxes = [
        ((5, 5, 0, 0), (5, 5, 0, 0)), ((5, 5, 0, 0), (5, 5, 10, 20)), ((5, 5, 10, 20), (6, 7, 0, 0)),
        ((5, 6, 7, 8), (5, 6, 7, 8)), ((5, 6, 7, 8), (5, 6, 3, 9)), ((5, 5, 10, 10), (15, 15, 10, 10)),
        ((1, 1, 1e-3, 1e-3), (1, 1, 1e-3, 2e-3)), ((2000, 2000, 1e-3, 1e-3), (2048, 2048, 4096, 4096)),
        ((-4096, -4096, 1e-3, 1e-3), (8192, 8192, 1e-3, 1e-3)), ((100, 100, 4096, 1e-3), (100, 100, 1e-3, 4096)),
    ]  # fmt: skip
    extra = {"image_size": IMAGE} if name == "mpdiou" else {}
    for modifiers, dtype in itertools.product([*SINGLE, *TOGETHER], (torch.float32, torch.float64)):
        pred = torch.tensor([p for p, _ in boxes], dtype=dtype, requires_grad=True)
        module = ylp.build_loss("iou", {"type": name, "power": 1.0, **extra, **modifiers})
        values = module(pred, torch.tensor([t for _, t in boxes], dtype=dtype), reduction_override="none")
        (gradient,) = torch.autograd.grad(values.sum(), pred)
        assert values.isfinite().all(), (modifiers, dtype, values)
        assert gradient.isfinite().all(), (modifiers, dtype, gradient)


def test_stock_is_stock_bit_for_bit():
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(500, 4, generator=generator) * 200 + 1
    pred = (target * (1 + 0.5 * torch.randn(500, 4, generator=generator))).requires_grad_()
    from yolox.models.losses import IOUloss

    want = IOUloss(reduction="none")(pred, target)
    got = ylp.build_loss("iou", "iou")(pred, target, reduction_override="none")
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(value.sum(), pred)[0] for value in (got, want)))
