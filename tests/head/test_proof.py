"""``loss_assign="auto"`` on an accelerator: the first batches are matched both ways before the fast one goes on alone.

The logic runs on a CPU here, with the accelerator's way forced.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import load_script, make_batch, make_head, run_head
from yolox.models import YOLOXHead

import yolox_loss_patch as ylp
from yolox_loss_patch.head import stage as stage_module
from yolox_loss_patch.head.assign import dense, fast, proof
from yolox_loss_patch.head.assign.fast import make_scene
from yolox_loss_patch.head.assign.rounding import within_rounding
from yolox_loss_patch.head.hosts import assignment_rule
from yolox_loss_patch.train.status import RunStatus

random_images = load_script("benchmarks/assign_equality")


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """What the kit does on an accelerator."""
    monkeypatch.setattr(stage_module, "is_accelerator", lambda device: True)
    monkeypatch.setattr(fast, "find_levels", lambda scene: None)


def patched_head(monkeypatch, **specs):
    """A head, and the list that notes which assigner each batch asked."""
    head = make_head()
    ylp.patch_model(head, specs)
    asked = []

    def spy(*args, original=head.get_assignments, **kwargs):
        asked.append("host")
        return original(*args, **kwargs)

    head.get_assignments = spy
    return head, head.get_losses.stage, asked


def batches(number, **kwargs):
    for seed in range(number):
        yield make_batch(seed=seed, empty_every=0, **({"height": 96 + 32 * (seed // 10 % 2)} | kwargs))


def train(head, number, **kwargs):
    return [run_head(head, batch)[0][0].item() for batch in batches(number, **kwargs)]


def test_after_twenty_batches_the_fast_one_goes_on_alone(monkeypatch, log_lines):
    head, stage, asked = patched_head(monkeypatch)
    stock = make_head()
    expected = train(stock, 25)
    assert train(head, proof.BATCHES) == pytest.approx(expected[:20], rel=1e-6)
    assert len(asked) == 2 * proof.BATCHES and stage.proof.answer == "fast"
    asked.clear()
    assert train(head, 25)[20:] == pytest.approx(expected[20:], rel=1e-6)
    assert not asked
    told = stage.proof.to_dict()
    assert told["device"] == "cpu" and told["batches"] == 20 and told["images"] == 40 and told["boxes"] == 200
    assert told["foreground"] > 150 and len(told["anchors"]) == stage.proof.sizes == 2
    lines = [line for line in log_lines if "Label assignment" in line]
    assert len(lines) == 1 and "the host's matches on cpu in 20 batches (40 images, 200 boxes" in lines[0]


def test_batches_without_boxes_prove_nothing(monkeypatch):
    head, stage, _ = patched_head(monkeypatch)
    train(head, 3, boxes=0)
    assert stage.proof.batches == 0 and stage.proof.answer is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,value",
    [("IOU_WEIGHT", 2.5), ("TOP_IOUS", 3), ("LOG_FLOOR", -0.001)],
)
def test_a_planted_fault_leaves_the_hosts(monkeypatch, log_lines, name, value):
    monkeypatch.setattr(dense, name, value)
    head, stage, asked = patched_head(monkeypatch)
    expected = train(make_head(), 25, boxes=12)
    assert train(head, 25, boxes=12) == expected
    assert len(asked) == 50 and stage.proof.answer == "host"
    assert "got another box" in stage.proof.reason
    lines = [line for line in log_lines if "Label assignment" in line]
    assert len(lines) == 1 and "the host's, which is slower, stays on cpu" in lines[0]


def test_wrong_ious_leave_the_hosts(monkeypatch):
    original = proof.fast_assign

    def wrong(**arguments):
        found = original(**arguments)
        found.ious = found.ious * 1.01
        return found

    monkeypatch.setattr(proof, "fast_assign", wrong)
    head, stage, _ = patched_head(monkeypatch)
    train(head, 1)
    assert stage.proof.answer == "host" and "IoUs" in stage.proof.reason


def test_a_fast_one_that_fails_leaves_the_hosts(monkeypatch):
    def fails(**arguments):
        raise NotImplementedError("no topk on this device\nand more")

    monkeypatch.setattr(proof, "fast_assign", fails)
    head, stage, _ = patched_head(monkeypatch)
    assert train(head, 2) == train(make_head(), 2)
    assert stage.proof.answer == "host"
    assert stage.proof.reason.endswith("NotImplementedError: no topk on this device")


def test_near_ties_are_no_fault_and_are_counted(monkeypatch):
    """A network whose anchors are all alike: mirrored anchors cost the same, and `topk` takes one or the other."""
    generator = torch.Generator().manual_seed(0)
    topk = torch.Tensor.topk

    def shaken(self, k, dim=-1, largest=True):
        """As on a device that orders equals otherwise: costs off by a unit or two in the last place."""
        if self.dim() == 3 and bool((self < 0).any()):
            self = self * (1 + 1e-7 * (2 * torch.rand(self.shape, generator=generator) - 1))
        return topk(self, k, dim=dim, largest=largest)

    head, stage, _ = patched_head(monkeypatch)
    with torch.no_grad():
        for layers in (head.reg_preds, head.obj_preds, head.cls_preds):
            for layer in layers:
                layer.weight.zero_()
    original = proof.fast_assign

    def assign(**arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "topk", shaken)
            return original(**arguments)

    monkeypatch.setattr(proof, "fast_assign", assign)
    for batch in batches(20):
        batch[1][..., 1:3] = (batch[1][..., 1:3] / 16).round() * 16  # between the anchors, at equal distances
        run_head(head, batch)
    assert stage.proof.answer == "fast" and stage.proof.near_ties > 20


def test_a_pair_that_is_off_by_more_than_rounding_is_told_from_a_near_tie():
    head = make_head()
    seen = {}

    def keep(self, head, rule, imgs, scene):
        seen.update(scene)
        return proof.host_assign(head, imgs=imgs, **scene)

    ylp.patch_model(head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof.AssignmentProof, "assign", keep)
        run_head(head, make_batch(batch=1, boxes=6, empty_every=0))
    rule = assignment_rule(YOLOXHead)
    scene = make_scene(**seen, rule=rule)
    found = proof.host_assign(head, **seen)
    owner = torch.full((scene.anchors,), -1)
    owner[found.rows] = found.matched_gt
    assert within_rounding(scene, 0, owner).all()
    for anchor in found.rows.tolist():
        for other in {-1, *range(6)} - {int(owner[anchor])}:
            changed = owner.clone()
            changed[anchor] = other
            allowed = within_rounding(scene, 0, changed)
            assert not allowed[anchor] and int((~allowed).sum()) == 1
    background = (owner < 0).nonzero().flatten()
    for box in range(6):
        changed = owner.clone()
        changed[background] = box
        assert not within_rounding(scene, 0, changed)[background].any()


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_the_hosts_matches_are_within_rounding_on_random_images(seed):
    """Of trained, saturated and constant networks too, where k is above 1 and anchors are contested."""
    head = YOLOXHead(80, width=0.125)
    compared = matched = 0
    for number in range(seed, seed + 10):
        arguments = random_images.random_scene(number)
        if arguments["labels"].shape[1] * arguments["x_shifts"].shape[1] > 100_000:
            arguments["labels"][:, 40:] = 0
        head.num_classes = arguments["cls_preds"].shape[2]
        try:
            found = proof.host_assign(head, **arguments)
        except (RuntimeError, IndexError):  # no candidate at all
            continue
        scene = make_scene(**arguments, rule=assignment_rule(YOLOXHead))
        owner = torch.full((scene.anchors,), -1)
        owner[found.rows] = found.matched_gt
        assert within_rounding(scene, 0, owner).all(), number
        compared += 1
        matched += found.num_fg
    assert compared >= 7 and matched > 100


def test_a_copy_shares_the_proof_and_a_resume_goes_on_with_it(monkeypatch):
    head, stage, _ = patched_head(monkeypatch)
    train(head, 5)
    assert copy.deepcopy(stage).proof is stage.proof
    state = stage.running_state()
    other, resumed, asked = patched_head(monkeypatch)
    resumed.load_running_state(state)
    train(other, 15)
    assert resumed.proof.answer == "fast" and resumed.proof.batches == 20
    asked.clear()
    again, finished, asked = patched_head(monkeypatch)
    finished.load_running_state(resumed.running_state())
    train(again, 1)
    assert not asked


def test_on_another_device_the_proof_starts_again(monkeypatch):
    head, stage, _ = patched_head(monkeypatch)
    train(head, 20)
    state = stage.running_state()
    state["assignment"]["device"] = "another"
    other, resumed, asked = patched_head(monkeypatch)
    resumed.load_running_state(state)
    train(other, 1)
    assert asked and resumed.proof.batches == 1 and resumed.proof.answer is None


@pytest.mark.parametrize("assign,expected", [("host", 4), ("fast", 0)])
def test_who_asks_for_one_gets_it_without_a_proof(monkeypatch, assign, expected):
    head, stage, asked = patched_head(monkeypatch, loss_assign=assign)
    train(head, 2)
    assert len(asked) == expected and stage.proof.to_dict() == {} and stage.running_state() == {}


def test_a_cpu_needs_no_proof():
    assert not proof.is_accelerator(torch.device("cpu"))
    assert proof.is_accelerator(torch.device("cuda")) and proof.is_accelerator(torch.device("mps"))


def test_the_answer_stands_in_the_run_record():
    updates = []
    status = SimpleNamespace(record=SimpleNamespace(update=lambda **values: updates.append(values)))
    RunStatus.note_progress(status, 3, 0.5, {})
    RunStatus.note_progress(status, 4, 0.5, {"answer": "fast", "batches": 20})
    assert updates[0] == {"epochs_done": 3, "best_ap": 0.5}
    assert updates[1]["assignment"] == {"answer": "fast", "batches": 20}
