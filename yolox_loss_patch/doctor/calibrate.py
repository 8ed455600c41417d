"""How hard each loss term pulls in the user's own training, stock against the chosen losses, and what brings them together."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from ..data.checks import open_data
from ..data.loader import Prefetcher, seed_everything, training_loader
from ..errors import ConfigError, NonFiniteError, RunError
from ..exp.data import check_split_of
from ..exp.device import choose_device
from ..exp.loading import load_exp
from ..exp.settings import check_values
from ..head.patch import find_head, patch_model, stage_of, unpatch_model
from ..head.weights import ElementWeights
from ..losses.terms import LossModule
from ..runs.checkpoint import load_checkpoint
from ..runs.files import write_atomically
from ..runs.record import GRADIENT_COLUMNS
from ..specs.build import build_loss
from ..specs.config import LossConfig
from ..specs.labels import label_of
from ..specs.registry import LOSSES
from ..specs.resolve import can_be_calibrated, parts_of
from ..specs.text import is_formula, parse
from ..train.checkpoints import load_weights
from ..train.seeds import prepare_process
from .report import quiet
from .verify import fresh_optimizer

STOCK, CHOSEN, CALIBRATED = "stock", "chosen", "calibrated"
PULLS = {
    "grad_box": "boxes",
    "grad_obj_fg": "objectness, foreground",
    "grad_obj_bg": "objectness, background",
    "grad_cls": "classes",
    "grad_l1": "L1",
}
_OF_TERM = {"obj": ("grad_obj_fg", "grad_obj_bg"), "cls": ("grad_cls",), "iou": ("grad_box",), "l1": ("grad_l1",)}
#: Pulls within this factor of stock's are left alone: they move as much from batch to batch.
_NEAR = 1.25
#: A calibrated term that is still off by more than this is told.
_FAR = 2.0
#: Trainings at most to settle a weight: with other weights the network goes another way.
_ROUNDS = 2


@dataclass
class Trial:
    """A short training: the losses, and a row per step with the pull of each term."""

    name: str
    config: LossConfig
    rows: list[dict[str, float]] = field(default_factory=list)

    def mean(self, column: str) -> float:
        """Over the second half of the steps."""
        late = self.rows[len(self.rows) // 2 :]
        return sum(row[column] for row in late) / len(late)

    def pull(self, term: str) -> float:
        """How hard a term pulls, over the second half of the steps."""
        return sum(self.mean(column) for column in _OF_TERM[term])


@dataclass
class Calibration:
    """What `calibrate` found.

    Attributes:
        where: experiment, steps, batch, device, in a line.
        trials: stock, chosen and, unless that is well as it is, calibrated.
        lines: of the experiment file, for the terms whose knobs should change.
        warnings: what is known to go wrong with these losses.
        test_conf: the score from which on a box is a detection.
    """

    where: str
    trials: list[Trial]
    lines: list[str]
    warnings: list[str]
    test_conf: float

    def __str__(self) -> str:
        parts = [self.where, self._table()]
        if self.lines:
            parts.append("To bring them together, in the experiment's __init__:\n" + "\n".join(self.lines))
        else:
            parts.append("The chosen losses pull as stock's do; nothing to change.")
        return "\n\n".join([*parts, *(f"warning: {text}" for text in self.warnings)])

    def _table(self) -> str:
        stock = self.trials[0]
        rows = []
        for column, name in PULLS.items():
            if any(trial.mean(column) for trial in self.trials):
                rows.append([name, *(self._cell(trial, column) for trial in self.trials)])
        for column, name in (("obj_fg", "mean objectness, foreground"), ("obj_bg", "mean objectness, background")):
            rows.append([name, *(f"{trial.mean(column):.3g}" for trial in self.trials)])
        rows.append(["IoU of the foreground", *(f"{trial.mean('fg_iou'):.3f}" for trial in self.trials)])
        half = len(stock.rows) - len(stock.rows) // 2
        note = (
            f"Pull: L1 norm of the loss's gradient at the head's raw outputs, mean of the last {half} steps; its share of "
            "all; its ratio to stock's."
        )
        return tabulate(rows, ["", *(trial.name for trial in self.trials)], tablefmt="github") + "\n" + note

    def _cell(self, trial: Trial, column: str) -> str:
        pull, stock = trial.mean(column), self.trials[0].mean(column)
        text = f"{pull:.3g} ({pull / sum(trial.mean(other) for other in PULLS):.0%})"
        return text if trial is self.trials[0] else f"{text} x{pull / stock:.2g}" if stock else text

    def csv(self) -> str:
        """A row per step of each trial."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["losses", *self.trials[0].rows[0]], lineterminator="\n")
        writer.writeheader()
        for trial in self.trials:
            writer.writerows({"losses": trial.name, **row} for row in trial.rows)
        return text.getvalue()


