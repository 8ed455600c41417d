"""The patch: stock to the bit with default losses, and undone without a trace."""

import copy
import pickle

import pytest
import torch
from conftest import make_batch, make_head, run_head
from yolox.exp.default.yolox_nano import Exp as NanoExp
from yolox.models import YOLOXHead

import yolox_loss_patch as ylp
from yolox_loss_patch.errors import HostError, PatchError
from yolox_loss_patch.head.patch import stage_of

STOCK = YOLOXHead.__dict__["get_losses"]
# batch, image size, classes, boxes per image, L1 term: every value of each with several of the others
CASES = [
    (1, (96, 96), 3, 1, True),
    (1, (96, 160), 80, 60, False),
    (1, (320, 256), 1, 7, True),
    (1, (640, 640), 3, 60, True),
    (1, (640, 640), 80, 7, False),
    (3, (96, 96), 80, 7, False),
    (3, (96, 160), 1, 1, True),
    (3, (96, 160), 3, 0, False),
    (3, (320, 256), 3, 60, False),
    (3, (320, 256), 80, 1, True),
    (3, (96, 96), 1, 60, True),
    (3, (640, 640), 1, 0, True),
    (8, (96, 96), 1, 0, False),
    (8, (96, 96), 3, 60, True),
    (8, (96, 160), 3, 7, True),
    (8, (96, 160), 80, 0, True),
    (8, (96, 96), 1, 7, False),
    (8, (320, 256), 1, 1, False),
]


@pytest.fixture(autouse=True)
def unpatched():
    yield
    ylp.revert()
    assert YOLOXHead.__dict__["get_losses"] is STOCK


def assert_equal_runs(stock_run, our_run):
    for stock, ours in zip(stock_run[0], our_run[0], strict=True):
        assert type(stock) is type(ours)
        assert torch.equal(torch.as_tensor(stock), torch.as_tensor(ours)), (stock, ours)
    for stock, ours in zip(stock_run[1], our_run[1], strict=True):
        assert (stock is None) == (ours is None)
        assert stock is None or torch.equal(stock, ours)


@pytest.mark.parametrize("batch,size,classes,boxes,use_l1", CASES)
def test_default_losses_are_stock_to_the_bit(batch, size, classes, boxes, use_l1):
    head = make_head(classes, seed=batch, use_l1=use_l1)
    inputs = make_batch(batch, *size, classes, boxes, seed=boxes)
    stock = run_head(head, inputs)
    ylp.patch_model(head, ylp.LossConfig())
    assert_equal_runs(stock, run_head(head, inputs))


def test_every_way_to_patch_and_back_is_stock_to_the_bit():
    head, inputs = make_head(use_l1=True), make_batch(3, boxes=7)
    stock = run_head(head, inputs)
    ylp.patch_model(head, ylp.LossConfig())
    assert_equal_runs(stock, run_head(head, inputs))
    ylp.unpatch_model(head)
    assert_equal_runs(stock, run_head(head, inputs))
    with ylp.patched():
        assert_equal_runs(stock, run_head(head, inputs))
    assert_equal_runs(stock, run_head(head, inputs))


def test_the_hosts_assignment_is_left_aside_only_when_its_code_is_known(monkeypatch):
    def broken(*args, **kwargs):
        raise AssertionError("the host's own assignment was asked")

    head, inputs = make_head(), make_batch()
    stock = run_head(head, inputs)
    ylp.patch_model(head, {"loss_assign": "host"})
    assert_equal_runs(stock, run_head(head, inputs))
    with monkeypatch.context() as patch:
        patch.setattr(head, "get_assignments", broken, raising=False)
        with pytest.raises(AssertionError, match="was asked"):
            run_head(head, inputs)
        ylp.unpatch_model(head)
        ylp.patch_model(head)
        assert_equal_runs(stock, run_head(head, inputs))

    class Fork(YOLOXHead):
        def dynamic_k_matching(self, *args):
            matched = super().dynamic_k_matching(*args)
            seen.append(matched[0])
            return matched

    seen = []
    fork = make_head()
    fork.__class__ = Fork
    ylp.patch_model(fork)
    assert_equal_runs(stock, run_head(fork, inputs))
    assert sum(seen) > 0
    with pytest.raises(ylp.ConfigError, match="Did you mean 'fast'"):
        ylp.LossConfig(loss_assign="fasst")


