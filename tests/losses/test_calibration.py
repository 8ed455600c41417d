"""Calibrated losses: what their logits mean, how hard they pull, against the formulas worked out by hand in float64."""

import math

import pytest
import reference
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import brentq, minimize_scalar

from yolox_loss_patch import build_loss
from yolox_loss_patch.losses.calibration import PRIOR, Calibrated

# (spec, pull at target 1, pull at target 0), in the loss's own probability s, from the papers' formulas
LOSSES = [
    (
        dict(type="focal", alpha=0.25, gamma=2.0),
        lambda s: 0.25 * (1 - s) ** 2 * (1 - s - 2 * s * math.log(s)),
        lambda s: 0.75 * s**2 * (s - 2 * (1 - s) * math.log(1 - s)),
    ),
    (
        dict(type="focal", alpha=0.6, gamma=1.0),
        lambda s: 0.6 * (1 - s) * (1 - s - s * math.log(s)),
        lambda s: 0.4 * s * (s - (1 - s) * math.log(1 - s)),
    ),
    (
        dict(type="varifocal", alpha=0.75, gamma=2.0),
        lambda s: 1 - s,
        lambda s: 0.75 * s**2 * (s - 2 * (1 - s) * math.log(1 - s)),
    ),
    (
        dict(type="quality_focal", beta=2.0),
        lambda s: (1 - s) ** 2 * (1 - s - 2 * s * math.log(s)),
        lambda s: s**2 * (s - 2 * (1 - s) * math.log(1 - s)),
    ),
]
CHANCES = (0.0005, 0.01, 0.1, 0.3, 0.5, 0.8, 0.97, 0.9995)


def logit(p):
    return math.log(p / (1 - p))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def own_logit(chance, up, down):
    """The loss's logit that stands for a chance of foreground: where the pulls, weighed by it, cancel."""
    return brentq(lambda z: math.log(down(sigmoid(z)) / up(sigmoid(z))) - logit(chance), -16, 16, xtol=1e-13)


@pytest.mark.parametrize("spec,up,down", LOSSES)
def test_value_and_pull(spec, up, down):
    knobs = {key: value for key, value in spec.items() if key != "type"}
    paper = getattr(reference, f"ref_{spec['type']}")
    calibrated = Calibrated(build_loss("obj", spec)).eval()  # the unit of the start, whatever the batch

    def bend(chance):
        step = 1e-4
        x = logit(chance)
        return (own_logit(sigmoid(x + step), up, down) - own_logit(sigmoid(x - step), up, down)) / (2 * step)

    at_prior = sigmoid(own_logit(PRIOR, up, down))
    pull = (up(at_prior) + down(at_prior)) * bend(PRIOR)
    assert calibrated.pull == pytest.approx(pull, rel=2e-3)
    for chance in CHANCES:
        z = own_logit(chance, up, down)
        for target in (1.0, 0.0, 0.7):
            x = torch.tensor([logit(chance)], dtype=torch.float64, requires_grad=True)
            value = calibrated(x, torch.full_like(x, target), reduction_override="sum")
            assert float(value) == pytest.approx(float(paper(z, target, **knobs)) / pull, rel=3e-3, abs=1e-9)
            (gradient,) = torch.autograd.grad(value, x)
            if target in (0.0, 1.0):
                expected = down(sigmoid(z)) if target == 0 else -up(sigmoid(z))
                assert float(gradient) == pytest.approx(expected * bend(chance) / pull, rel=1e-2)


@pytest.mark.parametrize("spec,up,down", LOSSES)
@pytest.mark.parametrize("chance", CHANCES)
def test_it_is_smallest_where_the_score_is_the_chance(spec, up, down, chance):
    loss = Calibrated(build_loss("obj", spec)).eval()

    def expected(x):
        logits = torch.full((2,), x, dtype=torch.float64)
        values = loss(logits, torch.tensor([1.0, 0.0], dtype=torch.float64), reduction_override="none")
        return float(chance * values[0] + (1 - chance) * values[1])

    found = minimize_scalar(expected, bounds=(-14, 14), method="bounded", options={"xatol": 1e-6}).x
    assert found == pytest.approx(logit(chance), abs=0.03)


