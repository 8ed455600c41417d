"""What can go wrong in a way that a user can mend; the command line prints these without a traceback."""


class KitError(Exception):
    """Base of the kit's errors: the message says what happened, which value, what is allowed, what to do."""


class ConfigError(KitError, ValueError):
    """A setting that cannot be."""


class HostError(KitError, RuntimeError):
    """No YOLOX, or one whose loss stage the kit does not know."""


class PatchError(KitError, RuntimeError):
    """A patch that would be lost, doubled or taken from somebody else."""


class DataError(KitError, RuntimeError):
    """Data that cannot be trained on: a missing or unreadable file, classes that do not fit."""


class RunError(KitError, RuntimeError):
    """A run that cannot start or go on: a foreign folder or checkpoint, a loss that is not finite."""


class NonFiniteError(RunError):
    """Predictions or a loss that are not finite; the message names the terms."""
