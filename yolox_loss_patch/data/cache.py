"""The image cache of ``--cache``: YOLOX takes the file that it finds, whatever images it was made from.

The kit writes a list beside it: name, size and time of each image, and the size to which they were scaled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .findings import some

_STARTED = time.time()


@contextlib.contextmanager
def room_for_cache() -> Iterator[None]:
    """While a data set is made: refuse a cache file for which the disk has no room.

    YOLOX maps the file into memory at its full length and fills it later. A disk that is full by then kills the process
    without a word, and leaves a file that looks whole.

    Raises:
        DataError: there is too little room.
    """
    memmap = np.memmap

    def checked(
        filename: Any, dtype: Any = np.uint8, mode: Any = "r+", offset: int = 0, shape: Any = None, **more: Any
    ) -> Any:
        if mode == "w+" and shape is not None:
            path = Path(filename)
            needed, free = (
                math.prod(np.atleast_1d(shape).tolist()) * np.dtype(dtype).itemsize,
                shutil.disk_usage(path.parent).free,
            )
            if needed > free:
                needed_mib, free_mib = needed / 2**20, free / 2**20
                raise DataError(
                    f"The image cache {str(path)!r} takes {needed_mib:.0f} MiB, and its disk has {free_mib:.0f} MiB free.",
                    "Free space there, or train without --cache.",
                )
        return memmap(filename, dtype=dtype, mode=mode, offset=offset, shape=shape, **more)

    np.memmap = checked  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        np.memmap = memmap  # type: ignore[misc]


def check_image_cache(coco_set: Any, split: str) -> None:
    """Look whether the cache file of a data set holds the images of the data set; one that was just made gets its list.

    Raises:
        DataError: it was made from other images, for another size, or not to its end.
    """
    cached = getattr(coco_set, "imgs", None)
    name = getattr(cached, "filename", None)
    if cached is None or name is None:  # no cache, or in memory, made from these images a moment ago
        return
    path, manifest = Path(name), Path(f"{name}.json")
    now = _facts(coco_set)
    before = _read(manifest)
    if before is None:
        if path.stat().st_mtime < _STARTED:  # of plain YOLOX, or of a process that did not come to its end
            _compare_images(coco_set, path, split)
        with contextlib.suppress(OSError):
            manifest.write_text(json.dumps(now), encoding="utf-8")
        return
    if before != now:
        old, new = ({tuple(image) for image in facts["images"]} for facts in (before, now))
        changed = sorted({image[0] for image in old ^ new})
        reason = f"{len(changed)} images were added, removed or changed since ({some(changed)})"
        if before["size"] != now["size"]:
            reason = f"it holds images of {before['size']}, and input_size is {now['size']}"
        elif not changed:
            reason = "the images stand in another order"
        raise DataError(_refusal(split, path, reason))


def _refusal(split: str, path: Path, reason: str) -> str:
    return f"{split}: the image cache {str(path)!r} does not fit: {reason}. Remove it and it is made anew."


def _facts(coco_set: Any) -> dict[str, Any]:
    folder = Path(coco_set.data_dir) / coco_set.name
    images = []
    for annotation in coco_set.annotations:
        status = os.stat(folder / annotation[3])
        images.append([annotation[3], status.st_size, status.st_mtime_ns])
    return {"size": list(coco_set.img_size), "images": images}


def _read(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _compare_images(coco_set: Any, path: Path, split: str) -> None:
    """Every image against the cache, which takes as long as making it, once.

    Raises:
        DataError: an image that differs.
    """
    from tqdm import tqdm

    def differs(index: int) -> bool:
        image = coco_set.load_resized_img(index)
        return not np.array_equal(np.asarray(coco_set.imgs[index])[: image.shape[0], : image.shape[1]], image)

    count = len(coco_set.ids)
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(differs, range(count)), desc=f"{split}: image cache", total=count, unit="image"))
    if any(found):
        name = coco_set.annotations[found.index(True)][3]
        reason = f"it does not hold {name!r} at {list(coco_set.img_size)} ({sum(found)} of {count} images differ)"
        raise DataError(_refusal(split, path, reason))


def remove_half_made_cache(error: BaseException, made: list[Any]) -> None:
    """After an error while a cache was made: end the threads that fill it, and remove the file."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        pool = getattr(frame.f_locals.get("loaded_images"), "_pool", None)
        if pool is not None:
            pool.terminate()
            pool.join()
    for part in made:
        name = getattr(getattr(part, "imgs", None), "filename", None)
        if name is not None and not os.path.exists(f"{name}.json") and os.stat(name).st_mtime >= _STARTED:
            part.imgs = None
            os.unlink(name)
