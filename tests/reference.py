"""Independent scalar references for every loss, in plain Python.

Each loss is one function, written from its paper (the formula that decides is the one in the project's list of losses;
a comment says where published code differs). Nothing here knows torch or numpy, and nothing is shared with the package.

- box losses:    ``ref_NAME(pred, target, **knobs)``, a box is a tuple (cx, cy, w, h) in pixels;
- logit losses:  ``ref_NAME(logit, t, **knobs)``, t the target in [0, 1];
- set losses:    ``ref_NAME(logits, targets, **knobs)`` over lists (dice, tversky, dice_focal, ghmc);
- offset losses: ``ref_NAME(pred, target, **knobs)``, two numbers.

All of them take floats, or mpmath numbers, in any argument: `exact` and `grad` use the latter, at 60 digits.
Where a factor is detached (no gradient flows through it), the function takes ``frozen=``: the point at which that
factor is evaluated, ``None`` for the argument itself. `grad` holds it fixed while it differentiates.
"""

import inspect
import math

import mpmath

DIGITS = 60
STEP = mpmath.mpf("1e-22")  # truncation ~ STEP**2; cancellation costs 22 of the 60 digits


# Elementary functions of a float or of an mpmath number (which carries its own library as `.context`).
def _lib(x):
    return getattr(x, "context", math)


def exp(x):
    return _lib(x).exp(x)


def log(x):
    return _lib(x).log(x)


def log1p(x):
    return _lib(x).log1p(x)


def expm1(x):
    return _lib(x).expm1(x)


def sqrt(x):
    return _lib(x).sqrt(x)


def atan(x):
    return _lib(x).atan(x)


def sin(x):
    return _lib(x).sin(x)


def asin(x):
    return _lib(x).asin(x)


def pi_like(x):
    return +_lib(x).pi


def total(values):
    values = list(values)
    if all(isinstance(v, (int, float)) for v in values):
        return math.fsum(values)
    return sum(values)


# ---------------------------------------------------------------------------------------------------------------------
# Differentiation
# ---------------------------------------------------------------------------------------------------------------------
def _exactly(x):
    """Every number in nested tuples and lists as an mpmath number of the same value; the rest as it is."""
    if isinstance(x, (tuple, list)):
        return type(x)(_exactly(v) for v in x)
    if isinstance(x, float) or (isinstance(x, int) and not isinstance(x, bool)):
        return mpmath.mpf(x)
    return x


def exact(fn, x, *args, **knobs):
    """`fn` at `x`, computed with 60 digits and rounded once."""
    with mpmath.workdps(DIGITS):
        return float(fn(_exactly(x), *_exactly(args), **knobs))


def sides(fn, x, *args, indices=None, **knobs):
    """The one-sided derivatives of `fn` in its first argument: a list of (left, right), one pair a component.

    `x` is a number, or a tuple or list of them; `indices` picks components. Detached factors are held at `x`.
    """
    with mpmath.workdps(DIGITS):
        scalar = not isinstance(x, (tuple, list))
        point = [_exactly(x)] if scalar else list(_exactly(x))
        args = _exactly(args)

        def pack(values):
            return values[0] if scalar else type(x)(values)

        if "frozen" in inspect.signature(fn).parameters:
            knobs = dict(knobs, frozen=pack(point))

        def at(i, step):
            moved = list(point)
            moved[i] = moved[i] + step
            return fn(pack(moved), *args, **knobs)

        middle = fn(pack(point), *args, **knobs)
        pairs = []
        for i in range(len(point)) if indices is None else indices:
            pairs.append((float((middle - at(i, -STEP)) / STEP), float((at(i, STEP) - middle) / STEP)))
        return pairs


def grad(fn, x, *args, indices=None, **knobs):
    """The gradient of `fn` in its first argument by central differences; NaN in a component with a kink at `x`."""
    out = []
    for left, right in sides(fn, x, *args, indices=indices, **knobs):
        smooth = math.isfinite(left) and abs(left - right) <= 1e-12 * max(1.0, abs(left), abs(right))
        out.append((left + right) / 2 if smooth else math.nan)
    return out if isinstance(x, (tuple, list)) else out[0]


