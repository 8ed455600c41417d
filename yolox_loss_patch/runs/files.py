"""Files that a reader, or a process killed in between, finds old or new and never half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import RunError


class WriteError(RunError):
    """A file that cannot be written."""


_UNFINISHED = ".new"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a process killed in between, finds the old one or the new one.

    Raises:
        WriteError: the file cannot be written.
    """
    with _replacing(path) as file:
        file.write(data)


def save_atomically(state: Any, path: Path, announce: Callable[[str], None] = lambda digest: None) -> None:
    """``torch.save`` that leaves the old file or the new one, whenever the process is killed.

    Args:
        state: what to save.
        path: of the file.
        announce: called with the SHA-256 of the new file before it takes its place.

    Raises:
        WriteError: the file cannot be written.
    """
    with _replacing(path, announce) as file:
        torch.save(state, file)


def copy_atomically(source: Path, path: Path, announce: Callable[[str], None] = lambda digest: None) -> None:
    """A copy of a file, as `save_atomically` writes it.

    Raises:
        WriteError: the copy cannot be written.
    """
    with source.open("rb") as data, _replacing(path, announce) as file:
        shutil.copyfileobj(data, file)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing into a folder; only its owner may do this."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def refuse_links(folder: Path) -> None:
    """Refuse to write into a run folder, perhaps a stranger's, in which a link leads out of it.

    The folder itself may be reached through a link. Looked at is what the kit and YOLOX write; other tools keep links in folders
    of their own (Weights & Biases in ``wandb``).

    Raises:
        RunError: the link, and where it leads.
    """
    inside = folder.resolve()
    for path in (*folder.glob("*"), *folder.glob("predictions/*"), *folder.glob("tensorboard/**/*")):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise RunError(
                f"{str(path)!r} is a link to {os.readlink(path)!r}, and what a run writes would follow it. Remove the link, or "
                "choose another folder."
            )


def file_hash(file: IO[bytes]) -> str:
    """The SHA-256 of a file from where it stands to its end, in hex digits."""
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _replacing(path: Path, announce: Callable[[str], None] | None = None) -> Iterator[IO[bytes]]:
    """A new file, under a name that nobody can guess, that takes the place of the old one at the end."""
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            yield file
        if announce is not None:
            with open(name, "rb") as written:
                announce(file_hash(written))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, Exception) and (reason := write_error(error, path)) is not None:
            raise reason from error
        raise


def write_error(error: BaseException, path: Path) -> WriteError | None:
    """What kept a file from being written, as a sentence; None for an error of another kind.

    Args:
        error: what was raised; torch hides the system's error behind its own.
        path: of the file, or of the folder in which something was written.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    if found is None:
        return None
    remedy = "Make room there" if found.errno in _NO_ROOM else "Make it writable"
    return WriteError(
        f"{str(path)!r} cannot be written: {found.strerror or found}. {remedy}, or choose another folder."
    )
