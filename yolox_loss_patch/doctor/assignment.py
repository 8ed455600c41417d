"""Pictures of the label assignment: which anchors each box got, at which stride, and what each learns from its loss."""

from __future__ import annotations

import copy
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.checks import open_data
from ..data.loader import Prefetcher, seed_everything, training_loader
from ..errors import ConfigError, RunError
from ..exp.data import check_split_of
from ..exp.device import choose_device
from ..exp.loading import load_exp
from ..exp.mixin import patch_from_exp
from ..exp.settings import check_values, loss_config
from ..head import hosts
from ..head.assign import Assignment
from ..head.ignored import split_regions
from ..head.patch import stage_of
from ..head.stage import LossStage
from ..runs.checkpoint import load_checkpoint
from ..runs.files import write_atomically
from ..runs.selection import loss_label
from ..specs.config import LossConfig
from ..train.checkpoints import load_weights
from ..train.seeds import prepare_process
from .report import quiet

TERMS = ("iou", "obj", "cls")


@dataclass(frozen=True)
class Learned:
    """What the anchors of a batch learn from one set of losses.

    Attributes:
        label: of the losses.
        assignment: the matches.
        values: term -> ``(num_fg,)`` the loss of each foreground anchor, weights included, before the division by
            ``avg_factor``; None for a loss that is one number for the whole set.
        background: ``(B, A)`` the background anchors whose objectness is trained.
        ignored: ``(B, A)`` the anchors that learn nothing as they lie in an ignored region.
    """

    label: str
    assignment: Assignment
    values: dict[str, NDArray[np.float64] | None]
    background: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """The images of a batch as the model sees them.

    Attributes:
        images: ``(B, H, W, 3)`` RGB, 0 to 255.
        boxes: ``(B, M, 5)``: class, cx, cy, w, h in px; zeros after the last box.
        regions: a list per image of the ignored regions ``(R, 4)``: cx, cy, w, h in px.
        classes: the names.
        centres: ``(A, 2)`` x and y of each anchor in px.
        strides: ``(A,)`` in px.
        learned: a set of losses each.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    regions: list[NDArray[np.float64]]
    classes: list[str]
    centres: NDArray[np.float64]
    strides: NDArray[np.float64]
    learned: list[Learned]

    def rows(self) -> list[dict[str, Any]]:
        """A row per box and set of losses: how many anchors of each stride it got, mean IoU, mean loss per anchor."""
        found = []
        for learned in self.learned:
            matches = learned.assignment
            image, slot, ious = (value.cpu().numpy() for value in (matches.image, matches.matched_gt, matches.ious))
            stride = self.strides[matches.rows.cpu().numpy() % len(self.strides)]
            for number, boxes in enumerate(self.boxes):
                for place, box in enumerate(boxes[boxes[:, 1:].any(1)]):
                    mine = (image == number) & (slot == place)
                    row = {"losses": learned.label, "image": number, "box": place, "class": self.classes[int(box[0])]}
                    row |= dict(zip(("cx", "cy", "w", "h"), (round(float(value), 2) for value in box[1:]), strict=True))
                    row |= {f"stride_{each:.0f}": int((stride[mine] == each).sum()) for each in np.unique(self.strides)}
                    row["iou"] = float(ious[mine].mean()) if mine.any() else None
                    for term, values in learned.values.items():
                        row[f"{term}_loss"] = float(values[mine].mean()) if values is not None and mine.any() else None
                    found.append(row)
        return found


def plot_assignment(
    exp_file: str | None,
    opts: Sequence[str] = (),
    *,
    images: int = 4,
    ckpt: str | None = None,
    out: str | None = None,
    device: str = "auto",
) -> Path:
    """Draw which anchors each box gets in a training batch, with stock's losses and with the experiment's side by side.

    Args:
        exp_file: an experiment file.
        opts: overrides of the experiment, ``["loss_obj", "focal", ...]``.
        images: how many, from 1 to 16.
        ckpt: a checkpoint; without one the model has its first weights, whose matches say little.
        out: the picture, FILE.png; a table FILE.csv is written beside it. ``assignment.png`` in the run's folder if not given.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        The picture.

    Raises:
        KitError: an experiment or data that cannot be trained.
    """
    if not 1 <= images <= 16:
        raise ConfigError(f"-n is the number of images, from 1 to 16; got {images}.")
    if out is not None and Path(out).suffix.lower() != ".png":
        raise ConfigError(f"--out is a file that ends in .png; got {out!r}.")
    exp = load_exp(exp_file)
    exp.merge(opts)
    check_values(exp, images)
    path = Path(out) if out is not None else Path(exp.output_dir) / exp.exp_name / "assignment.png"
    batch = look_at(exp, images, ckpt, choose_device(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, draw(batch))
    text = io.StringIO()
    rows = batch.rows()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["losses"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path.with_suffix(".csv"), text.getvalue().encode())
    return path


def look_at(exp: Any, images: int, ckpt: str | None, device: torch.device) -> Batch:
    """The first batch of a training, and what its anchors learn from stock's losses and from the experiment's.

    Args:
        exp: the experiment.
        images: of the batch.
        ckpt: a checkpoint, None for the first weights.
        device: where the model runs.

    Raises:
        RunError: the head is that of a fork whose loss stage the kit does not see.
    """
    seed = exp.seed if exp.seed is not None else 0
    prepare_process(seed)
    with quiet():
        model = exp.get_model()
        loader = open_data(
            lambda: exp.get_data_loader(batch_size=images, is_distributed=False),
            exp.data_dir,
            exp.train_ann,
            "train_ann",
        )
    if ckpt is not None:
        load_weights(model, load_checkpoint(ckpt, torch.device("cpu"))["model"], ckpt, strict=False)
    model.to(device).train()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    check_split_of(exp, loader.dataset, "train")
    seed_everything(seed, 0, 0)
    batches = Prefetcher(
        training_loader(loader, seed=seed, rank=0, start=0, mosaic_until=sys.maxsize, pin_memory=device.type == "cuda"),
        device,
    )
    pixels, labels, _ = batches.next()
    pixels, labels = exp.preprocess(pixels, labels, exp.input_size)
    stock = copy.copy(exp)
    for key, spec in LossConfig(loss_assign=loss_config(exp).loss_assign).to_dict().items():
        setattr(stock, key, spec)
    chosen = [stock] if loss_config(stock) == loss_config(exp) else [stock, exp]
    learned = []
    for each in chosen:
        model.load_state_dict(start)
        patch_from_exp(model, each)
        stage = stage_of(model)
        assert stage is not None
        stage.l1_is_scheduled = True
        stage.set_epoch(1)
        with torch.no_grad(), _Watched(stage) as seen:
            model(pixels, labels)
        if seen.assignment is None:
            raise RunError(
                "The get_losses of this YOLOX is that of a fork, and does not let the kit see its label assignment."
            )
        learned.append(seen.learned(_label(each)))
    boxes, is_region = split_regions(seen.labels)
    rgb = seen.images.float().clamp(0, 255).byte().flip(1).permute(0, 2, 3, 1).cpu().numpy()  # YOLOX trains on BGR
    regions = [seen.labels[number, is_region[number], 1:].double().cpu().numpy() for number in range(len(boxes))]
    names = [str(name) for name in getattr(getattr(loader.dataset, "_dataset", loader.dataset), "_classes", ())]
    names = names if len(names) == exp.num_classes else [str(number) for number in range(exp.num_classes)]
    grid = seen.grid.double().cpu().numpy()
    centres = ((grid[:2] + 0.5) * grid[2]).T
    return Batch(rgb, boxes.double().cpu().numpy(), regions, names, centres, grid[2], learned)


def _label(exp: Any) -> str:
    return loss_label({"resolved_losses": loss_config(exp).resolved(), "code": {}, "exp": {}}, TERMS, whole=False)


class _Watched:
    """Inside, a loss stage keeps what it assigns, and each of its losses the values and weights of its elements.

    So the numbers of a picture are those of the training step itself, samplers included.

    Args:
        stage: its next call is watched.

    Attributes:
        assignment: the matches; None where the stage was not called.
        images, labels, grid: what they were made of, as `LossStage.assign` gets them.
    """

    def __init__(self, stage: LossStage) -> None:
        self.stage = stage
        self.assignment: Assignment | None = None
        self.images = self.labels = self.grid = torch.empty(0)
        self._calls: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {term: [] for term in TERMS}
        self._losses = [(term, part, part.loss) for term in TERMS for part in stage.parts[term]]

    def __enter__(self) -> _Watched:
        self.stage.assign = self._assign  # type: ignore[method-assign]
        for term, part, loss in self._losses:
            part.loss = self._recorder(term, loss)
        return self

    def __exit__(self, *_: Any) -> None:
        del self.stage.assign
        for _term, part, loss in self._losses:
            part.loss = loss

    def _assign(self, head: Any, imgs: Tensor, outputs: Tensor, labels: Tensor, grid: Tensor) -> Assignment:
        self.images, self.labels, self.grid = imgs, labels, grid
        self.assignment = type(self.stage).assign(self.stage, head, imgs, outputs, labels, grid)
        return self.assignment

    def _recorder(self, term: str, loss: Any) -> Any:
        def call(pred: Tensor, target: Tensor, **more: Any) -> Any:
            if "reduction_override" not in more:  # else OHEMSampler asks, to choose its anchors
                elements = {key: value for key, value in more.items() if key != "avg_factor"}
                is_whole = getattr(loss, "whole_set", False)
                value = None if is_whole else loss(pred, target, reduction_override="none", **elements)
                self._calls[term].append((value, more.get("weight")))
            return loss(pred, target, **more)

        call.wants = getattr(loss, "wants", ())  # type: ignore[attr-defined]
        return call

    def learned(self, label: str) -> Learned:
        """What was seen.

        Args:
            label: of the losses.
        """
        matches = self.assignment
        assert matches is not None
        shape = (len(self.images), self.grid.shape[1])
        values = {term: self._values(term, matches) for term in TERMS}
        trained = torch.zeros_like(matches.fg_mask)
        for _, weight in self._calls["obj"]:
            trained |= ~matches.fg_mask if weight is None else (weight.view(-1) > 0) & ~matches.fg_mask
        ignored = torch.zeros_like(matches.fg_mask) if matches.ignored is None else matches.ignored
        return Learned(label, matches, values, *(mask.view(shape).cpu().numpy() for mask in (trained, ignored)))

    def _values(self, term: str, matches: Assignment) -> NDArray[np.float64] | None:
        """The loss of a term for each foreground anchor, of all its parts; None where a part has none per anchor."""
        total = torch.zeros(matches.num_fg, dtype=torch.float64)
        for value, _ in self._calls[term]:
            if value is None:
                return None
            of_anchors = value.double().reshape(len(value), -1).sum(1)
            total += (of_anchors[matches.rows] if term == "obj" else of_anchors).cpu()
        return (total * (hosts.BOX_WEIGHT if term == "iou" else 1)).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The picture.

_MARKERS = ("o", "s", "^", "D", "v")
_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#F0E442", "#0072B2")
_MOST_LABELLED = 12  # boxes in an image; with more, their numbers stand in the table only


def draw(batch: Batch) -> bytes:
    """The picture as a PNG: a row per image, a column per set of losses."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from ..compare.drawing import LIGHT, rendered, style, wrapped

    height, width = batch.images.shape[1:3]
    rows, columns = len(batch.images), len(batch.learned)
    levels = np.unique(batch.strides)
    side = 6.4
    with style(LIGHT):
        figure = Figure(figsize=(side * columns, (side * height / width + 0.35) * rows + 1.1), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        most = max((_total(learned).max(initial=0.0) for learned in batch.learned), default=0.0) or 1.0
        for number in range(rows):
            for learned, axes in zip(batch.learned, grid[number], strict=True):
                _draw_image(axes, batch, learned, number, levels, most)
                axes.set_title("\n".join(wrapped(f"image {number}: {learned.label}", 84)), fontsize=9, loc="left")
        handles: list[Any] = [
            Line2D([], [], marker=_MARKERS[place % len(_MARKERS)], color="white", markerfacecolor="grey",
                   markeredgecolor="black", linestyle="", label=f"anchor of stride {level:.0f}")
            for place, level in enumerate(levels)
        ]  # fmt: skip
        handles.append(Patch(facecolor="none", edgecolor="grey", label="box, in the colour of its anchors"))
        if any(learned.ignored.any() for learned in batch.learned):
            handles.append(Line2D([], [], marker="x", color="#b00020", linestyle="", label="ignored anchor"))
            handles.append(Patch(facecolor="none", edgecolor="#b00020", hatch="//", label="ignored region"))
        if any(_is_sampled(learned) for learned in batch.learned):
            handles.append(Line2D([], [], marker=".", color="white", markeredgecolor="black", linestyle="",
                                  label="background anchor that is trained"))  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8)
        note = "The size of an anchor goes with its loss, of all terms together. "
        note += "Beside a box: anchors, mean IoU; mean loss per anchor: box + objectness + class."
        figure.suptitle(note, fontsize=8.5)
        return rendered(figure, format="png", dpi=100)