# ---------------------------------------------------------------------------------------------------------------------
# Boxes
# ---------------------------------------------------------------------------------------------------------------------
def corners(box):
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def inter_union(a, b):
    """Areas of the intersection and of the union."""
    ax1, ay1, ax2, ay2 = corners(a)
    bx1, by1, bx2, by2 = corners(b)
    iw = min(ax2, bx2) - max(ax1, bx1)
    ih = min(ay2, by2) - max(ay1, by1)
    inter = iw * ih if iw > 0 and ih > 0 else 0 * iw
    return inter, a[2] * a[3] + b[2] * b[3] - inter


def box_iou(a, b):
    inter, union = inter_union(a, b)
    return inter / union


def enclosing(a, b):
    """Width and height of the smallest box around both."""
    ax1, ay1, ax2, ay2 = corners(a)
    bx1, by1, bx2, by2 = corners(b)
    return max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)


def rho2_c2(a, b):
    cw, ch = enclosing(a, b)
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2, cw**2 + ch**2


def ref_iou(pred, target, mode="square"):
    """YOLOX stock is `square`; `log` is the loss of UnitBox (arXiv:1608.01471), infinite for disjoint boxes."""
    iou = box_iou(pred, target)
    if mode == "square":
        return 1 - iou * iou
    if mode == "linear":
        return 1 - iou
    if mode == "log":
        return -log(iou) if iou > 0 else math.inf
    raise ValueError(mode)


def giou_penalty(pred, target):
    cw, ch = enclosing(pred, target)
    _, union = inter_union(pred, target)
    return (cw * ch - union) / (cw * ch)


def ref_giou(pred, target):
    """arXiv:1902.09630."""
    return 1 - box_iou(pred, target) + giou_penalty(pred, target)


def ref_diou(pred, target):
    """arXiv:1911.08287."""
    rho2, c2 = rho2_c2(pred, target)
    return 1 - box_iou(pred, target) + rho2 / c2


def aspect_v(pred, target):
    d = atan(target[2] / target[3]) - atan(pred[2] / pred[3])
    return 4 / pi_like(d) ** 2 * d**2


def aspect_a(pred, target, gate=False):
    """CIoU's trade-off; always detached, always from the plain IoU."""
    v = aspect_v(pred, target)
    iou = box_iou(pred, target)
    if v == 0 or (gate and not iou > 0.5):
        return 0 * v
    return v / (1 - iou + v)


def ref_ciou(pred, target, gate=False, frozen=None):
    """arXiv:1911.08287; with the gate arXiv:2005.03572 and mmdet. torchvision and ultralytics have no gate.

    The authors' first code also scaled the gradient of v by w2 + h2; the paper's formula, which is here, does not.
    """
    a = aspect_a(frozen or pred, target, gate)
    return ref_diou(pred, target) + a * aspect_v(pred, target)


def ref_eiou(pred, target):
    """Efficient-IoU, arXiv:2101.08158. mmdet's `EIoULoss` is Extended-IoU, something else."""
    cw, ch = enclosing(pred, target)
    shape = (pred[2] - target[2]) ** 2 / cw**2 + (pred[3] - target[3]) ** 2 / ch**2
    return ref_diou(pred, target) + shape


def ref_focal_eiou(pred, target, gamma=0.5, frozen=None):
    """arXiv:2101.08158; the weight is detached, as the paper re-weights and does not minimise IoU**gamma."""
    return box_iou(frozen or pred, target) ** gamma * ref_eiou(pred, target)


def ref_alpha_iou(pred, target, alpha=3):
    """arXiv:2110.13675."""
    return 1 - box_iou(pred, target) ** alpha


def ref_alpha_giou(pred, target, alpha=3):
    return ref_alpha_iou(pred, target, alpha) + giou_penalty(pred, target) ** alpha


def ref_alpha_diou(pred, target, alpha=3):
    """Published code raises rho2 and c2 to alpha: the ratio rho2/c2 is raised, not the distance ratio rho/c."""
    rho2, c2 = rho2_c2(pred, target)
    return ref_alpha_iou(pred, target, alpha) + rho2**alpha / c2**alpha


def ref_alpha_ciou(pred, target, alpha=3, frozen=None):
    """The trade-off comes from the plain IoU; published code has it from the powered one in one branch."""
    av = aspect_a(frozen or pred, target) * aspect_v(pred, target)
    return ref_alpha_diou(pred, target, alpha) + av**alpha


def ref_alpha_eiou(pred, target, alpha=3):
    cw, ch = enclosing(pred, target)
    wide = ((pred[2] - target[2]) ** 2) ** alpha / (cw**2) ** alpha
    high = ((pred[3] - target[3]) ** 2) ** alpha / (ch**2) ** alpha
    return ref_alpha_diou(pred, target, alpha) + wide + high


