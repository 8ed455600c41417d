"""Pictures of losses: value and gradient of one element, and how boxes move to their target under a box loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..losses.calibration import PRIOR
from ..specs.build import build_loss
from ..specs.knobs import nearest
from ..specs.labels import label_of
from ..specs.plain import literal
from ..specs.registry import LOSSES, TERMS
from ..specs.resolve import parts_of, resolve
from ..specs.text import is_formula

_FORMATS = (".png", ".svg")
# Facts that the loss stage would know; the boxes drawn here live in so small an image.
_IMAGE = (20.0, 20.0)
# The simulation of the DIoU paper (1911.08287, section 3.2): targets of area 1 at (10, 10), anchors around them.
_ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
_AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
_RADIUS = 3.0
_STEPS = 200


def plot(words: Sequence[str], out: str, regression: bool = False, points: int = 100) -> Path:
    """Draw losses of one term into a PNG or SVG file: against probability, IoU or offset, or boxes that move to their target.

    A loss is a name, "ciou(power=3)", a sum such as "bce+0.5*focal", or a dict.
    """
    path = Path(out)
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--out is a file that ends in {' or '.join(_FORMATS)}; got {out!r}.")
    if points < 1:
        raise ConfigError(f"--points is at least 1; got {points}.")
    specs = [_spec(word) for word in words]
    term = _term(specs, regression)
    losses = {label_of(term, resolve(term, spec)): element_wise(term, spec) for spec in specs}

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if regression:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for name, loss in losses.items():
            axes.plot(simulate(loss, points), label=name)
        axes.set(xlabel="iteration", ylabel="error: mean L1 distance to the target, in sides", yscale="log")
        axes.set_title(f"{points} places x 49 anchors x 7 targets, as in the DIoU paper", fontsize=10)
        _finish(axes)
    else:
        panels, columns = {"iou": (_box_panels, 2), "l1": (_offset_panels, 2)}.get(term, (_score_panels, 3))
        figure, grid = plt.subplots(2, columns, figsize=(5.5 * columns, 7.5), layout="constrained")
        panels(grid, losses)
        for axes in grid.flat:
            _finish(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _spec(word: str) -> Any:
    """The spec of a word: a name, a text such as ``bce+0.5*dice``, or a literal."""
    if not word.lstrip().startswith(("{", "[")):
        return word
    spec = literal(word)
    if isinstance(spec, str):
        raise ConfigError(f"{word!r} is no dict and no list.")
    return spec


def _term(specs: list[Any], regression: bool) -> str:
    """The term that all losses fill.

    Raises:
        ConfigError: there is none.
    """
    terms = ["iou"] if regression else list(TERMS)
    errors = []
    for term in terms:
        try:
            for spec in specs:
                resolve(term, spec)
            return term
        except ConfigError as error:
            errors.append(error)
    known = {name for term in terms for name in LOSSES.names(term)}
    for spec in specs:
        name = spec.get("type") if isinstance(spec, dict) else spec
        if isinstance(name, str) and not is_formula(name) and name not in known:
            every = ", ".join(sorted(known))
            raise ConfigError(f"There is no loss {name!r} to draw.{nearest(name, known)} Choose from: {every}.")
    for spec in specs:
        if all(_fails(term, spec) for term in terms):
            raise errors[0]
    raise ConfigError(
        f"{', '.join(map(str, specs))} fill different terms and have no axis in common; draw them one term at a time."
    )


def _fails(term: str, spec: Any) -> bool:
    try:
        resolve(term, spec)
    except ConfigError:
        return True
    return False


def element_wise(term: str, spec: Any) -> Any:
    """The loss of each element, with gradient."""
    for part in parts_of(resolve(term, spec)):
        if LOSSES.get(term, part["type"]).whole_set:
            raise ConfigError(f"{part['type']} is a loss of a whole set; there is no curve of a single element.")
    module: Any = build_loss(term, spec)
    module.eval()  # a loss with a memory (wiou) is drawn as it is at the start
    wants = getattr(module, "wants", ())
    facts = {"image_size": _IMAGE} if "image_size" in wants else {}

    def loss(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        pred = pred.detach().clone().requires_grad_()
        value = module(pred, target, reduction_override="none", **facts)
        (gradient,) = torch.autograd.grad(value.sum(), pred)
        return value.detach(), gradient

    return loss


def _score_panels(grid: Any, losses: dict[str, Any]) -> None:
    """Loss and gradient over the score, for foreground and background; the chance that the score stands for."""
    logits = torch.linspace(-9, 9, 721, dtype=torch.float64)
    p = torch.sigmoid(logits)
    for column, target in enumerate((1.0, 0.0)):
        for name, loss in losses.items():
            value, gradient = loss(logits, torch.full_like(logits, target))
            grid[0, column].plot(p, value, label=name)
            grid[1, column].plot(p, gradient.abs(), label=name)
        side = "foreground (target 1)" if target else "background (target 0)"
        grid[0, column].set(title=f"loss, {side}", xlabel="score", ylim=(0, 5))
        grid[1, column].set(title=f"|gradient| to the logit, {side}", xlabel="score", yscale="log", ylim=(1e-6, 3))
    for name, loss in losses.items():
        up, down = (loss(logits, torch.full_like(logits, target))[1].abs() for target in (1.0, 0.0))
        chance = down / (up + down)  # where the pulls cancel
        grid[0, 2].plot(p, chance, label=name)
        # In that chance every such loss is BCE with a weight.
        weight = (up + down) / torch.gradient(torch.logit(chance), spacing=(logits,))[0]
        at_prior = int((chance - PRIOR).abs().argmin())
        grid[1, 2].plot(chance[1:-1], (weight / weight[at_prior])[1:-1], label=name)  # the ends have one neighbour
    grid[0, 2].set(title="chance of foreground that a score stands for", xlabel="score", yscale="log", ylim=(1e-4, 1))
    grid[1, 2].set(title="the same loss as BCE of that chance: its weight", xlabel="chance of foreground", ylim=(0, 4))


def _box_panels(grid: Any, losses: dict[str, Any]) -> None:
    """Loss and gradient of a box that slides off its target."""
    target = torch.tensor([[10.0, 10.0, 2.0, 1.0]], dtype=torch.float64)
    slide = torch.linspace(0.001, 4, 600, dtype=torch.float64)
    along = torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    shifted = target + slide.unsqueeze(1) * along
    shared = (2 - slide).clamp(min=0) * (1 - slide / 2).clamp(min=0)
    iou = shared / (4 - shared)
    touching = iou > 0
    for name, loss in losses.items():
        value, gradient = loss(shifted, target.expand_as(shifted))
        pull = (gradient * along).sum(1) / math.hypot(1, 0.5)
        grid[0, 0].plot(iou[touching], value[touching], label=name)
        grid[0, 1].plot(iou[touching], pull[touching], label=name)
        grid[1, 0].plot(slide / 2, value, label=name)
        grid[1, 1].plot(slide / 2, pull, label=name)
    grid[0, 0].set(title="loss of a box of the right size, shifted", xlabel="IoU")
    grid[0, 1].set(title="pull back to the target (gradient along the shift)", xlabel="IoU")
    grid[1, 0].set(title="the same beyond touching", xlabel="shift, in sides of the target")
    grid[1, 1].set(title="pull", xlabel="shift, in sides of the target")
    for axes in grid[1]:
        axes.axvline(1.0, color="grey", linewidth=0.8, linestyle=":")


def _offset_panels(grid: Any, losses: dict[str, Any]) -> None:
    """Loss and gradient over the offset, near and far."""
    for column, reach in enumerate((1.5, 6.0)):
        d = torch.linspace(-reach, reach, 601, dtype=torch.float64)
        pred = d.unsqueeze(1).expand(-1, 4)
        for name, loss in losses.items():
            value, gradient = loss(pred, torch.zeros_like(pred))
            grid[0, column].plot(d, value[:, 0], label=name)
            grid[1, column].plot(d, gradient[:, 0], label=name)
        grid[0, column].set(title="loss", xlabel="offset, in strides")
        grid[1, column].set(title="gradient", xlabel="offset, in strides")


def simulate(loss: Any, points: int = 100, seed: int = 0) -> list[float]:
    """The box regression of the DIoU paper: the error after each iteration.

    Anchors of 7 areas and 7 aspects at ``points`` places within 3 of the centre of 7 targets of area 1 go down the
    gradient of the loss, with the paper's steps: 0.1 (2 - IoU), a tenth of it after 80 % and again after 90 % of 200
    iterations. (The paper has 5,000 places.)

    Args:
        loss: ``loss(pred, target) -> (values, gradient)`` for boxes ``(N, 4)``.
        points: places, the same for every loss.
        seed: of the places.
    """
    generator = torch.Generator().manual_seed(seed)
    radius = _RADIUS * torch.rand(points, generator=generator, dtype=torch.float64).sqrt()
    angle = 2 * math.pi * torch.rand(points, generator=generator, dtype=torch.float64)
    places = 10 + radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    shapes = torch.tensor([[math.sqrt(a * r), math.sqrt(a / r)] for a in _AREAS for r in _ASPECTS], dtype=torch.float64)
    goals = torch.tensor([[10.0, 10.0, math.sqrt(r), math.sqrt(1 / r)] for r in _ASPECTS], dtype=torch.float64)
    anchors = torch.cat([places.repeat_interleave(len(shapes), 0), shapes.repeat(points, 1)], 1)
    pred, target = anchors.repeat_interleave(len(goals), 0), goals.repeat(len(anchors), 1)
    plain = element_wise("iou", {"type": "iou", "mode": "linear"})
    errors = [float((pred - target).abs().sum(1).mean())]
    for step in range(_STEPS):
        rate = 0.1 * (1 if step < 0.8 * _STEPS else 0.1 if step < 0.9 * _STEPS else 0.01)
        _, gradient = loss(pred, target)
        worse, _ = plain(pred, target)  # 1 - IoU
        pred = pred - rate * (1 + worse).unsqueeze(1) * gradient
        pred[:, 2:].clamp_(min=0.01)  # a box keeps its sides
        errors.append(float((pred - target).abs().sum(1).mean()))
    return errors
