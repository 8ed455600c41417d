"""The files of a comparison."""

from __future__ import annotations

from pathlib import Path

from .results import Comparison
from .tables import as_csv, as_text


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``comparison.md`` and ``comparison.csv`` into a folder, made if needed; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = {"comparison.md": as_text(comparison), "comparison.csv": as_csv(comparison)}
    for name, text in files.items():
        (out / name).write_text(text.rstrip() + "\n")
    return [out / name for name in files]