def _omega(pred, target, i):
    return abs(pred[i] - target[i]) / max(pred[i], target[i])


def ref_siou(pred, target, theta=4):
    """arXiv:2205.12740, angle cost from its formula 1 - 2 sin2(asin(x) - pi/4) = sin(2 asin(x)).

    mmdet's default (`neg_gamma=False`) has exp(+gamma rho) in the distance cost.
    """
    dx, dy = abs(pred[0] - target[0]), abs(pred[1] - target[1])
    cw, ch = enclosing(pred, target)
    rho = sqrt(dx * dx + dy * dy)
    # Concentric boxes have no angle; the distance cost is 0 whatever it is.
    angle = sin(2 * asin(min(dx, dy) / rho)) if rho > 0 else 0 * rho
    gamma = 2 - angle
    distance = -expm1(-gamma * (dx / cw) ** 2) - expm1(-gamma * (dy / ch) ** 2)
    shape = (-expm1(-_omega(pred, target, 2))) ** theta + (-expm1(-_omega(pred, target, 3))) ** theta
    return 1 - box_iou(pred, target) + (distance + shape) / 2


def wiou_mean(ious, previous=1.0, momentum=0.01):
    """The running mean of 1 - IoU after a batch; an empty batch leaves it."""
    if not ious:
        return previous
    return (1 - momentum) * previous + momentum * total(1 - i for i in ious) / len(ious)


def ref_wiou(pred, target, mean=1.0, version=3, alpha=1.9, delta=3, frozen=None):
    """arXiv:2301.10051; `mean` is the running mean of 1 - IoU. Detached: the enclosing diagonal, and beta."""
    base = frozen or pred
    rho2, _ = rho2_c2(pred, target)
    _, c2 = rho2_c2(base, target)
    v1 = exp(rho2 / c2) * (1 - box_iou(pred, target))
    beta = (1 - box_iou(base, target)) / mean
    if version == 1:
        return v1
    if version == 2:
        return v1 * sqrt(beta)
    if version == 3:
        return v1 * beta / (delta * exp((beta - delta) * log(alpha)))
    raise ValueError(version)


def ref_mpdiou(pred, target, image_size=(640, 640)):
    """arXiv:2307.07662; normalised by the image, not by the enclosing box."""
    px1, py1, px2, py2 = corners(pred)
    tx1, ty1, tx2, ty2 = corners(target)
    top_left = (px1 - tx1) ** 2 + (py1 - ty1) ** 2
    bottom_right = (px2 - tx2) ** 2 + (py2 - ty2) ** 2
    return 1 - box_iou(pred, target) + (top_left + bottom_right) / (image_size[0] ** 2 + image_size[1] ** 2)


def ref_box(pred, target, penalties, power=1, inner=1, focaler=None, focal=0, wise=None, mean=1.0, frozen=None):
    """Any box loss of the form 1 - IoU + penalties with modifiers, in the order inner, focaler, power, weights.

    `penalties` gives a list of numbers for (pred, target, frozen); `wise` is a dict with version, alpha, delta.
    """
    base = frozen or pred
    similarity = box_iou(
        (pred[0], pred[1], pred[2] * inner, pred[3] * inner),
        (target[0], target[1], target[2] * inner, target[3] * inner),
    )
    if focaler is not None:
        low, high = focaler
        similarity = min(max((similarity - low) / (high - low), 0 * similarity), 1 + 0 * similarity)
    loss = 1 - similarity**power + total(penalty**power for penalty in penalties(pred, target, base))
    if wise is not None:
        rho2, _ = rho2_c2(pred, target)
        _, c2 = rho2_c2(base, target)
        beta = (1 - box_iou(base, target)) / mean
        weight = 1
        if wise["version"] == 2:
            weight = sqrt(beta)
        elif wise["version"] == 3:
            weight = beta / (wise["delta"] * exp((beta - wise["delta"]) * log(wise["alpha"])))
        loss = weight * exp(rho2 / c2) * loss
    return box_iou(base, target) ** focal * loss if focal else loss


