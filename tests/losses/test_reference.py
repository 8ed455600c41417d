"""Every loss against an independent scalar reference, against torchvision, and against what the papers prove.

One table drives the comparison: `ROWS`. A loss that the kit offers and that has no row here fails.
"""

import dataclasses
import functools
import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import reference as ref
import torch

import yolox_loss_patch as ylp

VALUE, GRADIENT = 1e-9, 1e-6
BOTH = ("obj", "cls")


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False: hashed as the object it is
class Row:
    """One comparison: a loss with its knobs and the reference it must equal.

    ``kind``: ``box``, ``logit`` and ``offset`` are element-wise; ``joint`` is element-wise but an element depends on
    all the others; ``region`` gives one number for a set.
    """

    terms: tuple[str, ...]
    name: str
    knobs: dict[str, Any]
    fn: Callable
    kind: str

    def __str__(self):
        knobs = "-".join(f"{key}={value}" for key, value in self.knobs.items()).replace(" ", "")
        return f"{self.name}[{knobs}]" if knobs else self.name


def box(name, fn, *variants):
    return [Row(("iou",), name, knobs, fn, "box") for knobs in ({}, *variants)]


def logit(name, fn, *variants, kind="logit"):
    return [Row(BOTH, name, knobs, fn, kind) for knobs in ({}, *variants)]


def offset(name, fn, *variants):
    return [Row(("l1",), name, knobs, fn, "offset") for knobs in ({}, *variants)]


ALPHAS = ({"alpha": 1.0}, {"alpha": 2.0}, {"alpha": 0.5})
RATIOS = ({"ratio": 1.2}, {"ratio": 1.0})
ROWS = [
    *box("iou", ref.ref_iou, {"mode": "square"}, {"mode": "linear"}, {"mode": "log"}),
    *box("giou", ref.ref_giou),
    *box("diou", ref.ref_diou),
    *box("ciou", ref.ref_ciou, {"gate": True}, {"gate": False}),
    *box("eiou", ref.ref_eiou),
    *box("focal_eiou", ref.ref_focal_eiou, {"gamma": 1.0}, {"gamma": 2.0}),
    *box("alpha_iou", ref.ref_alpha_iou, *ALPHAS),
    *box("alpha_giou", ref.ref_alpha_giou, *ALPHAS),
    *box("alpha_diou", ref.ref_alpha_diou, *ALPHAS),
    *box("alpha_ciou", ref.ref_alpha_ciou, *ALPHAS),
    *box("alpha_eiou", ref.ref_alpha_eiou, *ALPHAS),
    *box("siou", ref.ref_siou, {"theta": 2.0}, {"theta": 6.0}),
    *box("wiou", ref.ref_wiou, {"version": 1}, {"version": 2}, {"alpha": 1.6, "delta": 4.0, "momentum": 0.3}),
    *box("mpdiou", ref.ref_mpdiou, {"image_size": (480, 672)})[1:],  # alone it has no batch to take the size from
    *box("inner_iou", ref.ref_inner_iou, *RATIOS),
    *box("inner_giou", ref.ref_inner_giou, *RATIOS),
    *box("inner_diou", ref.ref_inner_diou, *RATIOS),
    *box("inner_ciou", ref.ref_inner_ciou, *RATIOS),
    *box("inner_eiou", ref.ref_inner_eiou, *RATIOS),
    *box("inner_siou", ref.ref_inner_siou, *RATIOS),
    *box("shape_iou", ref.ref_shape_iou, {"scale": 1.0}, {"scale": 0.5}),
    *box("piou", ref.ref_piou, {"version": 1}, {"lambda_": 2.0}),
    *box("nwd", ref.ref_nwd, {"constant": 40.0}),
    *logit("bce", ref.ref_bce, {"pos_weight": 3.0}),
    *logit("focal", ref.ref_focal, {"alpha": 0.75}, {"alpha": -1, "gamma": 1.5}, {"gamma": 0.0}, {"gamma": 0.5}),
    *logit("varifocal", ref.ref_varifocal, {"iou_weighted": False}, {"alpha": 0.4, "gamma": 1.0}, {"gamma": 0.0}),
    *logit("quality_focal", ref.ref_quality_focal, {"beta": 1.5}, {"beta": 1.0}, {"beta": 3.0}),
    *logit("poly", ref.ref_poly, {"eps": -0.5}, {"eps": 2.0, "gamma": 2.0, "alpha": 0.25}, {"gamma": 0.5}),
    *logit("asymmetric", ref.ref_asymmetric, {"margin": 0.0}, {"gamma_pos": 0.0, "gamma_neg": 2.0}, {"detach": False}),
    *logit("matchability", ref.ref_matchability, {"gamma": 1.0}, {"gamma": 0.5}),
    *logit("ghmc", ref.ref_ghmc_elements, {"bins": 30}, kind="joint"),
    *logit("dice", ref.ref_dice, {"squared": True}, {"smooth": 0.1}, kind="region"),
    *logit("tversky", ref.ref_tversky, {"alpha": 0.6, "beta": 0.2}, {"smooth": 5.0}, kind="region"),
    *logit("dice_focal", ref.ref_dice_focal, {"weight": 3.0, "alpha": 0.6, "gamma": 1.0}, kind="region"),
    # These depend on facts of the batch or on earlier batches: tests/losses/test_more_scores.py.
    Row(BOTH, "slide", {}, ref.ref_slide, "facts"),
    Row(("cls",), "eqlv2", {}, ref.ref_eqlv2, "memory"),
    *offset("l1", ref.ref_l1),
    *offset("smooth_l1", ref.ref_smooth_l1, {"beta": 0.2}),
    *offset("l2", ref.ref_l2),
    *offset("balanced_l1", ref.ref_balanced_l1, {"alpha": 0.8, "gamma": 1.2, "beta": 0.5}),
]
CASES = [(term, row) for row in ROWS for term in row.terms]


