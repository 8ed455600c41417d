"""Stock against kit on the user's own machine and experiment: losses, gradients, training steps; then the chosen losses."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.annotations import default_data_dir
from ..data.checks import open_data
from ..data.findings import ERROR, OK, WARNING, Finding
from ..data.loader import Prefetcher, training_loader
from ..errors import ConfigError, HostError, PatchError, in_words
from ..exp.data import check_split_of
from ..exp.loading import load_exp
from ..exp.settings import check_values
from ..head import hosts
from ..head.patch import find_head, patch_model, stage_of, stage_with, unpatch_model
from ..specs.config import LossConfig
from .environment import check_trainer
from .report import guarded, quiet

_LOSS_OUTPUTS = ("total_loss", "iou_loss", "conf_loss", "cls_loss", "l1_loss")
#: Batches held in memory and used in turn.
_BATCHES = 8
#: Where bits cannot be expected to repeat: relative, of each loss term and of the largest gradient.
_TOLERANCE = 1e-4
#: Stock that differs from itself by more says nothing of the kit.
_UNUSABLE = 1e-3
_LAYERS = {"box": "reg_preds", "objectness": "obj_preds", "class": "cls_preds"}

Batch = tuple[Tensor, Tensor]


@dataclass
class _Pass:
    """One forward and backward: the loss terms, matched anchors per box, and every parameter's gradient."""

    terms: dict[str, float]
    matched: float
    gradients: list[Tensor | None]
    seconds: float


def verify(
    exp_file: str | None = None,
    name: str | None = None,
    opts: Sequence[str] = (),
    *,
    steps: int = 50,
    batch_size: int = 2,
    device: str = "auto",
) -> Iterator[Finding]:
    """Show that the kit changes nothing with default losses, and that the experiment's own losses work.

    Every step computes losses and gradients twice from the same weights and the same batch, by the host's own head and by
    the patched one, and then updates the weights with stock's gradients. As long as each difference is 0, two separate
    trainings would be the same one. One model is held in memory.

    Args:
        exp_file: an experiment file.
        name: or one of YOLOX's models; YOLOX-nano when neither is given.
        opts: overrides of the experiment, ``["input_size", "320,320", ...]``.
        steps: training steps, at least 1.
        batch_size: images per step, at least 1.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        The findings, as they are made.

    Raises:
        KitError: an experiment, a device or a number that cannot be.
    """
    for flag, value in (("--steps", steps), ("-b", batch_size)):
        if value < 1:
            raise ConfigError(f"{flag} is at least 1; got {value}.")
    started = time.perf_counter()
    hosts.yolox()
    missing = [finding for finding in guarded("trainer", check_trainer) if finding.level == ERROR]
    if missing:
        yield from missing
        return
    from ..exp.device import choose_device
    from ..train.seeds import prepare_process  # needs all that was just looked for

    try:
        exp = load_exp(exp_file, name or (None if exp_file else "yolox-nano"))
    except ModuleNotFoundError as error:
        raise HostError(f"This YOLOX has no experiment files to verify: {error}. {hosts.INSTALL}") from error
    exp.merge(opts)
    check_values(exp, batch_size)
    where = choose_device(device)
    prepare_process(seed=0)
    with _deterministic(where):
        yield from guarded("verify", lambda: _verify(exp, steps, batch_size, where))
    yield Finding(OK, "time", f"{time.perf_counter() - started:.0f} s in all")