@pytest.mark.parametrize("spec", ["bce", dict(type="focal", alpha=-1, gamma=0), dict(type="quality_focal", beta=0)])
def test_bce_stays_what_it_is(spec):
    x = torch.linspace(-30, 30, 500, dtype=torch.float64)
    target = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = Calibrated(build_loss("obj", spec))
    assert loss.pull == pytest.approx(1, rel=1e-6)
    expected = build_loss("obj", "bce")(x, target, reduction_override="none")
    assert torch.allclose(loss(x, target, reduction_override="none"), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec", [row[0] for row in LOSSES] + [dict(type="focal", gamma=5.0), dict(type="varifocal", gamma=0.0)]
)
def test_finite_and_monotone_at_any_logit(spec, dtype):
    loss = Calibrated(build_loss("obj", spec))
    x = torch.linspace(-100, 100, 2001, dtype=dtype, requires_grad=True)
    for target, sign in ((1.0, -1), (0.0, 1)):
        value = loss(x, torch.full_like(x, target), reduction_override="none")
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.isfinite().all() and gradient.isfinite().all()
        assert (value >= 0).all() and (sign * gradient >= 0).all()


def test_the_arguments_of_a_loss_module_reach_the_loss():
    x, target = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([0.0, 1.0, 0.0])
    loss = Calibrated(build_loss("obj", dict(type="focal", loss_weight=3.0))).eval()
    elements = Calibrated(build_loss("obj", "focal")).eval()(x, target, reduction_override="none")
    weight = torch.tensor([1.0, 2.0, 0.0])
    assert torch.allclose(loss(x, target, weight=weight, avg_factor=5.0), 3 * (elements * weight).sum() / 5)


SPECS = [row[0] for row in LOSSES] + [
    dict(type="focal", alpha=0.75, gamma=2.0),
    dict(type="varifocal", alpha=0.5, gamma=1.0),
]