def build(term, row):
    """A fresh module for the row."""
    return ylp.build_loss(term, {"type": row.name, **row.knobs})


def make(term, name, **knobs):
    return ylp.build_loss(term, {"type": name, **knobs})


def evaluate(module, pred, target, **call):
    """Values and gradient (of their sum) in float64."""
    pred = torch.as_tensor(pred, dtype=torch.float64).clone().requires_grad_()
    values = module(pred, torch.as_tensor(target, dtype=torch.float64), **{"reduction_override": "none", **call})
    (gradient,) = torch.autograd.grad(values.sum(), pred)
    return values.detach(), gradient


def near(got, want, tolerance):
    return abs(got - want) <= tolerance * max(1.0, abs(want))


def check_slopes(got, slopes, what):
    """The gradient equals the reference's; at a kink it lies between the slopes of the two sides."""
    for axis, (g, (left, right)) in enumerate(zip(got, slopes, strict=True)):
        low, high = min(left, right), max(left, right)
        assert math.isfinite(g), f"{what}: gradient[{axis}] is {g}"
        slack = GRADIENT * max(1.0, abs(low), abs(high))
        assert low - slack <= g <= high + slack, f"{what}: gradient[{axis}] is {g}, the reference has {left} | {right}"


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------
@functools.cache
def box_cases():
    """(what, pred, target), a few of each kind of meeting; no box is square unless it says so."""
    rng = random.Random(20210718)
    u = rng.uniform
    cases = []

    def add(what, pred, target):
        cases.append((f"{what} pred={pred} target={target}", pred, target))

    def some():
        return u(20, 600), u(20, 600), u(10, 120), u(130, 250)

    for _ in range(12):  # generic overlaps, both aspect ratios
        x, y, w, h = some()
        w, h = (w, h) if rng.random() < 0.5 else (h, w)
        add("random", (x + u(-0.3, 0.3) * w, y + u(-0.3, 0.3) * h, w * u(0.6, 1.7), h * u(0.6, 1.7)), (x, y, w, h))
    for sx, sy in ((1, 0.1), (-1, 0.2), (0.1, 1), (0.2, -1), (1, 1), (-3, 2), (20, -9)):
        x, y, w, h = some()
        add("disjoint", (x + sx * 2.1 * w, y + sy * 2.1 * h, w * u(0.6, 1.7), h * u(0.6, 1.7)), (x, y, w, h))
    for k in (0.3, 0.55):
        x, y, w, h = some()
        add("nested", (x + 0.05 * w, y - 0.1 * h, w * k, h * k * 0.9), (x, y, w, h))
        add("nested", (x, y, w, h), (x + 0.05 * w, y - 0.1 * h, w * k, h * k * 0.9))
    for kw, kh in ((0.5, 0.7), (1.4, 1.2), (0.5, 1.6), (1.7, 0.8)):
        x, y, w, h = some()
        add("concentric", (x, y, w * kw, h * kh), (x, y, w, h))
    add("concentric, same aspect", (40.0, 50.0, 30.0, 20.0), (40.0, 50.0, 60.0, 40.0))
    for kx, ky in ((0.2, 0), (0, 0.2), (1.5, 0), (0, 1.5)):
        x, y, w, h = some()
        add("axis-aligned", (x + kx * w, y + ky * h, w * 0.8, h * 1.3), (x, y, w, h))
    add("diagonal", (70.0, 90.0, 40.0, 24.0), (60.0, 80.0, 32.0, 48.0))  # dx = dy: the largest angle cost
    add("same size", (64.0, 70.0, 40.0, 24.0), (60.0, 80.0, 40.0, 24.0))
    add("shared edge", (30.0, 40.0, 20.0, 16.0), (35.0, 42.0, 30.0, 24.0))
    add("touching", (10.0, 40.0, 20.0, 16.0), (30.0, 42.0, 20.0, 24.0))
    add("identical", (50.5, 60.25, 20.0, 35.0), (50.5, 60.25, 20.0, 35.0))
    add("identical", (0.3, 0.7, 1e-3, 2e-3), (0.3, 0.7, 1e-3, 2e-3))
    for w, h in ((600.0, 0.5), (0.5, 600.0), (1500.0, 3.0)):  # extreme aspect, alike and crossed
        add("aspect", (300 + 0.13 * w, 300 + 0.11 * h, w * 1.21, h * 0.7), (300.0, 300.0, w, h))
        add("crossed", (300 + 0.01 * w, 300 + 0.01 * h, h * 1.2, w * 0.7), (300.0, 300.0, w, h))
    add("tiny", (0.5, 0.25, 1e-3, 2e-3), (0.5003, 0.2506, 1.7e-3, 1.1e-3))
    add("tiny, disjoint", (0.5, 0.25, 1e-3, 2e-3), (0.51, 0.22, 1.7e-3, 1.1e-3))
    add("small", (2.0, 3.0, 0.02, 0.04), (2.003, 3.01, 0.05, 0.03))
    add("large", (1000.0, 900.0, 2000.0, 1500.0), (1100.0, 1000.0, 1700.0, 1900.0))
    add("tiny in large", (1000.0, 900.0, 2e-3, 1e-3), (1100.0, 1000.0, 1700.0, 1900.0))
    add("large round tiny", (1100.0, 1000.0, 1700.0, 1900.0), (1000.0, 900.0, 2e-3, 1e-3))
    return cases


