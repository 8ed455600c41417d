"""What can go wrong in a way that a user can mend; the command line prints these without a traceback."""

from __future__ import annotations

import errno


class KitError(Exception):
    """Base of the kit's errors: the message says what happened, which value, what is allowed, what to do."""


def break_off(error: Exception) -> None:
    """Mark an error that ended a training which had begun: the exit status is 1 then, and 2 for what is wrong before."""
    error.exit_status = 1  # type: ignore[attr-defined]


def exit_status(error: BaseException) -> int:
    """The exit status of a command that an error ended."""
    is_explained = isinstance(error, (KitError, OSError))
    return int(getattr(error, "exit_status", 2 if is_explained else 1))


class ConfigError(KitError, ValueError):
    """A setting that cannot be."""


class HostError(KitError, RuntimeError):
    """No YOLOX, or one whose loss stage the kit does not know."""


class PatchError(KitError, RuntimeError):
    """A patch that would be lost, doubled or taken from somebody else."""


class DataError(KitError, RuntimeError):
    """Data that cannot be trained on: a missing or unreadable file, classes that do not fit.

    Args:
        text: what is wrong, a sentence.
        remedy: what to do about it.
    """

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(f"{text} {remedy}".rstrip())
        self.text, self.remedy = text, remedy


class RunError(KitError, RuntimeError):
    """A run that cannot start or go on: a foreign folder or checkpoint, a loss that is not finite."""


class NonFiniteError(RunError):
    """Predictions that are not finite.

    Args:
        terms: the terms they belong to, in words.
    """

    def __init__(self, terms: str) -> None:
        super().__init__(
            f"Not finite: {terms}. The training has diverged, or an image holds no numbers. Lower basic_lr_per_img or the "
            "loss_weight, or train without --fp16."
        )
        self.terms = terms


def in_words(error: BaseException) -> str:
    """An exception as a sentence for the user.

    The kit's messages explain themselves; errors of the system name the file; all others come with their type.
    """
    text = str(error)
    if isinstance(error, KitError):
        return text
    if isinstance(error, OSError) and error.errno in _REMEDIES and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}. {_REMEDIES[error.errno]}"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


_REMEDIES = {
    errno.ENOSPC: "Free space on that disk, then go on with --resume where a training was running.",
    errno.EDQUOT: "Your quota there is used up; free space, then go on with --resume where a training was running.",
    errno.EACCES: "Take a folder in which you may write, or ask for the permission.",
    errno.EPERM: "Take a folder in which you may write, or ask for the permission.",
    errno.EROFS: "Take a folder in which you may write.",
    errno.ENOTDIR: "A part of that path is a file; take another folder, or move that file away.",
    errno.EISDIR: "That is a folder; name a file.",
    errno.ENOENT: "Correct the path.",
    errno.ENAMETOOLONG: "The disk takes shorter names only; choose one with -expn, output_dir or --out.",
    errno.EEXIST: "A file stands where a folder is wanted; take another folder, or move that file away.",
}
