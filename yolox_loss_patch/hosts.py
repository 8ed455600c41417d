"""Which YOLOX is installed and what it can do. The only place that knows hosts apart.

A host is recognised by its code: PyPI's yolox and git main both call themselves 0.3.0.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import io
import os
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

from .assign import RULE_0_3_0, RULE_MAIN, Rule
from .errors import HostError

INSTALL = (
    "Install it after torch with:  pip install --no-deps --no-build-isolation yolox==0.3.0  (it needs a C++ compiler), "
    "or run scripts/setup.sh, which makes a tested environment."
)


def fingerprint(function: Callable[..., Any]) -> str:
    """Sixteen hex digits of a function's code, whatever its comments and layout; empty when there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        code = "".join("".join(token.string.split()) for token in tokens if token.type not in layout)
    except (OSError, TypeError, tokenize.TokenError):
        return ""
    return hashlib.sha256(code.encode()).hexdigest()[:16]


# The loss stages that the kit is proven to equal, by the fingerprint of `YOLOXHead.get_losses`.
KNOWN_GET_LOSSES = {
    "4e6eea5e2a5a6870": "yolox 0.3.0 (PyPI)",
    "85f0ec4aafa24aa3": "yolox main",
}


def yolox() -> Any:
    """The installed YOLOX package.

    Raises:
        HostError: there is none, or it cannot be imported.
    """
    try:
        package = importlib.import_module("yolox")
        importlib.import_module("yolox.models")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "yolox":
            raise HostError(f"YOLOX is not installed ({error}). {INSTALL}") from error
        raise HostError(
            f"YOLOX is installed but {error.name!r}, which it imports, is not. Install it with: pip install {error.name}"
        ) from error
    except Exception as error:
        raise HostError(f"YOLOX is installed but cannot be imported: {type(error).__name__}: {error}. {INSTALL}") from error
    return package


def head_class() -> type[Any]:
    """The host's ``YOLOXHead``."""
    yolox()
    return importlib.import_module("yolox.models").YOLOXHead


def check_get_losses(function: Callable[..., Any]) -> str:
    """The name of the host whose loss stage this function is.

    Raises:
        HostError: the function is not one that the kit is proven to equal.
    """
    print_ = fingerprint(function)
    if print_ not in KNOWN_GET_LOSSES:
        raise HostError(
            f"The kit does not know this YOLOX: {function.__module__}.{function.__qualname__} has fingerprint "
            f"{print_ or 'none (no source)'}, and the known ones are {', '.join(KNOWN_GET_LOSSES.values())}. Its "
            "get_losses was edited or patched by somebody else, so taking its place would drop that change. Train this "
            f"fork with its own losses, or use a YOLOX that is known. {INSTALL}"
        )
    return KNOWN_GET_LOSSES[print_]


# The assigners whose rule the kit knows, by the fingerprint of all their code.
KNOWN_RULES = {"fe498915c0b889f7": RULE_0_3_0, "d70fbdd2304e1b4c": RULE_MAIN}
_ASSIGNMENT = (
    "get_assignments",
    "get_in_boxes_info",
    "dynamic_k_matching",
    "get_geometry_constraint",
    "simota_matching",
)


@functools.cache
def assignment_rule(cls: Any) -> Rule | None:
    """The rule by which this head class assigns labels, None when its code is not one that the kit knows."""
    functions = [getattr(cls, name) for name in _ASSIGNMENT if hasattr(cls, name)]
    functions.append(importlib.import_module("yolox.utils").bboxes_iou)
    code = ",".join(fingerprint(function) for function in functions)
    return KNOWN_RULES.get(hashlib.sha256(code.encode()).hexdigest()[:16])


def describe() -> dict[str, str]:
    """Host, version and fingerprint as plain data, for the run record."""
    package = yolox()
    print_ = fingerprint(head_class().__dict__["get_losses"])
    return {
        "name": KNOWN_GET_LOSSES.get(print_, "unknown"),
        "version": str(getattr(package, "__version__", "unknown")),
        "get_losses": print_,
        "path": str(next(iter(package.__path__))),
    }


def default_data_dir() -> str:
    """Where YOLOX looks for data when an experiment does not say: its own ``datasets/COCO``."""
    yolox()
    return os.path.join(importlib.import_module("yolox.data.dataloading").get_yolox_datadir(), "COCO")


def postprocess() -> Callable[..., Any]:
    """The host's score threshold and NMS."""
    return importlib.import_module("yolox.utils").postprocess


def is_coco_evaluator(evaluator: Any) -> bool:
    """Whether this is the host's own COCO evaluator, not a subclass with a way of its own."""
    return type(evaluator) is importlib.import_module("yolox.evaluators").COCOEvaluator
