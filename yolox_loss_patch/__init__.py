"""Other losses for YOLOX, chosen in the experiment file, without editing YOLOX."""

from .config import LossConfig
from .errors import ConfigError
from .exp import LossConfigMixin, LossExp, patch_from_exp
from .patch import apply, is_applied, patch_model, patched, revert, unpatch_model
from .registry import LOSSES, available_losses, build_loss, register_loss

__all__ = [
    "LOSSES",
    "ConfigError",
    "LossConfig",
    "LossConfigMixin",
    "LossExp",
    "apply",
    "available_losses",
    "build_loss",
    "is_applied",
    "patch_from_exp",
    "patch_model",
    "patched",
    "register_loss",
    "revert",
    "unpatch_model",
]
__version__ = "0.1.0"