def calibrate(
    exp_file: str | None = None,
    name: str | None = None,
    opts: Sequence[str] = (),
    *,
    steps: int = 48,
    batch_size: int = 8,
    device: str = "auto",
    ckpt: str | None = None,
    out: str | None = None,
) -> Calibration:
    """Train some dozens of steps with stock and with the chosen losses, from the same weights on the same images.

    Then the knobs that bring the chosen losses' pull to stock's: ``calibrated`` and ``by_overlap`` where the losses have
    them, and ``loss_weight``; and a training with these.

    Args:
        exp_file: an experiment file.
        name: or one of YOLOX's models.
        opts: overrides of the experiment, ``["loss_obj", "focal", ...]``.
        steps: of each training, at least 4; the first half warms the learning rate up.
        batch_size: images per step.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        ckpt: a checkpoint to start from, as for fine-tuning.
        out: folder for ``calibration.png`` and ``calibration.csv``; the folder of the experiment's run if not given.

    Raises:
        KitError: an experiment whose losses are stock, or that cannot be trained.
    """
    for flag, value, least in (("--steps", steps, 4), ("-b", batch_size, 1)):
        if value < least:
            raise ConfigError(f"{flag} is at least {least}; got {value}.")
    exp = load_exp(exp_file, name)
    exp.merge(opts)
    check_values(exp, batch_size)
    config = LossConfig.from_exp(exp)
    if config == LossConfig(loss_assign=config.loss_assign):
        raise ConfigError(
            "The losses of this experiment are stock's, so there is nothing to calibrate. Choose others in the experiment "
            "file or behind the flags: yolox-loss calibrate -f EXP loss_obj focal"
        )
    run = _Trainings(exp, steps, batch_size, choose_device(device), ckpt)
    stock = run.train(STOCK, LossConfig(loss_assign=config.loss_assign))
    chosen = run.train(CHOSEN, config)
    trials = [stock, chosen]
    specs = _brought_to_stocks_pull(config)
    last = run.train(CALIBRATED, LossConfig.from_specs(specs)) if specs != config.to_dict() else chosen
    for _ in range(_ROUNDS):
        weighed = _with_weights(specs, stock, last)
        if weighed == specs:
            break
        specs = weighed
        last = run.train(CALIBRATED, LossConfig.from_specs(specs))
    if last is not chosen:
        trials.append(last)
    before = config.to_dict()
    lines = [f"    self.{key} = {_shortest(spec)!r}" for key, spec in specs.items() if spec != before.get(key)]
    found = Calibration(run.where, trials, lines, list(_warnings(exp, trials)), exp.test_conf)
    folder = Path(out) if out is not None else Path(exp.output_dir) / exp.exp_name
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "calibration.csv", found.csv().encode())
    draw(found, folder / "calibration.png")
    return found


