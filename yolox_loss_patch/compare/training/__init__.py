"""The page of a training: `report.html` and `results.png` in the run's folder.

Facts from the run's files, warnings from the facts, pictures of both, and the page that shows them.
"""

from __future__ import annotations

import os
from pathlib import Path

from loguru import logger


def after_training(folder: Path) -> None:
    """Make the page of a training that has just ended; what goes wrong is a line in the log and never fails the run.

    With ``YOLOX_LOSS_REPORT=off`` in the environment nothing is made, for many short trainings.

    Args:
        folder: of the run.
    """
    if os.environ.get("YOLOX_LOSS_REPORT") == "off":
        return
    files = "report.html and results.png were not made"
    try:
        from . import page  # matplotlib and hotcoco take seconds, and may be missing

        made = page.report(folder)
    except ModuleNotFoundError as error:
        logger.info(f"{files}: {error.name} is missing; pip install 'yolox-loss-patch[compare]' brings it.")
    except Exception as error:
        logger.warning(f"{files}: {type(error).__name__}: {error}")
    else:
        logger.info(f"The training in pictures: {', '.join(map(str, made))}")
