"""Costs of single (box, anchor) pairs: quick with a bound of the rounding error, or with the bits of the host.

The quick sums are rounded in another order than the host's, so costs differ in their last bits. Where that could decide a
match, the pairs in question are computed again with the host's formula, term by term.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .rule import EPS, IOU_WEIGHT, LOG_FLOOR
from .scene import GroundTruth, Scene, Sides, joint_probability, log_complement, pairwise_iou, sides_of

VECTOR = 64  # elements, a multiple of every CPU's vector length
SERIAL = 32768  # element-wise operations on fewer elements than that run in one thread
CACHE_BYTES = 512 * 1024  # on a CPU, element-wise steps are fastest on pieces that stay in each thread's cache


def cache_bytes() -> int:
    """Bytes that the caches of all threads hold together."""
    return CACHE_BYTES * torch.get_num_threads()


class PairCosts:
    """Costs of (box, anchor) pairs, quick with a bound of the rounding error, or exactly as the host has them.

    Args:
        scene: the inputs of the assignment.
        truth: its boxes.
    """

    def __init__(self, scene: Scene, truth: GroundTruth) -> None:
        self.scene = scene
        self.truth = truth
        # sum over classes of -log(1 - p), filled where needed
        self.sums = torch.zeros(scene.batch * scene.anchors, dtype=scene.dtype)
        self.known = torch.zeros(scene.batch * scene.anchors, dtype=torch.bool)

    def fill(self, wanted: Tensor) -> None:
        """Make the class sums of the anchors in a (B * A,) mask known."""
        missing = (wanted & ~self.known).nonzero().squeeze(1)
        classes = max(1, self.scene.cls.shape[1])
        for piece in missing.split(max(1, cache_bytes() // (classes * self.sums.element_size()))):
            self.sums[piece] = log_complement(joint_probability(self.scene, piece)).sum(1).neg_()
        self.known |= wanted

    def of_pairs(self, row: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) costs without penalty of flat pairs, and (P,) how far each may be from the host's number."""
        wanted = torch.zeros_like(self.known)
        wanted[anchor] = True
        self.fill(wanted)
        pred = sides_of(self.scene.boxes.index_select(0, anchor).to(self.scene.dtype))
        logit = self.scene.cls[anchor, self.truth.classes[row]]
        return self.quick(logit, anchor, pairwise_iou(self.truth.sides.at(row), pred))

    def quick(self, logit: Tensor, anchor: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Costs and doubts of pairs from the logits of the boxes' classes; the sums are known, `iou` is overwritten."""
        scene = self.scene
        prob = logit.to(scene.dtype).sigmoid_()
        prob = prob.mul_(scene.obj.index_select(0, anchor).to(scene.dtype).sigmoid_()).sqrt_()
        sums = self.sums.index_select(0, anchor)
        cost = sums - prob.log().clamp_(min=LOG_FLOOR)
        cost += log_complement(prob)
        # The host adds the logarithms in another order; each is good to an ulp or so, and a sum of positive numbers
        # loses a few ulps. 32 is generous: it costs a second look at one pair in ten thousand.
        doubt = sums.add_(cost.abs()).add_(1.0).mul_(32)
        cost -= iou.add_(EPS).log_().mul_(IOU_WEIGHT)
        doubt.add_(cost.abs(), alpha=4).mul_(torch.finfo(scene.dtype).eps)
        return cost, doubt

    def exact(self, row: Tensor, anchor: Tensor, penalty: Tensor) -> Tensor:
        """(P,) costs with penalty, computed term by term as the host does.

        PyTorch's vectorised sigmoid and log differ in the last bit from the plain ones, which it uses for what is left
        over at the end of a tensor. In the host's large tensors that is next to nothing, here it could be all. So the
        pairs are padded to full vectors, in pieces too small to be divided among threads.
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
        for rows, anchors in zip(row.split(piece), anchor.split(piece), strict=True):
            prob = joint_probability(scene, anchors).nan_to_num_(0.0)
            target = F.one_hot(truth.classes[rows], classes).to(scene.dtype)
            cls = F.binary_cross_entropy(prob, target, reduction="none").sum(-1)
            pred = sides_of(scene.boxes.index_select(0, anchors).to(scene.dtype))
            iou = pairwise_iou(truth.sides.at(rows), pred)
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
        self, hard: Tensor, k: Tensor, flat: Tensor, bounds: list[int], pred: Sides, free: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rows and flat anchors of the k cheapest candidates of each hard row, as the host picks them from all.

        Args:
            hard: (H,) the rows.
            k: (N,) how many anchors each box gets.
            flat: (K,) flat candidates, those of image i from bounds[i] to bounds[i + 1] - 1.
            bounds: see `flat`.
            pred: (K,) the candidates' predictions.
            free: for each hard row the flat anchors that it has without penalty.
        """
        scene, truth = self.scene, self.truth
        wanted = torch.zeros_like(self.known).view(scene.batch, -1)
        wanted[truth.image[hard]] = True
        in_hard_images = wanted.flatten()[flat]
        wanted = torch.zeros_like(self.known)
        wanted[flat[in_hard_images]] = True
        self.fill(wanted)
        position = torch.zeros(len(self.known), dtype=torch.int64)  # of an anchor among the candidates of its image
        for i in truth.image[hard].unique().tolist():
            position[flat[bounds[i] : bounds[i + 1]]] = torch.arange(bounds[i + 1] - bounds[i])
        rows, anchors = [], []
        columns = (hard, k[hard], truth.image[hard], truth.classes[hard])
        hard_rows = zip(*(column.tolist() for column in columns), free, strict=True)
        for r, count, i, label, free_anchors in hard_rows:
            of_image = slice(bounds[i], bounds[i + 1])
            anchor = flat[of_image]
            logit = scene.cls.select(1, label).index_select(0, anchor)
            cost, doubt = self.quick(logit, anchor, pairwise_iou(truth.sides.at(r), pred.at(of_image)))
            penalty = torch.full_like(cost, scene.rule.penalty)
            penalty[position[free_anchors]] = 0.0
            total = cost + penalty
            # A penalty swallows most of the digits, so that many costs tie, and which of them topk takes depends on
            # all the others. So every cost that may be the k-th and has an uncertain digit is computed exactly.
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
