"""Losses with a memory (wiou, ghmc), losses of a whole set, and the sampler."""

import copy
import math

import pytest
import reference as ref
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.checkpoint import checkpoint

import yolox_loss_patch as ylp
from yolox_loss_patch.head.sampler import RandomSampler


def boxes(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(n, 4, generator=g, dtype=torch.float64) * 40 + 20
    return target * (1 + 0.2 * torch.randn(n, 4, generator=g, dtype=torch.float64)), target


def logits(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(n, 1, generator=g, dtype=torch.float64) * 3
    return pred, (torch.rand(n, 1, generator=g, dtype=torch.float64) < 0.3).to(pred.dtype)


def mean_of(module):
    return float(module.running_state()["mean"])


def test_wiou_mean_follows_the_batches():
    module = ylp.build_loss("iou", dict(type="wiou", momentum=0.3))
    assert mean_of(module) == 1
    want = 1.0
    for seed in range(3):
        pred, target = boxes(seed=seed)
        ious = [ref.box_iou(p, t) for p, t in zip(pred.tolist(), target.tolist(), strict=True)]
        want = ref.wiou_mean(ious, want, 0.3)
        values = module(pred, target, reduction_override="none")
        assert mean_of(module) == pytest.approx(want, rel=1e-12)
        # moved before it is used
        assert values[0].item() == pytest.approx(
            ref.ref_wiou(pred[0].tolist(), target[0].tolist(), mean=want), rel=1e-9
        )
    module(pred[:0], target[:0])
    assert mean_of(module) == pytest.approx(want, rel=1e-12)
    module.eval()
    module(*boxes(seed=9))
    assert mean_of(module) == pytest.approx(want, rel=1e-12)


def test_wiou_survives_a_mean_of_zero():
    """Perfect boxes for ever: the mean falls to nothing, and a bad box after that is still finite."""
    for version in (2, 3):
        module = ylp.build_loss("iou", dict(type="wiou", version=version, momentum=1.0))
        perfect = torch.tensor([[5.0, 5.0, 4.0, 4.0]])
        module(perfect, perfect)
        module.eval()
        pred = torch.tensor([[6.0, 5.0, 4.0, 4.0]], requires_grad=True)
        value = module(pred, perfect)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(pred.grad).all()


SPECS = [
    ("iou", dict(type="wiou", momentum=0.3), boxes),
    ("obj", dict(type="ghmc", momentum=0.6), logits),
]


@pytest.mark.parametrize("term,spec,inputs", SPECS, ids=["wiou", "ghmc"])
def test_state_goes_into_copies_and_resumes_but_not_into_checkpoints(term, spec, inputs):
    module = ylp.build_loss(term, spec)
    for seed in range(3):
        module(*inputs(seed=seed))
    twin = copy.deepcopy(module)
    resumed = ylp.build_loss(term, spec)
    resumed.load_running_state(module.running_state())
    fresh = ylp.build_loss(term, spec)
    want = module(*inputs(seed=4))
    assert torch.equal(twin(*inputs(seed=4)), want) and torch.equal(resumed(*inputs(seed=4)), want)
    assert not torch.equal(fresh(*inputs(seed=4)), want)
    assert module.state_dict() == {} and not list(module.parameters())
    with pytest.raises(ValueError, match="running state has no"):
        fresh.load_running_state({})


def test_ghmc_momentum_follows_the_reference():
    module = ylp.build_loss("obj", dict(type="ghmc", momentum=0.6, bins=7))
    counts = None
    for seed in range(3):
        pred, target = logits(seed=seed)
        x, t = pred.flatten().tolist(), target.flatten().tolist()
        want = ref.ref_ghmc(x, t, 7, 0.6, counts)
        _, counts = ref.ghmc_weights(x, t, 7, 0.6, counts)
        assert module(pred, target).item() == pytest.approx(want, rel=1e-9)


def test_ghmc_counts_elements_with_weight_only():
    """Elements of weight 0 might as well not be there."""
    pred, target = logits()
    weight = (torch.arange(40) % 3 > 0).double()
    module = ylp.build_loss("obj", "ghmc")
    kept = weight > 0
    assert module(pred, target, weight).item() == pytest.approx(module(pred[kept], target[kept]).item(), rel=1e-12)


def _rank(rank, port, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    states = {}
    for name, term, inputs in (("wiou", "iou", boxes), ("ghmc", "obj", logits)):
        module = ylp.build_loss(term, dict(type=name, momentum=0.4))
        for step in range(3):
            pred, target = inputs(n=5 + 3 * step, seed=10 * step + rank)
            keep = 0 if rank == 1 and step == 1 else len(pred)  # one rank without any box
            module(pred[:keep], target[:keep])
        states[name] = module.running_state()
    torch.save(states, f"{out}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path):
    mp.spawn(_rank, args=(29500 + torch.randint(0, 400, ()).item(), str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for name in one:
        for key in one[name]:
            assert torch.equal(one[name][key], two[name][key])
    ious = []
    want = 1.0
    for step in range(3):
        ious = []
        for rank in (0, 1):
            if not (rank == 1 and step == 1):
                pred, target = boxes(5 + 3 * step, 10 * step + rank)
                ious += [ref.box_iou(p, t) for p, t in zip(pred.tolist(), target.tolist(), strict=True)]
        want = ref.wiou_mean(ious, want, 0.4)
    assert float(one["wiou"]["mean"]) == pytest.approx(want, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Losses of a whole set
# ---------------------------------------------------------------------------------------------------------------------
REGION = [
    ("dice", {}, ref.ref_dice),
    ("dice", {"squared": True}, ref.ref_dice),
    ("tversky", {}, ref.ref_tversky),
    ("dice_focal", {"weight": 2.0}, ref.ref_dice_focal),
]


@pytest.mark.parametrize("name,knobs,fn", REGION, ids=lambda v: getattr(v, "__name__", str(v)))
def test_region_weights_images_and_reductions(name, knobs, fn):
    pred, target = logits()
    x, t = pred.flatten().tolist(), target.flatten().tolist()
    whole = ylp.build_loss("obj", dict(type=name, **knobs))
    # weight 0 leaves an element out, 2 counts it twice
    weight = torch.arange(40) % 3
    twice = [i for i in range(40) for _ in range(i % 3)]
    want = fn([x[i] for i in twice], [t[i] for i in twice], **knobs)
    assert whole(pred, target, weight).item() == pytest.approx(want, rel=1e-9)
    # an image a set
    each = ylp.build_loss("obj", dict(type=name, scope="image", **knobs))
    wants = [fn(x[i : i + 10], t[i : i + 10], **knobs) for i in range(0, 40, 10)]
    assert each(pred, target, images=4, reduction_override="none").tolist() == pytest.approx(wants, rel=1e-9)
    assert each(pred, target, images=4).item() == pytest.approx(math.fsum(wants) / 4, rel=1e-9)
    assert each(pred, target, images=4, reduction_override="sum").item() == pytest.approx(math.fsum(wants), rel=1e-9)
    with pytest.raises(ValueError, match="number of images"):
        each(pred, target)
    with pytest.raises(ValueError, match="no knob 'scope'"):
        ylp.build_loss("cls", dict(type=name, scope="image"))


# ---------------------------------------------------------------------------------------------------------------------
# The sampler
# ---------------------------------------------------------------------------------------------------------------------
# num, pos_fraction, neg_pos_ub; foreground of 3 images; drawn foreground and background
SAMPLES = [
    (16, 0.5, -1, (3, 20, 0), [(3, 13), (8, 8), (0, 16)]),
    (16, 0.5, 2, (3, 20, 0), [(3, 6), (8, 8), (0, 2)]),
    (16, 1.0, -1, (3, 20, 0), [(3, 13), (16, 0), (0, 16)]),
    (1000, 0.5, -1, (3, 60, 0), [(3, 97), (60, 40), (0, 100)]),  # more than there are
]


@pytest.mark.parametrize("num,fraction,bound,foreground,drawn", SAMPLES)
def test_random_sampler(num, fraction, bound, foreground, drawn):
    mask = torch.zeros(3, 100, dtype=torch.bool)
    for image, count in enumerate(foreground):
        mask[image, torch.randperm(100)[:count]] = True
    sampler = RandomSampler(num, fraction, bound)
    one, two = sampler(mask, ~mask), sampler(mask, ~mask)
    for sample in (one, two):
        assert set(sample.unique().tolist()) <= {0.0, 1.0}
        got = [(int(row[image].sum()), int(row[~image].sum())) for row, image in zip(sample, mask, strict=True)]
        assert got == drawn
    assert num == 1000 or not torch.equal(one, two)


def call(module, *tensors):
    return module(*tensors)


def state_of(module):
    return {name: value.tolist() for name, value in module.running_state().items()}


@pytest.mark.parametrize("term,spec,inputs", SPECS, ids=["wiou", "ghmc"])
def test_state_stands_still_where_nothing_is_trained(term, spec, inputs):
    module = ylp.build_loss(term, spec)
    module(*inputs())
    before = state_of(module)
    with torch.no_grad():  # a validation loss, with the model in training mode
        module(*inputs(seed=1))
    module.eval()
    module(*inputs(seed=2))
    assert state_of(module) == before
    module.train()
    module(*inputs(seed=3))
    assert state_of(module) != before


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("term,spec,inputs", SPECS, ids=["wiou", "ghmc"])
def test_state_moves_once_per_step_under_activation_checkpointing(term, spec, inputs, reentrant):
    plain, saving = (ylp.build_loss(term, {**spec, "momentum": 0.5}) for _ in range(2))
    for seed in range(3):
        pred, target = inputs(seed=seed)
        pulls = []
        for module in (plain, saving):
            leaf = pred.clone().requires_grad_()
            arguments = {"use_reentrant": reentrant} if module is saving else {}
            value = (checkpoint if module is saving else call)(module, leaf, target, **arguments)
            value.backward()
            pulls.append(leaf.grad)
        assert state_of(saving) == state_of(plain)
        torch.testing.assert_close(pulls[1], pulls[0], rtol=1e-12, atol=0)