def _verify(exp: Any, steps: int, batch_size: int, device: torch.device) -> Iterator[Finding]:
    with quiet():
        model = exp.get_model()
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    yield Finding(
        OK,
        "experiment",
        f"{exp.exp_name}: {type(model).__name__} with {size:.2f} M parameters, {exp.num_classes} classes, "
        f"{exp.input_size[0]}x{exp.input_size[1]} px, batches of {batch_size}, fp32, on {device.type}",
    )
    unpatch_model(model)
    if stage_of(model) is not None:
        raise PatchError(
            "There is no stock YOLOX to compare with: yolox_loss_patch.apply() is in force in this process. Take it out of "
            "the experiment, which chooses its losses with loss_obj, loss_iou, ... as a LossExp."
        )
    batches, finding = _batches(exp, batch_size, min(steps, _BATCHES), device)
    yield finding
    model.to(device).train()
    optimizer = fresh_optimizer(exp, batch_size)

    # L1 comes in the last epochs of a training; here in the second half, and in the check of one batch.
    find_head(model).use_l1 = True
    first = _pass(model, batches[0])
    bad = _not_finite(model, first)
    if bad:
        remedy = "Look at the model and the data."
        yield Finding(ERROR, "stock", f"stock's own numbers are not finite: {', '.join(bad)}", remedy)
        return
    repeat = max(_difference(first, _pass(model, batches[0])))
    if not repeat <= _UNUSABLE:
        yield Finding(
            ERROR,
            "stock",
            f"the same batch twice, unpatched, differs by {repeat:.2g} (relative): there is nothing to compare with",
            "Take out what draws other numbers in each forward, or seed it; try --device cpu.",
        )
        return
    exact = device.type == "cpu" and repeat == 0
    tolerance = 0.0 if exact else max(_TOLERANCE, 10 * repeat)
    yield Finding(
        OK if exact or device.type != "cpu" else WARNING,
        "stock",
        f"the same batch twice, unpatched: difference {repeat:.2g}. "
        + (
            "Stock and kit must be equal bit for bit"
            if exact
            else f"Bits are not promised to repeat here, so stock and kit may differ by {tolerance:.2g} (relative)"
        ),
    )
    patch_model(model, LossConfig())
    ours = _pass(model, batches[0])
    unpatch_model(model)
    loss, gradient = _difference(first, ours)
    shown = ", ".join(f"{name} {value:.6g}" for name, value in first.terms.items())
    yield _verdict("losses", loss, tolerance, f"stock against kit with default losses, one batch with L1 ({shown})")
    count = sum(value is not None for value in first.gradients)
    yield _verdict("gradients", gradient, tolerance, f"of {count} parameter tensors")
    del first, ours

    yield _compare_steps(model, optimizer, batches, steps, tolerance)
    yield from guarded("own losses", lambda: _check_chosen_losses(exp, batches[0]))


