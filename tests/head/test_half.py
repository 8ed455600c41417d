"""Half precision: labels, decoded boxes, targets and loss maths stay in fp32."""

import copy

import pytest
import torch
from conftest import assert_same, checkpoint, cli, load_script, make_batch, make_head, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch.head.half import decode_in_fp32, half_dtype
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.runs.record import read_metrics

bench = load_script("benchmarks/half")
EVERY = [(term, name) for term, names in ylp.available_losses().items() for name in names]


def in_half(head, inputs):
    """What the losses are called with under autocast, and the offsets as the network gave them, level by level."""
    raw, calls = [], {}
    for conv in head.reg_preds:
        conv.register_forward_hook(lambda _conv, _input, output: raw.append(output.detach().clone()))
    for term, loss in stage_of(head).losses.items():

        def spy(pred, target, term=term, forward=loss.forward, **kwargs):
            calls[term] = pred.detach(), target
            return forward(pred, target, **kwargs)

        loss.forward = spy
    features, labels, images = inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(features, labels, images)
    return raw, calls


def decoded(raw):
    """Boxes (cx, cy, w, h) in fp64 from offsets as the network gave them."""
    boxes = []
    for offsets, stride in zip(raw, (8, 16, 32), strict=True):
        rows, columns = offsets.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        dx, dy, w, h = offsets.double().unbind(1)
        level = torch.stack(((dx + x) * stride, (dy + y) * stride, w.exp() * stride, h.exp() * stride), -1)
        boxes.append(level.flatten(1, 2))
    return torch.cat(boxes, 1).flatten(0, 1)


@pytest.mark.parametrize("assigner", ["fast", "host"])
def test_boxes_and_targets_are_not_rounded_to_half(assigner):
    inputs = bench.scene()
    labels = inputs[1][inputs[1].sum(2) > 0]
    errors = {}
    for fixed in (False, True):
        head = bench.flat_head()
        for conv in head.reg_preds:  # some of the predicted boxes are hundreds of pixels large
            conv.weight.data.mul_(20)
        ylp.patch_model(head, {"loss_assign": assigner})
        if fixed:
            decode_in_fp32(head)
        raw, calls = in_half(head, inputs)
        boxes, targets = calls["iou"]
        assert raw[0].dtype == torch.bfloat16 and targets.dtype == torch.float32
        exact = decoded(raw)
        distance = torch.cdist(boxes.double(), exact, p=float("inf")).min(1)
        size = exact[distance.indices].abs().amax(1)
        errors[fixed] = float((distance.values / size).max())
        # every target is one of the labels, to the last bit
        assert (targets[:, None] == labels[None, :, 1:]).all(2).any(1).all()
        if fixed:
            assert boxes.dtype == torch.float32 and boxes[:, 2:].max() > 200
            # the L1 targets, taken back: whole cells, and the label's size, for one of the strides
            offsets = calls["l1"][1]
            assert offsets.dtype == torch.float32
            fits = []
            for stride in (8, 16, 32):
                cells = targets[:, :2].double() / stride - offsets[:, :2].double()
                size = offsets[:, 2:].double().exp() * stride / targets[:, 2:]
                fits.append(torch.cat((cells - cells.round(), size - 1), 1).abs().amax(1))
            assert torch.stack(fits).amin(0).max() < 1e-4
    assert errors[True] < 1e-6 < 1e-3 < errors[False], errors


def test_fp32_keeps_its_bits_and_a_copy_decodes_for_itself():
    """The head with fp32 decoding, in fp32, is the head without; its copy holds no thread to the original."""
    batch = make_batch()
    plain, fixed = make_head(use_l1=True), make_head(use_l1=True)
    for head in (plain, fixed):
        ylp.patch_model(head)
    decode_in_fp32(fixed)
    twin = copy.deepcopy(fixed)
    want = run_head(plain, batch)
    for head in (fixed, twin):
        for one, other in zip(want[0] + tuple(want[1]), (got := run_head(head, batch))[0] + tuple(got[1]), strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert twin.get_output_and_grid.__self__ is twin
    assert fixed.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("term,name", EVERY)
def test_training_on_boxes_of_1_to_2000_px_stays_finite(term, name):
    """Some steps; benchmarks/half.py makes 500."""
    totals, left_out = bench.train(term, name, steps=4, device="cpu")
    assert len(totals) == 4 and left_out == 0 and totals[-1] != totals[0]


def test_half_is_fp16_on_cuda_and_bf16_elsewhere():
    kinds = {name: half_dtype(torch.device(name)) for name in ("cuda", "cpu", "mps")}
    assert kinds == {"cuda": torch.float16, "cpu": torch.bfloat16, "mps": torch.bfloat16}


TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "loss_iou", "ciou")


@pytest.mark.slow
def test_a_run_in_half_precision_is_near_the_fp32_run(work):
    rows = []
    for name, words in (("half", ["--fp16"]), ("full", [])):
        cli(work, TRAIN[0], *words, *TRAIN[1:7], "-expn", name, *TRAIN[7:])
        rows.append(read_metrics(work / "YOLOX_outputs" / name)[0])
    for column in ("iou_loss", "conf_loss", "cls_loss", "fg_iou"):
        assert rows[0][column] != rows[1][column]
        assert rows[0][column] == pytest.approx(rows[1][column], rel=0.2), column
    half, full = (checkpoint(work / "YOLOX_outputs" / name)["model"] for name in ("half", "full"))
    assert {key: value.dtype for key, value in half.items()} == {key: value.dtype for key, value in full.items()}
    with pytest.raises(AssertionError):
        assert_same(half, full)
