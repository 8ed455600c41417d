"""Findings as lines on the screen, and exceptions as findings."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from loguru import logger

from ..data.findings import ERROR, OK, WARNING, Finding, counted
from ..errors import KitError, in_words


def report(findings: Iterable[Finding]) -> None:
    """Print findings, a line each as they come, and how many of each level there are.

    Raises:
        KitError: one of them is an error.
    """
    seen = []
    for finding in findings:
        print(finding, flush=True)
        seen.append(finding)
    counts = Counter(finding.level for finding in seen)
    print(f"{len(seen)} lines: {counts[OK]} ok, {counted(counts[WARNING], WARNING)}, {counted(counts[ERROR], ERROR)}")
    failed = list(dict.fromkeys(finding.check for finding in seen if finding.level == ERROR))
    if failed:
        raise KitError(f"{counted(counts[ERROR], ERROR)} found: {', '.join(failed)}. What to do stands above.")


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an exception that the check raises is one more finding."""
    try:
        yield from look()
    except (Exception, SystemExit) as error:  # an experiment file may call sys.exit
        yield Finding(ERROR, check, in_words(error))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No lines of YOLOX, pycocotools and the kit's log on the screen meanwhile."""
    packages = ("yolox", "yolox_loss_patch")
    for package in packages:
        logger.disable(package)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for package in packages:
            logger.enable(package)
