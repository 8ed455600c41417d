"""The settings of an experiment as plain data, and the check of their values before a training starts."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ConfigError
from ..specs.config import KEYS, LossConfig
from ..specs.plain import BUILT, as_python, plain

# Settings that are whole numbers, and the smallest of each.
_WHOLE = {"max_epoch": 1, "eval_interval": 1, "print_interval": 1, "no_aug_epochs": 0, "num_classes": 1,
          "data_num_workers": 0, "seed": 0}  # fmt: skip


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


def resolved_losses(exp: Any) -> Any:
    """The losses of an experiment with every knob, as plain data that is the same in every process."""
    return plain(loss_config(exp).resolved())


def check_settings(exp: Any, args: argparse.Namespace, world: int = 1) -> None:
    """Refuse settings that YOLOX would stumble over in the middle of a run.

    Args:
        exp: the experiment.
        args: the parsed command line.
        world: how many processes train together.

    Raises:
        ConfigError: the setting, its value and what is allowed.
    """
    for key, low in _WHOLE.items():
        value = as_python(getattr(exp, key, low))
        if key == "seed" and value is None:
            continue
        if not isinstance(value, int) or value < low:
            raise ConfigError(f"{key} is a whole number, at least {low}; got {value!r}.")
    for key in ("input_size", "test_size"):
        value = getattr(exp, key)
        if len(value) != 2 or any(not isinstance(side, int) or side <= 0 or side % 32 for side in value):
            raise ConfigError(f"{key} is (height, width) in multiples of 32; got {value!r}.")
    sizes = getattr(exp, "random_size", None)
    if sizes is not None and not (
        len(sizes) == 2 and all(isinstance(n, int) for n in sizes) and 1 <= sizes[0] <= sizes[1]
    ):
        raise ConfigError(
            f"random_size is (smallest, largest), whole numbers from 1 on that count 32 px; got {sizes!r}."
        )
    if getattr(args, "start_epoch", None) is not None and not args.resume:
        raise ConfigError(f"-e {args.start_epoch} is the epoch to go on with; it needs --resume.")
    if args.batch_size < 1:
        raise ConfigError(f"-b is at least 1; got {args.batch_size}.")
    if args.batch_size % world:
        near = [size for size in (args.batch_size // world * world, (args.batch_size // world + 1) * world) if size]
        raise ConfigError(
            f"-b counts the images of all workers together; {args.batch_size} does not divide among {world}. "
            f"Take {' or '.join(map(str, near))}."
        )