def _total(learned: Learned) -> NDArray[np.float64]:
    """``(num_fg,)`` the loss of each foreground anchor, of all terms that have one per anchor."""
    known = [value for value in learned.values.values() if value is not None]
    return np.sum(known, axis=0) if known else np.zeros(learned.assignment.num_fg)


def _is_sampled(learned: Learned) -> bool:
    """Whether only a part of the background is trained, besides what is ignored."""
    free = ~learned.ignored.ravel() & ~learned.assignment.fg_mask.cpu().numpy()
    return bool(learned.background.sum() < free.sum())


def _draw_image(
    axes: Any, batch: Batch, learned: Learned, number: int, levels: NDArray[np.float64], most: float
) -> None:
    from matplotlib.patches import Rectangle

    from ..compare.images import draw_box

    height, width = batch.images.shape[1:3]
    axes.imshow(batch.images[number])
    axes.set_axis_off()
    matches = learned.assignment
    rows = matches.rows.cpu().numpy()
    here = matches.image.cpu().numpy() == number
    anchors, slots, sizes = (
        rows[here] % len(batch.strides),
        matches.matched_gt.cpu().numpy()[here],
        _total(learned)[here],
    )
    ious = matches.ious.cpu().numpy()[here]
    for cx, cy, w, h in batch.regions[number]:
        axes.add_patch(
            Rectangle((cx - w / 2, cy - h / 2), w, h, fill=False, edgecolor="#b00020", hatch="//", linewidth=1)
        )
    _dots(axes, batch.centres[learned.ignored[number]], marker="x", color="#b00020", s=10, linewidths=0.6)
    if _is_sampled(learned):
        _dots(
            axes,
            batch.centres[learned.background[number]],
            marker=".",
            color="white",
            edgecolors="black",
            s=14,
            linewidths=0.4,
        )
    boxes = batch.boxes[number]
    boxes = boxes[boxes[:, 1:].any(1)]
    for place, (label, cx, cy, w, h) in enumerate(boxes):
        colour = _COLOURS[place % len(_COLOURS)]
        mine = slots == place
        text = ""
        if len(boxes) <= _MOST_LABELLED:
            text = _told(batch.classes[int(label)], ious[mine], {
                term: None if value is None else value[here][mine] for term, value in learned.values.items()
            })  # fmt: skip
        draw_box(axes, (cx - w / 2, cy - h / 2, w, h), text, colour, (height, width))
        for level, marker in zip(levels, _MARKERS * len(levels), strict=False):
            chosen = mine & (batch.strides[anchors] == level)
            _dots(axes, batch.centres[anchors[chosen]], marker=marker, color=colour, edgecolors="black",
                  s=8 + 70 * np.clip(sizes[chosen] / most, 0, 1), linewidths=0.5)  # fmt: skip
    axes.set(xlim=(0, width), ylim=(height, 0))


def _told(name: str, ious: NDArray[np.float64], values: Mapping[str, NDArray[np.float64] | None]) -> str:
    if not len(ious):
        return f"{name}: no anchor"
    losses = " + ".join("-" if value is None else f"{value.mean():.2f}" for value in values.values())
    return f"{name}: {len(ious)}, IoU {ious.mean():.2f}; {losses}"


def _dots(axes: Any, places: NDArray[np.float64], **how: Any) -> None:
    if len(places):
        axes.scatter(places[:, 0], places[:, 1], **how)
