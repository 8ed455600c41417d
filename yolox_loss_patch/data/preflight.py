"""The checks of an annotation file and its images, made once: the result is kept by the hash of the file.

A result lies in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``, ``yolox-loss-patch/``). It holds for the same
annotation file, input size and code of these checks, while no image was added, removed or changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .annotations import check_annotations, read_annotations
from .findings import Finding
from .images import check_images


def check_split(
    path: Path, folder: Path, split: str, input_size: tuple[int, int]
) -> tuple[list[Finding], dict[str, Any]]:
    """Check an annotation file and the headers of its images, or take the result of the last time.

    Args:
        path: of the annotation file.
        folder: of the images.
        split: ``train`` or ``val``, for the findings.
        input_size: height and width that images are scaled to.

    Returns:
        Findings, and facts of `check_annotations` with ``sha256`` of the file.

    Raises:
        DataError: the file is no JSON.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    key = json.dumps([digest, str(folder.resolve()), split, list(input_size), _version()])
    kept = _folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    found = _read(kept)
    if found is not None and found["images"] == _listing(folder, found["subfolders"]):
        return [Finding(**finding) for finding in found["findings"]], found["facts"]
    coco = read_annotations(path)
    findings, facts = check_annotations(coco, split, input_size)
    if facts:
        findings += check_images(folder, coco["images"], split)
        facts["sha256"] = digest
        subfolders = sorted({os.path.dirname(image["file_name"]) for image in coco["images"]})
        result = {
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "facts": facts,
            "subfolders": subfolders,
            "images": _listing(folder, subfolders),
        }
        with contextlib.suppress(OSError):  # a home that cannot be written costs a check each time, no more
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(result), encoding="utf-8")
            new.replace(kept)
    return findings, facts


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolox-loss-patch"


@functools.cache
def _version() -> str:
    """A hash of the code of the checks."""
    digest = hashlib.sha256()
    for name in ("annotations.py", "images.py", "preflight.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _listing(folder: Path, subfolders: list[str]) -> str:
    """A hash of name, size and time of every file in these folders."""
    digest = hashlib.sha256()
    for subfolder in subfolders:
        try:
            with os.scandir(folder / subfolder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_file():
                        facts = entry.stat()
                        digest.update(f"{subfolder}/{entry.name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{subfolder}: not there\n".encode())
    return digest.hexdigest()
