"""Other losses for YOLOX, chosen in the experiment file, without editing YOLOX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import wiring
from .version import __version__

if TYPE_CHECKING:
    from .errors import ConfigError
    from .exp.mixin import LossConfigMixin, LossExp, patch_from_exp
    from .head.patch import apply, is_applied, patch_model, patched, revert, set_epoch, unpatch_model
    from .specs.build import build_loss
    from .specs.config import LossConfig
    from .specs.registry import LOSSES, available_losses, register_loss

__all__ = [
    "LOSSES",
    "ConfigError",
    "LossConfig",
    "LossConfigMixin",
    "LossExp",
    "__version__",
    "apply",
    "available_losses",
    "build_loss",
    "is_applied",
    "patch_from_exp",
    "patch_model",
    "patched",
    "register_loss",
    "revert",
    "set_epoch",
    "unpatch_model",
]

# Name -> the module that has it, imported when the name is asked for: `import yolox_loss_patch` itself costs nothing.
_HOME = {
    "ConfigError": "errors",
    **dict.fromkeys(("LossConfigMixin", "LossExp", "patch_from_exp"), "exp.mixin"),
    **dict.fromkeys(
        ("apply", "is_applied", "patch_model", "patched", "revert", "set_epoch", "unpatch_model"), "head.patch"
    ),
    "LossConfig": "specs.config",
    **dict.fromkeys(("LOSSES", "available_losses", "register_loss"), "specs.registry"),
    "build_loss": "specs.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _make_trainer(exp: Any, args: Any, exit_on_error: bool = False) -> Any:
    from .compare.training import after_training
    from .train.trainer import Trainer

    return Trainer(exp, args, exit_on_error, after_training)


wiring.make_trainer = _make_trainer