def _compare_steps(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], steps: int, tolerance: float
) -> Finding:
    head = find_head(model)
    worst, seconds, failed = 0.0, [0.0, 0.0], None
    # Where nobody watches (a log file), a line now and then is enough.
    bar = tqdm(range(steps), desc="training steps", unit="step", mininterval=0.1 if sys.stderr.isatty() else 30)
    start = end = 0.0
    for step in bar:
        head.use_l1 = step >= steps // 2
        batch = batches[step % len(batches)]
        try:
            stock = _pass(model, batch)
            bad = ", ".join(name for name, value in stock.terms.items() if not math.isfinite(value))
        except (RuntimeError, IndexError) as error:  # how the host's assignment stumbles over NaN
            bad = in_words(error)
        if bad:
            bar.close()
            return Finding(
                ERROR,
                "training",
                f"stock's own loss is not finite in step {step + 1} of {steps}: {bad}; the steps before differ by {worst:.2g}",
                "Lower basic_lr_per_img, or look at the data.",
            )
        patch_model(model, LossConfig())
        ours = _pass(model, batch)
        unpatch_model(model)
        difference = max(_difference(stock, ours))
        if not difference <= tolerance and failed is None:
            failed = step + 1
        worst = max(worst, difference)
        seconds = [seconds[0] + stock.seconds, seconds[1] + ours.seconds]
        end = stock.terms["total_loss"] - stock.terms["l1_loss"]
        start = start or end
        for parameter, gradient in zip(model.parameters(), stock.gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    text = (
        f"{steps} steps, losses and all gradients of each; loss without L1 {start:.4g} -> {end:.4g}; forward and backward took "
        f"{seconds[0]:.1f} s stock, {seconds[1]:.1f} s kit"
    )
    if failed is not None:
        text += f"; first off in step {failed}"
    return _verdict("training", worst, tolerance, text)


def _check_chosen_losses(exp: Any, batch: Batch) -> Iterator[Finding]:
    """The losses of the experiment: values, gradients, and a step that leaves finite weights."""
    check = "own losses"
    config = LossConfig.from_exp(exp)
    device = batch[0].device
    with quiet():
        model = exp.get_model().to(device).train()  # as a training gets it, element weights included
    try:
        stage = stage_with(model, config)
    except PatchError as error:
        yield Finding(ERROR, check, str(error))
        return
    optimizer = fresh_optimizer(exp, len(batch[0]))
    stage.l1_is_scheduled = True
    find_head(model).use_l1 = True
    found = _pass(model, batch)
    specs = ", ".join(f"{key}={spec!r}" for key, spec in config.to_dict().items())
    terms = ", ".join(f"{name} {value:.6g}" for name, value in found.terms.items())
    told = f"{specs}{' (stock)' if config == LossConfig() else ''}: {terms}"
    bad = _not_finite(model, found)
    if bad:
        remedy = "Take another loss or other knobs for that term."
        yield Finding(ERROR, check, f"{told}; not finite: {', '.join(bad)}", remedy)
        return
    yield Finding(OK, check, told)
    norms = {part: _norm(model, found, layer) for part, layer in _LAYERS.items()}
    shown = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items())
    silent = [part for part, norm in norms.items() if norm == 0]
    if silent and found.matched > 0:
        yield Finding(
            WARNING,
            check,
            f"gradients of the last layers: {shown}; {', '.join(silent)} learns nothing from this batch",
            "Look at the term's loss_weight and knobs.",
        )
    optimizer.step()
    lost = [name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if lost:
        yield Finding(ERROR, check, f"one step left {lost[0]} not finite", "Lower basic_lr_per_img.")
    elif not silent:
        yield Finding(
            OK, check, f"every gradient is finite (norms in the last layers: {shown}), and a step goes through"
        )


def fresh_optimizer(exp: Any, batch_size: int) -> Any:
    """A new optimizer of the experiment, with the learning rate after the warm-up (an experiment keeps the optimizer it made)."""
    vars(exp).pop("optimizer", None)
    optimizer = exp.get_optimizer(batch_size)
    for group in optimizer.param_groups:
        group["lr"] = exp.basic_lr_per_img * batch_size
    return optimizer


def _not_finite(model: torch.nn.Module, found: _Pass) -> list[str]:
    """The loss terms that are not finite, and the first parameter whose gradient is not."""
    bad = [name for name, value in found.terms.items() if not math.isfinite(value)]
    for (name, _), gradient in zip(model.named_parameters(), found.gradients, strict=True):
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            return [*bad, f"the gradient of {name}"]
    return bad


def _norm(model: torch.nn.Module, found: _Pass, layer: str) -> float:
    """Norm of the gradients of a layer of the head."""
    pairs = zip(model.named_parameters(), found.gradients, strict=True)
    parts = [
        float(torch.linalg.vector_norm(grad)) for (name, _), grad in pairs if grad is not None and f"{layer}." in name
    ]
    return math.hypot(*parts)


# ---------------------------------------------------------------------------------------------------------------------
# One pass, and the difference of two.


def _pass(model: torch.nn.Module, batch: Batch) -> _Pass:
    """Forward and backward in fp32, from the same random state each time."""
    images, labels = batch
    device = images.device
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # a layer of the user's model may draw random numbers
    _wait(device)
    started = time.perf_counter()
    outputs = model(images, labels.clone())
    outputs["total_loss"].backward()
    _wait(device)
    seconds = time.perf_counter() - started
    terms = {name: float(torch.as_tensor(outputs[name]).detach()) for name in _LOSS_OUTPUTS}
    gradients = [parameter.grad for parameter in model.parameters()]
    return _Pass(terms, float(outputs["num_fg"]), gradients, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _difference(stock: _Pass, kit: _Pass) -> tuple[float, float]:
    """Largest relative difference of the loss terms, and of the gradients against the largest of them; 0 is bit for bit."""
    pairs = [(stock.terms[name], kit.terms[name]) for name in _LOSS_OUTPUTS] + [(stock.matched, kit.matched)]
    loss = max(_relative(abs(a - b), abs(a)) for a, b in pairs)
    largest = max((float(value.abs().max()) for value in stock.gradients if value is not None), default=0.0)
    gradient = 0.0
    for a, b in zip(stock.gradients, kit.gradients, strict=True):
        if a is None and b is None:
            continue
        if a is None or b is None:
            return loss, math.inf
        if not torch.equal(a, b):
            gradient = max(gradient, _relative(float((a - b).abs().max()), largest))
    return loss, gradient


def _relative(difference: float, size: float) -> float:
    """Their ratio; infinite where the difference is not a number or there is nothing to compare with."""
    if difference == 0:
        return 0.0
    return difference / size if size > 0 and math.isfinite(difference) else math.inf


def _verdict(check: str, difference: float, tolerance: float, text: str) -> Finding:
    same = difference <= tolerance
    allowed = "0 expected" if tolerance == 0 else f"up to {tolerance:.2g} allowed"
    return Finding(
        OK if same else ERROR,
        check,
        f"difference {difference:.2g} ({allowed}), {text}",
        "" if same else "Do not train with the kit on this machine; report this with the output of yolox-loss doctor.",
    )


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA, the algorithms that repeat, where there are any; a CPU repeats by itself."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a workspace of fixed size
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


# ---------------------------------------------------------------------------------------------------------------------
# Batches.


def _batches(exp: Any, batch_size: int, count: int, device: torch.device) -> tuple[list[Batch], Finding]:
    """Batches of the experiment's training data where they can be read, else made batches."""
    workers, exp.data_num_workers = exp.data_num_workers, 0  # a few batches are not worth starting processes for
    try:
        with quiet():
            loader = open_data(
                lambda: exp.get_data_loader(batch_size=batch_size, is_distributed=False),
                exp.data_dir,
                exp.train_ann,
                "train_ann",
            )
        facts = check_split_of(exp, loader.dataset, "train")
        with quiet():
            repeated = training_loader(loader, seed=0, rank=0, start=0, mosaic_until=sys.maxsize, pin_memory=False)
            prefetcher = Prefetcher(repeated, device)
            batches = [prefetcher.next()[:2] for _ in range(count)]
    except Exception as error:
        made = [_made(exp, batch_size, seed, device) for seed in range(count)]
        folder = getattr(exp, "data_dir", None)
        is_there = os.path.isdir(folder if folder is not None else default_data_dir())
        remedy = "yolox-loss doctor says more of the data." if is_there else "Set data_dir to compare on your own data."
        return made, Finding(
            ERROR if is_there else WARNING,
            "data",
            f"made batches, as the experiment's cannot be used: {in_words(error)}",
            remedy,
        )
    finally:
        exp.data_num_workers = workers
    boxes = sum(int((labels.sum(2) > 0).sum()) for _, labels in batches)
    source = f"{facts['images']} images of {facts['file']}" if facts else type(loader.dataset).__name__
    return batches, Finding(
        OK, "data", f"{len(batches)} training batches, used in turn, with {boxes} boxes; from {source}"
    )


def _made(exp: Any, batch_size: int, seed: int, device: torch.device) -> Batch:
    """Noise as images ``(B, 3, H, W)`` in 0..255, and 1 to 20 boxes per image as labels ``(B, 120, 5)``, all of them inside."""
    generator = torch.Generator().manual_seed(seed)
    height, width = exp.input_size
    size = torch.tensor([width, height], dtype=torch.float32)
    labels = torch.zeros(batch_size, 120, 5)
    for rows in labels:
        count = int(torch.randint(1, 21, (), generator=generator))
        sides = (0.03 + 0.5 * torch.rand(count, 2, generator=generator) ** 2) * size
        centres = sides / 2 + torch.rand(count, 2, generator=generator) * (size - sides)
        rows[:count, 0] = torch.randint(0, exp.num_classes, (count,), generator=generator).float()
        rows[:count, 1:] = torch.cat([centres, sides], 1)
    images = torch.rand(batch_size, 3, height, width, generator=generator) * 255
    return images.to(device), labels.to(device)