@functools.cache
def logit_cases():
    """(logit, target): saturated and central logits with hard, soft and nearly hard targets, generic ones between."""
    rng = random.Random(1708)
    hand = [(x, t) for x in (-50.0, -20.0, -4.6, -0.3, 0.0, 0.7, 3.1, 20.0, 50.0) for t in (0.0, 1.0, 0.5, 0.93, 1e-3)]
    return hand + [(rng.uniform(-8, 8), rng.choice((0.0, 1.0, rng.random()))) for _ in range(15)]


@functools.cache
def rare_case():
    """1 positive, 1000 negatives, at the logits of a head that is just learning."""
    rng = random.Random(1000)
    logits = [rng.gauss(-4.6, 1.5) for _ in range(1001)]
    targets = [0.0] * 1001
    targets[417] = 1.0
    return logits, targets


@functools.cache
def offset_cases():
    rng = random.Random(4)
    hand = [(0.0, 0.0), (1.0, 0.0), (0.2, 0.0), (-0.5, 0.25), (1e-4, 0.0), (40.0, -3.0), (-2.5, 1.5)]
    return hand + [(rng.gauss(0, 2), rng.gauss(0, 2)) for _ in range(21)]


@functools.cache
def wanted(row, x, t):
    """The reference's value and slopes at one element."""
    return ref.exact(row.fn, x, t, **row.knobs), ref.sides(row.fn, x, t, **row.knobs)


@functools.cache
def region_cases(row):
    """(logits, targets, value, indices, slopes there): soft targets, no positive, one in a thousand."""
    soft = [list(v) for v in zip(*logit_cases()[7::3], strict=True)]
    empty = [[-3.0, -50.0, 0.4], [0.0, 0.0, 0.0]]
    cases = []
    for (logits, targets), some in ((soft, range(len(soft[0]))), (empty, range(3)), (rare_case(), (0, 417))):
        value = ref.exact(row.fn, logits, targets, **row.knobs)
        cases.append((logits, targets, value, some, ref.sides(row.fn, logits, targets, indices=some, **row.knobs)))
    return cases


@functools.cache
def joint_cases(row):
    """(logits, targets, values, indices, slopes of the sum there)."""

    def all_together(x, t, frozen=None):
        return sum(row.fn(x, t, frozen=frozen, **row.knobs))

    cases = []
    for (logits, targets), some in (
        (tuple(zip(*logit_cases(), strict=True)), (0, 7, 19, 33, 50)),
        (rare_case(), (417,)),
    ):
        slopes = ref.sides(all_together, list(logits), list(targets), indices=some)
        cases.append((logits, targets, row.fn(logits, targets, **row.knobs), some, slopes))
    return cases


def ref_knobs(row, preds=(), targets=()):
    """The row's knobs as the reference takes them; wiou's running mean is the kit's after this one batch."""
    knobs = dict(row.knobs)
    if row.name == "wiou":
        ious = [ref.box_iou(p, t) for p, t in zip(preds, targets, strict=True)]
        knobs["mean"] = ref.wiou_mean(ious, momentum=knobs.pop("momentum", 0.01))
    return knobs


# ---------------------------------------------------------------------------------------------------------------------
# The kit against the references
# ---------------------------------------------------------------------------------------------------------------------
def test_every_loss_of_the_kit_has_its_rows_and_every_row_its_loss():
    there = {
        (term, name)
        for term, names in ylp.available_losses().items()
        for name in names
        if ylp.LOSSES.rows[term][name].from_kit  # not those that another test registered
    }
    rows = {(term, row.name) for term, row in CASES}
    assert there - rows == set(), "add a reference to tests/reference.py and a row to ROWS"
    assert rows - there == set(), "these rows have no loss any more"


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "box"], ids=str)
def test_box_loss(term, row):
    module = build(term, row)
    cases = box_cases()
    preds, targets = [p for _, p, _ in cases], [t for _, _, t in cases]
    knobs = ref_knobs(row, preds, targets)
    values, gradients = evaluate(module, preds, targets)
    assert values.shape == (len(cases),)
    for (what, pred, target), value, gradient in zip(cases, values.tolist(), gradients.tolist(), strict=True):
        want = ref.exact(row.fn, pred, target, **knobs)
        if math.isinf(want):  # -log IoU of disjoint boxes: bounded here, above anything that overlaps
            assert 20 < value < math.inf, what
            assert all(math.isfinite(g) for g in gradient), what
            continue
        assert near(value, want, VALUE), f"{what}: {value}, the reference has {want}"
        check_slopes(gradient, ref.sides(row.fn, pred, target, **knobs), what)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 5)], ids=str)
@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "logit"], ids=str)
def test_logit_loss(term, row, shape):
    module = build(term, row)
    cases = logit_cases()
    pred, target = torch.tensor(cases, dtype=torch.float64).unbind(1)
    values, gradients = evaluate(module, pred.reshape(shape), target.reshape(shape))
    assert values.shape == pred.reshape(shape).shape
    for (x, t), value, gradient in zip(cases, values.flatten().tolist(), gradients.flatten().tolist(), strict=True):
        want, slopes = wanted(row, x, t)
        assert near(value, want, VALUE), f"logit {x} target {t}: {value}, the reference has {want}"
        check_slopes([gradient], slopes, f"logit {x} target {t}")


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "logit"], ids=str)
def test_logit_loss_one_in_a_thousand(term, row):
    module = build(term, row)
    logits, targets = rare_case()
    total, gradient = evaluate(module, logits, targets, reduction_override="mean", avg_factor=1.0)
    want = math.fsum(row.fn(x, t, **row.knobs) for x, t in zip(logits, targets, strict=True))
    assert near(total.item(), want, VALUE)
    for i in (0, 417, 1000):
        check_slopes([gradient[i].item()], wanted(row, logits[i], targets[i])[1], f"element {i}")


