"""Values as plain data: what JSON can hold and every process reads alike."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

# Built by YOLOX on the experiment while it works; no settings.
BUILT = ("model", "optimizer", "dataset")


def as_python(value: Any) -> Any:
    """A number or an array of NumPy as Python has it, anything else as it is."""
    return value.tolist() if type(value).__module__ == "numpy" and hasattr(value, "tolist") else value


def is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """The value as JSON can hold it, the same in every process: sets in order, what is no plain data by its repr."""
    value = as_python(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def literal(text: Any) -> Any:
    """A Python literal where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