def penalties_of(name, **knobs):
    """The penalties of a loss, each on its own, from the formula of its paper."""

    def diou(pred, target, base):
        rho2, c2 = rho2_c2(pred, target)
        return [rho2 / c2]

    def eiou(pred, target, base):
        cw, ch = enclosing(pred, target)
        return [*diou(pred, target, base), ((pred[2] - target[2]) / cw) ** 2, ((pred[3] - target[3]) / ch) ** 2]

    def siou(pred, target, base):
        shape = ((-expm1(-_omega(pred, target, 2))) ** 4 + (-expm1(-_omega(pred, target, 3))) ** 4) / 2
        return [ref_siou(pred, target) - (1 - box_iou(pred, target)) - shape, shape]

    def mpdiou(pred, target, base):
        a, b = corners(pred), corners(target)
        size = knobs["image_size"][0] ** 2 + knobs["image_size"][1] ** 2
        return [((a[i] - b[i]) ** 2 + (a[i + 1] - b[i + 1]) ** 2) / size for i in (0, 2)]

    return {
        "iou": lambda pred, target, base: [],
        "giou": lambda pred, target, base: [giou_penalty(pred, target)],
        "diou": diou,
        "ciou": lambda pred, target, base: [*diou(pred, target, base), aspect_a(base, target) * aspect_v(pred, target)],
        "eiou": eiou,
        "siou": siou,
        "mpdiou": mpdiou,
    }[name]


def inner_gap(pred, target, ratio):
    """IoU - IoU_inner; both boxes scaled about their own centres."""
    inner_p = (pred[0], pred[1], pred[2] * ratio, pred[3] * ratio)
    inner_t = (target[0], target[1], target[2] * ratio, target[3] * ratio)
    return box_iou(pred, target) - box_iou(inner_p, inner_t)


def ref_inner_iou(pred, target, ratio=0.75):
    """arXiv:2311.02877; L_IoU is 1 - IoU here, so that 1 - IoU_inner is left. Penalties: of the original boxes."""
    return ref_iou(pred, target, mode="linear") + inner_gap(pred, target, ratio)


def ref_inner_giou(pred, target, ratio=0.75):
    return ref_giou(pred, target) + inner_gap(pred, target, ratio)


def ref_inner_diou(pred, target, ratio=0.75):
    return ref_diou(pred, target) + inner_gap(pred, target, ratio)


def ref_inner_ciou(pred, target, ratio=0.75, frozen=None):
    return ref_ciou(pred, target, frozen=frozen) + inner_gap(pred, target, ratio)


def ref_inner_eiou(pred, target, ratio=0.75):
    return ref_eiou(pred, target) + inner_gap(pred, target, ratio)


def ref_inner_siou(pred, target, ratio=0.75):
    return ref_siou(pred, target) + inner_gap(pred, target, ratio)


def ref_shape_iou(pred, target, scale=0):
    """arXiv:2312.17663; the weights come from the target alone. At scale 0 both are 1."""
    ws, hs = target[2] ** scale, target[3] ** scale
    ww, hh = 2 * ws / (ws + hs), 2 * hs / (ws + hs)
    _, c2 = rho2_c2(pred, target)
    distance = (hh * (pred[0] - target[0]) ** 2 + ww * (pred[1] - target[1]) ** 2) / c2
    shape = (-expm1(-hh * _omega(pred, target, 2))) ** 4 + (-expm1(-ww * _omega(pred, target, 3))) ** 4
    return 1 - box_iou(pred, target) + distance + shape / 2


def ref_piou(pred, target, version=2, lambda_=1.3):
    """Powerful-IoU, Neural Networks 170 (2024). v2's attention is not detached, as in the authors' code."""
    px1, py1, px2, py2 = corners(pred)
    tx1, ty1, tx2, ty2 = corners(target)
    wide = abs(px1 - tx1) + abs(px2 - tx2)
    high = abs(py1 - ty1) + abs(py2 - ty2)
    p = (wide / target[2] + high / target[3]) / 4
    v1 = 1 - box_iou(pred, target) - expm1(-(p**2))
    if version == 1:
        return v1
    if version == 2:
        x = lambda_ * exp(-p)
        return 3 * x * exp(-(x**2)) * v1
    raise ValueError(version)


def ref_nwd(pred, target, constant=12.8):
    """Normalised Gaussian Wasserstein distance, arXiv:2110.13389."""
    dx, dy, dw, dh = (a - b for a, b in zip(pred, target, strict=True))
    return -expm1(-sqrt(dx**2 + dy**2 + (dw**2 + dh**2) / 4) / constant)


# ---------------------------------------------------------------------------------------------------------------------
# Objectness and class losses, from logits
# ---------------------------------------------------------------------------------------------------------------------
def sigmoid(x):
    if x >= 0:
        return 1 / (1 + exp(-x))
    return exp(x) / (1 + exp(x))


