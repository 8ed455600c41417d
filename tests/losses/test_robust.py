"""Hostile input to every loss the kit offers, and the contract of the module round it.

Finite values and gradients for any finite input, fp32 arithmetic for half inputs and under autocast, reductions and
weights as in MMDetection, nothing in the checkpoint.
"""

import copy
import functools
import inspect
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import yolox_loss_patch as ylp
from yolox_loss_patch.losses.terms import TermLoss

TERMS = ("obj", "cls", "iou", "l1")
BOTH = ("obj", "cls")
SPECS = [(term, {"type": name}) for term in TERMS for name in ylp.available_losses()[term]]
SPECS = [(term, spec) for term, spec in SPECS if ylp.LOSSES.rows[term][spec["type"]].from_kit]
# Knobs with other arithmetic than the default's.
KNOBS = [
    ("iou", {"type": "iou", "mode": "linear"}),
    ("iou", {"type": "iou", "mode": "log"}),
    ("iou", {"type": "ciou", "gate": True}),
    *(("iou", {"type": f"alpha_{x}", "alpha": a}) for x in ("iou", "giou", "diou", "ciou", "eiou") for a in (0.5, 1.0)),
    ("iou", {"type": "focal_eiou", "gamma": 0.25}),
    ("iou", {"type": "siou", "theta": 2.0}),
    ("iou", {"type": "wiou", "version": 1}),
    ("iou", {"type": "wiou", "version": 2}),
    ("iou", {"type": "wiou", "alpha": 5.0, "delta": 6.0}),  # its weight is alpha^(delta - badness)
    ("iou", {"type": "inner_ciou", "ratio": 1.3}),
    ("iou", {"type": "shape_iou", "scale": 1.0}),
    ("iou", {"type": "piou", "version": 1}),
    ("obj", {"type": "focal", "alpha": -1, "gamma": 0.5}),
    ("obj", {"type": "focal", "gamma": 0.0}),
    ("obj", {"type": "varifocal", "gamma": 0.5}),
    ("obj", {"type": "varifocal", "iou_weighted": False}),
    ("obj", {"type": "quality_focal", "beta": 1.5}),
    ("obj", {"type": "quality_focal", "beta": 0.5}),
    ("obj", {"type": "dice", "squared": True}),
]
SPECS += [(term, spec) for term, spec in KNOBS if spec["type"] in ylp.available_losses()[term]]
REGION = ("dice", "tversky", "dice_focal")  # one number for a set
JOINT = ("ghmc", "wiou", "slide", "eqlv2")  # an element depends on the others, or on the batches before


def spec_id(value):
    if isinstance(value, dict):
        return "-".join(str(v) if k == "type" else f"{k}={v}" for k, v in value.items())
    return str(value)


def by_term(specs):
    """Decorator: ``check(term, spec, ...)`` as a test per term, which goes through the losses and names one that fails."""

    def decorate(check):
        @functools.wraps(check)
        def test(term, **extra):
            for other, spec in specs:
                if other == term:
                    try:
                        check(term, spec, **extra)
                    except (Exception, pytest.fail.Exception) as error:
                        raise AssertionError(f"{spec_id(spec)}: {type(error).__name__}: {error}") from error

        signature = inspect.signature(check)
        names = [value for name, value in signature.parameters.items() if name != "spec"]
        test.__signature__ = signature.replace(parameters=names)
        return pytest.mark.parametrize("term", [term for term in TERMS if any(other == term for other, _ in specs)])(
            test
        )

    return decorate


SINGLE = [s for s in SPECS if s[1]["type"] not in REGION + JOINT]
each_loss = pytest.mark.parametrize(("term", "spec"), SPECS, ids=spec_id)
every_loss = by_term(SPECS)
element_wise = by_term(SINGLE)


def build(term, spec, **more):
    if spec["type"] == "mpdiou":
        more["image_size"] = (640, 640)
    return ylp.build_loss(term, {**spec, **more})


