"""The one thing that a room needs from a room above it: an experiment makes the trainer that trains it.

The package's ``__init__`` puts the trainer's factory here, so that no import points from ``exp`` to ``train``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

make_trainer: Callable[..., Any]
"""``make_trainer(exp, args, exit_on_error=False)``: the kit's trainer of an experiment."""