def softplus(x):
    """log(1 + exp(x)) = -log(1 - p); -log p is softplus(-x)."""
    return (x if x > 0 else 0 * x) + log1p(exp(-abs(x)))


def ref_bce(logit, t, pos_weight=1, class_weight=1, label_smoothing=0):
    t = t * (1 - label_smoothing) + label_smoothing / 2.0
    return class_weight * (pos_weight * t * softplus(-logit) + (1 - t) * softplus(logit))


def ref_focal(logit, t, alpha=0.25, gamma=2):
    """arXiv:1708.02002, extended to soft t by the formula (it is then not smallest at p = t)."""
    one_minus_pt = sigmoid(logit) * (1 - t) + sigmoid(-logit) * t
    alpha_t = 1 if alpha == -1 else alpha * t + (1 - alpha) * (1 - t)
    return alpha_t * one_minus_pt**gamma * ref_bce(logit, t)


def ref_varifocal(logit, t, alpha=0.75, gamma=2, iou_weighted=True):
    """arXiv:2008.13367. mmdet multiplies t = 0 by alpha |p - t|**gamma: the same, as t is 0 there."""
    foreground = t if iou_weighted else 1
    background = alpha * sigmoid(logit) ** gamma
    return (foreground if t > 0 else background) * ref_bce(logit, t)


def ref_quality_focal(logit, t, beta=2):
    """arXiv:2006.04388. The authors' first code has (p - t)**beta: NaN for a fractional beta."""
    gap = sigmoid(-logit) * t - sigmoid(logit) * (1 - t)  # t - p, without cancellation at t = 0 or 1
    return abs(gap) ** beta * ref_bce(logit, t)


def ref_poly(logit, t, eps=1, gamma=0, alpha=-1):
    """arXiv:2204.12511, Poly-1; with gamma the focal form. t is extended to soft targets by the formula."""
    one_minus_pt = sigmoid(logit) * (1 - t) + sigmoid(-logit) * t
    alpha_t = 1 if alpha == -1 else alpha * t + (1 - alpha) * (1 - t)
    first = alpha_t * one_minus_pt**gamma * (t * softplus(-logit) + (1 - t) * softplus(logit))
    return first + eps * one_minus_pt ** (gamma + 1)


def ref_asymmetric(logit, t, gamma_pos=1, gamma_neg=4, margin=0.05, detach=True, frozen=None):
    """arXiv:2009.14119; the focusing weights are detached unless told otherwise (the authors' default)."""
    base = logit if not detach or frozen is None else frozen
    shifted = sigmoid(logit) - margin
    focus = sigmoid(base) - margin
    focus = focus if focus > 0 else 0 * focus
    kept = softplus(logit) if margin == 0 else -log1p(-shifted) if shifted > 0 else 0 * logit
    positive = t * sigmoid(-base) ** gamma_pos * softplus(-logit)
    return positive + (1 - t) * focus**gamma_neg * kept


def ref_matchability(logit, t, gamma=1.5, frozen=None):
    """MAL, arXiv:2412.04234; p in the background's weight is detached, as in the authors' code."""
    if t > 0:
        wanted = t**gamma
        return wanted * softplus(-logit) + (1 - wanted) * softplus(logit)
    return sigmoid(logit if frozen is None else frozen) ** gamma * softplus(logit)


def slide_weight(x, mean):
    """Of an element whose box has IoU x, where the mean IoU of the foreground is `mean`; arXiv:2208.02133."""
    mu = max(mean, 0.2)
    if x <= mu - 0.1:
        return 1.0
    return math.exp(1 - mu) if x < mu else math.exp(1 - x)


def ref_slide(logit, t, iou=None, mean=0.0):
    return slide_weight(t if iou is None else iou, mean) * ref_bce(logit, t)


def eqlv2_weights(pulls, gamma=12, mu=0.8, alpha=4):
    """(w_pos, w_neg) of a class with the pulls (of positives, of negatives) so far; arXiv:2012.08548.

    Before any pull the authors' code starts with a ratio of 100.
    """
    positive, negative = pulls
    ratio = positive / negative if negative > 0 else 100.0
    fair = 1 / (1 + math.exp(-gamma * (ratio - mu)))
    return 1 + alpha * (1 - fair), fair


