"""More objectness and class losses from logits: built on BCE and focal loss, element by element.

Every function takes logits ``pred`` and a ``target`` of the same shape in [0, 1] and returns that shape.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .focal import bce, focal
from .row import Limits, loss_row
from .state import RunningKernel, sum_over_ranks

_HARD_OR_IOU, _IOU_OR_HARD = ("hard", "iou"), ("iou", "hard")
# g_j of a class without any pull yet: the weights of EQL v2 are 1 then, as at the start of the authors' code.
_NO_PULL = 100.0


def _gentle_power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` of a base in [0, 1]; 0 without gradient at 0 for an exponent below 1, 1 for the exponent 0."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent >= 1:
        return base**exponent
    some = base > torch.finfo(base.dtype).tiny
    return torch.where(some, torch.where(some, base, 1.0) ** exponent, 0.0)


@loss_row(
    "obj",
    "cls",
    formula="BCE + eps (1-p_t); with gamma: alpha_t (1-p_t)^gamma BCE + eps (1-p_t)^(gamma+1)",
    source="2204.12511",
    limits={
        "eps": Limits(low=-1, high=1000),
        "gamma": Limits(low=0, high=100),
        "alpha": Limits(low=0, high=1, also=(-1.0,)),
    },
)
def poly(pred: Tensor, target: Tensor, eps: float = 1.0, gamma: float = 0.0, alpha: float = -1.0) -> Tensor:
    """Poly-1 loss: the first term of the expansion of BCE, or of focal loss, in ``1 - p_t`` weighed anew.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``; meant for 0 and 1.
        eps: added to the weight of the first term, at least -1: below, the loss would fall where p_t falls.
        gamma: of focal loss, at least 0; 0: BCE.
        alpha: of focal loss, in [0, 1]; -1: no weights.

    Returns:
        The loss of each element in the shape of ``pred``.

    arXiv 2204.12511.
    """
    p = torch.sigmoid(pred)
    wrong = p + target - 2 * p * target  # 1 - p_t
    return focal(pred, target, alpha, gamma) + eps * wrong ** (gamma + 1)


@loss_row(
    "obj",
    "cls",
    formula="-t (1-p)^g_pos log p - (1-t) p_m^g_neg log(1-p_m), p_m = max(p - margin, 0)",
    source="2009.14119",
    limits={
        "gamma_pos": Limits(low=0, high=100),
        "gamma_neg": Limits(low=0, high=100),
        "margin": Limits(low=0, high=1, open_high=True),
        "detach": Limits(),
    },
)
def asymmetric(
    pred: Tensor,
    target: Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    detach: bool = True,
) -> Tensor:
    """Asymmetric loss: focal weights of their own for positives and negatives, and easy negatives left out.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``; meant for 0 and 1.
        gamma_pos: focusing on positives, at least 0 (the text of the paper has 0, the authors' code 1).
        gamma_neg: focusing on negatives, at least 0.
        margin: negatives with a score below it cost nothing, in [0, 1).
        detach: no gradient flows through the focusing weights, as in the authors' code by default.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 2009.14119.
    """
    p, rest = torch.sigmoid(pred), torch.sigmoid(-pred)
    shifted = (p - margin).clamp(min=0)
    weights = (rest, shifted) if not detach else (rest.detach(), shifted.detach())
    positive = target * _gentle_power(weights[0], gamma_pos) * F.softplus(-pred)
    cost = F.softplus(pred) if margin == 0 else -torch.log((rest + margin).clamp(max=1))
    return positive + (1 - target) * _gentle_power(weights[1], gamma_neg) * cost


@loss_row(
    "obj",
    "cls",
    formula="t > 0: BCE(p, t^gamma); t = 0: p^gamma BCE(p, 0)",
    source="DEIM 2412.04234",
    limits={"gamma": Limits(low=0, high=100)},
    targets=_IOU_OR_HARD,
)
def matchability(pred: Tensor, target: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss: BCE towards ``IoU**gamma`` on foreground, ``p**gamma BCE`` in the background.

    The weight of the background is detached, as in the authors' code.

    Args:
        pred: logits, any shape.
        target: in [0, 1], the shape of ``pred``: on foreground the IoU of the matched box.
        gamma: at least 0.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 2412.04234.
    """
    outside = target == 0
    weight = torch.where(outside, torch.sigmoid(pred.detach()) ** gamma, 1.0)
    wanted = torch.where(outside, 0.0, target.detach() ** gamma)
    return weight * bce(pred, wanted)


@loss_row(
    "obj",
    "cls",
    formula="w BCE, w = 1 for x <= mu - 0.1, e^(1-mu) between, e^(1-x) for x >= mu; x the IoU, mu its mean",
    source="YOLO-FaceV2 2208.02133",
    targets=_HARD_OR_IOU,
    wants=("ious", "mean_iou"),
)
def slide(pred: Tensor, target: Tensor, ious: Tensor | None = None, mean_iou: Tensor | None = None) -> Tensor:
    """Slide loss: BCE, weighed by how near the IoU of the element's box is to the mean IoU.

    Args:
        pred: logits ``(N,)``, ``(N, 1)`` or ``(N, C)``.
        target: in [0, 1], the shape of ``pred``.
        ious: ``(N,)`` the IoU of each row's box, 0 in the background. The loss stage knows it; not given, it is the
            largest target of the row, as YOLOX's class targets carry the IoU.
        mean_iou: the mean IoU of the foreground; not given, that of the rows whose IoU is not 0. At least 0.2 counts.

    Returns:
        The loss of each element, at least 0, in the shape of ``pred``.

    arXiv 2208.02133.
    """
    with torch.no_grad():
        if ious is None:
            ious = target.reshape(len(target), -1).amax(1) if target.numel() else target.new_zeros(len(target))
        x = ious.to(pred.dtype)
        if mean_iou is None:
            mean_iou = x.sum() / (x > 0).sum().clamp(min=1)
        mu = mean_iou.to(pred.dtype).clamp(min=0.2)
        weight = torch.where(x <= mu - 0.1, 1.0, torch.exp(1 - torch.maximum(x, mu)))
    return weight.view(-1, *[1] * (pred.dim() - 1)) * bce(pred, target)


@loss_row(
    "cls",
    name="eqlv2",
    formula="(w_pos t + w_neg (1-t)) BCE per class; w_neg = f(g), w_pos = 1 + alpha (1 - f(g))",
    source="2012.08548",
    limits={"gamma": Limits(low=0, high=1000), "mu": Limits(), "alpha": Limits(low=0)},
)
class EQLv2(RunningKernel):
    """Equalization loss v2: positives of rare classes count more, negatives less.

    ``f(g) = 1/(1 + exp(-gamma (g - mu)))``, and ``g`` of a class is the pull of its positives so far by that of its
    negatives, over all ranks. The weights of a batch come from the batches before it; a class without any pull yet has
    the weights 1.

    Args:
        gamma, mu: of the mapping f; gamma at least 0.
        alpha: how much more positives count at most, at least 0.

    arXiv 2012.08548.
    """

    state = ("pulls",)
    pulls: Tensor

    def __init__(self, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0) -> None:
        super().__init__()
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        # Of positives and negatives, for each class; the number of classes shows in the first batch.
        self.register_buffer("pulls", torch.zeros(2, 0), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element: logits and targets ``(N, C)``, or ``(N,)`` for one class."""
        moves = self.moves_now()
        with torch.no_grad():
            classes = pred.shape[-1] if pred.dim() > 1 else 1
            if self.pulls.shape[1] != classes:
                self.pulls = self.pulls.new_zeros(2, classes)
            positive, negative = self.pulls.to(pred)
            ratio = torch.where(negative > 0, positive / negative.clamp(min=1e-10), _NO_PULL)
            fair = torch.sigmoid(self.gamma * (ratio - self.mu))
            weight = (1 + self.alpha * (1 - fair)) * target + fair * (1 - target)
            if moves:
                p = torch.sigmoid(pred)
                pull = torch.stack([weight * target * (1 - p), weight * (1 - target) * p])
                pull = pull.flatten(1, -2).sum(1) if pred.dim() > 1 else pull.sum(1, keepdim=True)
                self.pulls = self.pulls.to(pred) + sum_over_ranks(pull)
        return weight * bce(pred, target)

    def load_running_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; one that has seen a batch knows the number of classes.

        Raises:
            ValueError: the state is of another loss.
        """
        if self.pulls.shape[1] == 0 and "pulls" in state and state["pulls"].dim() == 2:
            self.pulls = self.pulls.new_zeros(state["pulls"].shape)
        super().load_running_state(state)