def test_default_losses_are_stock_on_a_batch_without_any_box():
    head = make_head(use_l1=True)
    inputs = make_batch(2, boxes=4, empty_every=1)
    assert inputs[1].sum() == 0
    stock = run_head(head, inputs)
    ylp.patch_model(head)
    assert_equal_runs(stock, run_head(head, inputs))


@pytest.mark.slow
def test_twelve_steps_end_in_the_same_weights():
    def train(patch):
        exp = NanoExp()
        exp.num_classes = 3
        torch.manual_seed(0)
        model = exp.get_model().train()
        if patch:
            ylp.patch_model(model)
        optimizer = exp.get_optimizer(4)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for step in range(12):
            _, labels, _ = make_batch(2, 96, 96, boxes=4, seed=step, empty_every=0)
            images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(step)) * 255
            model.head.use_l1 = step >= 6
            optimizer.zero_grad()
            model(images, labels)["total_loss"].backward()
            optimizer.step()
        return model.state_dict()

    stock, ours = train(False), train(True)
    assert all(torch.equal(stock[key], ours[key]) for key in stock)


@pytest.mark.parametrize(
    "specs",
    [
        {"loss_iou": "giou"},
        {"loss_obj": "focal"},
        {"loss_obj": dict(type="bce", target="iou")},
        {"loss_obj": "varifocal", "loss_iou": "ciou"},
        {"loss_cls": "focal"},
        {"loss_iou": dict(type="iou", loss_weight=0.5)},
        {"loss_obj": dict(type="bce", reduction="sum")},
    ],
)
def test_a_loss_that_was_asked_for_is_the_one_that_runs(specs):
    """The term asked for changes, the others keep stock's bits."""
    head = make_head()
    inputs = make_batch()
    stock = run_head(head, inputs)[0]
    with ylp.patched(**specs):
        ours = run_head(head, inputs)[0]
    place = {"loss_iou": 1, "loss_obj": 2, "loss_cls": 3}
    for key, index in place.items():
        assert (float(stock[index]) == float(ours[index])) == (key not in specs), key
    assert float(ours[0]) == pytest.approx(sum(map(float, ours[1:5])))


def test_weights_and_targets_reach_the_terms():
    """5 x mean over foreground of the element-wise loss x loss_weight; soft targets are the matched IoUs."""
    head = make_head()
    inputs = make_batch(boxes=3)
    stock = run_head(head, inputs)[0]
    with ylp.patched(loss_iou=dict(type="iou", loss_weight=2.0), loss_obj=dict(type="bce", loss_weight=0.0)):
        ours = run_head(head, inputs)[0]
    assert float(ours[1]) == pytest.approx(2 * float(stock[1]))
    assert float(ours[2]) == 0
    # BCE is linear in its target: from t = 1 to t = IoU on foreground it changes by the logit x (1 - IoU), so the
    # objectness loss with IoU targets can be had from stock's and from the matched IoUs of the class targets.
    ylp.patch_model(head, {"loss_obj": dict(type="bce", target="iou")})
    seen = {}
    stage = stage_of(head)
    original = stage.losses["obj"].forward
    stage.losses["obj"].forward = lambda pred, target, **k: (
        seen.update(pred=pred, target=target) or original(pred, target, **k)
    )
    soft = run_head(head, inputs)[0]
    foreground = seen["target"] > 0
    num_fg = int(foreground.sum())
    assert num_fg > 0 and float(seen["target"].max()) < 1
    shift = (seen["pred"] * (1 - seen["target"]))[foreground].sum() / num_fg
    assert float(soft[2]) == pytest.approx(float(stock[2] + shift), rel=1e-5)


def test_apply_is_idempotent_and_refuses_other_losses():
    assert not ylp.is_applied()
    ylp.apply(loss_iou="ciou")
    ylp.apply(loss_iou=dict(type="ciou", gate=False))
    ylp.apply(loss_bbox="ciou")
    assert ylp.is_applied()
    with pytest.raises(PatchError, match=r"Other losses are applied already.*revert"):
        ylp.apply(loss_iou="giou")
    ylp.revert()
    ylp.revert()
    assert not ylp.is_applied()
    assert YOLOXHead.__dict__["get_losses"] is STOCK