def inputs(term, n=12, dtype=torch.float32, seed=0):
    """Ordinary input of a term."""
    g = torch.Generator().manual_seed(seed)
    if term == "iou":
        target = torch.rand(n, 4, generator=g) * 100 + torch.tensor([100.0, 100.0, 20.0, 30.0])
        pred = target * (1 + 0.2 * torch.randn(n, 4, generator=g))
    elif term == "l1":
        pred, target = torch.randn(n, 4, generator=g), torch.randn(n, 4, generator=g)
    else:
        pred = torch.randn(n, 3, generator=g) * 3
        target = torch.rand(n, 3, generator=g) * (torch.rand(n, 3, generator=g) < 0.5)
    return pred.to(dtype), target.to(dtype)


def run(module, pred, target, **call):
    """Value and gradient of the sum."""
    pred = pred.detach().clone().requires_grad_()
    value = module(pred, target, **{"reduction_override": "none", **call})
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    return value.detach(), gradient


def check_finite(module, pred, target):
    value, gradient = run(module, pred, target)
    for what, bad in (("loss", ~torch.isfinite(value)), ("gradient", ~torch.isfinite(gradient))):
        if bad.any():
            if bad.dim() == 0:
                pytest.fail(f"{what} is {value}")
            at = bad.nonzero()[0, 0]
            row = gradient[at] if what == "gradient" else value[at]
            pytest.fail(f"{bad.sum()} of {bad.numel()}: {what} {row} at pred {pred[at]} target {target[at]}")
    return value, gradient


