"""The settings of an experiment as plain data, and the check of their values before a training starts."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

from loguru import logger

from ..data.findings import ERROR, WARNING, Finding
from ..errors import ConfigError
from ..head import hosts
from ..specs.config import KEYS, LossConfig
from ..specs.knobs import nearest
from ..specs.measured import warnings_of
from ..specs.plain import BUILT, as_python, is_number, plain

# Settings that are whole numbers, and the smallest of each.
_WHOLE = {"max_epoch": 1, "eval_interval": 1, "print_interval": 1, "no_aug_epochs": 0, "num_classes": 1,
          "data_num_workers": 0, "seed": 0}  # fmt: skip
# Setting -> smallest, largest, in words.
_RANGES = {
    "warmup_epochs": (0, float("inf"), "a number of epochs, at least 0"),
    "warmup_lr": (0, float("inf"), "a learning rate, at least 0"),
    "basic_lr_per_img": (0, float("inf"), "a learning rate above 0"),
    "min_lr_ratio": (0, 1, "a part of the learning rate, from 0 to 1"),
    "momentum": (0, 1, "a number from 0 to 1"),
    "weight_decay": (0, float("inf"), "a number, at least 0"),
    "test_conf": (0, 1, "a score from 0 to 1"),
    "nmsthre": (0, 1, "an IoU from 0 to 1"),
}
_ABOVE_ZERO = ("basic_lr_per_img",)
# Of YOLOX's schedulers, those that its experiments can make; the others need arguments that only code can give.
_SCHEDULERS = ("yoloxwarmcos", "warmcos", "cos")


def settings(exp: Any) -> dict[str, Any]:
    """An experiment's settings as plain data, without the losses."""
    hidden = (*BUILT, *KEYS, "loss_bbox")
    return {key: plain(value) for key, value in vars(exp).items() if not key.startswith("_") and key not in hidden}


def loss_config(exp: Any) -> LossConfig:
    """The losses of an experiment.

    Raises:
        ConfigError: a loss that cannot be.
    """
    return LossConfig.from_exp(exp)


def warnings_of_losses(losses: LossConfig) -> list[str]:
    """One sentence per term whose loss was measured as worse than stock."""
    return warnings_of(losses)


def resolved_losses(exp: Any) -> Any:
    """The losses of an experiment with every knob, as plain data that is the same in every process."""
    return plain(loss_config(exp).resolved())