def test_bce_with_a_weight_for_each_class():
    weights = [0.4, 1.0, 3.0]
    row = Row(("cls",), "bce", {"class_weight": weights}, ref.ref_bce, "logit")
    module = build("cls", row)
    pred, target = torch.tensor(logit_cases(), dtype=torch.float64).unbind(1)
    values, gradients = evaluate(module, pred.view(-1, 3), target.view(-1, 3))
    for i, (x, t) in enumerate(logit_cases()):
        assert near(values.flatten()[i].item(), ref.exact(ref.ref_bce, x, t, class_weight=weights[i % 3]), VALUE)
        check_slopes([gradients.flatten()[i].item()], ref.sides(ref.ref_bce, x, t, class_weight=weights[i % 3]), (x, t))


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "joint"], ids=str)
def test_joint_loss(term, row):
    for logits, targets, wants, some, slopes in joint_cases(row):
        values, gradients = evaluate(build(term, row), logits, targets)
        for i, (value, want) in enumerate(zip(values.tolist(), wants, strict=True)):
            assert near(value, want, VALUE), f"element {i}: {value}, the reference has {want}"
        check_slopes([gradients[i].item() for i in some], slopes, f"{len(logits)} logits, elements {some}")


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "region"], ids=str)
def test_region_loss(term, row):
    module = build(term, row)
    for logits, targets, want, some, slopes in region_cases(row):
        value, gradients = evaluate(module, logits, targets)
        assert value.shape == ()
        assert near(value.item(), want, VALUE), f"{len(logits)} logits: {value}, the reference has {want}"
        check_slopes([gradients[i].item() for i in some], slopes, f"{len(logits)} logits")
        if len(logits) % 3 == 0:  # the shape of the set says nothing
            table = evaluate(module, torch.tensor(logits).view(-1, 3), torch.tensor(targets).view(-1, 3))
            assert near(table[0].item(), want, 1e-6)  # the list went through fp32


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "offset"], ids=str)
def test_offset_loss(term, row):
    module = build(term, row)
    cases = offset_cases()
    pred, target = torch.tensor(cases, dtype=torch.float64).unbind(1)
    values, gradients = evaluate(module, pred.view(-1, 4), target.view(-1, 4))
    assert values.shape == (len(cases) // 4, 4)
    for (p, t), value, gradient in zip(cases, values.flatten().tolist(), gradients.flatten().tolist(), strict=True):
        want, slopes = wanted(row, p, t)
        assert near(value, want, VALUE), f"{p} against {t}: {value}, the reference has {want}"
        check_slopes([gradient], slopes, f"{p} against {t}")


@pytest.mark.parametrize(
    ("term", "row"), [c for c in CASES if "frozen" not in inspect.signature(c[1].fn).parameters], ids=str
)
def test_gradcheck(term, row):
    """torch's own check, where no factor is detached; where one is, the gradient is not the derivative."""
    module = build(term, row).eval()  # so that no running state moves between the points
    if row.kind == "box":
        generic = [(p, t) for what, p, t in box_cases() if what.startswith(("random", "disjoint"))]
        if row.knobs.get("mode") == "log":
            generic = generic[:12]
        pred, target = (torch.tensor(v, dtype=torch.float64) for v in zip(*generic, strict=True))
    else:
        pred, target = torch.tensor(logit_cases()[-15:-3], dtype=torch.float64).unbind(1)
        shape = (-1, 4) if row.kind == "offset" else (-1, 3)
        pred, target = pred.reshape(shape).clone(), target.reshape(shape)
    assert torch.autograd.gradcheck(lambda p: module(p, target, reduction_override="none"), pred.requires_grad_())


# ---------------------------------------------------------------------------------------------------------------------
# Analytic ties inside the kit
# ---------------------------------------------------------------------------------------------------------------------
def boxes(*leave_out):
    """The box cases as two tensors, without the kinds of meeting named."""
    pairs = [(pred, target) for what, pred, target in box_cases() if not what.startswith(leave_out or ("none",))]
    return [torch.tensor(v, dtype=torch.float64) for v in zip(*pairs, strict=True)]


KINKS = ("identical", "shared", "touching")  # no gradient there, only subgradients


def some_inputs(term, *leave_out):
    if term == "iou":
        return boxes(*leave_out)
    return torch.tensor(logit_cases(), dtype=torch.float64).unbind(1)


EXACT = [  # same bits
    ("obj", ("focal", {"gamma": 0.0, "alpha": -1}), ("bce", {})),
    ("cls", ("focal", {"gamma": 0.0, "alpha": -1}), ("bce", {})),
    ("iou", ("alpha_iou", {"alpha": 2.0}), ("iou", {})),
    ("iou", ("alpha_iou", {"alpha": 2.0}), ("iou", {"mode": "square"})),
    ("iou", ("alpha_iou", {"alpha": 1.0}), ("iou", {"mode": "linear"})),
    ("iou", ("alpha_iou", {}), ("alpha_iou", {"alpha": 3.0})),
    ("iou", ("ciou", {}), ("ciou", {"gate": False})),
    ("obj", ("focal", {}), ("focal", {"alpha": 0.25, "gamma": 2.0})),
    ("obj", ("varifocal", {}), ("varifocal", {"alpha": 0.75, "gamma": 2.0, "iou_weighted": True})),
]
ALIKE = [  # the same but for rounding
    ("iou", ("alpha_giou", {"alpha": 1.0}), ("giou", {})),
    ("iou", ("alpha_diou", {"alpha": 1.0}), ("diou", {})),
    ("iou", ("alpha_ciou", {"alpha": 1.0}), ("ciou", {})),
    ("iou", ("alpha_eiou", {"alpha": 1.0}), ("eiou", {})),
    ("iou", ("inner_giou", {"ratio": 1.0}), ("giou", {})),
    ("iou", ("inner_iou", {"ratio": 1.0}), ("iou", {"mode": "linear"})),
    ("iou", ("inner_siou", {"ratio": 1.0}), ("siou", {})),
    ("obj", ("quality_focal", {"beta": 0.0}), ("bce", {})),
    ("l1", ("balanced_l1", {}), ("balanced_l1", {"alpha": 0.5, "gamma": 1.5, "beta": 1.0})),
]


@pytest.mark.parametrize(("term", "one", "other"), EXACT, ids=str)
def test_tie_exact(term, one, other):
    pred, target = some_inputs(term)
    value, gradient = evaluate(make(term, one[0], **one[1]), pred, target)
    value2, gradient2 = evaluate(make(term, other[0], **other[1]), pred, target)
    assert torch.equal(value, value2)
    torch.testing.assert_close(gradient, gradient2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("term", "one", "other"), ALIKE, ids=str)
def test_tie(term, one, other):
    pred, target = some_inputs(term, *KINKS)
    if term == "l1":
        pred, target = pred[:44].view(-1, 4), target[:44].view(-1, 4)
    got = evaluate(make(term, one[0], **one[1]), pred, target)
    want = evaluate(make(term, other[0], **other[1]), pred, target)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_focal_at_gamma_zero_is_weighted_bce():
    pred, target = some_inputs("obj")
    bce = make("obj", "bce")(pred, target, reduction_override="none")
    focal = make("obj", "focal", gamma=0.0, alpha=0.3)(pred, target, reduction_override="none")
    torch.testing.assert_close(focal, (0.3 * target + 0.7 * (1 - target)) * bce, rtol=1e-12, atol=0)


def test_varifocal_on_hard_targets_is_bce_and_focal():
    """t = 1 is plain BCE; t = 0 is focal's background with alpha instead of 1 - alpha."""
    pred, target = some_inputs("obj")
    target = (target > 0.5).to(pred.dtype)
    got = make("obj", "varifocal", alpha=0.6)(pred, target, reduction_override="none")
    bce = make("obj", "bce")(pred, target, reduction_override="none")
    focal = make("obj", "focal", alpha=0.4)(pred, target, reduction_override="none")
    torch.testing.assert_close(got, torch.where(target > 0, bce, focal), rtol=1e-12, atol=0)


def test_gated_ciou_is_ciou_above_half_and_diou_below():
    pred, target = some_inputs("iou")
    iou = torch.tensor([ref.box_iou(p, t) for _, p, t in box_cases()], dtype=torch.float64)
    assert (iou > 0.5).any() and (iou < 0.5).any()
    gated, plain, diou = (
        evaluate(make("iou", name, **knobs), pred, target)
        for name, knobs in (("ciou", {"gate": True}), ("ciou", {}), ("diou", {}))
    )
    for got, high, low in zip(gated, plain, diou, strict=True):
        above = (iou > 0.5).view(-1, *[1] * (got.dim() - 1))
        torch.testing.assert_close(got, torch.where(above, high, low), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain[0], diou[0])


def test_quality_focal_on_hard_targets_is_focal_without_alpha():
    pred, target = some_inputs("obj")
    target = (target > 0.5).to(pred.dtype)
    got = evaluate(make("obj", "quality_focal"), pred, target)
    torch.testing.assert_close(got, evaluate(make("obj", "focal", alpha=-1), pred, target), rtol=1e-9, atol=1e-12)


def test_tversky_half_half_is_dice():
    """(TP + s)/(TP + FP/2 + FN/2 + s) is Dice with twice the smoothing."""
    pred, target = some_inputs("obj")
    got = evaluate(make("obj", "tversky", alpha=0.5, beta=0.5, smooth=1.0), pred, target)
    torch.testing.assert_close(got, evaluate(make("obj", "dice", smooth=2.0), pred, target), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# torchvision
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("giou", "generalized_box_iou_loss"),
        ("diou", "distance_box_iou_loss"),
        ("ciou", "complete_box_iou_loss"),  # not gated, and its trade-off is not differentiated either
    ],
)
def test_torchvision_box(name, theirs):
    ops = pytest.importorskip("torchvision.ops")
    # Their CIoU hands its eps on to one of two places; the other keeps 1e-7, which tiny boxes feel.
    pred, target = boxes(*KINKS, *(("tiny", "small") if name == "ciou" else ()))

    def xyxy(boxes):
        return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)

    values, gradient = evaluate(make("iou", name), pred, target)
    pred.requires_grad_()
    want = getattr(ops, theirs)(xyxy(pred), xyxy(target), reduction="none", eps=0.0)
    (want_gradient,) = torch.autograd.grad(want.sum(), pred)
    torch.testing.assert_close(values, want.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("term", BOTH)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 1.5), (-1, 2.0), (0.5, 0.0)])