class _Trainings:
    """Short trainings of one experiment that differ in their losses only."""

    def __init__(self, exp: Any, steps: int, batch_size: int, device: torch.device, ckpt: str | None) -> None:
        self.exp, self.steps, self.batch_size, self.device = exp, steps, batch_size, device
        self.seed = exp.seed if exp.seed is not None else 0
        prepare_process(self.seed)
        with quiet():
            self.model = exp.get_model()
        if ckpt is not None:
            load_weights(self.model, load_checkpoint(ckpt, torch.device("cpu"))["model"], ckpt, strict=False)
        self.model.to(device).train()
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        with quiet():
            self.loader = open_data(
                lambda: exp.get_data_loader(batch_size=batch_size, is_distributed=False),
                exp.data_dir,
                exp.train_ann,
                "train_ann",
            )
        check_split_of(exp, self.loader.dataset, "train")
        height, width = exp.input_size
        start = f"the weights of {ckpt}" if ckpt else "random weights"
        self.where = (
            f"{exp.exp_name}: trainings of {steps} steps, {batch_size} images of {height}x{width} px each, on {device.type}, "
            f"from {start}, the same and with the same images for each."
        )

    def train(self, name: str, config: LossConfig) -> Trial:
        """Train with these losses, from the same weights on the same images.

        Raises:
            RunError: the loss is not finite, or the head's ``get_losses`` is that of a fork.
        """
        trial = Trial(name, config)
        self.model.load_state_dict(self.start)
        unpatch_model(self.model)
        patch_model(self.model, config)
        stage = stage_of(self.model)
        assert stage is not None
        weigh = getattr(self.exp, "loss_weights", None)
        stage.element_weights = ElementWeights(weigh) if weigh is not None and name != STOCK else None
        stage.collect = stage.l1_is_scheduled = True
        stage.set_epoch(1)  # a schedule at its start
        find_head(self.model).use_l1 = self._has_l1()
        optimizer = fresh_optimizer(self.exp, self.batch_size)
        rates = [group["lr"] for group in optimizer.param_groups]
        seed_everything(self.seed, 0, 0)
        batches = Prefetcher(
            training_loader(
                self.loader,
                seed=self.seed,
                rank=0,
                start=0,
                mosaic_until=sys.maxsize,
                pin_memory=self.device.type == "cuda",
            ),
            self.device,
        )
        # Where nobody watches (a log file), a line now and then is enough.
        bar = tqdm(range(self.steps), desc=name, unit="step", mininterval=0.1 if sys.stderr.isatty() else 30)
        for step in bar:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / (self.steps // 2))
            images, labels, _ = batches.next()
            images, labels = self.exp.preprocess(images, labels, self.exp.input_size)
            stage.gradients.clear()
            loss = self._total_loss(images, labels)
            if loss is None:
                raise RunError(
                    f"The loss is not finite in step {step + 1} with the {name} losses, {config}. Lower basic_lr_per_img, or "
                    "the loss_weight of the term."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not stage.gradients:
                raise RunError(
                    "The get_losses of this YOLOX is that of a fork, and does not let the kit see the gradients."
                )
            trial.rows.append({"step": step + 1, **_row(stage)})
        return trial

    def _total_loss(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """The total loss of a batch, None where it or the predictions are not finite."""
        try:
            loss: Tensor = self.model(images, labels)["total_loss"]
        except NonFiniteError:
            return None
        return loss if math.isfinite(float(loss.detach())) else None

    def _has_l1(self) -> bool:
        """Whether the experiment chose another L1 loss: only then is the L1 term trained here; YOLOX starts it late."""
        return LossConfig.from_exp(self.exp).resolved()["l1"] != LossConfig().resolved()["l1"]


def _row(stage: Any) -> dict[str, float]:
    stats = {name: float(value) for name, value in stage.stats.items()}
    pulls = {name: float(stage.gradients.get(name, 0.0)) for name in GRADIENT_COLUMNS}
    foreground, background = max(stats["num_fg"], 1), max(stats["num_bg"], 1)
    return {
        **pulls,
        "obj_fg": stats["obj_fg"] / foreground,
        "obj_bg": stats["obj_bg"] / background,
        "fg_iou": stats["fg_iou"] / foreground,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Knobs and warnings.


def _asked(config: LossConfig) -> dict[str, Any]:
    """Term -> resolved loss, for the terms whose loss is not stock's."""
    stock = LossConfig().resolved()
    return {term: spec for term, spec in config.resolved().items() if spec != stock[term]}


def _as_dict(term: str, spec: Any) -> dict[str, Any]:
    """The spec of one loss as a dict."""
    if isinstance(spec, Mapping):
        return dict(spec)
    return parse(f"loss_{term}", spec)[0] if is_formula(spec) else {"type": spec}


def _shortest(spec: Any) -> Any:
    return spec["type"] if isinstance(spec, Mapping) and len(spec) == 1 else spec


def _brought_to_stocks_pull(config: LossConfig) -> dict[str, Any]:
    """The specs, calibrated where that can be had and is not."""
    specs = config.to_dict()
    for term, resolved in _asked(config).items():
        parts = parts_of(resolved)
        if len(parts) > 1:
            continue  # the parts of a sum share the term's pull as their weights say
        row = LOSSES.get(term, parts[0]["type"])
        if can_be_calibrated(term, row) and parts[0]["type"] != "bce":
            specs[f"loss_{term}"] = {**_as_dict(term, specs[f"loss_{term}"]), "calibrated": True}
        elif term == "iou" and parts[0].get("power") == 1:
            specs["loss_iou"] = {**_as_dict(term, specs["loss_iou"]), "by_overlap": True}
    return specs


def _with_weights(specs: Mapping[str, Any], stock: Trial, last: Trial) -> dict[str, Any]:
    """The specs with the loss_weight that brings a term's pull to stock's."""
    found = dict(specs)
    for term, resolved in _asked(last.config).items():
        wanted, pull = stock.pull(term), last.pull(term)
        if not wanted or not pull or 1 / _NEAR <= pull / wanted <= _NEAR:
            continue
        if term == "iou":
            least, most = sorted((_far(resolved), _near(resolved)))
            if least / _NEAR < 1 < most * _NEAR:
                continue  # at some IoU it pulls as stock does: a weight that fits the bad boxes of the start would not fit later
        parts = parts_of(resolved)
        if len(parts) > 1 or isinstance(parts[0]["loss_weight"], Mapping):
            continue  # a sum and a schedule are weighed by whoever wrote them
        weight = float(f"{parts[0]['loss_weight'] * wanted / pull:.2g}")
        found[f"loss_{term}"] = {**_as_dict(term, found[f"loss_{term}"]), "loss_weight": weight}
    return found


def _warnings(exp: Any, trials: Sequence[Trial]) -> Iterator[str]:
    stock, last = trials[0], trials[-1]
    for told in trials[1:]:
        background = told.mean("obj_bg")
        if background > exp.test_conf and background > 2 * stock.mean("obj_bg"):
            yield (
                f"the {told.name} losses leave the background at an objectness of {background:.2g}, above test_conf = "
                f"{exp.test_conf:g} (stock: {stock.mean('obj_bg'):.2g}): more boxes reach the NMS, evaluation takes longer, "
                "and a threshold on the score has to be found anew"
            )
    asked = _asked(last.config)
    if any(part.get("target") == "iou" for part in parts_of(asked.get("obj", []))):
        yield (
            "the objectness target is the IoU, and YOLOX's class targets carry the IoU too: the score, their product, is "
            "about IoU squared, so thresholds on it have to be lower"
        )
    seen: list[Any] = []
    for trial in trials[1:]:
        box = _asked(trial.config).get("iou")
        if box is None or box in seen:
            continue
        seen.append(box)
        near, far = _near(box), _far(box)
        if not 1 / 1.5 <= far / max(near, 1e-9) <= 1.5:
            yield (
                f"the {trial.name} loss_iou {label_of('iou', box)} pulls boxes of IoU 0.2 {far:.2g} times as hard as stock's "
                f"1 - IoU**2, and boxes of IoU 0.9 {near:.2g} times: besides its formula it moves the effort "
                "between bad and good boxes"
            )
    for term in asked:
        ratio = last.pull(term) / stock.pull(term) if stock.pull(term) else 1.0
        if not 1 / _FAR <= ratio <= _FAR:
            yield (
                f"loss_{term} still pulls {ratio:.2g} times as hard as stock's; with this loss the pull does not follow its "
                "loss_weight in so short a training. Compare whole trainings with yolox-loss sweep"
            )


def _near(resolved: Any) -> float:
    return _against_stock(resolved, iou=0.9)


def _far(resolved: Any) -> float:
    return _against_stock(resolved, iou=0.2)


def _against_stock(resolved: Any, iou: float) -> float:
    """Pull of a box loss on a box of this IoU with the target, divided by the pull of stock's box loss."""
    side = 40.0
    shift = side * (1 - iou) / (1 + iou)
    pulls = []
    for spec in (resolved, "iou"):
        box = torch.tensor([[100.0 + shift, 100.0, side, side]], dtype=torch.float64, requires_grad=True)
        loss: Any = build_loss("iou", spec).eval()  # a loss with a memory (wiou) as it is at the start
        if isinstance(loss, LossModule):
            loss.set_epoch(1)
        facts = {"image_size": (200.0, 200.0)} if "image_size" in getattr(loss, "wants", ()) else {}
        value = loss(
            box, torch.tensor([[100.0, 100.0, side, side]], dtype=torch.float64), reduction_override="sum", **facts
        )
        (gradient,) = torch.autograd.grad(value, box)
        pulls.append(float(gradient[0, 0]))
    return pulls[0] / pulls[1]


# ---------------------------------------------------------------------------------------------------------------------
# The picture.


def draw(found: Calibration, path: Path) -> None:
    """Each pull over the steps, the objectness of the background, and the shares."""
    from matplotlib.figure import Figure

    from ..compare.drawing import LIGHT

    colours = dict(zip((STOCK, CHOSEN, CALIBRATED), (LIGHT.groups[0], LIGHT.groups[2], LIGHT.groups[1]), strict=True))
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    grid = figure.subplots(2, 3)
    panels = [*list(PULLS.items())[:4], ("obj_bg", "mean objectness on background")]
    for axes, (column, title) in zip(grid.flat, panels, strict=False):
        for trial in found.trials:
            steps = [row["step"] for row in trial.rows]
            axes.plot(steps, [row[column] for row in trial.rows], label=trial.name, color=colours[trial.name])
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    grid.flat[4].axhline(found.test_conf, color=LIGHT.dim, linestyle=":", label="test_conf")
    for place in (0, 4):
        grid.flat[place].legend(fontsize=8)
    grid.flat[0].set_ylabel("pull (L1 norm of the gradient)")
    axes = grid.flat[5]
    for place, trial in enumerate(found.trials):
        left, whole = 0.0, sum(trial.mean(column) for column in PULLS)
        for column, colour in zip(PULLS, LIGHT.groups[1:], strict=False):
            share = trial.mean(column) / whole
            axes.barh(place, share, left=left, color=colour, label=PULLS[column] if place == 0 and share else None)
            left += share
    axes.set(title="share of the whole pull", xlim=(0, 1), yticks=range(len(found.trials)))
    axes.set_yticklabels([trial.name for trial in found.trials])
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    figure.savefig(path, dpi=110)