def check_settings(exp: Any, args: argparse.Namespace, world: int = 1) -> None:
    """Refuse settings that YOLOX would stumble over in the middle of a run, or that train nothing.

    Args:
        exp: the experiment.
        args: the parsed command line of a training.
        world: how many processes train together.

    Raises:
        ConfigError: the setting, its value and what is allowed.
    """
    if args.batch_size < 1:
        raise ConfigError(f"-b is at least 1; got {args.batch_size}.")
    check_values(exp, args.batch_size)
    start = getattr(args, "start_epoch", None)
    if start is not None and not args.resume:
        raise ConfigError(f"-e {start} is the epoch to go on with; it needs --resume.")
    if start is not None and not 1 <= start <= exp.max_epoch:
        raise ConfigError(f"-e is the epoch to go on with, from 1 to max_epoch ({exp.max_epoch}); got {start}.")
    if (patience := getattr(args, "patience", None)) is not None:
        most = _evaluations(exp)
        if not 1 <= patience < most:
            raise ConfigError(
                f"--patience is a number of evaluations, from 1 on and below those of the whole training ({most} with max_epoch "
                f"{exp.max_epoch} and eval_interval {exp.eval_interval}); got {patience}."
            )
    if args.batch_size % world:
        near = [size for size in (args.batch_size // world * world, (args.batch_size // world + 1) * world) if size]
        raise ConfigError(
            f"-b counts the images of all workers together; {args.batch_size} does not divide among {world}. "
            f"Take {' or '.join(map(str, near))}."
        )


def _evaluations(exp: Any) -> int:
    """How often a training evaluates: every ``eval_interval`` epochs, in the last one, and after each without mosaic."""
    without_mosaic = max(exp.max_epoch - exp.no_aug_epochs - 1, 0)
    epochs = range(1, exp.max_epoch + 1)
    return sum(e % exp.eval_interval == 0 or e > without_mosaic or e == exp.max_epoch for e in epochs)


def check_values(exp: Any, batch_size: int | None = None) -> None:
    """Refuse values of an experiment that cannot be trained with; warn of those that void a training.

    Args:
        exp: the experiment.
        batch_size: images per step, to name the learning rate of a step.

    Raises:
        ConfigError: the setting, its value and what is allowed.
    """
    findings = setting_findings(exp, batch_size)
    for finding in findings:
        if finding.level == ERROR:
            raise ConfigError(f"{finding.text}. {finding.remedy}".rstrip())
    for finding in findings:
        warn_once(f"{finding.text}. {finding.remedy}")


@functools.cache
def warn_once(text: str) -> None:
    """A sweep, and a trainer after its verb, check the same values again."""
    logger.warning(text)


def setting_findings(exp: Any, batch_size: int | None = None) -> list[Finding]:
    """What is wrong with the values of an experiment, for `check_values` and for ``doctor``."""
    wrong = [*_wrong_values(exp), *_wrong_schedule(exp)]
    if wrong:
        return [Finding(ERROR, "settings", text, remedy) for text, remedy in wrong]
    return [Finding(WARNING, "settings", text, remedy) for text, remedy in _void_schedule(exp, batch_size)]


def _wrong_values(exp: Any) -> Iterator[tuple[str, str]]:
    for key, low in _WHOLE.items():
        value = as_python(getattr(exp, key, low))
        if key == "seed" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            yield f"{key} is a whole number, at least {low}; got {value!r}", f"Set self.{key} to such a number."
    for key in ("input_size", "test_size"):
        value = getattr(exp, key)
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2
        if not is_pair or any(not isinstance(side, int) or side <= 0 or side % 32 for side in value):
            yield f"{key} is (height, width) in multiples of 32; got {value!r}", f"Set self.{key} to such a size."
    sizes = getattr(exp, "random_size", None)
    if sizes is not None and not (
        len(sizes) == 2 and all(isinstance(n, int) for n in sizes) and 1 <= sizes[0] <= sizes[1]
    ):
        yield (
            f"random_size is (smallest, largest), whole numbers from 1 on that count 32 px; got {sizes!r}",
            "Set self.random_size to such a range, or leave it out.",
        )
    for key, (low, high, words) in _RANGES.items():
        value = as_python(getattr(exp, key, low))
        if not is_number(value) or not low <= value <= high or (key in _ABOVE_ZERO and value == 0):
            yield f"{key} is {words}; got {value!r}", f"Set self.{key} to such a number."


def _wrong_schedule(exp: Any) -> Iterator[tuple[str, str]]:
    made_by_host = getattr(type(exp), "get_lr_scheduler", None) is getattr(hosts.exp_class(), "get_lr_scheduler", None)
    name = getattr(exp, "scheduler", _SCHEDULERS[0])
    if made_by_host and name not in _SCHEDULERS:
        yield (
            f"scheduler is one of {', '.join(_SCHEDULERS)}; got {name!r}.{nearest(name, _SCHEDULERS)}",
            "Set self.scheduler to one of them, or write get_lr_scheduler() in the experiment.",
        )


def _void_schedule(exp: Any, batch_size: int | None) -> Iterator[tuple[str, str]]:
    """Schedules that never reach, or never hold, the learning rate of the experiment."""
    last, plain, warm = exp.max_epoch, exp.no_aug_epochs, exp.warmup_epochs
    rate = exp.basic_lr_per_img * (batch_size or 1)
    unit = "" if batch_size else " per image"
    if warm >= last:
        yield (
            f"the warm-up lasts the whole training (warmup_epochs {warm:g}, max_epoch {last}): the learning rate only climbs, "
            f"to {rate:.3g}{unit} in the last step",
            f"Set self.warmup_epochs below {last}.",
        )
    elif plain >= last and exp.scheduler == "yoloxwarmcos":
        yield (
            f"no_aug_epochs ({plain}) is not below max_epoch ({last}): every epoch after the warm-up trains at the smallest "
            f"learning rate, {rate * exp.min_lr_ratio:.3g}{unit} instead of {rate:.3g}, without mosaic",
            f"Set self.no_aug_epochs below {last - warm:g}, such as {max(0, round(last / 20))}.",
        )