def test_apply_with_a_wrong_name_changes_nothing():
    with pytest.raises(ylp.ConfigError, match="Did you mean 'ciou'"):
        ylp.apply(loss_iou="ciuo")
    with pytest.raises(ylp.ConfigError, match="Did you mean 'loss_iou'"):
        ylp.apply(loss_io="ciou")
    assert YOLOXHead.__dict__["get_losses"] is STOCK


def test_apply_reaches_heads_that_exist_already():
    head = make_head()
    inputs = make_batch()
    stock = run_head(head, inputs)[0]
    keys = set(vars(head))
    ylp.apply(loss_iou="giou")
    assert float(run_head(head, inputs)[0][1]) != float(stock[1])
    ylp.revert()
    assert float(run_head(head, inputs)[0][1]) == float(stock[1])
    assert set(vars(head)) == keys


def test_revert_refuses_when_somebody_patched_over(monkeypatch):
    ylp.apply(loss_iou="giou")
    monkeypatch.setattr(YOLOXHead, "get_losses", lambda *a, **k: None)
    assert not ylp.is_applied()
    with pytest.raises(PatchError, match="patched by somebody else"):
        ylp.revert()
    with pytest.raises(PatchError, match="patched by somebody else"):
        ylp.apply(loss_iou="giou")
    monkeypatch.undo()
    ylp.revert()


def test_an_edited_get_losses_is_refused(monkeypatch):
    def get_losses(self, *args):
        return 0

    monkeypatch.setattr(YOLOXHead, "get_losses", get_losses)
    for patch in (lambda: ylp.apply(loss_iou="giou"), lambda: ylp.patch_model(make_head(), {"loss_iou": "giou"})):
        with pytest.raises(HostError, match="does not know this YOLOX"):
            patch()
    assert YOLOXHead.__dict__["get_losses"] is get_losses


def test_patched_inside_apply_keeps_the_outer_patch():
    ylp.apply(loss_iou="giou")
    with ylp.patched(loss_iou="giou"):
        pass
    assert ylp.is_applied()
    with pytest.raises(PatchError), ylp.patched(loss_iou="ciou"):
        pass
    assert ylp.is_applied()


def test_patch_model_is_idempotent_and_exactly_undone():
    head = make_head()
    before = set(vars(head))
    keys = list(head.state_dict())
    ylp.patch_model(head, {"loss_iou": "ciou"})
    ylp.patch_model(head, {"loss_bbox": "ciou"})
    with pytest.raises(PatchError, match="unpatch_model"):
        ylp.patch_model(head, {"loss_iou": "giou"})
    assert list(head.state_dict()) == keys
    assert not [name for name, _ in head.named_modules() if "loss_stage" in name]
    ylp.unpatch_model(head)
    ylp.unpatch_model(head)
    assert set(vars(head)) == before


def test_patch_model_refuses_what_it_cannot_patch():
    with pytest.raises(PatchError, match="no YOLOX head"):
        ylp.patch_model(torch.nn.Linear(2, 2))
    head = make_head()
    head.get_losses = lambda *a: 0
    with pytest.raises(PatchError, match="somebody else"):
        ylp.patch_model(head)
    with pytest.raises(PatchError, match="somebody else"):
        ylp.unpatch_model(head)


def test_patch_model_precedes_apply_and_survives_its_revert():
    head, other = make_head(), make_head()
    inputs = make_batch()
    with ylp.patched(loss_iou="giou"):
        ylp.patch_model(head, {"loss_iou": "ciou"})
        ciou, giou = run_head(head, inputs)[0][1], run_head(other, inputs)[0][1]
        assert float(ciou) != float(giou)
    assert float(run_head(head, inputs)[0][1]) == float(ciou)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_copy_has_the_losses_and_works_on_itself(copier):
    """EMA deep-copies the model, spawned workers unpickle it."""
    head = make_head()
    inputs = make_batch()
    ylp.patch_model(head, {"loss_iou": "giou", "loss_obj": "varifocal"})
    twin = copier(head)
    assert stage_of(twin) is not stage_of(head)
    assert twin.get_losses.__self__ is twin
    assert float(run_head(twin, inputs)[0][0]) == float(run_head(head, inputs)[0][0])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    assert float(run_head(twin, inputs)[0][0]) != float(run_head(head, inputs)[0][0])
    ylp.unpatch_model(head)
    assert stage_of(twin) is not None


