"""Derivatives beyond the plain backward pass: of the gradient, of targets, under torch.func, in forward mode."""

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
from torch.autograd import gradcheck, gradgradcheck

import yolox_loss_patch as ylp

SCORES = [
    "bce",
    "focal",
    {"type": "focal", "alpha": -1, "gamma": 1.5},
    {"type": "focal", "gamma": 0.5},
    {"type": "focal", "gamma": 0},
    "varifocal",
    {"type": "varifocal", "iou_weighted": False, "gamma": 1},
    "quality_focal",
    {"type": "quality_focal", "beta": 1.5},
    {"type": "quality_focal", "beta": 1},
    {"type": "focal", "calibrated": True},
    {"type": "varifocal", "calibrated": True},
    {"type": "quality_focal", "calibrated": True},
]


def scores(soft):
    generator = torch.Generator().manual_seed(5)
    pred = 3 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    target = (torch.rand(7, 3, generator=generator, dtype=torch.float64) < 0.4).double()
    return pred, target * torch.rand(7, 3, generator=generator, dtype=torch.float64) if soft else target


def loss_of(spec, target):
    module = ylp.build_loss("cls", spec)
    module.eval()  # while it trains, a calibrated loss is divided by a detached number of the batch
    return lambda pred: module(pred, target, reduction_override="sum")


@pytest.mark.parametrize("spec", SCORES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_gradient_has_a_gradient(spec, soft):
    pred, target = scores(soft)
    pred.requires_grad_()
    assert gradcheck(loss_of(spec, target), pred)
    assert gradgradcheck(loss_of(spec, target), pred)


@pytest.mark.parametrize("spec", SCORES, ids=str)
def test_a_gradient_penalty_is_trained(spec):
    pred, target = scores(True)
    loss = loss_of(spec, target)

    def penalty(x):
        (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return gradient.square().sum()

    assert gradcheck(penalty, pred.requires_grad_())


@pytest.mark.parametrize("spec", SCORES, ids=str)
def test_torch_func_and_forward_mode_agree_with_backward(spec):
    pred, target = scores(True)
    loss = loss_of(spec, target)
    leaf = pred.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    along = torch.ones_like(pred)
    (product,) = torch.autograd.grad((gradient * along).sum(), leaf)

    torch.testing.assert_close(torch.func.grad(loss)(pred), gradient.detach())
    value, slope = torch.func.jvp(loss, (pred,), (along,))
    torch.testing.assert_close(slope, (gradient * along).sum().detach())
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (pred,), (along,))[1], product)
    with forward_mode.dual_level():
        dual = loss(forward_mode.make_dual(pred, along))
        torch.testing.assert_close(forward_mode.unpack_dual(dual).tangent, slope)
    torch.testing.assert_close(value, loss(pred))
    module = ylp.build_loss("cls", spec).eval()
    each = torch.func.vmap(torch.func.grad(lambda x, t: module(x, t, reduction_override="sum")))(pred, target)
    torch.testing.assert_close(each, gradient.detach())


@pytest.mark.parametrize("spec", SCORES, ids=str)
def test_a_target_that_wants_a_gradient_gets_it(spec):
    pred, target = scores(True)
    target = target.clamp(0.1, 0.9).requires_grad_()  # varifocal's two halves meet at 0
    module = ylp.build_loss("cls", spec).eval()
    assert gradcheck(lambda t: module(pred, t, reduction_override="sum"), target)


@pytest.mark.parametrize("spec", ["focal", "varifocal", "quality_focal"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_double_backward_is_finite_in_any_dtype(spec, dtype):
    pred = torch.linspace(-100, 100, 41).to(dtype).view(-1, 1).requires_grad_()
    target = (torch.arange(41).view(-1, 1) % 2).to(dtype)
    loss = ylp.build_loss("cls", spec)(pred, target, reduction_override="sum")
    (gradient,) = torch.autograd.grad(loss, pred, create_graph=True)
    (second,) = torch.autograd.grad(gradient.float().sum(), pred)
    assert torch.isfinite(gradient).all() and torch.isfinite(second).all()


@pytest.mark.parametrize("term", ["obj", "cls", "iou", "l1"])
def test_a_device_without_autocast_serves(term):
    for name in ylp.available_losses()[term]:
        spec = {"type": name, "image_size": (64, 64)} if name == "mpdiou" else name
        columns = 4 if term in ("iou", "l1") else 3
        pred = torch.ones(5, columns, device="meta", requires_grad=True)
        module = ylp.build_loss(term, spec).to("meta")
        module(pred, torch.ones(5, columns, device="meta"), avg_factor=1.0).backward()
        assert pred.grad.shape == pred.shape, name


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16])
def test_a_weight_may_be_of_any_type(dtype):
    pred, target = scores(False)
    boxes = torch.tensor([[5.0, 5, 4, 6], [9, 9, 4, 4], [3, 3, 2, 2]])
    weight = torch.tensor([1, 0, 1])
    for spec in SCORES:
        module = ylp.build_loss("cls", spec)
        some = module(pred[:3], target[:3], weight=weight.to(dtype), avg_factor=2.0)
        torch.testing.assert_close(some, module(pred[:3], target[:3], weight=weight.double(), avg_factor=2.0))
    for name in ylp.available_losses()["iou"]:
        spec = {"type": name, "image_size": (64, 64)} if name == "mpdiou" else name
        values = [
            ylp.build_loss("iou", spec)(boxes + 1, boxes, weight=each, avg_factor=2.0)
            for each in (weight.to(dtype), weight.float())
        ]
        torch.testing.assert_close(*values)
