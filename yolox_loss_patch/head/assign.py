"""Label assignment: which anchor learns which ground-truth box.

YOLOX's assigner (SimOTA) gives each ground-truth box the k anchors that are cheapest for it, where k is the sum of
its ten highest IoUs. `host_assign` asks the host's own `get_assignments`, image by image. `fast_assign` gives the same
answer for the rule of a known host without a [boxes, candidates, classes] tensor.

Three facts make the fast way exact and cheap:

* The class cost of a (box, candidate) pair is a sum of -log(1 - p) over all classes, the same for every box, with one
  term replaced. So one sum a candidate and one look-up a pair suffice.
* A pair outside the rule's geometry pays a penalty larger than any honest cost. As long as a box has k pairs without
  penalty, nobody else matters, and these lie in a small window of the anchor grid around the box's centre.
* Only the IoUs are needed for every box and every candidate, because k counts predictions wherever they come from.

The sums are rounded in another order than the host's, so costs differ in their last bits. Where that could decide a
match, the pairs in question are computed again with the host's formula, term by term.

Exact ties, on the CPU: the k cheapest are those that `torch.topk` takes from the whole row of candidates, and an anchor
claimed by several boxes goes to the cheapest, among equals to the one that comes first in the labels: stock's answer.
On other devices the last step is the same, the first is whatever `torch.topk` takes there (true of stock as well).
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

TOP_IOUS = 10  # SimOTA's k is the sum of so many of the highest IoUs, and therefore at most this
IOU_WEIGHT = 3.0
EPS = 1e-8
LOG_FLOOR = -100.0  # F.binary_cross_entropy never lets a logarithm go below
DEFAULT_MEMORY_BUDGET = 256 * 1024**2
VECTOR = 64  # elements, a multiple of every CPU's vector length
SERIAL = 32768  # element-wise operations on fewer elements than that run in one thread
CACHE_BYTES = 512 * 1024  # on a CPU, element-wise steps are fastest on pieces that stay in each thread's cache


@dataclass
class Assignment:
    """The matches of a batch of B images with A anchors each, ordered by image, then by anchor.

    Attributes:
        fg_mask: (B * A,) bool, True where the anchor learns a box.
        image: (num_fg,) int64, the image's index in the batch.
        matched_gt: (num_fg,) int64, the box's index within the labels of its image.
        classes: (num_fg,) int64, the box's class.
        ious: (num_fg,) IoU of the prediction with the box, in [0, 1].
        boxes: (num_fg, 4) the box, (cx, cy, w, h) in pixels.
        num_fg: how many anchors learn a box.
        num_gt: how many boxes the batch has.
    """

    fg_mask: Tensor
    image: Tensor
    matched_gt: Tensor
    classes: Tensor
    ious: Tensor
    boxes: Tensor
    num_fg: int
    num_gt: int


@dataclass(frozen=True)
class Rule:
    """What differs between the assigners of the known hosts.

    Attributes:
        radius: an anchor is near a box when their centres are less than this many strides apart, in x and in y.
        in_box: True: an anchor whose centre lies in any box is a candidate too, and a pair goes without penalty when
            the anchor is both near the box and in it. False: near decides both.
        penalty: added to the cost of every other pair.
    """

    radius: float
    in_box: bool
    penalty: float


RULE_0_3_0 = Rule(radius=2.5, in_box=True, penalty=1e5)
RULE_MAIN = Rule(radius=1.5, in_box=False, penalty=1e6)


# ---- the host's own assigner
def host_assign(
    head: Any,
    *,
    bbox_preds: Tensor,
    obj_preds: Tensor,
    cls_preds: Tensor,
    labels: Tensor,
    x_shifts: Tensor,
    y_shifts: Tensor,
    expanded_strides: Tensor,
    imgs: Tensor | None = None,
) -> Assignment:
    """Assign with the `get_assignments` of the host's head, image by image, as stock does.

    Arguments are bound by parameter name: 0.3.0 takes four more than main, and a fork may have an order of its own.
    When the device runs out of memory the image is done again in the host's "cpu" mode.

    Args:
        head: a YOLOX head, or anything with a `get_assignments` of either known signature.
        bbox_preds: (B, A, 4) decoded predictions, (cx, cy, w, h) in pixels.
        obj_preds: (B, A, 1) objectness logits.
        cls_preds: (B, A, C) class logits.
        labels: (B, M, 5) rows of (class, cx, cy, w, h), zero rows below the last box.
        x_shifts, y_shifts: (1, A) column and row of each anchor in its feature map.
        expanded_strides: (1, A) stride of each anchor in pixels.
        imgs: (B, 3, H, W) the images; the known hosts ignore them.

    Raises:
        TypeError: the host's `get_assignments` wants an argument that is not known here.
        RuntimeError, IndexError: the host's own, for instance where no anchor is near any box.
    """
    anchors = bbox_preds.shape[1]
    parameters = inspect.signature(head.get_assignments).parameters
    counts = _boxes_per_image(labels).tolist()
    masks, images, matched, classes, ious, boxes = [], [], [], [], [], []
    for index, num_gt in enumerate(counts):
        if num_gt == 0:
            masks.append(torch.zeros(anchors, dtype=torch.bool, device=bbox_preds.device))
            continue
        offered = {
            "batch_idx": index,
            "num_gt": num_gt,
            "total_num_anchors": anchors,
            "gt_bboxes_per_image": labels[index, :num_gt, 1:5],
            "gt_classes": labels[index, :num_gt, 0],
            "bboxes_preds_per_image": bbox_preds[index],
            "expanded_strides": expanded_strides,
            "x_shifts": x_shifts,
            "y_shifts": y_shifts,
            "cls_preds": cls_preds,
            "bbox_preds": bbox_preds,
            "obj_preds": obj_preds,
            "labels": labels,
            "imgs": imgs,
        }
        arguments = _bind(parameters, offered)
        try:
            result = head.get_assignments(**arguments)
        except RuntimeError as error:
            # stock looks for this text; newer PyTorch says "CUDA out of memory." in the same place
            if "out of memory" not in str(error) or "mode" not in parameters:
                raise
            logger.error(
                "out of memory during label assignment of image %d with %d boxes: done again on the CPU, which is "
                "slow; loss_assign='fast', a smaller batch or smaller images avoid it",
                index,
                num_gt,
            )
            torch.cuda.empty_cache()
            result = head.get_assignments(**arguments, mode="cpu")
        gt_matched_classes, fg_mask, pred_ious, matched_gt, _ = result
        masks.append(fg_mask)
        images.append(torch.full_like(matched_gt, index))
        matched.append(matched_gt)
        classes.append(gt_matched_classes.to(torch.int64))
        ious.append(pred_ious)
        boxes.append(labels[index, :num_gt, 1:5][matched_gt])
    device = bbox_preds.device
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    ious = ious or [bbox_preds.new_zeros(0)]
    boxes = boxes or [labels.new_zeros(0, 4)]
    image = torch.cat(images or [empty])
    return Assignment(
        fg_mask=torch.cat(masks) if masks else empty.bool(),
        image=image,
        matched_gt=torch.cat(matched or [empty]),
        classes=torch.cat(classes or [empty]),
        ious=torch.cat(ious),
        boxes=torch.cat(boxes),
        num_fg=image.numel(),
        num_gt=sum(counts),
    )


def _bind(parameters: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Pick the offered arguments that a host's `get_assignments` names."""
    kinds = inspect.Parameter
    arguments = {}
    for name, parameter in parameters.items():
        if parameter.kind is kinds.VAR_KEYWORD:
            return offered
        if name in offered:
            arguments[name] = offered[name]
        elif parameter.default is kinds.empty and parameter.kind is not kinds.VAR_POSITIONAL:
            raise TypeError(
                f"the host's get_assignments wants '{name}', which no known YOLOX passes; known: {', '.join(offered)}"
            )
    return arguments


