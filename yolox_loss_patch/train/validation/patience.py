"""Early stopping: the training ends after so many evaluations without a better AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ...runs.record import read_metrics


def since_best(rows: Sequence[Mapping[str, float | None]]) -> tuple[int, int]:
    """How many evaluations there were since the best, and the epoch of the best; ties go to the first.

    Args:
        rows: of ``metrics.csv``.
    """
    found = [(float(row["AP"] or 0.0), int(row["epoch"] or 0)) for row in rows if row.get("AP") is not None]
    if not found:
        return 0, 0
    best = max(range(len(found)), key=lambda place: (found[place][0], -place))
    return len(found) - 1 - best, found[best][1]


class Patience:
    """When a training that does not get better ends. It reads the rows of the run, so that a resumed run counts on.

    Args:
        evaluations: how many without a better AP of the EMA weights; None never ends it.
        folder: of the run.
        rank: of this process; rank 0 decides.
        world: how many processes train together.
    """

    def __init__(self, evaluations: int | None, folder: Path, rank: int, world: int) -> None:
        self.evaluations, self.folder, self.rank, self.world = evaluations, folder, rank, world

    def end(self) -> dict[str, Any] | None:
        """Why the training ends after this epoch, for the record: ``patience``, ``best_epoch``; None while it goes on."""
        if self.evaluations is None:
            return None
        found: list[Any] = [None]
        if self.rank == 0:
            since, best = since_best(read_metrics(self.folder))
            if since >= self.evaluations:
                found = [{"patience": self.evaluations, "best_epoch": best}]
        if self.world > 1:
            dist.broadcast_object_list(found, src=0)
        facts: dict[str, Any] | None = found[0]
        return facts