def eqlv2_pulls(logits, targets, pulls, **knobs):
    """The pulls of a class after a batch."""
    w_pos, w_neg = eqlv2_weights(pulls, **knobs)
    weights = [w_pos * t + w_neg * (1 - t) for t in targets]
    positive = math.fsum(w * t * sigmoid(-x) for w, x, t in zip(weights, logits, targets, strict=True))
    negative = math.fsum(w * (1 - t) * sigmoid(x) for w, x, t in zip(weights, logits, targets, strict=True))
    return pulls[0] + positive, pulls[1] + negative


def ref_eqlv2(logit, t, pulls=(0.0, 0.0), **knobs):
    w_pos, w_neg = eqlv2_weights(pulls, **knobs)
    return (w_pos * t + w_neg * (1 - t)) * ref_bce(logit, t)


def ghmc_weights(logits, targets, bins=10, momentum=0, counts=None):
    """Element weights N/(bins in use x count of the bin) and the running counts after this batch (None: no history)."""
    index = [min(int(abs(float(sigmoid(x)) - float(t)) * bins), bins - 1) for x, t in zip(logits, targets, strict=True)]
    now = [index.count(b) for b in range(bins)]
    if momentum > 0:
        before = counts or [0.0] * bins
        # Empty bins keep their history, as in the authors' code.
        counts = [momentum * c + (1 - momentum) * n if n else c for c, n in zip(before, now, strict=True)]
    else:
        counts = now
    used = sum(n > 0 for n in now)
    return [len(index) / (used * counts[b]) for b in index], counts


def ref_ghmc_elements(logits, targets, bins=10, momentum=0, counts=None, frozen=None):
    """w x BCE of each element, arXiv:1811.05181; their mean is the paper's loss. The weights are detached."""
    weights, _ = ghmc_weights(frozen or logits, targets, bins, momentum, counts)
    return [w * ref_bce(x, t) for w, x, t in zip(weights, logits, targets, strict=True)]


def ref_ghmc(logits, targets, bins=10, momentum=0, counts=None, frozen=None):
    elements = ref_ghmc_elements(logits, targets, bins, momentum, counts, frozen)
    return total(elements) / len(elements)


def ref_dice(logits, targets, smooth=1, squared=False):
    """V-Net, arXiv:1606.04797 (its denominator is squared; most code has the plain sums, the default here)."""
    power = 2 if squared else 1
    p = [sigmoid(x) for x in logits]
    overlap = total(a * t for a, t in zip(p, targets, strict=True))
    size = total(a**power for a in p) + total(t**power for t in targets)
    return 1 - (2 * overlap + smooth) / (size + smooth)


def ref_tversky(logits, targets, alpha=0.3, beta=0.7, smooth=1):
    """arXiv:1706.05721: alpha weighs the false positives, beta the false negatives (other libraries swap them)."""
    tp = total(sigmoid(x) * t for x, t in zip(logits, targets, strict=True))
    fp = total(sigmoid(x) * (1 - t) for x, t in zip(logits, targets, strict=True))
    fn = total(sigmoid(-x) * t for x, t in zip(logits, targets, strict=True))
    return 1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def ref_dice_focal(logits, targets, smooth=1, squared=False, alpha=0.25, gamma=2, weight=1):
    """Dice over the set plus `weight` x the mean of the focal loss over the same set."""
    focal = total(ref_focal(x, t, alpha, gamma) for x, t in zip(logits, targets, strict=True)) / len(logits)
    return ref_dice(logits, targets, smooth, squared) + weight * focal


# ---------------------------------------------------------------------------------------------------------------------
# Offset losses
# ---------------------------------------------------------------------------------------------------------------------
def ref_l1(pred, target):
    return abs(pred - target)


def ref_smooth_l1(pred, target, beta=1):
    d = abs(pred - target)
    return d * d / (2 * beta) if d < beta else d - beta / 2


def ref_l2(pred, target):
    """The squared difference, without a half, as mmdet's MSELoss."""
    return (pred - target) ** 2


def ref_balanced_l1(pred, target, alpha=0.5, gamma=1.5, beta=1):
    """Libra R-CNN, arXiv:1904.02701; b from alpha log(b + 1) = gamma. beta as in mmdet (the paper has beta = 1)."""
    d = abs(pred - target)
    b = math.expm1(gamma / alpha)
    if d < beta:
        return alpha / b * (b * d + 1) * log1p(b * d / beta) - alpha * d
    return gamma * d + gamma / b - alpha * beta