@pytest.mark.slow
def test_checkpoints_evaluation_and_trace_are_stock():
    exp = NanoExp()
    exp.num_classes = 3
    torch.manual_seed(0)
    stock = exp.get_model()
    ours = copy.deepcopy(stock)
    ylp.patch_model(ours, {"loss_obj": "varifocal", "loss_iou": "alpha_ciou"})
    stock.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(stock.state_dict(), strict=True)
    image = torch.rand(1, 3, 96, 96) * 255
    stock.eval(), ours.eval()
    with torch.no_grad():
        expected = stock(image)
        assert torch.equal(expected, ours(image))
        stock.head.decode_in_inference = ours.head.decode_in_inference = False
        traces = [torch.jit.trace(model, image) for model in (stock, ours)]
        assert torch.equal(traces[0](image), traces[1](image))
        assert str(traces[0].inlined_graph).count("\n") == str(traces[1].inlined_graph).count("\n")


def test_the_stage_collects_what_it_says():
    head = make_head()
    inputs = make_batch(batch=3, boxes=4)
    ylp.patch_model(head)
    stage = stage_of(head)
    run_head(head, inputs)
    assert stage.stats == {}
    stage.collect = True
    outputs = run_head(head, inputs)[0]
    stats = stage.stats
    boxes = int((inputs[1].sum(2) > 0).sum())
    assert stats["num_fg"] == pytest.approx(float(outputs[5]) * boxes)
    assert stats["num_fg"] + stats["num_bg"] == 3 * (144 + 36 + 9)
    assert 0 < float(stats["fg_iou"]) < stats["num_fg"]
    # YOLOX starts with a probability of 0.01 everywhere.
    assert float(stats["obj_fg"]) / stats["num_fg"] == pytest.approx(0.01, rel=0.5)
    assert float(stats["obj_bg"]) / stats["num_bg"] == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("scale", [1.0, 1024.0])  # half precision scales the loss
@pytest.mark.parametrize(
    "losses", [{}, {"loss_obj": "focal", "loss_iou": "ciou"}, {"loss_iou": dict(type="iou", loss_weight=0)}]
)
def test_the_stage_sums_the_gradients_at_the_heads_raw_outputs(losses, scale):
    """Against what arrives at the last convolutions; with a box loss of weight 0 the offsets get the L1 term's only."""
    only_l1 = losses.get("loss_iou", {}) == dict(type="iou", loss_weight=0)
    head = make_head(use_l1=only_l1)
    inputs = make_batch(batch=3, boxes=4)
    ylp.patch_model(head, losses)
    stage = stage_of(head)
    stage.collect = True
    arrived = {}
    for part in ("reg_preds", "obj_preds", "cls_preds"):
        for layer in getattr(head, part):
            layer.register_full_backward_hook(
                lambda _, __, out, part=part: arrived.update({part: arrived.get(part, 0) + out[0].abs().sum() / scale})
            )
    for _ in range(2):  # it sums
        (scale * head(*inputs)[0]).backward()
    got = {name: float(value) for name, value in stage.gradients.items()}
    assert got["grad_box"] + got.get("grad_l1", 0) == pytest.approx(float(arrived["reg_preds"]), rel=1e-4)
    assert (got["grad_box"] == 0) == only_l1 == ("grad_l1" in got)
    assert got["grad_obj_fg"] + got["grad_obj_bg"] == pytest.approx(float(arrived["obj_preds"]), rel=1e-4)
    assert got["grad_cls"] == pytest.approx(float(arrived["cls_preds"]), rel=1e-4)
    if not losses:  # of BCE at YOLOX's start, p = 0.01: 1 - p an anchor of the foreground, p of the background
        stats = {name: float(value) for name, value in stage.stats.items()}
        assert got["grad_obj_fg"] == pytest.approx(2 * (1 - stats["obj_fg"] / stats["num_fg"]), rel=1e-4)
        assert got["grad_obj_bg"] == pytest.approx(2 * stats["obj_bg"] / stats["num_fg"], rel=1e-4)
