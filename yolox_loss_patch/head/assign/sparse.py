"""The fast way for a CPU: work where the boxes are, and only there.

Three facts make it exact and cheap:

* The class cost of a (box, candidate) pair is a sum of -log(1 - p) over all classes, the same for every box, with one
  term replaced. So one sum per candidate and one look-up per pair suffice.
* A pair outside the rule's geometry pays a penalty larger than any honest cost. As long as a box has k pairs without
  penalty, nobody else matters, and these lie in a small window of the anchor grid around the box's centre.
* Only the IoUs are needed for every box and every candidate, because k counts predictions wherever they come from.

The k cheapest are those that `torch.topk` takes from the whole row of candidates, and an anchor claimed by several boxes
goes to the cheapest, among equals to the one that comes first in the labels: the host's answer to exact ties as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .costs import PairCosts, cache_bytes
from .rule import TOP_IOUS, Assignment, Rule, label_error
from .scene import GroundTruth, Scene, Sides, boxes_per_image, pairwise_iou, sides_of


class Level(NamedTuple):
    """A feature map: anchors first .. first + height * width - 1 in rows."""

    first: int
    stride: float
    x: Tensor  # (width,) centres of the columns in pixels, ascending
    y: Tensor  # (height,) centres of the rows in pixels, ascending


class _Pairs(NamedTuple):
    """Pairs of a box and an anchor that go without penalty, in no particular order."""

    row: Tensor  # (P,) the box
    anchor: Tensor  # (P,) flat
    column: Tensor  # (P,) how many pairs of the same box come before this one


class _Window(NamedTuple):
    """Columns x0 .. x1 - 1 and rows y0 .. y1 - 1, one window per box."""

    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor


def find_levels(scene: Scene) -> list[Level] | None:
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
        levels.append(Level(first, stride, x[0] * stride + 0.5 * stride, y[:, 0] * stride + 0.5 * stride))
        first += count
    return levels


def assign_sparse(scene: Scene, levels: list[Level]) -> Assignment:
    """The matches of a scene whose anchors are these feature maps.

    Raises:
        DataError: the labels hold a class that the head does not have.
    """
    rule, anchors = scene.rule, scene.anchors
    counts = boxes_per_image(scene.labels)
    starts = [0, *counts.cumsum(0).tolist()]
    image = torch.repeat_interleave(counts)
    slot = torch.arange(starts[-1]) - torch.tensor(starts)[image]
    gts = scene.labels[image, slot]
    classes, boxes = gts[:, 0].to(torch.int64), gts[:, 1:5].to(scene.dtype)
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < scene.cls.shape[1]:
        row = int(((classes < 0) | (classes >= scene.cls.shape[1])).nonzero()[0])
        raise label_error(int(image[row]), int(slot[row]), float(gts[row, 0]), scene.cls.shape[1])
    truth = GroundTruth(image, slot, classes, boxes, sides_of(boxes), starts)

    candidates, pairs, per_row = _geometry(scene, levels, truth)
    flat = candidates.nonzero().squeeze(1)  # (K,) flat candidates
    bounds = [0, *candidates.view(scene.batch, anchors).sum(1).cumsum(0).tolist()]
    pred = sides_of(scene.boxes.index_select(0, flat).to(scene.dtype))
    k = _dynamic_k(truth, pred, bounds)

    costs = PairCosts(scene, truth)
    cost, doubt = costs.of_pairs(pairs.row, pairs.anchor)
    claims = _cheapest(rule, costs, k, flat, bounds, pred, pairs, per_row, cost, doubt)
    owner = _settle(scene, truth, costs, *claims, pairs, cost, doubt)
    fg_mask = owner >= 0
    fg = fg_mask.nonzero().squeeze(1)
    won = owner[fg]
    return Assignment(
        fg_mask=fg_mask,
        rows=fg,
        image=image[won],
        matched_gt=slot[won],
        classes=classes[won],
        ious=pairwise_iou(truth.sides.at(won), sides_of(scene.boxes.index_select(0, fg).to(scene.dtype))),
        boxes=boxes[won],
        num_fg=len(fg),
        num_gt=starts[-1],
    )


def _geometry(scene: Scene, levels: list[Level], truth: GroundTruth) -> tuple[Tensor, _Pairs, Tensor]:
    """Where the anchors lie: (B * A,) mask of candidates, the pairs without penalty, and (N,) their number per box.

    In a grid, "the anchor's centre is strictly between l and r" holds for a run of columns, which a binary search finds
    with the very comparisons of the host, so nothing of size [boxes, anchors] is needed. The candidates of a level are a
    union of rectangles, which a 2-d prefix sum of their corners gives.
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


def _run(centres: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the ascending centres strictly between low and high."""
    return torch.searchsorted(centres, low, right=True), torch.searchsorted(centres, high)


def _dynamic_k(truth: GroundTruth, pred: Sides, bounds: list[int]) -> Tensor:
    """(N,) how many anchors each box gets: the sum of its ten highest IoUs over all candidates, at least 1."""
    total = len(truth.image)
    top = pred.area.new_zeros(total, TOP_IOUS)
    limit = truth.image.new_zeros(total)
    for i in range(len(bounds) - 1):
        candidates = bounds[i + 1] - bounds[i]
        if not candidates:
            continue
        of_image = pred.at(slice(bounds[i], bounds[i + 1]))
        block = max(1, cache_bytes() // (candidates * pred.area.element_size()))
        for begin in range(truth.starts[i], truth.starts[i + 1], block):
            end = min(begin + block, truth.starts[i + 1])
            iou = pairwise_iou(truth.sides.at((slice(begin, end), None)), of_image)
            best = min(TOP_IOUS, candidates)
            top[begin:end, :best] = iou.topk(best, dim=1).values
            limit[begin:end] = best
    return top.sum(1).to(torch.int64).clamp(min=1, max=TOP_IOUS).minimum(limit)


def _cheapest(
    rule: Rule,
    costs: PairCosts,
    k: Tensor,
    flat: Tensor,
    bounds: list[int],
    pred: Sides,
    pairs: _Pairs,
    per_row: Tensor,
    cost: Tensor,
    doubt: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows and flat anchors of the k cheapest candidates of each box.

    Args:
        rule: the host's rule.
        costs: computes what the pairs' quick costs leave open.
        k: (N,) how many anchors each box gets.
        flat: (K,) flat candidates, those of image i from bounds[i] to bounds[i + 1] - 1.
        bounds: see `flat`.
        pred: (K,) the candidates' predictions.
        pairs: the pairs without penalty.
        per_row: (N,) how many of them each box has.
        cost: (P,) their quick costs.
        doubt: (P,) how far each may be from the host's number.
    """
    # one row per box
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
    return torch.cat(matched_row), torch.cat(matched_anchor)


def _settle(
    scene: Scene,
    truth: GroundTruth,
    costs: PairCosts,
    matched_row: Tensor,
    matched_anchor: Tensor,
    pairs: _Pairs,
    cost: Tensor,
    doubt: Tensor,
) -> Tensor:
    """(B * A,) the row that owns each anchor, -1 for background.

    An anchor claimed by several boxes goes to the box of its image for which it is cheapest, whether that claimed it or not.
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
