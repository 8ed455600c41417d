"""Forks with an edited ``get_losses``: it stays, its loss modules are swapped when it calls them as YOLOX does."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import make_batch, run_head
from forks import BRANCH, CLS_CALL, HEAD, IOU_CALL, OBJ_CALL, ORDER, SUM, edit
from torch import nn
from yolox.models import YOLOXHead, yolo_head

import yolox_loss_patch as ylp
from yolox_loss_patch.errors import HostError, NonFiniteError
from yolox_loss_patch.head import fork, hosts
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.losses.boxes import overlap


@pytest.fixture
def head_of(tmp_path, monkeypatch):
    """Makes a head of the installed YOLOX with these edits, and has the kit take its class for the host's."""

    def make(edits, num_classes=3, use_l1=False):
        text = edit(Path(yolo_head.__file__).read_text(), edits)
        path = tmp_path / f"head_of_a_fork_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text.replace("from .", "from yolox.models."))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(hosts, "head_class", lambda: module.YOLOXHead)
        torch.manual_seed(0)
        head = module.YOLOXHead(num_classes, width=0.25)
        head.initialize_biases(1e-2)
        head.use_l1 = use_l1
        return head.train()

    yield make
    ylp.revert()


@pytest.fixture
def log(log_lines):
    """The lines of the log, with warnings that an earlier test had told."""
    fork.warn_of_swap.cache_clear()
    return log_lines


