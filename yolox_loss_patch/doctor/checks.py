"""``doctor``: what is installed, which YOLOX it is, what the experiment resolves to and how its data is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..data.findings import ERROR, OK, WARNING, Finding
from . import environment
from .experiment import check_experiment
from .report import guarded


def doctor(
    exp_file: str | None = None, name: str | None = None, opts: Sequence[str] = (), images: bool = False
) -> Iterator[Finding]:
    """Look at the environment, at YOLOX and, where one is named, at an experiment and its data.

    Args:
        exp_file: an experiment file.
        name: or one of YOLOX's models.
        opts: overrides of the experiment, ``["max_epoch", "50", ...]``.
        images: decode every image of the experiment.

    Returns:
        The findings, as they are made. Nothing is raised: a check that cannot go on is a finding.
    """
    for check, look in (
        ("python", environment.check_python),
        ("torch", environment.check_torch),
        ("torchvision", environment.check_torchvision),
        ("pycocotools", environment.check_pycocotools),
        ("opencv", environment.check_opencv),
        ("device", environment.check_device),
    ):
        yield from guarded(check, look)
    host = list(guarded("yolox", environment.check_host))
    yield from host
    if any(finding.level == ERROR for finding in host):
        if exp_file or name:
            yield Finding(WARNING, "experiment", "not looked at, because it needs YOLOX", "Mend YOLOX first.")
        return
    yield from guarded("trainer", environment.check_trainer)
    if exp_file or name:
        yield from guarded("experiment", lambda: check_experiment(exp_file, name, opts, images))
    else:
        yield Finding(
            OK, "experiment", "none named; -f EXP_FILE or -n NAME has its settings, losses, model and data checked"
        )