def anchors(scores, share, generator):
    """Logits of 3,000 anchors around these scores, a share of them foreground."""
    centre = torch.tensor([logit(score) for score in scores], dtype=torch.float64).repeat(3000 // len(scores))
    x = centre + 0.5 * torch.randn(len(centre), generator=generator, dtype=torch.float64)
    return x, (torch.rand(len(x), generator=generator, dtype=torch.float64) < share).double()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "scores,share", [((0.01,), 0.01), ((0.01, 0.3), 0.1), ((0.02, 0.7, 0.95), 0.5), ((0.5,), 1.0), ((0.9,), 0.0)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_in_training_it_pulls_as_hard_in_all_as_bce(spec, scores, share, weighted):
    """At the start, where all scores are 0.01, as where objects are found: the defect was 1.7 times BCE's pull there."""
    generator = torch.Generator().manual_seed(0)
    x, target = anchors(scores, share, generator)
    weight = torch.rand(len(x), generator=generator, dtype=torch.float64) if weighted else None
    x.requires_grad_()
    for avg_factor in (None, 7.0):
        pulls = []
        for loss in (build_loss("obj", "bce"), Calibrated(build_loss("obj", spec))):
            (gradient,) = torch.autograd.grad(loss(x, target, weight, avg_factor), x)
            pulls.append(float(gradient.abs().sum()))
        assert pulls[1] == pytest.approx(pulls[0], rel=5e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_the_unit_weighs_anchors_against_each_other_as_the_paper_does(spec):
    """Only the sum is BCE's; one anchor's pull stands to another's as in the formula."""
    x, target = anchors((0.01, 0.3, 0.9), 0.4, torch.Generator().manual_seed(1))
    gradients = []
    for loss in (Calibrated(build_loss("obj", spec)), Calibrated(build_loss("obj", spec)).eval()):
        x = x.detach().requires_grad_()
        gradients.append(torch.autograd.grad(loss(x, target), x)[0])
    ratio = gradients[0] / gradients[1]
    assert torch.allclose(ratio, ratio[0], rtol=1e-9)
    assert float(ratio[0]) != pytest.approx(1, abs=0.02)


RANKS = [((0.01, 0.3), 0.1), ((0.02, 0.9), 0.5)]  # what each of two ranks has: little is found, all is found


def _rank(rank, port, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for over_ranks in (True, False):
        x, target = anchors(*RANKS[rank], torch.Generator().manual_seed(rank))
        loss = Calibrated(build_loss("obj", "varifocal"), over_ranks=over_ranks)
        (found[over_ranks],) = torch.autograd.grad(loss(x.requires_grad_(), target, reduction_override="sum"), x)
    torch.save(found, f"{out}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_over_ranks_the_anchors_of_all_have_one_unit(tmp_path):
    """What one process makes of all anchors; by itself, as with YOLOX's own normaliser, each rank has its own unit."""
    mp.spawn(_rank, args=(29900 + torch.randint(0, 400, ()).item(), str(tmp_path)), nprocs=2)
    parts = [anchors(*scene, torch.Generator().manual_seed(rank)) for rank, scene in enumerate(RANKS)]

    def pull(x, target):
        loss = Calibrated(build_loss("obj", "varifocal"))
        return torch.autograd.grad(loss(x.requires_grad_(), target, reduction_override="sum"), x)[0]

    together = pull(*(torch.cat(part) for part in zip(*parts, strict=True))).split(3000)
    for rank, (x, target) in enumerate(parts):
        found = torch.load(tmp_path / f"{rank}.pth")
        assert torch.allclose(found[True], together[rank], rtol=1e-12)
        assert torch.allclose(found[False], pull(x, target), rtol=1e-12)
        assert not torch.allclose(found[True], found[False], rtol=0.05)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("chance", [0.01, 0.3, 0.9])
def test_in_training_it_rests_where_the_score_is_the_chance(spec, chance):
    x = torch.full((1000,), logit(chance), dtype=torch.float64, requires_grad=True)
    target = (torch.arange(1000) < round(1000 * chance)).double()
    (gradient,) = torch.autograd.grad(Calibrated(build_loss("obj", spec))(x, target, reduction_override="sum"), x)
    assert abs(float(gradient.sum())) < 0.02 * float(gradient.abs().sum())


@pytest.mark.parametrize("spec", SPECS)
def test_soft_targets_have_a_unit_between_the_curves_ends(spec):
    """The unit is no ratio of pulls there: a loss that fits would have none left, and would be divided by next to nothing."""
    loss = Calibrated(build_loss("obj", spec))
    x, _ = anchors((0.01, 0.3, 0.9), 0.0, torch.Generator().manual_seed(2))
    x.requires_grad_()
    for target in (x.detach().sigmoid(), x.detach().sigmoid() * 0.9, torch.rand(len(x), dtype=torch.float64)):
        value = loss(x, target, reduction_override="sum")
        (gradient,) = torch.autograd.grad(value, x)
        assert value.isfinite() and gradient.isfinite().all()
        ratio = float(value.detach() / loss.loss(_own_logits(loss, x), target, reduction_override="sum").detach())
        assert 1 / float(loss.pulls.max()) <= ratio <= 1 / float(loss.pulls.min())


def _own_logits(loss, x):
    place = ((x.detach() - loss.start) / 0.01).long()
    return loss.curve[place] + (loss.curve[place + 1] - loss.curve[place]) * ((x.detach() - loss.start) / 0.01 - place)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_pull_is_no_nan(reduction):
    loss = Calibrated(build_loss("obj", "varifocal"))
    for x, target in ((torch.zeros(0), torch.zeros(0)), (torch.tensor([90.0, -90.0]), torch.tensor([1.0, 0.0]))):
        x.requires_grad_()
        value = loss(x, target, reduction_override=reduction)
        value.sum().backward()
        assert value.isfinite().all() and x.grad.isfinite().all()
    x = torch.tensor([0.3, -2.0], requires_grad=True)
    loss(x, torch.tensor([1.0, 0.0]), torch.zeros(2)).backward()
    assert not x.grad.any()


def test_a_diverged_network_has_a_loss_of_nan():
    """As with BCE; it was an IndexError, as NaN has no place on the curve."""
    loss = Calibrated(build_loss("obj", "focal"))
    for bad in (math.nan, math.inf, -math.inf):
        assert not loss(torch.tensor([bad, 0.0]), torch.tensor([0.0 if bad > 0 else 1.0, 0.0])).isfinite()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_loss_that_pulls_one_way_only_cannot_be_calibrated(alpha):
    with pytest.raises(ValueError, match="a pull of it is 0"):
        Calibrated(build_loss("obj", dict(type="focal", alpha=alpha)))


def test_weight_zero_is_no_loss():
    x = torch.tensor([-2.0, 0.5], requires_grad=True)
    loss = Calibrated(build_loss("obj", dict(type="focal", loss_weight=0.0)))(x, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss == 0 and not x.grad.any()


def settled(loss, groups, **facts):
    """The score at which anchors come to rest that look alike in groups of (number, chance of foreground)."""
    target = torch.cat([(torch.arange(n) < round(n * chance)).double() for n, chance in groups])
    group = torch.cat([torch.full((n,), i) for i, (n, _) in enumerate(groups)])
    logits = torch.full((len(groups),), logit(PRIOR), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(logits[group], target, **facts).backward()
        optimizer.step()
        schedule.step()
    return logits.detach().sigmoid().tolist()


# As docs/swaps.md has it: anchors in groups of (number, chance), where their scores come to rest alone and in a sum with BCE.
GROUPS = [(10_000, 0.002), (300, 0.05), (120, 0.3), (60, 0.8)]
SETTLED = {
    "dice": ([0.000, 0.000, 0.99, 1.00], [0.0016, 0.043, 0.32, 0.87]),
    "tversky": ([0.000, 0.000, 1.00, 1.00], [0.0018, 0.046, 0.34, 0.87]),
    "dice_focal": ([0.000, 0.001, 0.70, 1.00], [0.0016, 0.043, 0.32, 0.87]),
    "ghmc": ([0.400, 0.400, 0.50, 0.50], [0.0022, 0.055, 0.31, 0.765]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTLED)
def test_in_a_sum_with_bce_the_score_stays_a_probability(name):
    num_fg = sum(round(n * chance) for n, chance in GROUPS)
    alone, with_bce = SETTLED[name]
    assert settled(build_loss("obj", name), GROUPS) == pytest.approx(alone, abs=0.01)
    share = 0.2 if name == "ghmc" else 1.0
    found = settled(build_loss("obj", f"bce+{share}*{name}"), GROUPS, avg_factor=float(num_fg))
    assert found == pytest.approx(with_bce, abs=0.006, rel=0.04)
    odds = [p / (1 - p) / (chance / (1 - chance)) for p, (_, chance) in zip(found, GROUPS, strict=True)]
    assert all(1 / 2 < ratio < 2 for ratio in odds)


@pytest.mark.parametrize("name", SETTLED)
def test_in_a_sum_every_argument_reaches_each_part(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    target = (torch.rand(12, 1, generator=generator) < 0.4).double()
    weight = torch.rand(12, 1, generator=generator, dtype=torch.float64)
    bce, loss = build_loss("obj", "bce"), build_loss("obj", dict(type=name, loss_weight=3.0))
    both = build_loss("obj", f"2*bce+3*{name}")
    expected = 2 * bce(x, target, weight, avg_factor=5.0) + loss(x, target, weight)
    assert torch.allclose(both(x, target, weight, avg_factor=5.0), expected)
    total = 2 * bce(x, target, weight, reduction_override="sum") + loss(x, target, weight, reduction_override="sum")
    assert torch.allclose(both(x, target, weight, reduction_override="sum"), total)
    with pytest.raises(ValueError, match="no loss of each element"):
        both(x, target, reduction_override="none")
    if name != "ghmc":
        by_image = build_loss("obj", dict(type=name, scope="image"))
        expected = bce(x, target, avg_factor=5.0) + by_image(x, target, images=3)
        summed = build_loss("obj", ["bce", dict(type=name, scope="image")])
        assert torch.allclose(summed(x, target, avg_factor=5.0, images=3), expected)
        assert not torch.allclose(expected, bce(x, target, avg_factor=5.0) + build_loss("obj", name)(x, target))
