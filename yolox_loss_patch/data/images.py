"""Images: whether they are there, are whole, and have the size that the annotation file says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .findings import ERROR, OK, WARNING, Finding, some

# Name of the format -> the bytes that a whole file ends with.
_LAST_BYTES = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
#: Bytes at a file's end in which its last bytes are looked for; some programs write more behind them.
_TAIL = 4096
_ORIENTATION = 274  # tag of EXIF
_THREADS = 8


def check_images(folder: Path, images: Sequence[dict[str, Any]], split: str) -> list[Finding]:
    """Look at the header and the end of every image of an annotation file.

    Args:
        folder: of the images.
        images: entries of the annotation file: ``file_name``, ``width``, ``height``.
        split: ``train`` or ``val``, for the findings.
    """
    if not folder.is_dir():
        return [
            Finding(
                ERROR,
                split,
                f"the image folder {str(folder)!r} does not exist",
                "YOLOX expects DATA_DIR/train2017 and DATA_DIR/val2017.",
            )
        ]
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = list(pool.map(lambda image: _look_at(folder / image["file_name"], image), images))
    return _by_kind(split, folder, [(image["file_name"], fault) for image, fault in zip(images, faults, strict=True)])


def decode_images(folder: Path, names: Sequence[str], split: str) -> list[Finding]:
    """Decode every image, in parallel and with a progress bar; one error names all that cannot be."""
    from tqdm import tqdm

    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        faults = list(
            tqdm(
                pool.map(lambda name: _decode(folder / name), names),
                desc=f"{split}: images",
                total=len(names),
                unit="image",
            )
        )
    found = _by_kind(split, folder, list(zip(names, faults, strict=True)))
    return found or [Finding(OK, split, f"all {len(names)} images in {str(folder)!r} can be decoded")]


# Kind of fault -> level, what it says of several images, what to do.
_KINDS = {
    "missing": (
        ERROR,
        "does not exist",
        "Put it there under the name in the annotation file, or take it out of the file.",
    ),
    "unreadable": (ERROR, "is not an image that OpenCV can read", "Replace it, or take it out of the annotation file."),
    "cut off": (ERROR, "is cut off: its last part is missing", "Copy it anew, or take it out of the annotation file."),
    "size": (
        ERROR,
        "is not of the width and height in the annotation file, so its boxes are off",
        "Correct width and height there, or the image.",
    ),
    "turned": (
        ERROR,
        "is turned by its EXIF orientation when OpenCV reads it, and the annotation file has the size before that",
        "Turn the image for good and remove the tag, or annotate the image as it is shown.",
    ),
    "upside down": (
        WARNING,
        "is mirrored or turned by its EXIF orientation when OpenCV reads it",
        "Look whether its boxes were drawn on the image as it is shown.",
    ),
}


def _by_kind(split: str, folder: Path, faults: Sequence[tuple[str, tuple[str, str] | None]]) -> list[Finding]:
    findings = []
    for kind, (level, text, remedy) in _KINDS.items():
        found = [(name, fault[1]) for name, fault in faults if fault is not None and fault[0] == kind]
        if found:
            name, detail = found[0]
            more = f" (and {len(found) - 1} more: {some([name for name, _ in found[1:]])})" if len(found) > 1 else ""
            findings.append(
                Finding(level, split, f"the image {name!r} in {str(folder)!r} {text}{detail}{more}", remedy)
            )
    return findings


def _look_at(path: Path, image: dict[str, Any]) -> tuple[str, str] | None:
    """The kind of fault and a detail, None for an image without fault."""
    from PIL import Image

    try:
        with open(path, "rb") as file, Image.open(file) as picture:
            width, height = picture.size
            orientation = picture.getexif().get(_ORIENTATION, 1)
            end = _LAST_BYTES.get(picture.format or "")
            if end is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                if end not in file.read():
                    return _decode(path)
    except FileNotFoundError:
        return "missing", ""
    except Exception:  # not an image for Pillow; OpenCV reads formats that Pillow does not
        return _readable_by_opencv(path)
    if (fault := _readable_by_opencv(path)) is not None:
        return fault
    stored = (image["width"], image["height"])
    shown = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
    if stored != shown:
        if stored == (width, height):
            return "turned", f" (orientation {orientation}, shown as {shown[0]}x{shown[1]})"
        return "size", f" (is {shown[0]}x{shown[1]}, annotated {stored[0]}x{stored[1]})"
    return (
        ("upside down", f" (orientation {orientation})")
        if orientation not in (0, 1) and shown == (width, height)
        else None
    )


def _readable_by_opencv(path: Path) -> tuple[str, str] | None:
    import cv2  # comes with YOLOX

    return None if cv2.haveImageReader(str(path)) else ("unreadable", "")


def _decode(path: Path) -> tuple[str, str] | None:
    """The kind of fault of an image that is decoded as a whole, None where that works."""
    import cv2  # comes with YOLOX
    from PIL import Image

    if not path.is_file():
        return "missing", ""
    try:
        with Image.open(path) as picture:
            picture.load()  # OpenCV fills the missing part of an image with grey and says nothing
    except Exception as error:
        if "truncated" in str(error):
            return "cut off", ""
    return None if cv2.imread(str(path)) is not None else ("unreadable", "")


# How YOLOX's data sets say that an image cannot be read, whatever the reason.
_NOT_FOUND = re.compile(r"file named (.*) not found")


def image_fault(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with the image that made YOLOX raise this, and what to do; None for an error of another kind."""
    # The last: a worker's error comes with its traceback, which shows the line of code that says so.
    names = _NOT_FOUND.findall(str(error)) if isinstance(error, AssertionError) else []
    if not names:
        return None
    path = Path(names[-1])
    kind, _ = _decode(path) or ("unreadable", "")
    _, text, remedy = _KINDS[kind]
    return f"The image {path.name!r} in {str(path.parent)!r} cannot be read: it {text}.", remedy