def same(one, other):
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def assert_equal_runs(one, other):
    assert all(same(a, b) for a, b in zip(one[0], other[0], strict=True))
    for a, b in zip(one[1], other[1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or same(a, b)


def test_a_fork_with_another_branch_has_its_modules_swapped(head_of, log):
    head = head_of(BRANCH[HEAD], use_l1=True)
    inputs = make_batch(3)
    stock = run_head(head, inputs)
    before = set(vars(head))
    ylp.patch_model(head)
    assert_equal_runs(stock, run_head(head, inputs))
    ylp.unpatch_model(head)
    # The one term asked for changes; the others, the branch's gradient among them, are the fork's.
    place = {"loss_iou": 1, "loss_obj": 2, "loss_cls": 3, "loss_l1": 4}
    for specs in ({"loss_iou": "ciou"}, {"loss_obj": "focal"}, {"loss_cls": "focal"}, {"loss_l1": "smooth_l1"}):
        ylp.patch_model(head, specs)
        ours = run_head(head, inputs)
        ylp.unpatch_model(head)
        for key, index in place.items():
            assert same(stock[0][index], ours[0][index]) == (key not in specs), (key, specs)
        rest, stocks_rest = ((one[0][0] - sum(one[0][1:5])).item() for one in (ours, stock))
        assert rest == pytest.approx(stocks_rest, rel=1e-4)
    assert set(vars(head)) == before
    assert same(run_head(head, inputs)[0][0], stock[0][0])
    told = [line for line in log if "swaps only the loss modules" in line]
    assert len(told) == 1
    for feature in ("target='iou'", "samplers", "loss_weights", "avg_factor", "dice", "fast label assignment"):
        assert feature in told[0]


def test_a_swapped_module_gives_what_the_loss_stage_gives(head_of):
    """On a fork whose edit does not touch the losses, swap and loss stage are one: same terms, same gradients."""
    specs = {"loss_iou": dict(type="ciou", loss_weight=2.0), "loss_obj": dict(type="varifocal", target="hard"),
             "loss_cls": "focal", "loss_l1": "smooth_l1"}  # fmt: skip
    inputs = make_batch(3)
    head = head_of([("        reg_weight = 5.0\n", "        reg_weight = 10.0 / 2\n")], use_l1=True)
    stock = YOLOXHead(3, width=0.25)
    stock.load_state_dict(head.state_dict())
    stock.use_l1 = True
    ylp.patch_model(head, specs)
    assert type(stage_of(head)) is fork.ForkStage
    stage_of(head).collect = True
    swapped = run_head(head, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "head_class", lambda: YOLOXHead)
        ylp.patch_model(stock.train(), specs)
        stage_of(stock).collect = True
        whole = run_head(stock, inputs)
        stats = stage_of(stock).stats
    for one, other in zip([*swapped[0], *swapped[1]], [*whole[0], *whole[1]], strict=True):
        assert one is other is None or torch.allclose(
            torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4, atol=1e-6
        )
    for key, value in stage_of(head).stats.items():
        assert float(value) == pytest.approx(float(stats[key]), rel=1e-4), key


@pytest.mark.parametrize(
    "edits,difference",
    [
        (ORDER[HEAD], "calls self.bcewithlog_loss where YOLOX calls self.iou_loss for the iou term"),
        (
            [(OBJ_CALL + CLS_CALL, CLS_CALL + OBJ_CALL)],
            "calls self.bcewithlog_loss with cls_preds where YOLOX calls self.bcewithlog_loss for the obj term",
        ),
        ([(CLS_CALL, "        loss_cls = loss_obj * 0\n")], "it ends after 2 calls of loss modules, where YOLOX calls"),
        (
            [(SUM, SUM + "        loss = loss + self.bcewithlog_loss(obj_preds, obj_preds.sigmoid()).mean()\n")],
            "calls self.bcewithlog_loss once more than YOLOX does",
        ),
        (
            [("[fg_masks], reg_targets)", "[fg_masks], reg_targets, True)")],
            "calls self.iou_loss with other arguments than (pred, target)",
        ),
    ],
)
def test_a_fork_that_calls_its_losses_otherwise_is_refused(head_of, edits, difference):
    head = head_of(edits)
    function = type(head).get_losses
    for patch in (lambda: ylp.patch_model(head, {"loss_iou": "ciou"}), lambda: ylp.apply(loss_iou="ciou"),
                  lambda: ylp.patch_model(head)):  # fmt: skip
        with pytest.raises(HostError, match="does not know this YOLOX") as error:
            patch()
        assert difference in str(error.value)
    assert type(head).get_losses is function and "get_losses" not in vars(head)
    if "line" in str(error.value).split("does: ")[1]:  # and the line is the one of the file
        number = int(str(error.value).split("does: line ")[1].split()[0])
        text = Path(function.__code__.co_filename).read_text().splitlines()[number - 1]
        assert "self.bcewithlog_loss" in text or "self.iou_loss" in text


@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_order_is_checked_at_every_call(head_of, num_classes):
    """With one class both calls are of (N, 1); which is which shows in N alone."""
    hidden = """
        a, b = (obj_preds.view(-1, 1), obj_targets), (cls_preds.view(-1, self.num_classes)[fg_masks], cls_targets)
        if getattr(self, "swap", False):
            a, b = b, a
        (one, its), (two, other) = a, b
        loss_obj = self.bcewithlog_loss(one, its).sum() / num_fg
        loss_cls = self.bcewithlog_loss(two, other).sum() / num_fg
"""
    head = head_of([(OBJ_CALL + CLS_CALL, hidden)], num_classes)
    inputs = make_batch(num_classes=num_classes)
    stock = run_head(head, inputs)[0]
    ylp.patch_model(head, {"loss_obj": "focal"})
    ours = run_head(head, inputs)[0]
    assert [same(a, b) for a, b in zip(stock, ours, strict=True)] == [False, True, False, True, True, True]
    head.swap = True
    with pytest.raises(HostError, match=r"call 2 of a loss module, self.bcewithlog_loss for the obj term, is of \("):
        run_head(head, inputs)
    head.swap = False  # nothing of the broken call is left
    assert same(run_head(head, inputs)[0][0], ours[0])


def test_a_call_too_many_or_too_few_is_an_error(head_of):
    head = head_of([(IOU_CALL, f"        for _ in range(self.times):\n{_indented(IOU_CALL)}")])
    inputs = make_batch()
    ylp.patch_model(head, {"loss_iou": "ciou"})
    for times, message in (
        (2, "call 2 of a loss module is self.iou_loss, where YOLOX calls self.bcewithlog_loss for the obj term"),
        (0, "call 1 of a loss module is self.bcewithlog_loss, where YOLOX calls self.iou_loss for the iou term"),
    ):
        head.times = times
        with pytest.raises(HostError, match=message):
            run_head(head, inputs)
    head.times = 1
    run_head(head, inputs)
    head = head_of([(CLS_CALL, f"        loss_cls = loss_obj\n        if self.times:\n{_indented(CLS_CALL)}")])
    ylp.patch_model(head, {"loss_iou": "ciou"})
    head.times = 0
    with pytest.raises(HostError, match=r"ended without the call of self\.bcewithlog_loss for the cls term"):
        run_head(head, inputs)


def test_predictions_that_are_not_finite_are_named(head_of):
    head = head_of(BRANCH[HEAD])
    ylp.patch_model(head, {"loss_iou": "ciou"})
    with torch.no_grad():
        head.cls_preds[0].bias[1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^Not finite: cls \("):
        run_head(head, make_batch())


def _indented(text):
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "specs,what",
    [
        ({"loss_obj": dict(type="bce", target="iou")}, "target='iou'"),
        ({"loss_obj": "varifocal"}, "target='iou'"),
        ({"loss_obj": dict(type="bce", sampler=dict(type="RandomSampler", num=64))}, "sampler="),
        ({"loss_iou": dict(type="ciou", avg_factor="batch")}, "avg_factor='batch'"),
        ({"loss_cls": dict(type="bce", reduction="sum")}, "reduction='sum'"),
        ({"loss_obj": "dice"}, "'dice', which averages over its set"),
    ],
)
def test_what_a_swap_cannot_give_is_refused(head_of, specs, what):
    head = head_of(BRANCH[HEAD])
    for patch in (lambda: ylp.patch_model(head, specs), lambda: ylp.apply(**specs)):
        with pytest.raises(ylp.ConfigError, match="cannot be had here") as error:
            patch()
        assert what in str(error.value)
    assert not ylp.is_applied()


def test_weights_of_an_experiment_are_refused_on_a_fork(head_of):
    head = head_of(BRANCH[HEAD])
    ylp.patch_model(head)
    stage_of(head).element_weights = lambda found, classes: {}
    with pytest.raises(ylp.ConfigError, match="loss_weights cannot be had here"):
        run_head(head, make_batch())


def test_an_l1_loss_that_is_never_called_is_refused(head_of):
    l1 = "                self.l1_loss(origin_preds.view(-1, 4)[fg_masks], l1_targets)\n"
    head = head_of([(l1, "                (origin_preds.view(-1, 4)[fg_masks] - l1_targets).abs()\n")])
    ylp.patch_model(head, {"loss_iou": "ciou"})
    ylp.unpatch_model(head)
    with pytest.raises(ylp.ConfigError, match=r"never calls self\.l1_loss"):
        ylp.patch_model(head, {"loss_l1": "l2"})


def test_apply_and_copies_reach_a_fork(head_of):
    head = head_of(BRANCH[HEAD])
    inputs = make_batch()
    stock = run_head(head, inputs)[0]
    original = type(head).get_losses
    with ylp.patched(loss_iou="giou"):
        applied = run_head(head, inputs)[0]
    assert type(head).get_losses is original
    ylp.patch_model(head, {"loss_iou": "giou"})
    twin = copy.deepcopy(head)
    assert same(run_head(twin, inputs)[0][0], applied[0]) and not same(applied[0], stock[0])
    assert stage_of(twin) is not stage_of(head)
    assert list(twin.state_dict()) == list(head.state_dict())


class LinearIoU(nn.Module):
    """A fork's own box loss in place of YOLOX's."""

    def forward(self, pred, target):
        return 1 - overlap(pred, target).iou


def test_a_term_left_at_its_default_keeps_the_forks_own_module(head_of):
    """A module, or a function on the instance; it is there after the call as before."""
    head = head_of(BRANCH[HEAD])
    inputs = make_batch()
    for own in (LinearIoU(), LinearIoU().forward):
        del head.iou_loss
        head.iou_loss = own
        stock = run_head(head, inputs)[0]
        ylp.patch_model(head, {"loss_obj": "focal"})
        ours = run_head(head, inputs)[0]
        assert [same(a, b) for a, b in zip(stock, ours, strict=True)] == [False, True, False, True, True, True]
        assert head.iou_loss is own or head.iou_loss == own
        ylp.unpatch_model(head)
        assert same(run_head(head, inputs)[0][0], stock[0])


@pytest.mark.parametrize("patch", [ylp.patch_model, lambda head, specs=None: ylp.apply(**(specs or {}))])
def test_a_forks_own_loss_module_stays_until_another_is_asked_for(head_of, log, patch):
    """With YOLOX's get_losses: everything works, and a term left at its default is the fork's."""
    head = head_of([])
    inputs = make_batch()
    yolox_loss = run_head(head, inputs)[0][1]
    head.iou_loss = LinearIoU()
    stock = run_head(head, inputs)
    assert not same(stock[0][1], yolox_loss)
    patch(head)
    ours = run_head(head, inputs)
    for one, other in zip([*stock[0], *stock[1]], [*ours[0], *ours[1]], strict=True):
        assert one is other is None or torch.allclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-5)
    assert type(stage_of(head)).__name__ == "LossStage"
    assert any("loss_iou is" in line and "LinearIoU" in line for line in log)
    ylp.unpatch_model(head)
    ylp.revert()
    patch(head, {"loss_iou": dict(type="iou", mode="linear"), "loss_obj": dict(type="bce", target="iou")})
    asked = run_head(head, inputs)[0]
    assert asked[1].item() == pytest.approx(stock[0][1].item(), rel=1e-5)
    assert not same(asked[2], stock[0][2])
    head.iou_loss = type(YOLOXHead(1, width=0.25).iou_loss)(reduction="none", loss_type="giou")
    assert "iou" in hosts.edited_modules(head)
