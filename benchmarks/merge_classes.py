#!/usr/bin/env python3
"""Copy a COCO data set with all its classes as one: to train a detector that only finds, and to see what classes cost.

    python benchmarks/merge_classes.py datasets/digits datasets/digits_one --name digit
    yolox-loss train -f exps/digits_stock.py -b 8 data_dir datasets/digits_one num_classes 1

It copies annotations/instances_*.json, each with one category of id 1, and the folders of images beside annotations/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path


def merge(source: Path, out: Path, name: str) -> list[Path]:
    """Write the copy.

    Args:
        source: folder of a data set in COCO format, as YOLOX reads it.
        out: folder to make; must not exist or be empty.
        name: of the one class.

    Returns:
        The annotation files written.

    Raises:
        FileNotFoundError: ``source`` has no ``annotations/instances_*.json``.
        FileExistsError: ``out`` has something in it.
        ValueError: an annotation file is not COCO's, or ``out`` lies in ``source``.
    """
    files = sorted((source / "annotations").glob("instances_*.json"))
    if not files:
        raise FileNotFoundError(
            f"{source} has no annotations/instances_*.json; give the folder that YOLOX has as data_dir"
        )
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} lies in {source}; choose a folder beside it")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder or empty it")
    merged = {}
    for file in files:
        try:
            coco = json.loads(file.read_text())
            coco["annotations"] = [{**box, "category_id": 1} for box in coco["annotations"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is not a COCO annotation file: {error!r}") from error
        merged[out / "annotations" / file.name] = json.dumps({**coco, "categories": [{"id": 1, "name": name}]})
    for folder in source.iterdir():
        if folder.is_dir() and folder.name != "annotations":
            shutil.copytree(folder, out / folder.name)
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for target, text in merged.items():
        target.write_text(text)
    return list(merged)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Copy a COCO data set with all its classes as one.")
    parser.add_argument("source", type=Path, help="folder of the data set, with annotations/ in it")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--name", default="object", help="name of the one class [%(default)s]")
    args = parser.parse_args(argv)
    try:
        files = merge(args.source, args.out, args.name)
    except (ValueError, OSError) as error:
        print(f"merge_classes: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.out}: {', '.join(file.name for file in files)} with one class, {args.name!r}; train with num_classes 1"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
