"""``check_loss``: does a loss keep what the kit promises? For the kit's losses and for your own.

In a test of yours:

    check_loss("iou", "MyBoxLoss")  # registered, with its defaults
    check_loss("iou", dict(type="MyBoxLoss", scale=2.0))
    check_loss("obj", MyScoreLoss())  # any module with MMDetection's call

It says nothing when all is well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..losses.terms import LossModule
from ..specs.build import build_loss
from ..specs.registry import LOSSES, check_term

# A box, a logit or an offset a row; the loss of a row must be finite whatever stands here.
_HOSTILE_BOXES = (
    ((5, 5, 0, 0), (5, 5, 0, 0)),  # nothing on nothing
    ((5, 5, 0, 0), (5, 5, 10, 20)),
    ((5, 5, 10, 20), (5, 5, 0, 0)),
    ((500, 5, 0, 20), (5, 5, 10, 0)),  # crossed lines, apart
    ((5, 6, 7, 8), (5, 6, 7, 8)),  # identical
    ((5, 6, 7, 8), (5, 6, 3, 9)),  # concentric
    ((5, 5, 10, 10), (15, 15, 10, 10)),  # corners touch
    ((1, 1, 1e-3, 1e-3), (1, 1, 1e-3, 2e-3)),
    ((2000, 2000, 1e-3, 1e-3), (2048, 2048, 4096, 4096)),
    ((-4096, -4096, 1e-3, 1e-3), (8192, 8192, 1e-3, 1e-3)),
    ((100, 100, 4096, 1e-3), (100, 100, 1e-3, 4096)),
)
_HOSTILE_LOGITS = tuple((x, t) for x in (-100.0, -20.0, 0.0, 20.0, 100.0) for t in (0.0, 1e-3, 0.5, 1.0))
_HOSTILE_OFFSETS = tuple((x, t) for x in (-1e3, 0.0, 1e-6, 8.0) for t in (0.0, -8.0, 1e3))


def check_loss(term: str, loss: str | Mapping[str, Any] | nn.Module, pulls: bool | None = None) -> None:
    """Try a loss on ordinary and hostile input.

    Checked are: finite value and gradient on hostile input; fp16 and bf16 input computed in fp32; empty input; the
    shapes and reductions of the contract, element weights, ``avg_factor``; inputs left as they are; boxes read as
    (cx, cy, w, h); ``torch.autograd.gradcheck`` where nothing is
    detached and no memory moves; at a perfect prediction the least of all, without a pull to either side (for boxes and
    offsets 0); a gradient that pulls a disjoint box closer; a copy that gives the same; no parameter and nothing in the
    state_dict.

    Args:
        term: ``obj``, ``cls``, ``iou`` or ``l1``.
        loss: a name, a spec, or a module called as ``loss(pred, target, weight=None, avg_factor=None,
            reduction_override=None)``.
        pulls: whether a box loss claims to pull disjoint boxes together; None: not checked.

    Raises:
        AssertionError: the loss breaks a promise; the message says which, and on what input.
        ConfigError: no such term or loss; ``pulls`` for a loss that is not one of boxes.
    """
    check_term(term)
    if pulls is not None and term != "iou":
        raise ConfigError(f"loss_{term}: pulls is a claim of box losses (iou); leave it out.")
    if not isinstance(loss, (str, Mapping, nn.Module)):
        raise ConfigError(f"loss_{term}: check_loss takes a name, a spec or a module; got {loss!r}.")
    _Check(term, loss).run(pulls)


def _facts(rows: int) -> dict[str, Any]:
    """Facts of a batch of one image, for a loss that wants some."""
    ious = torch.arange(rows) % 5 / 5
    return {
        "images": 1,
        "image_size": (640, 640),
        "ious": ious,
        "mean_iou": ious.sum() / max(rows, 1),
        "image_indices": torch.zeros(rows, dtype=torch.long),
        "strides": torch.full((rows,), 8.0),
    }


class _Check:
    """The checks of one loss; each asks for a fresh module, because a loss may remember."""

    def __init__(self, term: str, loss: str | Mapping[str, Any] | nn.Module) -> None:
        self.term, self.loss = term, loss
        name = loss if isinstance(loss, str) else loss.get("type") if isinstance(loss, Mapping) else None
        row = LOSSES.rows[term].get(str(name))
        self.whole_set = row is not None and row.whole_set
        self.name = f"loss_{term} {name or type(loss).__name__}"
        probe = self._fresh()
        # One logit a class: as many as the loss has weights for.
        weights = [getattr(probe, "knobs", {}).get(key) for key in ("pos_weight", "class_weight", "alpha")]
        self.columns = next((len(each) for each in weights if isinstance(each, tuple)), 3)
        self.has_memory = bool(probe.running_state()) if hasattr(probe, "running_state") else False

    def _fresh(self) -> Any:
        module = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else build_loss(self.term, self.loss)
        if isinstance(module, LossModule):
            module.set_epoch(1)
        return module

    def _call(self, pred: Tensor, target: Tensor, module: Any = None, **call: Any) -> Tensor:
        module = self._fresh() if module is None else module
        facts = {key: _facts(len(pred))[key] for key in getattr(module, "wants", ())}
        try:
            value: Tensor = module(pred, target, **facts, **call)
        except Exception as error:
            words = ", ".join(["pred", "target", *(f"{key}={value!r}" for key, value in {**facts, **call}.items())])
            raise AssertionError(
                f"{self.name}: can be called as loss({words}) with pred {tuple(pred.shape)}; it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        self._expect(isinstance(value, Tensor), f"returns a tensor; got {type(value).__name__}")
        return value

    def _both(self, pred: Tensor, target: Tensor, **call: Any) -> tuple[Tensor, Tensor]:
        """Value and gradient of its sum."""
        pred = pred.detach().clone().requires_grad_()
        value = self._call(pred, target, **call)
        self._expect(value.requires_grad, "has a gradient; its value does not depend on pred, or was detached")
        (gradient,) = torch.autograd.grad(value.sum(), pred, allow_unused=True)
        return value.detach(), torch.zeros_like(pred) if gradient is None else gradient

    def _expect(self, fine: bool, promise: str) -> None:
        if not fine:
            raise AssertionError(f"{self.name}: {promise}")

    def _ordinary(self, n: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(n)
        if self.term == "iou":
            target = torch.rand(n, 4, generator=g, dtype=torch.float64) * 100 + 20
            pred = target * (1 + 0.2 * torch.randn(n, 4, generator=g, dtype=torch.float64))
        elif self.term == "l1":
            pred, target = (torch.randn(n, 4, generator=g, dtype=torch.float64) for _ in range(2))
        else:
            pred = torch.randn(n, self.columns, generator=g, dtype=torch.float64) * 3
            target = torch.rand(n, self.columns, generator=g, dtype=torch.float64)
            target = torch.where(torch.rand(n, self.columns, generator=g) < 0.5, target, 0.0)
        return pred.to(dtype), target.to(dtype)

    def run(self, pulls: bool | None) -> None:
        for check in (
            self._contract, self._weights, self._hostile, self._half, self._empty, self._copy, self._perfect, self._slope,
        ):  # fmt: skip
            check()
        if self.term == "iou":
            self._place()
        if pulls is not None:
            self._pull(pulls)

    def _contract(self) -> None:
        pred, target = self._ordinary()
        elements = self._call(pred, target, reduction_override="none")
        untouched = all(torch.equal(*pair) for pair in zip((pred, target), self._ordinary(), strict=True))
        self._expect(untouched, "leaves pred and target as they are; it wrote into one of them")
        again = self._call(pred, target, reduction_override="none")
        self._expect(torch.equal(elements, again), "gives the same for the same input")
        if not self.whole_set and elements.dim():
            wanted = pred.shape[:1] if self.term == "iou" else pred.shape
            self._expect(
                elements.shape == wanted,
                f"reduction none gives {tuple(wanted)} for {tuple(pred.shape)} (or one number for the whole set); got "
                f"{tuple(elements.shape)}",
            )
        total = elements.sum()
        for call, want in (
            ({"reduction_override": "sum"}, total),
            ({"reduction_override": "mean"}, elements.mean()),
            ({"reduction_override": "mean", "avg_factor": 7.0}, total / 7),
        ):
            value = self._call(pred, target, **call)
            self._expect(value.shape == (), f"{call} gives one number; got shape {tuple(value.shape)}")
            self._close(value, want, f"{call} is {want.item()} by its elements")
        self._expect(not list(self._fresh().parameters()), "has no parameters; the optimizer would not train them")
        self._expect(not self._fresh().state_dict(), "leaves nothing in the state_dict: checkpoints stay YOLOX's")

    def _weights(self) -> None:
        pred, target = self._ordinary()
        ones = torch.ones(len(pred))
        self._close(self._call(pred, target, weight=ones), self._call(pred, target), "weights of 1 change nothing")
        weight = torch.arange(len(pred), dtype=torch.float32) % 3
        _, gradient = self._both(pred, target, weight=weight, avg_factor=1.0)
        self._expect(not gradient[weight == 0].any(), "an element of weight 0 has no gradient")
        if not self.whole_set and not self.has_memory:
            elements = self._call(pred, target, reduction_override="none")
            if elements.dim():
                want = elements * weight.view(-1, *[1] * (elements.dim() - 1))
                self._close(
                    self._call(pred, target, weight=weight, reduction_override="none"),
                    want,
                    "a weight multiplies its row",
                )

    def _inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.term == "iou":
            pairs = [[pair[side] for pair in _HOSTILE_BOXES] for side in (0, 1)]
            return torch.tensor(pairs[0], dtype=dtype), torch.tensor(pairs[1], dtype=dtype)
        rows = _HOSTILE_OFFSETS if self.term == "l1" else _HOSTILE_LOGITS
        pred, target = torch.tensor(rows, dtype=dtype).unbind(1)
        if self.term == "l1":
            return pred.view(-1, 4), target.view(-1, 4)
        return pred.unsqueeze(1).repeat(1, self.columns), target.unsqueeze(1).repeat(1, self.columns)

    def _hostile(self) -> None:
        for dtype in (torch.float32, torch.float64):
            pred, target = self._inputs(dtype)
            for row in (*range(len(pred)), slice(None)):
                some = slice(row, row + 1) if isinstance(row, int) else row
                value, gradient = self._both(pred[some], target[some])
                where = f"at pred {pred[some].tolist()} target {target[some].tolist()} in {dtype}"
                self._expect(bool(torch.isfinite(value).all()), f"is finite; got {value} {where}")
                self._expect(bool(torch.isfinite(gradient).all()), f"has a finite gradient; got {gradient} {where}")

    def _half(self) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            pred, target = self._ordinary(dtype=dtype)
            value, gradient = self._both(pred, target)
            self._expect(value.dtype == torch.float32, f"computes {dtype} input in fp32; got {value.dtype}")
            self._expect(gradient.dtype == dtype, f"gives a gradient in the input's {dtype}")
            self._close(value, self._both(pred.float(), target.float())[0], f"{dtype} input gives fp32's value")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pred, target = self._ordinary()
            inside = self._call(pred, target)
        self._close(inside, self._call(pred, target), "autocast changes nothing")

    def _empty(self) -> None:
        pred, target = (each[:0] for each in self._ordinary())
        module = self._fresh()
        pred.requires_grad_()
        value = self._call(pred, target, module=module, avg_factor=1.0)
        self._expect(bool(torch.isfinite(value).all()), f"is finite without any element; got {value}")
        value.sum().backward()
        after = self._call(*self._ordinary(), module=module)
        self._expect(bool(torch.isfinite(after)), "an empty batch leaves nothing behind that spoils the next one")

    def _copy(self) -> None:
        module = self._fresh()
        self._call(*self._ordinary(), module=module)
        pred, target = self._ordinary(8)
        want = self._call(pred, target, module=copy.deepcopy(module))
        self._expect(
            torch.equal(self._call(pred, target, module=module), want), "a copy gives the same (EMA copies models)"
        )

    def _perfect(self) -> None:
        if self.term in ("obj", "cls"):
            target = torch.tensor([[0.0], [1.0]] * 4).repeat(1, self.columns)
            good, bad = (self._call(sign * (2 * target - 1) * 30, target) for sign in (1, -1))
            self._expect(
                bool(good < bad) and bool(good < 0.2),
                f"is near 0 for confident right scores and more for wrong ones; got {good.item()}, {bad.item()}",
            )
            return
        _, target = self._ordinary(dtype=torch.float64)
        value, gradient = self._both(target, target)
        self._expect(bool(value.abs().max() < 1e-9), f"is 0 at a perfect prediction; got {value}")
        flat = gradient[:, :2] if self.term == "iou" else gradient
        self._expect(bool(flat.abs().max() < 1e-9), f"is flat at a perfect prediction; the gradient is {gradient}")

    def _slope(self) -> None:
        """The gradient is the derivative, unless a factor is detached: then the pull still has to go down the loss."""
        pred, target = self._ordinary(4, torch.float64)
        module = self._fresh()
        module.eval()  # a memory stands still
        function: Callable[[Tensor], Tensor] = lambda x: self._call(x, target, module=module)  # noqa: E731
        point = pred.clone().requires_grad_()
        try:
            same = torch.autograd.gradcheck(function, point, raise_exception=False)
        except RuntimeError as error:
            raise AssertionError(f"{self.name}: has a gradient; {error}") from error
        if same:
            return
        before, gradient = self._both(pred, target)
        moved = pred - 1e-4 * gradient / gradient.abs().max().clamp(min=1e-12)
        self._expect(
            bool(self._call(moved, target) <= before), "a small step against the gradient does not raise the loss"
        )

    def _place(self) -> None:
        """Corners taken for centre and size, or the other way round, show when both boxes move together."""
        pred, target = self._ordinary(dtype=torch.float64)
        move = torch.tensor([64.0, -32.0, 0.0, 0.0], dtype=torch.float64)
        here, there = (self._call(pred + shift, target + shift) for shift in (torch.zeros_like(move), move))
        self._close(there, here, "reads boxes as (cx, cy, w, h): two that move together cost the same")

    def _pull(self, pulls: bool) -> None:
        target = torch.tensor([[100.0, 100.0, 20.0, 30.0]] * 3, dtype=torch.float64)
        away = torch.tensor([[50.0, 3.0], [-4.0, -60.0], [45.0, 45.0]], dtype=torch.float64)
        pred = target + torch.cat([away, torch.ones(3, 2, dtype=torch.float64)], 1)
        _, gradient = self._both(pred, target)
        pulled = bool(((gradient[:, :2] * away).sum(1) > 0).all())
        claim = "pulls" if pulls else "does not pull"
        self._expect(pulled == pulls, f"{claim} a disjoint box closer; the gradient is {gradient[:, :2].tolist()}")

    def _close(self, got: Tensor, want: Tensor, promise: str) -> None:
        fine = torch.allclose(got.detach().float(), want.detach().float(), rtol=1e-4, atol=1e-6)
        self._expect(fine, f"{promise}; got {got.tolist()} instead of {want.tolist()}")