# ---------------------------------------------------------------------------------------------------------------------
# Hostile input
# ---------------------------------------------------------------------------------------------------------------------
def hostile_boxes(n, dtype, seed=7):
    """Pairs of boxes: sides 1e-3..4096 px and zero; far, near, concentric, identical, of one size, one in the other."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def boxes():
        sides = 10 ** (rand(n, 2) * 6.6124 - 3)  # 1e-3 .. 4096
        sides = torch.where(rand(n, 1) < 0.1, sides[:, :1], sides)  # squares
        sides = torch.where(rand(n, 2) < 0.05, torch.zeros(()), sides)
        return torch.cat([rand(n, 2) * 8192 - 2048, sides], 1)

    pred, target = boxes(), boxes()
    kind = rand(n, 1)
    near = target[:, :2] + (rand(n, 2) - 0.5) * (pred[:, 2:] + target[:, 2:]) * 1.1
    same_place = torch.cat([target[:, :2], pred[:, 2:]], 1)
    same_size = torch.cat([near, target[:, 2:]], 1)
    alike = torch.cat([target[:, :2] + (rand(n, 2) - 0.5) * target[:, 2:], target[:, 2:] * (0.5 + rand(n, 2))], 1)
    same_row = torch.cat([near[:, :1], target[:, 1:2], pred[:, 2:]], 1)
    touching = torch.cat([target[:, :1] + (pred[:, 2:3] + target[:, 2:3]) / 2, target[:, 1:2], pred[:, 2:]], 1)
    for low, case in ((0.3, torch.cat([near, pred[:, 2:]], 1)), (0.45, alike), (0.7, same_place), (0.75, same_size),
                      (0.8, same_row), (0.85, touching), (0.9, target)):  # fmt: skip
        pred = torch.where(kind > low, case, pred)
    return pred.to(dtype), target.to(dtype)


def hostile_logits(n, dtype, seed=8):
    """Logits to +-100 (and some at 0 and 1e4), targets hard, soft, next to 0 and 1, and with one positive in 1000."""
    g = torch.Generator().manual_seed(seed)

    def rand():
        return torch.rand(n, generator=g, dtype=torch.float64)

    logits = (rand() - 0.5) * 200
    kind = rand()
    logits = torch.where(kind < 0.3, logits / 20, logits)
    logits = torch.where(kind < 0.02, logits * 1e3, logits)
    logits = torch.where(kind > 0.98, torch.zeros(()), logits)
    soft, kind = rand(), rand()
    target = torch.where(kind < 0.3, soft, (kind < 0.4).to(soft.dtype))
    target = torch.where((kind > 0.4) & (kind < 0.42), soft * 1e-7, target)
    target = torch.where((kind > 0.42) & (kind < 0.44), 1 - soft * 1e-7, target)
    target = torch.where((kind > 0.44) & (kind < 0.45), torch.sigmoid(logits), target)
    target[n // 2 :] = (soft[n // 2 :] < 1e-3).to(soft.dtype)
    return logits.to(dtype), target.to(dtype).clamp(0, 1)


@functools.cache
def hostile(term, n, dtype, seed=9):
    if term == "iou":
        return hostile_boxes(n, dtype, seed)
    pred, target = hostile_logits(4 * n, dtype, seed)
    return (pred.view(-1, 4), (pred * target).view(-1, 4)) if term == "l1" else (pred[:n], target[:n])


@each_loss
def test_fuzz(term, spec):
    for dtype in (torch.float32, torch.float64):
        check_fuzz(term, spec, dtype)


def check_fuzz(term, spec, dtype):
    pred, target = hostile(term, 100_000 if dtype == torch.float32 else 25_000, dtype)
    value, gradient = check_finite(build(term, spec), pred, target)
    assert value.dtype == gradient.dtype == dtype
    if term == "iou":  # never negative, but for the corners' rounding: 4000 +- 1e-3 / 2 has few digits left in fp32
        both = torch.cat([pred, target], 1)
        far, side = both[:, [0, 1, 4, 5]].abs().amax(1), both[:, [2, 3, 6, 7]].amin(1)
        keep = far * torch.finfo(dtype).eps < 1e-4 * side
        assert keep.sum() > 0.05 * len(pred)
        value = value[keep]
    assert value.min() >= -2e-3


@each_loss
def test_fuzz_half(term, spec):
    for dtype in (torch.float16, torch.bfloat16):
        check_fuzz_half(term, spec, dtype)


def check_fuzz_half(term, spec, dtype):
    """Half input: the value is that of the same numbers in fp32, bit for bit, and comes out as fp32."""
    pred, target = hostile(term, 20_000, dtype)
    if term == "iou":  # a slope of 1/px has no room in fp16 when px is 1e-6
        sides = torch.cat([pred[:, 2:], target[:, 2:]], 1)
        keep = ((sides == 0) | (sides >= 1)).all(1)
        pred, target = pred[keep], target[keep]
    else:
        pred = pred.clamp(-100, 100)
    value, gradient = check_finite(build(term, spec), pred, target)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    want, want_gradient = run(build(term, spec), pred.float(), target.float())
    assert torch.equal(value, want)
    assert torch.equal(gradient, want_gradient.to(dtype))


@every_loss
def test_half_prediction_with_fp32_target(term, spec):
    """Under AMP the head gives half, the targets are fp32."""
    pred, target = inputs(term, dtype=torch.float16)
    value, _ = run(build(term, spec), pred, target.float())
    assert torch.equal(value, run(build(term, spec), pred.float(), target.float())[0])
    # The target's digits are not thrown away with the prediction's.
    moved = target.float() * (1 + 1e-5)
    assert not torch.equal(run(build(term, spec), pred, moved)[0], value)


@pytest.mark.parametrize("size", [256.0, 1000.0, 4096.0])
def test_large_boxes_in_fp16(size):
    """256 x 256 does not fit fp16; the area must not be taken there."""
    for term, spec in SPECS:
        if term == "iou":
            pred = torch.tensor([[size / 2, size / 2, size, size / 2]], dtype=torch.float16)
            target = torch.tensor([[size / 2 + 8, size / 2, size / 2, size]], dtype=torch.float16)
            value, _ = check_finite(build(term, spec), pred, target)
            most = 30 if "delta" not in spec else 500  # at the end of their range the knobs of wiou weigh that much
            assert 0.01 < value.item() < most, spec


BY_HAND = {
    "both zero, same place": ((5, 5, 0, 0), (5, 5, 0, 0)),
    "both zero, apart": ((5, 5, 0, 0), (50, 60, 0, 0)),
    "both at the origin": ((0, 0, 0, 0), (0, 0, 0, 0)),
    "prediction zero, inside": ((5, 5, 0, 0), (5, 5, 10, 20)),
    "prediction zero, outside": ((500, 5, 0, 0), (5, 5, 10, 20)),
    "target zero": ((5, 5, 10, 20), (6, 7, 0, 0)),
    "no width": ((5, 5, 0, 20), (5, 5, 10, 20)),
    "no height": ((5, 5, 10, 0), (5, 5, 10, 20)),
    "two lines": ((5, 5, 10, 0), (5, 5, 20, 0)),
    "crossed lines": ((5, 5, 10, 0), (5, 5, 0, 10)),
    "identical": ((5, 6, 7, 8), (5, 6, 7, 8)),
    "concentric": ((5, 6, 7, 8), (5, 6, 3, 9)),
    "corners touch": ((5, 5, 10, 10), (15, 15, 10, 10)),
    "tiny": ((1, 1, 1e-3, 1e-3), (1, 1, 1e-3, 2e-3)),
    "tiny, far from the origin": ((4000, 4000, 1e-3, 1e-3), (4000, 4000, 1e-3, 2e-3)),
    "tiny in huge": ((2000, 2000, 1e-3, 1e-3), (2048, 2048, 4096, 4096)),
    "huge round tiny": ((2048, 2048, 4096, 4096), (2000, 2000, 1e-3, 1e-3)),
    "far": ((-4096, -4096, 1e-3, 1e-3), (8192, 8192, 1e-3, 1e-3)),
    "needle": ((100, 100, 4096, 1e-3), (100, 100, 1e-3, 4096)),
    "subnormal": ((1, 1, 1e-40, 1e-40), (1, 1, 1e-42, 1e-39)),
    "square roots vanish": ((1e-30, 0, 1, 1), (0, 0, 1, 1)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_degenerate_boxes(case):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_degenerate_boxes(case, dtype)


def check_degenerate_boxes(case, dtype):
    pred, target = (torch.tensor([box, box], dtype=dtype) for box in BY_HAND[case])
    if dtype == torch.float16 and ("tiny" in case or case == "far"):
        pred, target = pred * 1024, target * 1024
        pred, target = pred.clamp(-8192, 8192), target.clamp(-8192, 8192)
    for term, spec in SPECS:
        if term == "iou":
            value, _ = check_finite(build(term, spec), pred, target)
            if "from the origin" not in case:  # there the corners are rounded to half the box
                assert (value >= -1e-5).all(), spec


sides = st.one_of(st.just(0.0), st.floats(0, 4096, width=32), st.floats(2.0**-10, 2.0, width=32))
places = st.floats(-8192, 8192, width=32)
box = st.tuples(places, places, sides, sides)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(box, box, st.sampled_from(("", "place", "size"))), min_size=1, max_size=6))
def test_any_boxes(pairs):
    rows = []
    for pred, target, same in pairs:
        pred = target[:2] + pred[2:] if same == "place" else pred[:2] + target[2:] if same == "size" else pred
        rows.append((pred, target))
    pred, target = (torch.tensor(v, dtype=torch.float32) for v in zip(*rows, strict=True))
    for term, spec in SPECS:
        if term == "iou":
            check_finite(build(term, spec), pred, target)


@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=8))
def test_any_logits(pairs):
    pred, target = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    for term, spec in SPECS:
        if term in BOTH:
            check_finite(build(term, spec), pred, target)


@pytest.mark.parametrize("x", [-100.0, 100.0])
@by_term(
    [(term, spec) for term, spec in SINGLE if term in BOTH and spec["type"] != "asymmetric"]
)  # its margin saturates
def test_saturated_logits_still_learn(term, spec, x):
    """At the wrong end of the sigmoid the loss is large and the gradient alive: nothing is clamped."""
    value, gradient = run(build(term, spec), torch.tensor([x]), torch.tensor([0.0 if x > 0 else 1.0]))
    assert value.item() > 5
    assert gradient.item() * x > 0 and abs(gradient.item()) > 0.05


@pytest.mark.parametrize("x", [-4.6, -12.0, -20.0, -30.0])
@pytest.mark.parametrize("name", ["focal", "varifocal", "quality_focal"])
def test_easy_background_keeps_its_digits(name, x):
    """In fp32 too: x - (x - log1p(exp(x))) has none left below -16, and the background is nearly all there is."""
    single = run(build("obj", {"type": name}), torch.tensor([x]), torch.zeros(1))
    double = run(build("obj", {"type": name}), torch.tensor([x]).double(), torch.zeros(1).double())
    for got, want in zip(single, double, strict=True):
        assert want.item() > 0
        assert got.item() == pytest.approx(want.item(), rel=2e-6, abs=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@every_loss
def test_empty(term, spec, reduction):
    shapes = {"iou": [(0, 4)], "l1": [(0, 4)]}.get(term, [(0,), (0, 1), (0, 80), (5, 0)])
    for shape, dtype in itertools.product(shapes, (torch.float32, torch.float16)):
        empty = torch.zeros(shape, dtype=dtype)
        module = build(term, spec)
        for avg_factor in (None,) if reduction == "sum" else (None, 1.0):
            value, gradient = run(module, empty, empty, reduction_override=reduction, avg_factor=avg_factor)
            assert torch.isfinite(value).all() and value.dtype == torch.float32
            assert gradient.shape == shape
            if reduction != "none":
                assert value.shape == () and (spec["type"] in REGION or value == 0)
            elif spec["type"] not in REGION:
                assert value.shape == (shape[:1] if term == "iou" else shape)
        # An empty batch leaves nothing behind that spoils the next one.
        check_finite(module, *inputs(term))


# ---------------------------------------------------------------------------------------------------------------------
# The module
# ---------------------------------------------------------------------------------------------------------------------
def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


@element_wise
def test_reductions(term, spec):
    pred, target = inputs(term)
    module = build(term, spec)
    elements = module(pred, target, reduction_override="none")
    assert elements.shape == (pred.shape[:1] if term == "iou" else pred.shape)
    assert (elements > 0).any()
    assert_close(module(pred, target, reduction_override="sum"), elements.sum())
    assert_close(module(pred, target, reduction_override="mean"), elements.mean())
    assert_close(module(pred, target), elements.mean())  # mean is the default
    for factor in (7, 7.0, torch.tensor(7.0)):
        assert_close(module(pred, target, avg_factor=factor), elements.sum() / 7)
        assert_close(module(pred, target, avg_factor=factor, reduction_override="mean"), elements.sum() / 7)
    for reduction, want in (("sum", elements.sum()), ("none", elements), ("mean", elements.mean())):
        own = build(term, spec, reduction=reduction)
        assert_close(own(pred, target), want)
        assert_close(own(pred, target, reduction_override="none"), elements)
        assert_close(own(pred, target, reduction_override="sum"), elements.sum())


@every_loss
def test_wrong_reductions(term, spec):
    pred, target = inputs(term)
    module = build(term, spec)
    with pytest.raises(ValueError, match="avg_factor"):
        module(pred, target, avg_factor=3.0, reduction_override="sum")
    with pytest.raises(ValueError, match="avg_factor"):
        build(term, spec, reduction="sum")(pred, target, avg_factor=3.0)
    with pytest.raises(ValueError, match=r"none.*mean.*sum|mean.*sum.*none|none.*sum.*mean"):
        module(pred, target, reduction_override="average")
    with pytest.raises(ValueError, match="average"):
        build(term, spec, reduction="average")


@element_wise
def test_weights(term, spec):
    pred, target = inputs(term)
    module = build(term, spec)
    elements, gradient = run(module, pred, target)
    rows = torch.linspace(0, 2, len(pred))  # one weight a row, the first 0
    spread = rows if elements.dim() == 1 else rows[:, None].expand_as(elements)
    weights = [(rows, spread)]
    if elements.dim() == 2:
        element = torch.rand(elements.shape, generator=torch.Generator().manual_seed(3))
        weights.append((element, element))
    for weight, each in weights:
        assert_close(module(pred, target, weight, reduction_override="none"), elements * each)
        assert_close(module(pred, target, weight=weight), (elements * each).mean())  # over all, as MMDetection
        assert_close(module(pred, target, weight=weight, avg_factor=4.0), (elements * each).sum() / 4)
        assert_close(module(pred, target, weight=weight, reduction_override="sum"), (elements * each).sum())
        assert_close(
            module(pred, target, weight=weight.half(), reduction_override="none"), elements * each.half().float()
        )
    got = run(module, pred, target, weight=rows)[1]
    assert_close(got, gradient * rows[:, None])
    assert (got[0] == 0).all()


@element_wise
def test_wrong_weights(term, spec):
    pred, target = inputs(term)
    module = build(term, spec)
    n, columns = pred.shape
    shapes = [(n + 1,), (n - 1,), (1,), (), (columns,), (n, columns + 1), (n, 1, 1), (1, columns)]
    for shape in shapes:
        with pytest.raises(ValueError, match="weight"):
            module(pred, target, weight=torch.ones(shape))


@pytest.mark.parametrize(
    ("term", "spec", "shapes"),
    [("iou", {"type": "ciou"}, "(12,) or (12, 4) or (12, 1)"), ("obj", {"type": "focal"}, "(12, 3) or (12,) or (12, 1) or (36,)"),
     ("l1", {"type": "l2"}, "(12, 4) or (12,) or (12, 1) or (48,)"),
     ("obj", {"type": "dice"}, "(12, 3) or (12,) or (12, 1) or (36,)")],
    ids=spec_id,
)  # fmt: skip
def test_a_wrong_weight_is_told_with_its_term_and_what_fits(term, spec, shapes):
    with pytest.raises(ValueError) as error:
        build(term, spec)(*inputs(term), weight=torch.ones(5))
    assert str(error.value) == f"loss_{term}: {spec['type']}: weight is {shapes}; got (5,)"


@pytest.mark.parametrize("factor", [0, 0.0, -1, float("nan"), torch.ones(3)], ids=str)
@every_loss
def test_an_avg_factor_that_divides_nothing_sensibly_is_refused(term, spec, factor):
    with pytest.raises(ValueError, match=rf"loss_{term}: .*avg_factor is (a number above 0|one number)"):
        build(term, spec)(*inputs(term), avg_factor=factor)


@every_loss
def test_shapes_that_differ_are_refused(term, spec):
    """(N, 1) against (N,) would broadcast to (N, N)."""
    pred, target = inputs(term)
    module = build(term, spec)
    wrong = [(pred[:-1], target), (pred[:1], target), (pred, target[0]), (pred[:, :1], target[:, 0])]
    if term in ("iou", "l1"):
        wrong += [(pred[:, :3], target[:, :3]), (pred[0], target[0]), (pred[None], target[None])]
    for a, b in wrong:
        with pytest.raises(ValueError):
            module(a, b)


@pytest.mark.parametrize("factor", [0.0, 0.25, 5.0])
@every_loss
def test_loss_weight(term, spec, factor):
    pred, target = inputs(term)
    value, gradient = run(build(term, spec), pred, target)
    weighted, weighted_gradient = run(build(term, spec, loss_weight=factor), pred, target)
    assert_close(weighted, factor * value)
    assert_close(weighted_gradient, factor * gradient)
    assert_close(build(term, spec, loss_weight=factor)(pred, target), factor * build(term, spec)(pred, target))


@every_loss
def test_nothing_in_the_checkpoint(term, spec):
    module = build(term, spec)
    module(*inputs(term))
    assert isinstance(module, torch.nn.Module)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    module.load_state_dict({}, strict=True)


@every_loss
def test_deepcopy(term, spec):
    module = build(term, spec, loss_weight=1.5)
    twin = copy.deepcopy(module)
    assert twin is not module
    pred, target = inputs(term)
    want = run(module, pred, target)
    for a, b in zip(run(twin, pred, target), want, strict=True):
        assert torch.equal(a, b)
    assert repr(twin) == repr(module)


@every_loss
def test_autocast_keeps_fp32(term, spec):
    """The same bits inside and outside of autocast, forward and backward."""
    for dtype in (torch.float32, torch.bfloat16):
        pred, target = inputs(term, dtype=dtype)
        want, want_gradient = run(build(term, spec), pred, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value, gradient = run(build(term, spec), pred, target)
            mean = build(term, spec)(pred, target, weight=None, avg_factor=3.0)
        assert value.dtype == mean.dtype == torch.float32
        assert torch.equal(value, want) and torch.equal(gradient, want_gradient)


def test_autocast_is_off_inside():
    """Where a kernel has an operation that autocast would take to bf16, it is not taken there."""

    def kernel(pred, target):
        return (pred @ torch.eye(3) - target).abs()

    pred, target = inputs("obj")
    module = TermLoss("obj", "product", kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(kernel(pred, target), (pred - target).abs())
        assert torch.equal(module(pred, target, reduction_override="none"), (pred - target).abs())


@every_loss
def test_inputs_stay_as_they_are(term, spec):
    pred, target = inputs(term)
    before = pred.clone(), target.clone()
    run(build(term, spec), pred, target)
    assert torch.equal(pred, before[0]) and torch.equal(target, before[1])
    # a slice of the head's output: strided, and part of a larger graph
    output = torch.cat([pred, torch.ones(len(pred), 5)], 1).requires_grad_()
    strided = build(term, spec)(output[:, : pred.shape[1]], target, reduction_override="none")
    assert_close(strided, build(term, spec)(pred, target, reduction_override="none"))
    strided.sum().backward()
    assert (output.grad[:, pred.shape[1] :] == 0).all()


@element_wise
def test_elements_do_not_feel_each_other(term, spec):
    """A hostile neighbour changes nothing: 0 x inf in a `where` would."""
    pred, target = inputs(term)
    value, gradient = run(build(term, spec), pred, target)
    bad_pred, bad_target = hostile(term, 64, torch.float32)
    if term in BOTH:
        bad_pred, bad_target = bad_pred[:63].view(-1, 3), bad_target[:63].view(-1, 3)
    both = run(build(term, spec), torch.cat([pred, bad_pred]), torch.cat([target, bad_target]))
    assert_close(both[0][: len(pred)], value)
    assert_close(both[1][: len(pred)], gradient)


@element_wise
def test_fp32_is_close_to_fp64(term, spec):
    """No formula loses its digits in single precision on ordinary input."""
    pred, target = inputs(term, n=500)
    single = run(build(term, spec), pred, target)
    double = run(build(term, spec), pred.double(), target.double())
    # A root magnifies the rounding of a penalty that is 0: that of alpha-GIoU where one box holds the other.
    atol = 2e-3 if spec.get("alpha") == 0.5 and spec["type"] == "alpha_giou" else 2e-5
    torch.testing.assert_close(single[0].double(), double[0], rtol=1e-4, atol=atol)
    torch.testing.assert_close(single[1].double(), double[1], rtol=1e-3, atol=2e-5)
