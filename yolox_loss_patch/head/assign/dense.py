"""The fast way for accelerators: fixed shapes, few operators, and the host waits for the device once."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import EPS, IOU_WEIGHT, LOG_FLOOR, TOP_IOUS, Assignment
from .scene import Scene, boxes_per_image

FAR = 1e30  # px: a box there overlaps nothing and is near nothing


def assign_dense(scene: Scene) -> Assignment:
    """The same rule on [images, boxes, anchors] tensors: no shape depends on the data but the last one.

    For devices on which starting an operator and waiting for a number cost more than the numbers themselves, and for
    anchors without a grid. There is no second look at near ties: two candidates whose costs agree to six digits may swap.
    Of exact ties the k cheapest are those that `torch.topk` takes on the device (true of the host as well); an anchor
    claimed by several boxes goes to the first of the cheapest.
    """
    labels, batch, anchors, width = scene.labels, scene.batch, scene.anchors, scene.labels.shape[1]
    if not batch * anchors * width:
        return _nothing(scene)
    counts = boxes_per_image(labels)
    centres = torch.stack([scene.x, scene.y]).mul_(scene.stride).add_(scene.stride, alpha=0.5)
    points = torch.cat([centres, -centres])
    reach = scene.rule.radius * scene.stride
    ordinal = torch.arange(1, max(width, TOP_IOUS) + 1, device=labels.device)

    step = max(1, scene.budget // bytes_per_image(scene))
    parts = [_match(scene, i, min(i + step, batch), counts, points, reach, ordinal) for i in range(0, batch, step)]
    is_foreground, owner, iou = (part[0] if len(parts) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
    fg_mask = is_foreground.flatten()

    # the one wait for the device
    num_fg, *num_gt = torch.cat([fg_mask.sum().view(1), counts]).tolist()
    # `nonzero` would wait again
    rows = fg_mask.view(torch.uint8).sort(descending=True, stable=True).indices[:num_fg]
    image = torch.div(rows, anchors, rounding_mode="floor")
    slot = owner.flatten()[rows]
    matched = labels[image, slot]
    return Assignment(
        fg_mask=fg_mask,
        rows=rows,
        image=image,
        matched_gt=slot,
        classes=matched[:, 0].to(torch.int64),
        ious=iou.flatten()[rows],
        boxes=matched[:, 1:5].to(scene.dtype),
        num_fg=num_fg,
        num_gt=sum(num_gt),
    )


def bytes_per_image(scene: Scene) -> int:
    """Bytes of temporary tensors that the matching of one image needs at its peak."""
    number = torch.finfo(scene.dtype).bits // 8
    # At the peak of the overlaps: the intersections by their four sides, two differences of these, two masks. Later:
    # three tensors of costs, one of the claims, three masks, and three tensors of the classes.
    overlaps = scene.labels.shape[1] * (6 * number + 2)
    costs = scene.labels.shape[1] * (4 * number + 3) + 3 * scene.cls.shape[1] * number
    return scene.anchors * max(overlaps, costs)


def _match(
    scene: Scene, begin: int, end: int, counts: Tensor, points: Tensor, reach: Tensor, ordinal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The matches of images `begin` to `end` - 1.

    Args:
        scene: the inputs.
        begin: the first image.
        end: the last image + 1.
        counts: (B,) how many boxes each image has.
        points: (4, A) the anchors' centres in pixels: x, y, -x, -y.
        reach: (A,) pixels within which an anchor's centre is near a box's.
        ordinal: (at least M and 10,) 1, 2, 3, ...

    Returns:
        (b, A) whether each anchor learns a box, (b, A) which one, and (b, A) the IoU with it. The second and third mean
        nothing where the first is False.
    """
    rule, dtype, anchors, width = scene.rule, scene.dtype, scene.anchors, scene.labels.shape[1]
    images, flat = slice(begin, end), slice(begin * anchors, end * anchors)
    number = end - begin
    labels = scene.labels[images]
    is_padding = ordinal[:width] > counts[images].unsqueeze(1)  # (b, M)

    # Boxes and predictions together, by their sides. What is negated turns "right of" into "left of", so that one
    # operator serves all four sides. A prediction that is not finite is no overlap.
    truth = labels[:, :, 1:5].to(dtype).masked_fill(is_padding.unsqueeze(2), FAR)
    pred = scene.boxes[flat].to(dtype).view(number, anchors, 4)
    boxes = torch.cat([truth, pred], 1).nan_to_num_(FAR, FAR, FAR)
    centre, size = boxes[:, :, :2], boxes[:, :, 2:]
    signed = torch.stack([centre, -centre], 2)
    sides = (signed - (size / 2).unsqueeze(2)).flatten(2)  # left, top, -right, -bottom
    # two boxes without any area would give 0 / 0
    area = size.prod(2).clamp_(min=torch.finfo(dtype).tiny)
    truth_sides = sides[:, :width].unsqueeze(3)  # (b, M, 4, 1)

    # where the anchors lie
    outside = (points <= signed[:, :width].reshape(number, width, 4, 1) - reach).any(2)  # of the box's neighbourhood
    pays_penalty = excluded = outside
    if rule.in_box:
        outside_box = (points <= truth_sides).any(2)
        pays_penalty, excluded = outside | outside_box, outside & outside_box
    no_candidate = excluded.all(1, keepdim=True)  # (b, 1, A)

    # (b, M, A) IoU: the product of two negative lengths
    inner_sides = torch.maximum(truth_sides, sides[:, width:].transpose(1, 2).unsqueeze(1))
    inter = (inner_sides[:, :, :2] + inner_sides[:, :, 2:]).clamp_(max=0)
    del inner_sides
    inter = inter.prod(2)
    union = (area[:, :width].unsqueeze(2) + area[:, width:].unsqueeze(1)).sub_(inter)
    iou = inter.div_(union).masked_fill_(no_candidate, 0.0)
    del union
    most = min(TOP_IOUS, anchors)
    k = iou.topk(most, dim=2).values.sum(2, keepdim=True).clamp_(min=1)  # of which the whole part counts

    # (b, M, A) minus the cost. The class cost is a sum over all classes of -log(1 - p), the same for every box, with
    # one term replaced.
    prob = scene.cls[flat].to(dtype).sigmoid().mul_(scene.obj[flat].to(dtype).sigmoid().unsqueeze(1)).sqrt_()
    log_not = prob.neg().log1p_().clamp_(min=LOG_FLOOR)
    log_odds = prob.log_().clamp_(min=LOG_FLOOR).sub_(log_not).view(number, anchors, -1)
    all_not = log_not.view(number, anchors, -1).sum(2, keepdim=True)
    all_not.masked_fill_(no_candidate.transpose(1, 2), -float("inf"))
    log_odds += all_not
    classes = labels[:, :, 0].to(torch.int64).unsqueeze(2).expand(-1, -1, anchors)
    gain = log_odds.transpose(1, 2).gather(1, classes)
    # the logarithm of 0 keeps the padding out
    eps = torch.mul(is_padding, -EPS).add_(EPS).to(dtype).unsqueeze(2)
    gain.add_((iou + eps).log_(), alpha=IOU_WEIGHT)
    gain.add_(pays_penalty, alpha=-rule.penalty)

    best, order = gain.topk(most, dim=2)
    taken = (ordinal[:most] <= k) & (best > -float("inf"))
    claimed = torch.zeros_like(pays_penalty).scatter_(2, order, taken)
    claims = claimed.sum(1)
    # an anchor claimed by several boxes goes to the box for which it is cheapest, the first of equals
    owner = torch.where((claims > 1).unsqueeze(1), gain, claimed).argmax(1)
    return claims > 0, owner, iou.gather(1, owner.unsqueeze(1)).squeeze(1)


def _nothing(scene: Scene) -> Assignment:
    """No image, no anchor, or no room for a label."""
    device = scene.labels.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Assignment(
        fg_mask=torch.zeros(scene.batch * scene.anchors, dtype=torch.bool, device=device),
        rows=none,
        image=none,
        matched_gt=none,
        classes=none,
        ious=torch.zeros(0, dtype=scene.dtype, device=device),
        boxes=torch.zeros(0, 4, dtype=scene.dtype, device=device),
        num_fg=0,
        num_gt=0,
    )