# ---- the fast way
@torch.no_grad()
def fast_assign(
    *,
    bbox_preds: Tensor,
    obj_preds: Tensor,
    cls_preds: Tensor,
    labels: Tensor,
    x_shifts: Tensor,
    y_shifts: Tensor,
    expanded_strides: Tensor,
    rule: Rule,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Assignment:
    """Assign the whole batch by a known host's rule: the host's answer in fp32 at a fraction of its time and memory.

    Half precision is computed in fp32, fp64 stays; autocast is off. A prediction that is not finite never matches by
    IoU. Where no anchor of an image is a candidate, its boxes match nothing (the hosts stop with an error there).

    Args:
        bbox_preds: (B, A, 4) decoded predictions, (cx, cy, w, h) in pixels.
        obj_preds: (B, A, 1) objectness logits.
        cls_preds: (B, A, C) class logits.
        labels: (B, M, 5) rows of (class, cx, cy, w, h), zero rows below the last box.
        x_shifts, y_shifts: (1, A) column and row of each anchor in its feature map.
        expanded_strides: (1, A) stride of each anchor in pixels.
        rule: the host's rule.
        memory_budget: bytes that the temporary tensors of an accelerator may take together, beyond the inputs and the
            result; a smaller one is slower. One image's [boxes, anchors] tensors are the least it can do with. A CPU
            never has such tensors and works in pieces of the size of its cache, whatever the budget.

    Returns:
        The matches; `ious` and `boxes` in fp32 (fp64 where the predictions are fp64).

    Raises:
        ValueError: on a CPU, the labels hold a class that the head has not.
    """
    with torch.autocast(device_type=bbox_preds.device.type, enabled=False):
        dtype = torch.float64 if bbox_preds.dtype == torch.float64 else torch.float32
        scene = _Scene(
            boxes=bbox_preds.detach().flatten(0, 1),
            obj=obj_preds.detach().flatten(),
            cls=cls_preds.detach().flatten(0, 1),
            labels=labels,
            x=x_shifts[0].to(dtype),
            y=y_shifts[0].to(dtype),
            stride=expanded_strides[0].to(dtype),
            rule=rule,
            dtype=dtype,
            batch=bbox_preds.shape[0],
            anchors=bbox_preds.shape[1],
            budget=memory_budget,
        )
        levels = _find_levels(scene) if bbox_preds.device.type == "cpu" else None
        if levels is None:
            return _assign_dense(scene)
        return _assign_sparse(scene, levels)


class _Scene(NamedTuple):
    """The inputs of an assignment. "flat" anchors count through the batch: image * A + anchor."""

    boxes: Tensor  # (B * A, 4) cx, cy, w, h in pixels
    obj: Tensor  # (B * A,) logits
    cls: Tensor  # (B * A, C) logits
    labels: Tensor  # (B, M, 5)
    x: Tensor  # (A,) column
    y: Tensor  # (A,) row
    stride: Tensor  # (A,) pixels
    rule: Rule
    dtype: torch.dtype
    batch: int
    anchors: int
    budget: int


class _Level(NamedTuple):
    """A feature map: anchors first .. first + height * width - 1 in rows."""

    first: int
    stride: float
    x: Tensor  # (width,) centres of the columns in pixels, ascending
    y: Tensor  # (height,) centres of the rows in pixels, ascending


class _Sides(NamedTuple):
    """Boxes by their sides in pixels, and their areas. Boxes that are not finite overlap nothing."""

    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor
    area: Tensor

    def at(self, index: Any) -> _Sides:
        return _Sides(*(side[index] for side in self))


def _boxes_per_image(labels: Tensor) -> Tensor:
    """(B,) how many boxes each image has: the host's own test."""
    return (labels.sum(dim=2) > 0).sum(dim=1)


def _cache_bytes() -> int:
    return CACHE_BYTES * torch.get_num_threads()


def _sides(boxes: Tensor) -> _Sides:
    """Sides of (..., 4) boxes in (cx, cy, w, h), operation by operation as the host's `bboxes_iou` takes them."""
    cx, cy, w, h = boxes.unbind(-1)
    inf = float("inf")
    return _Sides(
        (cx - w / 2).nan_to_num(inf, inf, -inf),
        (cy - h / 2).nan_to_num(inf, inf, -inf),
        (cx + w / 2).nan_to_num(-inf, inf, -inf),
        (cy + h / 2).nan_to_num(-inf, inf, -inf),
        # two boxes without any area would give 0 / 0
        (w * h).nan_to_num(inf, inf, -inf).clamp(min=torch.finfo(boxes.dtype).tiny),
    )


def _iou(a: _Sides, b: _Sides) -> Tensor:
    """IoU of boxes that broadcast, with the bits of the host's `bboxes_iou` (and 0 where that has 0 / 0)."""
    width = torch.minimum(a.right, b.right).sub_(torch.maximum(a.left, b.left)).clamp_(min=0)
    height = torch.minimum(a.bottom, b.bottom).sub_(torch.maximum(a.top, b.top)).clamp_(min=0)
    inter = width.mul_(height)
    return inter.div_(torch.add(a.area, b.area).sub_(inter))


def _prob(scene: _Scene, flat: Tensor) -> Tensor:
    """(n, C) sqrt(class * objectness) of flat anchors."""
    prob = scene.cls.index_select(0, flat).to(scene.dtype).sigmoid_()
    return prob.mul_(scene.obj.index_select(0, flat).to(scene.dtype).sigmoid_().unsqueeze(1)).sqrt_()


def _log_not(prob: Tensor) -> Tensor:
    """log(1 - p) with the floor of F.binary_cross_entropy; the argument is overwritten."""
    return prob.neg_().log1p_().clamp_(min=LOG_FLOOR)


# ---- the CPU: work where the boxes are, and only there
def _find_levels(scene: _Scene) -> list[_Level] | None:
    """The feature maps behind the anchors, or None where these are not full grids row by row."""
    strides, counts = scene.stride.unique_consecutive(return_counts=True)
    levels = []
    first = 0
    for stride, count in zip(strides.tolist(), counts.tolist(), strict=True):
        x, y = scene.x[first : first + count], scene.y[first : first + count]
        width = int((y == y[0]).sum())
        if count % width:
            return None
        x, y = x.view(-1, width), y.view(-1, width)
        whole = bool((x == torch.arange(width)).all()) and bool((y == torch.arange(len(y))[:, None]).all())
        if not whole:
            return None
        levels.append(_Level(first, stride, x[0] * stride + 0.5 * stride, y[:, 0] * stride + 0.5 * stride))
        first += count
    return levels


def _assign_sparse(scene: _Scene, levels: list[_Level]) -> Assignment:
    rule, anchors = scene.rule, scene.anchors
    counts = _boxes_per_image(scene.labels)
    starts = [0, *counts.cumsum(0).tolist()]  # rows of image i: starts[i] .. starts[i + 1] - 1
    image = torch.repeat_interleave(counts)
    slot = torch.arange(starts[-1]) - torch.tensor(starts)[image]
    gts = scene.labels[image, slot]
    classes, boxes = gts[:, 0].to(torch.int64), gts[:, 1:5].to(scene.dtype)
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < scene.cls.shape[1]:
        raise ValueError(f"the labels hold class {int(classes.max())}, the head has {scene.cls.shape[1]} classes")
    truth = _Truth(image, slot, classes, boxes, _sides(boxes), starts)

    candidates, pairs, per_row = _geometry(scene, levels, truth)
    flat = candidates.nonzero().squeeze(1)  # (K,) flat candidates
    bounds = [0, *candidates.view(scene.batch, anchors).sum(1).cumsum(0).tolist()]
    pred = _sides(scene.boxes.index_select(0, flat).to(scene.dtype))
    k = _dynamic_k(truth, pred, bounds)

    # costs of the pairs without penalty, laid out as one row a box
    costs = _Costs(scene, truth)
    cost, doubt = costs.of_pairs(pairs.row, pairs.anchor)
    width = max(int(per_row.max()) if len(k) else 0, TOP_IOUS + 1)
    place = pairs.row * width + pairs.column
    table = cost.new_full((len(k), width), float("inf"))
    table.view(-1)[place] = cost
    anchor_table = place.new_zeros(len(k), width)
    anchor_table.view(-1)[place] = pairs.anchor
    best, order = table.topk(TOP_IOUS + 1, largest=False)
    order = anchor_table.gather(1, order)
    taken = torch.arange(TOP_IOUS + 1) < k[:, None]
    last, following = best.gather(1, (k - 1).clamp(min=0)[:, None]), best.gather(1, k[:, None])
    doubt_row = cost.new_zeros(len(k)).scatter_reduce_(0, pairs.row, doubt, "amax")
    # a row is hard if pairs with a penalty come in, or if rounding or a tie decides about the last one
    last, following = last.squeeze(1), following.squeeze(1)
    sure = (last + doubt_row < rule.penalty) & (following - last > 2 * doubt_row) | (k == 0)
    hard = (~sure).nonzero().squeeze(1)
    matched_row, matched_anchor = [], []
    if len(hard):
        taken[hard] = False
        free = [anchor_table[r, :number] for r, number in zip(hard.tolist(), per_row[hard].tolist(), strict=True)]
        more = costs.of_hard_rows(hard, k, flat, bounds, pred, free)
        matched_row, matched_anchor = [more[0]], [more[1]]
    matched_row.append(taken.nonzero()[:, 0])
    matched_anchor.append(order[taken])

    owner = _settle(scene, truth, costs, torch.cat(matched_row), torch.cat(matched_anchor), pairs, cost, doubt)
    fg_mask = owner >= 0
    fg = fg_mask.nonzero().squeeze(1)
    won = owner[fg]
    return Assignment(
        fg_mask=fg_mask,
        image=image[won],
        matched_gt=slot[won],
        classes=classes[won],
        ious=_iou(truth.sides.at(won), _sides(scene.boxes.index_select(0, fg).to(scene.dtype))),
        boxes=boxes[won],
        num_fg=len(fg),
        num_gt=starts[-1],
    )


class _Truth(NamedTuple):
    """The boxes of all images in one list of N rows, image after image."""

    image: Tensor  # (N,)
    slot: Tensor  # (N,) index within the image
    classes: Tensor  # (N,)
    boxes: Tensor  # (N, 4)
    sides: _Sides
    starts: list[int]


def _geometry(scene: _Scene, levels: list[_Level], truth: _Truth) -> tuple[Tensor, _Pairs, Tensor]:
    """Where the anchors lie: (B * A,) mask of candidates, the pairs without penalty, and (N,) their number a box.

    In a grid, "the anchor's centre is strictly between l and r" holds for
    a run of columns, which a binary search finds with the very comparisons of the host, so nothing of size
    [boxes, anchors] is needed. The candidates of a level are a union of rectangles: a 2-d prefix sum of their corners.
    """
    rule, batch = scene.rule, scene.batch
    cx, cy, w, h = truth.boxes.unbind(1)
    masks, rows, anchors, columns = [], [], [], []
    per_row = torch.zeros_like(truth.image)
    for level in levels:
        reach = rule.radius * level.stride
        near = _Window(*_run(level.x, cx - reach, cx + reach), *_run(level.y, cy - reach, cy + reach))
        windows = [near]
        if rule.in_box:
            inside = _Window(*_run(level.x, cx - 0.5 * w, cx + 0.5 * w), *_run(level.y, cy - 0.5 * h, cy + 0.5 * h))
            windows.append(inside)
        height, width = len(level.y), len(level.x)
        corners = torch.zeros(batch, height + 1, width + 1, dtype=torch.int32)
        line, size = width + 1, (height + 1) * (width + 1)
        for window in windows:
            base = truth.image * size
            some = ((window.x1 > window.x0) & (window.y1 > window.y0)).to(torch.int32)
            for y, x, sign in (
                (window.y0, window.x0, 1),
                (window.y0, window.x1, -1),
                (window.y1, window.x0, -1),
                (window.y1, window.x1, 1),
            ):
                corners.view(-1).index_add_(0, base + y * line + x, some, alpha=sign)
        covered = corners.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)[:, :height, :width] > 0
        masks.append(covered.flatten(1))

        x0, x1, y0, y1 = near
        if rule.in_box:
            x0, x1 = torch.maximum(x0, inside.x0), torch.minimum(x1, inside.x1)
            y0, y1 = torch.maximum(y0, inside.y0), torch.minimum(y1, inside.y1)
        across, down = (x1 - x0).clamp(min=0), (y1 - y0).clamp(min=0)
        number = across * down
        row = torch.repeat_interleave(number)
        step = torch.arange(len(row)) - (number.cumsum(0) - number)[row]
        breadth = across[row]
        y = torch.div(step, breadth, rounding_mode="floor")
        first = truth.image * scene.anchors + level.first + y0 * width + x0
        rows.append(row)
        anchors.append(first[row] + y * (width - breadth) + step)  # x = step - y * breadth
        columns.append(per_row[row] + step)
        per_row += number
    return torch.cat(masks, 1).flatten(), _Pairs(torch.cat(rows), torch.cat(anchors), torch.cat(columns)), per_row


