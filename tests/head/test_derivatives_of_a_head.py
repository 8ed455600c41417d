"""Derivatives of a patched head beyond the plain backward pass are stock's: "nothing changes until you ask" holds for them."""

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
from conftest import make_batch, make_head

import yolox_loss_patch as ylp


def parts(patch, use_l1=True, **losses):
    """A head, its last layers' parameters and its features, and its total loss on one batch as a function without arguments."""
    head = make_head(use_l1=use_l1).double()
    if patch:
        ylp.patch_model(head, ylp.LossConfig(**losses))
    features, labels, images = make_batch()
    features = [feature.double().requires_grad_() for feature in features]

    def total():
        return head(features, labels.double(), images.double())[0]

    layers = [*head.reg_preds.parameters(), *head.obj_preds.parameters(), *head.cls_preds.parameters()]
    return head, [*layers, *features], total


def hessian_vector(total, tensors):
    """The product of the Hessian with a fixed vector, tensor by tensor."""
    gradients = torch.autograd.grad(total(), tensors, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients]
    scalar = sum((g * v).sum() for g, v in zip(gradients, along, strict=True))
    return torch.autograd.grad(scalar, tensors, allow_unused=True)


def assert_close(ours, stock):
    assert len(ours) == len(stock)
    for mine, theirs in zip(ours, stock, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use_l1", [False, True], ids=["", "l1"])
def test_hessian_vector_products_are_stocks(use_l1):
    results = []
    for patch in (False, True):
        _, tensors, total = parts(patch, use_l1)
        results.append(hessian_vector(total, tensors))
    assert_close(results[1], results[0])
    assert max(float(value.abs().max()) for value in results[0] if value is not None) > 1


def test_a_gradient_penalty_trains_as_stocks():
    gradients = []
    for patch in (False, True):
        _, tensors, total = parts(patch)
        found = torch.autograd.grad(total(), tensors, create_graph=True)
        sum(g.square().sum() for g in found).backward()
        gradients.append([p.grad for p in tensors])
    assert_close(gradients[1], gradients[0])


def test_forward_mode_is_stocks():
    slopes = []
    for patch in (False, True):
        head = make_head(use_l1=True).double()
        if patch:
            ylp.patch_model(head, ylp.LossConfig())
        features, labels, images = make_batch()
        with forward_mode.dual_level():
            dual = [forward_mode.make_dual(f.double(), torch.ones_like(f.double())) for f in features]
            loss = head(dual, labels.double(), images.double())[0]
            slopes.append(forward_mode.unpack_dual(loss).tangent)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "losses",
    [{"loss_obj": "varifocal"}, {"loss_obj": "focal", "loss_iou": "giou"}, {"loss_cls": "quality_focal"}],
    ids=str,
)
def test_hessian_vector_products_of_other_losses_are_those_of_plain_steps(losses):
    _, tensors, total = parts(True, **losses)
    product = hessian_vector(total, tensors)
    with forward_mode.dual_level():  # where no gradient is custom: autograd takes every step itself
        plain = hessian_vector(total, tensors)
    assert_close(product, plain)


@pytest.mark.parametrize("trains", [["cls_convs", "cls_preds"], ["reg_preds"], ["obj_preds"], []], ids=str)
def test_a_part_of_the_network_may_stand_still(trains):
    """Frozen layers, L1 epochs and statistics together; the gradients are stock's."""
    results = []
    for patch in (False, True):
        head = make_head(use_l1=True)
        if patch:
            ylp.patch_model(head, ylp.LossConfig())
            stage = head.get_losses.stage
            stage.collect = True
        for name, parameter in head.named_parameters():
            parameter.requires_grad_(any(layer in name for layer in trains))
        outputs = head(*make_batch())
        if trains:
            outputs[0].backward()
        results.append(([torch.as_tensor(value).detach() for value in outputs], [p.grad for p in head.parameters()]))
        if patch:
            assert stage.stats["num_fg"] > 0
            assert bool(stage.gradients) == bool(trains)
    for theirs, ours in zip(results[0][0], results[1][0], strict=True):
        assert float(theirs) == float(ours)
    for theirs, ours in zip(results[0][1], results[1][1], strict=True):
        assert (theirs is None) == (ours is None) and (theirs is None or torch.equal(theirs, ours))