def test_torchvision_focal(term, alpha, gamma):
    ops = pytest.importorskip("torchvision.ops")
    pred, target = some_inputs(term)
    got = evaluate(make(term, "focal", alpha=alpha, gamma=gamma), pred, target)
    pred = pred.clone().requires_grad_()
    want = ops.sigmoid_focal_loss(pred, target, alpha=alpha, gamma=gamma, reduction="none")
    (want_gradient,) = torch.autograd.grad(want.sum(), pred)
    torch.testing.assert_close(got, (want.detach(), want_gradient), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# What the papers prove
# ---------------------------------------------------------------------------------------------------------------------
BOXES = [row for row in ROWS if row.kind == "box"]
box_rows = pytest.mark.parametrize("row", BOXES, ids=str)


@box_rows
def test_perfect_box_is_zero_and_flat(row):
    """0, without pull in position or size: a step to either side costs the same (nwd is a cone: still no pull)."""
    boxes = torch.tensor([(50.5, 60.25, 20.0, 35.0), (7.0, 3.0, 0.5, 0.25), (900.0, 700.0, 1500.0, 900.0)])
    values, gradient = evaluate(build("iou", row), boxes, boxes)
    assert values.abs().max() < 1e-12
    assert gradient[:, :2].abs().max() < 1e-12  # no direction is better than its opposite
    assert torch.isfinite(gradient).all()


@box_rows
def test_never_negative_and_smallest_at_the_target(row):
    pred, target = some_inputs("iou")
    assert evaluate(build("iou", row), pred, target)[0].min() > -1e-12


@pytest.mark.parametrize(
    ("name", "knobs", "bound"),
    [
        ("iou", {"mode": "square"}, 1),
        ("iou", {"mode": "linear"}, 1),
        ("giou", {}, 2),
        ("diou", {}, 2),
        ("ciou", {}, 3),
        ("eiou", {}, 4),
        ("alpha_iou", {}, 1),
        ("alpha_giou", {}, 2),
        ("alpha_diou", {}, 2),
        ("alpha_ciou", {}, 3),
        ("alpha_eiou", {}, 4),
        ("siou", {}, 3),
        ("shape_iou", {}, 3),
        ("nwd", {}, 1),
    ],
    ids=str,
)
def test_bound(name, knobs, bound):
    """The largest value, which is approached where it can be: two small boxes far apart."""
    module = make("iou", name, **knobs)
    pred, target = some_inputs("iou")
    assert evaluate(module, pred, target)[0].max() <= bound + 1e-12
    far = evaluate(module, [(1e4, 2e4, 1.0, 2.0)], [(0.0, 0.0, 3.0, 1.0)])[0].item()
    assert far <= bound + 1e-12
    if name in ("giou", "diou", "alpha_giou", "alpha_diou", "nwd"):
        assert far > bound - 1e-3
    if name in ("iou", "alpha_iou"):
        assert far == bound


@box_rows
def test_scale_and_place_do_not_matter(row):
    """Except where pixels are compared with a constant."""
    module = build("iou", row)
    pred, target = some_inputs("iou")
    values = evaluate(module, pred, target)[0]
    if row.name == "wiou":
        module = build("iou", row)
    scaled = evaluate(module, pred * 4, target * 4)[0]  # 4: exact in binary
    if row.name in ("mpdiou", "nwd"):
        assert not torch.allclose(scaled, values)
    else:
        torch.testing.assert_close(scaled, values, rtol=1e-9, atol=1e-9)
    if row.name == "wiou":
        module = build("iou", row)
    shift = torch.tensor([64.0, -32.0, 0.0, 0.0], dtype=torch.float64)
    # A root magnifies the rounding of a penalty that is 0: that of alpha-GIoU where one box holds the other.
    atol = 1e-5 if row.name == "alpha_giou" and row.knobs.get("alpha") == 0.5 else 1e-7
    torch.testing.assert_close(evaluate(module, pred + shift, target + shift)[0], values, rtol=1e-7, atol=atol)


@box_rows
def test_x_and_y_are_treated_alike(row):
    module, other = build("iou", row), build("iou", row)
    pred, target = some_inputs("iou")
    turn = [1, 0, 3, 2]
    values, gradient = evaluate(module, pred, target)
    turned, turned_gradient = evaluate(other, pred[:, turn], target[:, turn])
    torch.testing.assert_close(turned, values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned_gradient[:, turn], gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["iou", "giou", "diou", "ciou", "eiou", "alpha_iou", "alpha_giou", "alpha_ciou", "siou", "mpdiou", "inner_ciou"],
)
def test_symmetric(name):
    """The value does not say which box is the target."""
    knobs = {"image_size": (480, 640)} if name == "mpdiou" else {}
    pred, target = some_inputs("iou")
    one = evaluate(make("iou", name, **knobs), pred, target)[0]
    torch.testing.assert_close(evaluate(make("iou", name, **knobs), target, pred)[0], one, rtol=1e-9, atol=1e-9)


@box_rows
def test_disjoint_box_is_pulled_closer(row):
    """Those with a penalty on the distance; the plain ones have no gradient there, which is why the others exist."""
    module = build("iou", row)
    disjoint = [(p, t) for what, p, t in box_cases() if what.startswith("disjoint")]
    pred, target = (torch.tensor(v, dtype=torch.float64) for v in zip(*disjoint, strict=True))
    _, gradient = evaluate(module, pred, target)
    pull = (gradient[:, :2] * (pred - target)[:, :2]).sum(1)
    if row.name in ("iou", "alpha_iou", "focal_eiou", "inner_iou"):
        assert gradient.abs().max() == 0
    elif row.name == "piou" and row.knobs.get("version", 2) == 2:
        assert (pull < 0).any()  # its attention falls faster than the distance grows: far boxes are pushed away
    elif row.name in ("piou", "nwd"):
        assert (pull >= 0).all() and (pull > 0).any()  # they saturate
    else:
        assert (pull > 0).all()


@pytest.mark.parametrize(("term", "row"), [c for c in CASES if c[1].kind == "logit"], ids=str)
def test_logit_loss_falls_towards_a_hard_target(term, row):
    """Never negative; on hard targets more confidence in the truth costs less, down to 0."""
    module = build(term, row)
    logits = torch.linspace(-30, 30, 241, dtype=torch.float64)
    for t in (0.0, 1.0):
        values, gradient = evaluate(module, logits, torch.full_like(logits, t))
        assert (values >= 0).all()
        assert (gradient * (1 - 2 * t) >= 0).all()
        assert values[-1 if t else 0] < 1e-9
        assert gradient[120] != 0


@pytest.mark.parametrize(
    ("name", "at_target"), [("bce", True), ("quality_focal", True), ("varifocal", True), ("focal", False)]
)
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_where_a_soft_target_is_smallest(name, at_target, t):
    """At p = t, for all but focal: the reason why focal wants hard targets."""
    module = make("obj", name)
    logits = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    values = evaluate(module, logits, torch.full_like(logits, t))[0]
    p = torch.sigmoid(logits[values.argmin()]).item()
    if at_target:
        assert p == pytest.approx(t, abs=1e-3)
    elif t != 0.5:
        assert abs(p - t) > 0.02


# ---------------------------------------------------------------------------------------------------------------------
# The references themselves
# ---------------------------------------------------------------------------------------------------------------------
# Corners (0, 0, 4, 2) and (2, 0, 4, 4): intersection 4, union 12, IoU 1/3; enclosing box 4 x 4; centres (1, 1) apart.
PRED, TARGET = (2.0, 1.0, 4.0, 2.0), (3.0, 2.0, 2.0, 4.0)
V = 4 / math.pi**2 * (math.atan(0.5) - math.atan(2.0)) ** 2
BY_HAND = [
    (ref.ref_iou, {}, 8 / 9),
    (ref.ref_iou, {"mode": "linear"}, 2 / 3),
    (ref.ref_iou, {"mode": "log"}, math.log(3)),
    (ref.ref_giou, {}, 2 / 3 + 1 / 4),
    (ref.ref_diou, {}, 2 / 3 + 2 / 32),
    (ref.ref_ciou, {}, 2 / 3 + 2 / 32 + V * V / (2 / 3 + V)),
    (ref.ref_ciou, {"gate": True}, 2 / 3 + 2 / 32),
    (ref.ref_eiou, {}, 2 / 3 + 2 / 32 + 4 / 16 + 4 / 16),
    (ref.ref_focal_eiou, {}, (2 / 3 + 2 / 32 + 4 / 16 + 4 / 16) / math.sqrt(3)),
    (ref.ref_alpha_iou, {}, 26 / 27),
    (ref.ref_alpha_giou, {}, 26 / 27 + 1 / 64),
    (ref.ref_alpha_diou, {}, 26 / 27 + 1 / 4096),
    (ref.ref_alpha_ciou, {}, 26 / 27 + 1 / 4096 + (V * V / (2 / 3 + V)) ** 3),
    (ref.ref_alpha_eiou, {}, 26 / 27 + 1 / 4096 + 1 / 64 + 1 / 64),
    (ref.ref_siou, {}, 2 / 3 + (2 * (1 - math.exp(-1 / 16)) + 2 * (1 - math.exp(-1 / 2)) ** 4) / 2),
    (ref.ref_wiou, {"version": 1}, math.exp(1 / 16) * 2 / 3),
    (ref.ref_wiou, {"version": 2, "mean": 0.5}, math.exp(1 / 16) * 2 / 3 * math.sqrt(4 / 3)),
    (ref.ref_wiou, {"mean": 0.5}, math.exp(1 / 16) * 2 / 3 * (4 / 3) / (3 * 1.9 ** (4 / 3 - 3))),
    (ref.ref_mpdiou, {"image_size": (3, 4)}, 2 / 3 + (4 + 4) / 25),
    (ref.ref_inner_iou, {"ratio": 0.5}, 1 - 0.5 * 0.5 / 3.75),  # (1, .5, 3, 1.5) and (2.5, 1, 3.5, 3)
    (ref.ref_inner_giou, {"ratio": 0.5}, 1 - 0.5 * 0.5 / 3.75 + 1 / 4),
    (ref.ref_shape_iou, {}, 2 / 3 + 2 / 32 + (1 - math.exp(-0.5)) ** 4),
    (
        ref.ref_shape_iou,  # ww = 2/3, hh = 4/3
        {"scale": 1},
        2 / 3 + 2 / 32 + 0.5 * (1 - math.exp(-2 / 3)) ** 4 + 0.5 * (1 - math.exp(-1 / 3)) ** 4,
    ),
    (ref.ref_piou, {"version": 1}, 2 / 3 + 1 - math.exp(-((2 / 2 + 2 / 4) ** 2) / 16)),
    (ref.ref_nwd, {}, 1 - math.exp(-math.sqrt(1 + 1 + (4 + 4) / 4) / 12.8)),
]


@pytest.mark.parametrize(("fn", "knobs", "want"), BY_HAND, ids=lambda v: getattr(v, "__name__", None))
def test_reference_by_hand(fn, knobs, want):
    assert fn(PRED, TARGET, **knobs) == pytest.approx(want, abs=1e-14)


LN3 = math.log(3)  # its sigmoid is 3/4
LOGITS_BY_HAND = [
    (ref.ref_bce, 1.0, {}, math.log(4 / 3)),
    (ref.ref_bce, 0.0, {}, math.log(4)),
    (ref.ref_bce, 0.5, {"pos_weight": 3, "class_weight": 2}, 3 * math.log(4 / 3) + math.log(4)),
    (ref.ref_focal, 1.0, {}, 0.25 / 16 * math.log(4 / 3)),
    (ref.ref_focal, 0.0, {}, 0.75 * 9 / 16 * math.log(4)),
    (ref.ref_varifocal, 0.0, {}, 0.75 * 9 / 16 * math.log(4)),
    (ref.ref_varifocal, 0.5, {}, 0.25 * (math.log(4 / 3) + math.log(4))),
    (ref.ref_varifocal, 0.5, {"iou_weighted": False}, 0.5 * (math.log(4 / 3) + math.log(4))),
    (ref.ref_quality_focal, 0.5, {}, 0.5 / 16 * (math.log(4 / 3) + math.log(4))),
    (ref.ref_quality_focal, 1.0, {"beta": 1.5}, 1 / 8 * math.log(4 / 3)),
]


@pytest.mark.parametrize(("fn", "t", "knobs", "want"), LOGITS_BY_HAND, ids=lambda v: getattr(v, "__name__", None))
def test_logit_reference_by_hand(fn, t, knobs, want):
    assert fn(LN3, t, **knobs) == pytest.approx(want, abs=1e-15)


def test_set_references_by_hand():
    logits, targets = [LN3, -LN3, 0.0], [1.0, 0.0, 1.0]  # p = 3/4, 1/4, 1/2: TP 5/4, FP 1/4, FN 3/4
    assert ref.ref_dice(logits, targets) == pytest.approx(1 - 3.5 / 4.5)
    assert ref.ref_dice(logits, targets, squared=True) == pytest.approx(1 - 3.5 / (9 / 16 + 1 / 16 + 1 / 4 + 2 + 1))
    assert ref.ref_tversky(logits, targets) == pytest.approx(1 - 2.25 / (2.25 + 0.3 / 4 + 0.7 * 3 / 4))
    focal = (2 * 0.25 * 0 + 0.25 / 16 * math.log(4 / 3) + 0.75 / 16 * math.log(4 / 3) + 0.25 / 4 * math.log(2)) / 3
    assert ref.ref_dice_focal(logits, targets, weight=2) == pytest.approx(1 - 3.5 / 4.5 + 2 * focal)
    # g = 1/4, 1/4, 1/2: two bins in use, with counts 2 and 1
    bce = [math.log(4 / 3), math.log(4 / 3), math.log(2)]
    want = [3 / (2 * 2) * bce[0], 3 / (2 * 2) * bce[1], 3 / (2 * 1) * bce[2]]
    assert ref.ref_ghmc_elements(logits, targets) == pytest.approx(want)
    assert ref.ref_ghmc(logits, targets) == pytest.approx(sum(want) / 3)


def test_offset_references_by_hand():
    assert ref.ref_l1(1.5, -0.5) == 2
    assert ref.ref_l2(1.5, -0.5) == 4
    assert ref.ref_smooth_l1(1.5, -0.5) == 1.5 and ref.ref_smooth_l1(0.5, 0.0) == 0.125
    b = math.exp(3) - 1
    assert ref.ref_balanced_l1(2.0, 0.0) == pytest.approx(3 + 1.5 / b - 0.5)
    assert ref.ref_balanced_l1(1 - 1e-12, 0.0) == pytest.approx(ref.ref_balanced_l1(1.0, 0.0), abs=1e-10)


@pytest.mark.parametrize("x", [-100.0, -40.0, -1.0, 0.0, 1.0, 40.0, 100.0])
@pytest.mark.parametrize("fn", [ref.ref_bce, ref.ref_focal, ref.ref_varifocal, ref.ref_quality_focal])
def test_reference_in_floats_keeps_its_digits(fn, x):
    """Relative, down to 1e-80: nothing cancels at saturated logits."""
    for t in (0.0, 1.0):
        assert fn(x, t) == pytest.approx(ref.exact(fn, x, t), rel=1e-13, abs=0)


def test_reference_gradient():
    assert ref.grad(ref.ref_bce, 1.0, 0.25) == pytest.approx(1 / (1 + math.exp(-1)) - 0.25, abs=1e-15)
    assert math.isnan(ref.grad(ref.ref_l1, 0.5, 0.5)) and ref.sides(ref.ref_l1, 0.5, 0.5) == [(-1.0, 1.0)]
    # 1 - IoU of the pair above: in cx the intersection grows by h_inter = 2 a pixel, the union shrinks by it
    slope = -(2 * 12 + 4 * 2) / 144
    assert ref.sides(ref.ref_iou, PRED, TARGET, mode="linear")[0][0] == pytest.approx(slope, abs=1e-15)
    # a detached factor is a constant: Focal-EIoU's gradient is the weight times EIoU's
    pred = (2.1, 1.1, 4.0, 2.0)
    weight = math.sqrt(ref.box_iou(pred, TARGET))
    want = [weight * slope for slope in ref.grad(ref.ref_eiou, pred, TARGET)]
    assert ref.grad(ref.ref_focal_eiou, pred, TARGET) == pytest.approx(want, abs=1e-15)


def test_nwd_by_the_mean_size_of_the_targets():
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(9, 4, generator=generator, dtype=torch.float64) * 60 + 5
    pred = (target + torch.randn(9, 4, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    size = sum(math.sqrt(w * h) for *_, w, h in target.tolist()) / 9
    loss = ylp.build_loss("iou", dict(type="nwd", constant="mean"))
    want = [ref.ref_nwd(p, t, constant=size) for p, t in zip(pred.tolist(), target.tolist(), strict=True)]
    assert loss(pred, target, reduction_override="none").tolist() == pytest.approx(want, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, reduction_override="none"), pred)
    for count in (0, 2):  # nothing to take the mean of, and boxes without a size
        boxes = torch.zeros(count, 4, requires_grad=True)
        value = loss(boxes, torch.zeros(count, 4), avg_factor=1.0)
        value.backward()
        assert value == 0 and not boxes.grad.any()
