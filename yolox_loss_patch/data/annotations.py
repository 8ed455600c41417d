"""Where the annotations of an experiment are, and the classes that they name."""

from __future__ import annotations

import functools
import importlib
import json
import os


def default_data_dir() -> str:
    """Where YOLOX looks for data when an experiment does not say: its own ``datasets/COCO``."""
    return os.path.join(importlib.import_module("yolox.data.dataloading").get_yolox_datadir(), "COCO")


@functools.lru_cache(maxsize=4)
def read_class_names(path: str, changed: float) -> list[str]:
    """Read once, as the annotations of a large set take seconds; ``changed``, the file's time, has it read anew."""
    with open(path, encoding="utf-8") as file:
        categories = json.load(file)["categories"]
    # YOLOX numbers the classes by their ids in ascending order.
    return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