class _Pairs(NamedTuple):
    """Pairs of a box and an anchor that go without penalty, in no particular order."""

    row: Tensor  # (P,) the box
    anchor: Tensor  # (P,) flat
    column: Tensor  # (P,) how many pairs of the same box come before this one


class _Window(NamedTuple):
    """Columns x0 .. x1 - 1 and rows y0 .. y1 - 1, one window a box."""

    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor


def _run(centres: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the ascending centres strictly between low and high."""
    return torch.searchsorted(centres, low, right=True), torch.searchsorted(centres, high)


def _dynamic_k(truth: _Truth, pred: _Sides, bounds: list[int]) -> Tensor:
    """(N,) how many anchors each box gets: the sum of its ten highest IoUs over all candidates, at least 1."""
    total = len(truth.image)
    top = pred.area.new_zeros(total, TOP_IOUS)
    limit = truth.image.new_zeros(total)
    for i in range(len(bounds) - 1):
        candidates = bounds[i + 1] - bounds[i]
        if not candidates:
            continue
        mine = pred.at(slice(bounds[i], bounds[i + 1]))
        block = max(1, _cache_bytes() // (candidates * pred.area.element_size()))
        for begin in range(truth.starts[i], truth.starts[i + 1], block):
            end = min(begin + block, truth.starts[i + 1])
            iou = _iou(truth.sides.at((slice(begin, end), None)), mine)
            best = min(TOP_IOUS, candidates)
            top[begin:end, :best] = iou.topk(best, dim=1).values
            limit[begin:end] = best
    return top.sum(1).to(torch.int64).clamp(min=1, max=TOP_IOUS).minimum(limit)


class _Costs:
    """Costs of (box, anchor) pairs, quick with a bound of the rounding error, or exactly as the host has them."""

    def __init__(self, scene: _Scene, truth: _Truth) -> None:
        self.scene = scene
        self.truth = truth
        # sum over classes of -log(1 - p), filled where needed
        self.sums = torch.zeros(scene.batch * scene.anchors, dtype=scene.dtype)
        self.known = torch.zeros(scene.batch * scene.anchors, dtype=torch.bool)

    def fill(self, wanted: Tensor) -> None:
        """Make the class sums of the anchors in a (B * A,) mask known."""
        missing = (wanted & ~self.known).nonzero().squeeze(1)
        classes = max(1, self.scene.cls.shape[1])
        for piece in missing.split(max(1, _cache_bytes() // (classes * self.sums.element_size()))):
            self.sums[piece] = _log_not(_prob(self.scene, piece)).sum(1).neg_()
        self.known |= wanted

    def of_pairs(self, row: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) costs without penalty of flat pairs, and (P,) how far each may be from the host's number."""
        wanted = torch.zeros_like(self.known)
        wanted[anchor] = True
        self.fill(wanted)
        pred = _sides(self.scene.boxes.index_select(0, anchor).to(self.scene.dtype))
        logit = self.scene.cls[anchor, self.truth.classes[row]]
        return self._quick(logit, anchor, _iou(self.truth.sides.at(row), pred))

    def _quick(self, logit: Tensor, anchor: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Costs and doubts of pairs from the logits of the boxes' classes; the sums are known, `iou` is overwritten."""
        scene = self.scene
        prob = logit.to(scene.dtype).sigmoid_()
        prob = prob.mul_(scene.obj.index_select(0, anchor).to(scene.dtype).sigmoid_()).sqrt_()
        sums = self.sums.index_select(0, anchor)
        cost = sums - prob.log().clamp_(min=LOG_FLOOR)
        cost += _log_not(prob)
        # The host adds the logarithms in another order; each is good to an ulp or so, and a sum of positive numbers
        # loses a few ulps. 32 is generous: it costs a second look at one pair in ten thousand.
        doubt = sums.add_(cost.abs()).add_(1.0).mul_(32)
        cost -= iou.add_(EPS).log_().mul_(IOU_WEIGHT)
        doubt.add_(cost.abs(), alpha=4).mul_(torch.finfo(scene.dtype).eps)
        return cost, doubt

    def exact(self, row: Tensor, anchor: Tensor, penalty: Tensor) -> Tensor:
        """(P,) costs with penalty, computed term by term as the host does.

        PyTorch's vectorised sigmoid and log differ in the last bit from the plain ones, which it uses for what is left
        over at the end of a tensor. In the host's large tensors that is next to nothing, in ours it could be all. So
        the pairs are padded to full vectors, in pieces too small to be divided among threads.
        """
        scene, truth = self.scene, self.truth
        classes = scene.cls.shape[1]
        total = len(row)
        if not total:
            return penalty
        padding = row.new_zeros(-total % VECTOR)
        row, anchor = torch.cat([row, row[padding]]), torch.cat([anchor, anchor[padding]])
        piece = max(1, SERIAL // (classes * VECTOR)) * VECTOR
        result = []
        for r, a in zip(row.split(piece), anchor.split(piece), strict=True):
            prob = _prob(scene, a).nan_to_num_(0.0)
            target = F.one_hot(truth.classes[r], classes).to(scene.dtype)
            cls = F.binary_cross_entropy(prob, target, reduction="none").sum(-1)
            iou = _iou(truth.sides.at(r), _sides(scene.boxes.index_select(0, a).to(scene.dtype)))
            result.append(cls + IOU_WEIGHT * -torch.log(iou + EPS))
        return torch.cat(result)[:total] + penalty

    def penalty(self, row: Tensor, anchor: Tensor) -> Tensor:
        """(P,) the penalty of flat pairs, 0 for those that the rule's geometry allows."""
        scene, rule = self.scene, self.scene.rule
        index = anchor % scene.anchors
        stride = scene.stride[index]
        x, y = scene.x[index] * stride + 0.5 * stride, scene.y[index] * stride + 0.5 * stride
        cx, cy, w, h = self.truth.boxes[row].unbind(-1)
        reach = rule.radius * stride
        free = (x > cx - reach) & (x < cx + reach) & (y > cy - reach) & (y < cy + reach)
        if rule.in_box:
            free &= (x > cx - 0.5 * w) & (x < cx + 0.5 * w) & (y > cy - 0.5 * h) & (y < cy + 0.5 * h)
        return (~free).to(scene.dtype) * rule.penalty

    def of_hard_rows(
        self, hard: Tensor, k: Tensor, flat: Tensor, bounds: list[int], pred: _Sides, free: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rows and flat anchors of the k cheapest candidates of each hard row, as the host picks them from all.

        Args:
            hard: (H,) the rows.
            k: (N,) how many anchors each box gets.
            flat: (K,) flat candidates, those of image i from bounds[i] to bounds[i + 1] - 1.
            bounds: see flat.
            pred: (K,) the candidates' predictions.
            free: for each hard row the flat anchors that it has without penalty.
        """
        scene, truth = self.scene, self.truth
        wanted = torch.zeros_like(self.known).view(scene.batch, -1)
        wanted[truth.image[hard]] = True
        of_image = wanted.flatten()[flat]
        wanted = torch.zeros_like(self.known)
        wanted[flat[of_image]] = True
        self.fill(wanted)
        position = torch.zeros(len(self.known), dtype=torch.int64)  # of an anchor among the candidates of its image
        for i in truth.image[hard].unique().tolist():
            position[flat[bounds[i] : bounds[i + 1]]] = torch.arange(bounds[i + 1] - bounds[i])
        rows, anchors = [], []
        columns = (hard, k[hard], truth.image[hard], truth.classes[hard])
        todo = zip(*(column.tolist() for column in columns), free, strict=True)
        for r, count, i, label, unfined in todo:
            mine = slice(bounds[i], bounds[i + 1])
            anchor = flat[mine]
            logit = scene.cls.select(1, label).index_select(0, anchor)
            cost, doubt = self._quick(logit, anchor, _iou(truth.sides.at(r), pred.at(mine)))
            penalty = torch.full_like(cost, scene.rule.penalty)
            penalty[position[unfined]] = 0.0
            total = cost + penalty
            # A penalty swallows most of the digits, so that many costs tie, and which of them topk takes depends on
            # all the others. Hence every cost that may be the k-th and whose digits are not all certain is made the
            # host's own.
            low, high = (cost - doubt).add_(penalty), (cost + doubt).add_(penalty)
            edge_low = low.topk(count, largest=False).values[-1]
            edge_high = high.topk(count, largest=False).values[-1]
            unsure = ((low < high) & (low <= edge_high) & (high >= edge_low)).nonzero().squeeze(1)
            if len(unsure):
                row = torch.full_like(unsure, r)
                total[unsure] = self.exact(row, anchor[unsure], penalty[unsure])
            rows.append(torch.full((count,), r))
            anchors.append(anchor[total.topk(count, largest=False).indices])
        return torch.cat(rows), torch.cat(anchors)


def _settle(
    scene: _Scene,
    truth: _Truth,
    costs: _Costs,
    matched_row: Tensor,
    matched_anchor: Tensor,
    pairs: _Pairs,
    cost: Tensor,
    doubt: Tensor,
) -> Tensor:
    """(B * A,) the row that owns each anchor, -1 for background.

    An anchor claimed by several boxes goes to the box for which it is cheapest, be that one of the claimants or not.
    """
    total = scene.batch * scene.anchors
    owner = torch.full((total,), -1)
    owner[matched_anchor] = matched_row
    claims = torch.bincount(matched_anchor, minlength=total)
    contested = claims > 1
    if not bool(contested.any()):
        return owner
    inf = float("inf")
    here = contested[pairs.anchor].nonzero().squeeze(1)
    row, anchor = pairs.row[here], pairs.anchor[here]
    low, high = cost[here] - doubt[here], cost[here] + doubt[here]
    ceiling = low.new_full((total,), inf).scatter_reduce_(0, anchor, high, "amin")  # of an anchor's lowest cost
    # where nobody holds the anchor without penalty, every box of the image is a bidder
    open_to_all = (contested & (ceiling >= scene.rule.penalty)).nonzero().squeeze(1)
    if len(open_to_all):
        image = torch.div(open_to_all, scene.anchors, rounding_mode="floor")
        starts = torch.tensor(truth.starts)
        number = (starts[1:] - starts[:-1])[image]
        which = torch.repeat_interleave(number)
        more_row = starts[image][which] + torch.arange(len(which)) - (number.cumsum(0) - number)[which]
        more_anchor = open_to_all[which]
        cost, doubt = costs.of_pairs(more_row, more_anchor)
        penalty = costs.penalty(more_row, more_anchor)
        row, anchor = torch.cat([row, more_row]), torch.cat([anchor, more_anchor])
        low = torch.cat([low, (cost - doubt).add_(penalty)])
        high = torch.cat([high, (cost + doubt).add_(penalty)])
        ceiling.scatter_reduce_(0, anchor, high, "amin")
    close = (low <= ceiling[anchor]).nonzero().squeeze(1)
    row, anchor = row[close], anchor[close]
    unsure = torch.bincount(anchor, minlength=total)[anchor] > 1
    if bool(unsure.any()):
        r, a = row[unsure], anchor[unsure]
        exact = costs.exact(r, a, costs.penalty(r, a))
        lowest = ceiling.fill_(inf).scatter_reduce_(0, a, exact, "amin")
        cheapest = exact == lowest[a]
        row, anchor = torch.cat([row[~unsure], r[cheapest]]), torch.cat([anchor[~unsure], a[cheapest]])
    first = torch.full((total,), truth.starts[-1]).scatter_reduce_(0, anchor, row, "amin")
    return torch.where(contested, first, owner)


# ---- accelerators: fixed shapes, and the host waits once
def _assign_dense(scene: _Scene) -> Assignment:
    """The same rule on [images, boxes, anchors] tensors: no shape depends on the data but the last one.

    For devices on which waiting for a number costs more than computing some too many, and for anchors without a grid.
    There is no second look at near ties: two candidates whose costs agree to six digits may swap.
    """
    batch, anchors, width = scene.batch, scene.anchors, scene.labels.shape[1]
    counts = _boxes_per_image(scene.labels)
    # on its way while the rest is computed; `nonzero` below waits for it too
    num_gt = counts.sum().to("cpu", non_blocking=True)
    # about six [boxes, anchors] tensors and three [anchors, classes] tensors live at a time
    one = anchors * (6 * width + 3 * scene.cls.shape[1]) * torch.finfo(scene.dtype).bits // 8
    step = max(1, scene.budget // max(one, 1))
    owner = torch.cat([_dense_owner(scene, i, min(i + step, batch), counts) for i in range(0, batch, step)] or [counts])
    fg_mask = owner >= 0
    fg = fg_mask.nonzero().squeeze(1)
    image = torch.div(fg, max(anchors, 1), rounding_mode="floor")
    slot = owner[fg]
    gts = scene.labels[image, slot]
    boxes = gts[:, 1:5].to(scene.dtype)
    return Assignment(
        fg_mask=fg_mask,
        image=image,
        matched_gt=slot,
        classes=gts[:, 0].to(torch.int64),
        ious=_iou(_sides(boxes), _sides(scene.boxes[fg].to(scene.dtype))),
        boxes=boxes,
        num_fg=len(fg),
        num_gt=int(num_gt),
    )


def _dense_owner(scene: _Scene, begin: int, end: int, counts: Tensor) -> Tensor:
    """((end - begin) * A,) which box of its image owns each anchor of these images, -1 for background."""
    rule, anchors, width = scene.rule, scene.anchors, scene.labels.shape[1]
    device = scene.labels.device
    if not width:
        return torch.full(((end - begin) * anchors,), -1, device=device)
    gts = scene.labels[begin:end]
    real = (torch.arange(width, device=device) < counts[begin:end, None]).unsqueeze(2)  # (b, M, 1)
    boxes = gts[:, :, 1:5].to(scene.dtype)

    stride = scene.stride
    x, y = scene.x * stride + 0.5 * stride, scene.y * stride + 0.5 * stride
    cx, cy, w, h = boxes.unsqueeze(3).unbind(2)  # (b, M, 1) each
    reach = rule.radius * stride
    free = (x > cx - reach) & (x < cx + reach) & (y > cy - reach) & (y < cy + reach) & real
    anywhere = free
    if rule.in_box:
        inside = (x > cx - 0.5 * w) & (x < cx + 0.5 * w) & (y > cy - 0.5 * h) & (y < cy + 0.5 * h) & real
        anywhere = free | inside
        free = free & inside
        del inside
    candidate = anywhere.any(dim=1, keepdim=True)  # (b, 1, A)
    barred = ~(candidate & real)

    flat = slice(begin * anchors, end * anchors)
    pred = _sides(scene.boxes[flat].to(scene.dtype).view(-1, 1, anchors, 4))
    iou = _iou(_sides(boxes.unsqueeze(2)), pred).masked_fill_(barred, 0.0)
    most = min(TOP_IOUS, anchors)
    k = iou.topk(most, dim=2).values.sum(2, keepdim=True).to(torch.int64).clamp(min=1, max=most)

    logits = scene.cls[flat].to(scene.dtype).view(end - begin, anchors, -1)
    odds = scene.obj[flat].to(scene.dtype).sigmoid().view(end - begin, anchors, 1)
    classes = gts[:, :, 0].to(torch.int64).unsqueeze(1).expand(-1, anchors, -1)
    own = logits.gather(2, classes).sigmoid_().mul_(odds).sqrt_().transpose(1, 2)  # (b, M, A)
    sums = _log_not(logits.sigmoid().mul_(odds).sqrt_()).sum(2).unsqueeze(1)  # (b, 1, A)
    cost = own.log().clamp_(min=LOG_FLOOR).add_(sums).neg_()
    cost += _log_not(own)
    cost -= iou.add_(EPS).log_().mul_(IOU_WEIGHT)
    cost += (~free).to(scene.dtype) * rule.penalty
    cost.masked_fill_(barred, float("inf"))

    best, order = cost.topk(most, dim=2, largest=False)
    taken = (torch.arange(most, device=device) < k) & (best < float("inf"))
    claimed = torch.zeros_like(barred).scatter_(2, order, taken)
    claims = claimed.sum(1)  # (b, A)
    # an anchor claimed by several boxes goes to the box for which it is cheapest, the first of equals
    owner = torch.where(claims > 1, cost.argmin(1), claimed.to(torch.uint8).argmax(1))
    return owner.masked_fill_(claims == 0, -1).flatten()
