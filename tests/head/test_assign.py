"""Label assignment: the fast way against the host's own code and against the rule written out in scalars."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import load_script
from torch import Tensor
from yolox.models import YOLOXHead

from yolox_loss_patch.errors import DataError
from yolox_loss_patch.head.assign import RULE_0_3_0, RULE_MAIN, Assignment, Rule, costs, fast, fast_assign, host_assign

RULES = pytest.mark.parametrize("rule", [RULE_0_3_0, RULE_MAIN], ids=["0.3.0", "main"])
# The script that compares 10,000 images: its random images and its comparison serve here as well.
bench = load_script("benchmarks/assign_equality")


@pytest.fixture(scope="module")
def head() -> Any:
    return YOLOXHead(80, width=0.125)


@pytest.fixture(scope="module")
def host(head: Any) -> Rule:
    return bench.host_rule(head)


def anchors(height: int, width: int) -> dict[str, Tensor]:
    x, y, stride = [], [], []
    for s in (8, 16, 32):
        rows, columns = torch.meshgrid(torch.arange(height // s), torch.arange(width // s), indexing="ij")
        x.append(columns.flatten())
        y.append(rows.flatten())
        stride.append(torch.full_like(x[-1], s))
    names = ("x_shifts", "y_shifts", "expanded_strides")
    return {name: torch.cat(parts).float().unsqueeze(0) for name, parts in zip(names, (x, y, stride), strict=True)}


def scene(boxes: list[list[list[float]]], size: int = 96, classes: int = 3, noise: float = 0.3) -> dict[str, Tensor]:
    """Images with the given rows of (class, cx, cy, w, h) and, for the predictions, a network at its start."""
    generator = torch.Generator().manual_seed(5)
    grid = anchors(size, size)
    stride = grid["expanded_strides"][0, :, None]
    number = len(stride)
    raw = torch.randn(len(boxes), number, 5 + classes, generator=generator) * noise
    shift = torch.stack([grid["x_shifts"][0], grid["y_shifts"][0]], 1)
    labels = torch.zeros(len(boxes), max(map(len, boxes), default=0), 5)
    for i, rows in enumerate(boxes):
        if rows:
            labels[i, : len(rows)] = torch.tensor(rows)
    return {
        "bbox_preds": torch.cat([(raw[..., :2] + shift) * stride, raw[..., 2:4].exp() * stride], 2),
        "obj_preds": raw[..., 4:5] - 4.6,
        "cls_preds": raw[..., 5:] - 4.6,
        "labels": labels,
        **grid,
    }


def dense(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Assignment:
    """`fast_assign` as it runs on an accelerator."""
    with monkeypatch.context() as patch:
        patch.setattr(fast, "find_levels", lambda scene: None)
        return fast_assign(**arguments)


# ---- against the host
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(0, 300, 25))
def test_equals_the_host_on_random_images(head: Any, host: Rule, seed: int) -> None:
    # 300 images here; benchmarks/assign_equality.py does 10,000
    results = {i: bench.compare(head, bench.random_scene(i), host) for i in range(seed, seed + 25)}
    assert set(results.values()) <= {"equal", "refused"}, {i: r for i, r in results.items() if r == "mismatch"}
    assert list(results.values()).count("equal") >= 20  # the host refuses an image now and then, not often


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_equals_the_host_on_batches(head: Any, host: Rule, seed: int) -> None:
    # images with different numbers of boxes, and one without any
    batch = bench.random_scene(seed, images=4)
    batch["labels"][2] = 0
    assert bench.compare(head, batch, host) == "equal"


def test_many_classes_equal_the_host(head: Any, host: Rule) -> None:
    # 1,203 classes (LVIS), most of them saturated at most anchors: there, honest costs exceed the penalty of 0.3.0
    generator = torch.Generator().manual_seed(2)
    batch = scene([[[c, 16 + 9 * c, 48, 30, 40] for c in range(8)]], classes=1203)
    number = batch["x_shifts"].shape[1]
    share = 0.85 + 0.15 * torch.rand(number, 1, generator=generator)
    share[::16] = 0
    batch["cls_preds"] += 40 * (torch.rand(number, 1203, generator=generator) < share)
    batch["obj_preds"] += 40
    assert bench.compare(head, batch, host) == "equal"


@pytest.mark.parametrize("noise", [0.3, 0.0], ids=["untrained", "constant"])
def test_boxes_between_the_anchors_equal_the_host(head: Any, host: Rule, noise: float) -> None:
    # No anchor lies in these boxes, so every pair pays the penalty of 0.3.0, whose size swallows the digits: the
    # answer depends on which of many equal costs is taken.
    boxes = [[i % 3, 8.0 * (i % 11) + 8, 8.0 * (i // 11) + 16, 3, 2 + i % 4] for i in range(60)]
    assert bench.compare(head, scene([boxes], noise=noise), host) == "equal"


def test_equal_boxes_equal_the_host(head: Any, host: Rule) -> None:
    # the same box four times, of one class and of two; and constant predictions, where mirrored anchors cost the same
    boxes = [[c, 48, 48, 40, 40] for c in (0, 0, 1, 1)] + [[2, 20, 70, 16, 16]] * 3
    for noise in (0.3, 0.0):
        assert bench.compare(head, scene([boxes], noise=noise), host) == "equal"


@pytest.mark.parametrize("seed", [2721, 2827])
def test_rest_of_a_vector_equals_the_host(head: Any, host: Rule, seed: int) -> None:
    # equal boxes whose costs came out unequal when one was computed with a vectorised logarithm and one without
    assert bench.compare(head, bench.random_scene(seed), host) == "equal"


@pytest.mark.parametrize("seed", range(2000, 2040))
def test_rounding_never_decides(head: Any, host: Rule, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand times the error that the quick costs are allowed: the second look must still find the host's answer.
    quick = costs.PairCosts.quick
    generator = torch.Generator().manual_seed(seed)

    def blurred(*arguments: Any) -> tuple[Tensor, Tensor]:
        cost, doubt = quick(*arguments)
        doubt = 1000 * doubt
        return cost + doubt * (1.8 * torch.rand(doubt.shape, generator=generator) - 0.9), doubt

    monkeypatch.setattr(costs.PairCosts, "quick", blurred)
    batch = bench.random_scene(seed)
    if batch["labels"].shape[1] * batch["x_shifts"].shape[1] > 40_000:
        batch["labels"][:, 20:] = 0
    assert bench.compare(head, batch, host) in ("equal", "refused")


@RULES
def test_of_equal_boxes_the_first_owns_the_anchors(rule: Rule) -> None:
    found = fast_assign(**scene([[[1, 48, 48, 40, 40]] * 3]), rule=rule)
    assert found.num_fg > 0
    assert found.matched_gt.unique().tolist() == [0]


# ---- against the rule in scalars
def test_the_rules_of_the_known_hosts() -> None:
    assert Rule(radius=2.5, in_box=True, penalty=1e5) == RULE_0_3_0
    assert Rule(radius=1.5, in_box=False, penalty=1e6) == RULE_MAIN


def slow_assign(rule: Rule, batch: dict[str, Tensor], i: int) -> tuple[dict[int, int], float]:
    """The rule for image i in plain Python and double precision.

    Returns:
        Which box each foreground anchor gets, and the smallest distance between two numbers that decided something.
    """
    pred = batch["bbox_preds"][i].tolist()
    obj = batch["obj_preds"][i].flatten().tolist()
    cls = batch["cls_preds"][i].tolist()
    gts = [row for row in batch["labels"][i].tolist() if sum(row) > 0]
    place = list(zip(*(batch[k][0].tolist() for k in ("x_shifts", "y_shifts", "expanded_strides")), strict=True))

    def allowed(gt: list[float], anchor: int) -> tuple[bool, bool]:
        x, y, stride = place[anchor]
        dx, dy = abs((x + 0.5) * stride - gt[1]), abs((y + 0.5) * stride - gt[2])
        return max(dx, dy) < rule.radius * stride, dx < gt[3] / 2 and dy < gt[4] / 2

    def overlap(gt: list[float], anchor: int) -> float:
        cx, cy, w, h = pred[anchor]
        across = min(cx + w / 2, gt[1] + gt[3] / 2) - max(cx - w / 2, gt[1] - gt[3] / 2)
        down = min(cy + h / 2, gt[2] + gt[4] / 2) - max(cy - h / 2, gt[2] - gt[4] / 2)
        inter = max(across, 0.0) * max(down, 0.0)
        return inter / (w * h + gt[3] * gt[4] - inter)

    def price(gt: list[float], anchor: int) -> float:
        total = 0.0
        for c, logit in enumerate(cls[anchor]):
            p = math.sqrt(1 / (1 + math.exp(-logit)) / (1 + math.exp(-obj[anchor])))
            total -= math.log(p) if c == gt[0] else math.log(1 - p)
        near, inside = allowed(gt, anchor)
        free = near and inside if rule.in_box else near
        return total - 3 * math.log(overlap(gt, anchor) + 1e-8) + (0 if free else rule.penalty)

    def candidate(anchor: int) -> bool:
        tests = [allowed(gt, anchor) for gt in gts]
        return any(near or (inside and rule.in_box) for near, inside in tests)

    candidates = [a for a in range(len(pred)) if candidate(a)]
    claims: dict[int, list[int]] = {}
    margin = math.inf
    for g, gt in enumerate(gts):
        total = sum(sorted((overlap(gt, a) for a in candidates), reverse=True)[:10])
        margin = min(margin, abs(total - max(1, round(total))))
        k = max(1, int(total))
        ranked = sorted(candidates, key=lambda a: price(gt, a))
        if len(ranked) > k:
            margin = min(margin, price(gt, ranked[k]) - price(gt, ranked[k - 1]))
        for a in ranked[:k]:
            claims.setdefault(a, []).append(g)
    owners = {}
    for a, who in claims.items():
        owners[a] = who[0]
        if len(who) > 1:
            prices = sorted((price(gt, a), g) for g, gt in enumerate(gts))
            owners[a] = prices[0][1]
            margin = min(margin, prices[1][0] - prices[0][0])
    return owners, margin


@RULES
@pytest.mark.parametrize("way", ["sparse", "dense"])
def test_equals_the_rule_in_scalars(rule: Rule, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(11)
    boxes = []
    for i in range(8):
        rows = torch.rand(1 + i, 5, generator=generator) * torch.tensor([3.0, 96, 64, 60, 30])
        rows[:, 0].floor_()
        rows[:, 3:] += 12
        boxes.append(rows.tolist())
    batch = scene(boxes)
    # predictions that overlap the boxes well, so that k varies
    for i, rows in enumerate(boxes):
        goal = torch.tensor(rows)[torch.arange(batch["bbox_preds"].shape[1]) % len(rows)]
        batch["bbox_preds"][i, ::2] = (goal[:, 1:] * (0.85 + 0.3 * torch.rand(goal[:, 1:].shape, generator=generator)))[
            ::2
        ]
    found = fast_assign(**batch, rule=rule) if way == "sparse" else dense(monkeypatch, **batch, rule=rule)
    compared = 0
    for i in range(len(boxes)):
        owners, margin = slow_assign(rule, batch, i)
        if margin < 1e-4:  # fp32 may decide otherwise
            continue
        compared += 1
        mine = found.image == i
        where = found.fg_mask.view(len(boxes), -1)[i].nonzero().squeeze(1)
        assert dict(zip(where.tolist(), found.matched_gt[mine].tolist(), strict=True)) == owners
    assert compared >= 6
    assert found.matched_gt.max() >= 4  # the scenes are not trivial


@RULES
def test_a_box_without_an_anchor_of_its_own_pays_the_penalty(rule: Rule) -> None:
    # The first box lies far outside: the only candidates are those of the second one, which wins the shared anchors.
    batch = scene([[[0, 400, 400, 20, 20], [1, 48, 48, 30, 30]]], noise=3.0)
    owners, margin = slow_assign(rule, batch, 0)
    assert margin > 0.2  # at 1e6 the numbers of fp32 are 1/16 apart
    found = fast_assign(**batch, rule=rule)
    assert dict(zip(found.fg_mask.nonzero().squeeze(1).tolist(), found.matched_gt.tolist(), strict=True)) == owners


# ---- the result
@RULES
def test_fields_agree_with_each_other(rule: Rule) -> None:
    batch = scene([[[2, 30, 30, 20, 40]], [], [[0, 60, 60, 50, 20], [1, 20, 70, 20, 20]]])
    found = fast_assign(**batch, rule=rule)
    where = found.fg_mask.nonzero().squeeze(1)
    number = batch["bbox_preds"].shape[1]
    assert (found.num_fg, found.num_gt) == (len(where), 3)
    assert found.fg_mask.shape == (3 * number,)
    assert torch.equal(found.image, where // number)
    assert found.image.unique().tolist() == [0, 2]
    rows = batch["labels"][found.image, found.matched_gt]
    assert torch.equal(found.classes, rows[:, 0].long())
    assert torch.equal(found.boxes, rows[:, 1:])
    assert found.ious.shape == (found.num_fg,)
    assert ((found.ious >= 0) & (found.ious <= 1)).all() and found.ious.max() > 0.1
    assert [t.dtype for t in (found.image, found.matched_gt, found.classes)] == [torch.int64] * 3
    assert not found.ious.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    batch = scene([[[2, 30, 30, 20, 40], [0, 60, 60, 50, 20]]])
    half = {name: value.to(dtype) for name, value in batch.items()}
    found = fast_assign(**half, rule=RULE_0_3_0)
    upcast = fast_assign(**{name: value.float() for name, value in half.items()}, rule=RULE_0_3_0)
    assert found.ious.dtype == found.boxes.dtype == torch.float32
    assert bench.same(found, upcast)


def test_double_precision_stays() -> None:
    batch = scene([[[2, 30, 30, 20, 40], [0, 60, 60, 50, 20]]])
    found = fast_assign(**{name: value.double() for name, value in batch.items()}, rule=RULE_0_3_0)
    single = fast_assign(**batch, rule=RULE_0_3_0)
    assert found.ious.dtype == torch.float64
    assert torch.equal(found.fg_mask, single.fg_mask)
    torch.testing.assert_close(found.ious, single.ious.double(), rtol=1e-5, atol=1e-6)


def test_autocast_and_grad_do_not_matter() -> None:
    batch = scene([[[2, 30, 30, 20, 40], [0, 60, 60, 50, 20]]])
    plain = fast_assign(**batch, rule=RULE_0_3_0)
    batch["bbox_preds"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fast_assign(**batch, rule=RULE_0_3_0)
    assert bench.same(found, plain) and not found.ious.requires_grad


def test_inputs_are_left_alone() -> None:
    batch = scene([[[2, 30, 30, 20, 40], [0, 60, 60, 50, 20]] * 3])
    before = {name: value.clone() for name, value in batch.items()}
    fast_assign(**batch, rule=RULE_0_3_0)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


# ---- the way of the accelerators
@RULES
@pytest.mark.parametrize("seed", range(10))
def test_dense_equals_sparse(rule: Rule, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # untrained and wild predictions, where no two costs are alike: of ties, the dense way may take another
    generator = torch.Generator().manual_seed(seed)
    images = []
    for number in (1, 0, 4, 25):
        rows = torch.rand(number, 5, generator=generator) * torch.tensor([3.0, 160, 160, 100, 100])
        rows[:, 0].floor_()
        rows[:, 3:] += 16
        images.append(rows.tolist())
    batch = scene(images, size=160, noise=0.3 + seed / 5)
    sparse = fast_assign(**batch, rule=rule)
    assert sparse.num_fg >= 20
    assert bench.same(sparse, dense(monkeypatch, **batch, rule=rule))


@RULES
def test_a_small_memory_budget_gives_the_same(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = scene([[[i % 3, 20 + 9 * i, 50, 30, 24] for i in range(n)] for n in (5, 0, 7, 1)])
    whole = dense(monkeypatch, **batch, rule=rule)
    assert whole.num_fg >= 10
    assert bench.same(whole, dense(monkeypatch, **batch, rule=rule, memory_budget=1))


@RULES
def test_anchors_in_any_order(rule: Rule) -> None:
    # no grid of rows and columns to rely on
    batch = scene([[[i % 3, 20 + 9 * i, 50, 30, 24] for i in range(6)]])
    expected = fast_assign(**batch, rule=rule)
    order = torch.randperm(batch["x_shifts"].shape[1], generator=torch.Generator().manual_seed(1))
    mixed = {name: value if name == "labels" else value[:, order] for name, value in batch.items()}
    found = fast_assign(**mixed, rule=rule)
    assert torch.equal(found.fg_mask, expected.fg_mask[order])
    owner = torch.full((len(order),), -1)
    owner[expected.fg_mask] = expected.matched_gt
    assert torch.equal(found.matched_gt, owner[order][found.fg_mask])


# ---- the awkward
@RULES
@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize(
    "boxes",
    [
        [],  # no image
        [[], []],  # no room for a label
        [[[0.0, 0, 0, 0, 0]]],  # room, but no label
        [[[0, 5000, 5000, 10, 10]]],  # no anchor anywhere near: the hosts stop with an error
        [[], [[0, 5000, 5000, 10, 10]]],
    ],
)
def test_nothing_to_match(rule: Rule, way: str, boxes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = scene(boxes)
    found = fast_assign(**batch, rule=rule) if way == "sparse" else dense(monkeypatch, **batch, rule=rule)
    assert found.fg_mask.shape == (batch["bbox_preds"].shape[0] * batch["bbox_preds"].shape[1],)
    assert not found.fg_mask.any()
    assert found.num_fg == len(found.image) == len(found.ious) == 0
    assert found.boxes.shape == (0, 4)


AWKWARD = {
    "boxes without area": lambda batch: batch["labels"][..., 3:].zero_(),
    "predictions without area": lambda batch: batch["bbox_preds"][..., 2:].zero_(),
    "neither has area": lambda batch: (batch["labels"][..., 3:].zero_(), batch["bbox_preds"][..., 2:].zero_()),
    "infinite predictions": lambda batch: batch["bbox_preds"][:, ::2, 2:].fill_(math.inf),
    "nan predictions": lambda batch: batch["bbox_preds"].fill_(math.nan),
    "nan logits": lambda batch: batch["cls_preds"][:, ::3].fill_(math.nan),
    "huge logits": lambda batch: (batch["cls_preds"].mul_(1e6), batch["obj_preds"].mul_(-1e6)),
    "centres outside": lambda batch: batch["labels"][..., 1:3].add_(70),
}


@RULES
@pytest.mark.parametrize("way", ["sparse", "dense"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_input_gives_finite_output(rule: Rule, way: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = scene([[[i % 3, 20 + 9 * i, 50, 30, 24] for i in range(6)], [[1, 40, 40, 40, 40]]])
    AWKWARD[name](batch)
    found = fast_assign(**batch, rule=rule) if way == "sparse" else dense(monkeypatch, **batch, rule=rule)
    assert found.num_fg == int(found.fg_mask.sum()) >= (0 if name == "nan logits" else 1)
    assert found.ious.isfinite().all() and found.boxes.isfinite().all()


def test_a_class_that_the_head_lacks_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"image \d+ of the batch hold class 3 in row \d+; the head has the classes 0 to 2"
    ):
        fast_assign(**scene([[[3, 48, 48, 20, 20]]]), rule=RULE_MAIN)


# ---- the host's own assigner
class Host:
    """Stands in for a head: gives every box the anchor of its index, and notes how it was called."""

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.calls: list[dict[str, Any]] = []

    def answer(self, **arguments: Any) -> tuple[Any, ...]:
        self.calls.append(arguments)
        if self.error and arguments["mode"] == "gpu":
            raise RuntimeError(self.error)
        classes = arguments["gt_classes"]
        mask = torch.zeros(arguments["bboxes_preds_per_image"].shape[0], dtype=torch.bool)
        mask[: len(classes)] = True
        return classes, mask, torch.full_like(classes, 0.5), torch.arange(len(classes)), len(classes)


class HostMain(Host):
    # the parameters of main, in an order of its own
    def get_assignments(
        self, obj_preds, cls_preds, y_shifts, x_shifts, expanded_strides, bboxes_preds_per_image, gt_classes,
        gt_bboxes_per_image, num_gt, batch_idx, mode="gpu",
    ):  # fmt: skip
        return self.answer(**{k: v for k, v in locals().items() if k != "self"})


class HostUnknown(Host):
    def get_assignments(self, batch_idx, gt_classes, soft_labels):
        raise AssertionError("never called")


def test_host_arguments_are_bound_by_name() -> None:
    batch = scene([[[2, 30, 30, 20, 40], [1, 60, 60, 30, 30]], [], [[0, 60, 60, 50, 20]]])
    fork = HostMain()
    found = host_assign(fork, **batch)
    assert [call["batch_idx"] for call in fork.calls] == [0, 2]
    call = fork.calls[0]
    assert call["num_gt"] == 2 and call["mode"] == "gpu"
    assert torch.equal(call["gt_bboxes_per_image"], batch["labels"][0, :2, 1:])
    assert torch.equal(call["gt_classes"], batch["labels"][0, :2, 0])
    assert torch.equal(call["bboxes_preds_per_image"], batch["bbox_preds"][0])
    for name in ("obj_preds", "cls_preds", "x_shifts", "y_shifts", "expanded_strides"):
        assert torch.equal(call[name], batch[name])
    number = batch["bbox_preds"].shape[1]
    assert found.fg_mask.nonzero().squeeze(1).tolist() == [0, 1, 2 * number]
    assert found.image.tolist() == [0, 0, 2] and found.matched_gt.tolist() == [0, 1, 0]
    assert found.classes.tolist() == [2, 1, 0] and found.classes.dtype == torch.int64
    assert torch.equal(found.boxes, batch["labels"][found.image, found.matched_gt, 1:])
    assert (found.num_fg, found.num_gt) == (3, 3)


def test_host_without_any_box() -> None:
    found = host_assign(HostMain(), **scene([[], []]))
    assert (found.num_fg, found.num_gt, int(found.fg_mask.sum())) == (0, 0, 0)
    assert found.boxes.shape == (0, 4)


def test_an_unknown_parameter_of_the_host_is_named() -> None:
    with pytest.raises(TypeError, match="soft_labels"):
        host_assign(HostUnknown(), **scene([[[2, 30, 30, 20, 40]]]))


def test_out_of_memory_is_done_again_on_the_cpu() -> None:
    fork = HostMain("CUDA out of memory. Tried to allocate 20.00 GiB")
    found = host_assign(fork, **scene([[[2, 30, 30, 20, 40]]]))
    assert [call["mode"] for call in fork.calls] == ["gpu", "cpu"]
    assert found.num_fg == 1


def test_another_error_of_the_host_is_not_swallowed() -> None:
    fork = HostMain("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        host_assign(fork, **scene([[[2, 30, 30, 20, 40]]]))
    assert len(fork.calls) == 1
