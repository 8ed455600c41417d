"""Which YOLOX is installed and what it can do. The only place that knows hosts apart.

A host is recognised by its code: PyPI's yolox and git main both call themselves 0.3.0.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import ConfigError, HostError
from .assign import RULE_0_3_0, RULE_MAIN, Rule

INSTALL = (
    "Install it after torch with:  pip install --no-deps --no-build-isolation yolox==0.3.0  (it needs a C++ compiler), "
    "or run scripts/setup.sh, which makes a tested environment."
)


def fingerprint(function: Any) -> str:
    """Sixteen hex digits of a function's code, whatever its comments and layout; empty when there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        code = "".join("".join(token.string.split()) for token in tokens if token.type not in layout)
    except (OSError, TypeError, tokenize.TokenError):
        return ""
    return hashlib.sha256(code.encode()).hexdigest()[:16]


# YOLOX's fixed factor on the box loss; `loss_weight` of the iou term multiplies it.
BOX_WEIGHT = 5.0
# Term -> the head's attribute that holds its loss module, in the order in which `get_losses` calls them.
LOSS_MODULES = {"iou": "iou_loss", "obj": "bcewithlog_loss", "cls": "bcewithlog_loss", "l1": "l1_loss"}
# The hosts that the kit is proven to equal, by the fingerprint of `YOLOXHead.get_losses`.
KNOWN_GET_LOSSES = {
    "4e6eea5e2a5a6870": "yolox 0.3.0 (PyPI)",
    "85f0ec4aafa24aa3": "yolox main",
}
# The assigners whose rule the kit knows, by the fingerprint of all their code.
KNOWN_RULES = {
    "fe498915c0b889f7": RULE_0_3_0,
    "d70fbdd2304e1b4c": RULE_MAIN,
    "70e6089985da6ad1": RULE_MAIN,  # pixeltable-yolox, where an image without any candidate is no error
}
# Hosts whose loss stage is the same code as another's: their name, by the assigner.
_NAMED_BY_RULE = {"70e6089985da6ad1": "pixeltable-yolox"}
_ASSIGNMENT_METHODS = (
    "get_assignments",
    "get_in_boxes_info",
    "dynamic_k_matching",
    "get_geometry_constraint",
    "simota_matching",
)
_IOU_LOSS = "8e3896fe80ed145a"  # `IOUloss.forward`, the same in all of them


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
            here = ""
            if os.path.isfile(os.path.join("yolox", "__init__.py")):
                here = " The folder yolox here is found when the kit is called as:  python -m yolox_loss_patch"
            raise HostError(f"YOLOX is not installed ({error}). {INSTALL}{here}") from error
        raise HostError(
            f"YOLOX is installed but {error.name!r}, which it imports, is not. Install it with: pip install {error.name}"
        ) from error
    except Exception as error:
        raise HostError(
            f"YOLOX is installed but cannot be imported: {type(error).__name__}: {error}. {INSTALL}"
        ) from error
    return package


def _attribute(module: str, *names: str) -> Any:
    """The first of these names that a module of the host has; pixeltable-yolox writes `YoloxHead` for `YOLOXHead`."""
    yolox()
    holder = importlib.import_module(f"yolox.{module}")
    for name in names:
        if hasattr(holder, name):
            return getattr(holder, name)
    raise HostError(
        f"The YOLOX in {_folder()} has no {' or '.join(names)} in yolox.{module}; the kit does not know it."
    )


def _folder() -> str:
    return str(next(iter(yolox().__path__)))


def head_class() -> type[Any]:
    """The host's ``YOLOXHead``."""
    cls: type[Any] = _attribute("models", "YOLOXHead", "YoloxHead")
    return cls


def has_config_classes() -> bool:
    """Whether experiments are classes of ``yolox.config`` (pixeltable-yolox) and not files with a class ``Exp``."""
    yolox()
    return importlib.util.find_spec("yolox.exp") is None and importlib.util.find_spec("yolox.config") is not None


def exp_class() -> type[Any]:
    """The base class of the host's experiments: ``yolox.exp.Exp`` or ``yolox.config.YoloxConfig``."""
    cls: type[Any] = _attribute("config", "YoloxConfig") if has_config_classes() else _attribute("exp", "Exp")
    return cls


def parser(tool: str) -> argparse.ArgumentParser:
    """The command line of the host's ``train`` or ``eval``.

    Raises:
        HostError: it comes without that tool.
    """
    yolox()
    module = f"yolox.{'cli' if has_config_classes() else 'tools'}.{tool}"
    try:
        made: argparse.ArgumentParser = importlib.import_module(module).make_parser()
    except ModuleNotFoundError as error:
        if error.name not in (module, module.rpartition(".")[0]):
            raise
        raise HostError(
            f"The YOLOX in {_folder()} comes without {module}, whose flags these are. Keep YOLOX's folder tools/ beside "
            "the folder yolox/, or call the trainer from your own script: exp.get_trainer(args).train()."
        ) from error
    return made


def arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Parsed flags of the host's ``train`` or ``eval`` by the names of YOLOX's own.

    pixeltable-yolox has ``config``, ``name`` and ``D`` (``key=value``) for ``name``, ``experiment_name`` and ``opts``.

    Raises:
        ConfigError: a ``-D`` without ``=``.
    """
    if not hasattr(args, "config"):
        return args
    values = vars(args).copy()
    words = values.pop("D") or []
    for word in words:
        if "=" not in word:
            raise ConfigError(f"-D takes KEY=VALUE, as in -D loss_iou=ciou; got {word!r}.")
    values.update(exp_file=None, experiment_name=args.name, name=values.pop("config"))
    return argparse.Namespace(**values, opts=[part for word in words for part in word.split("=", 1)])


def known_get_losses(function: Callable[..., Any]) -> str | None:
    """The name of the host whose loss stage this function is, None when it is not one that the kit knows."""
    return KNOWN_GET_LOSSES.get(fingerprint(function))


def loss_modules(head: Any) -> dict[str, Any]:
    """Term -> the loss module by which this head computes it without the kit; None where it has none."""
    return {term: getattr(head, name, None) for term, name in LOSS_MODULES.items()}


def edited_modules(head: Any) -> dict[str, str]:
    """Term -> the loss module in words, for the terms of this head whose module is not YOLOX's."""
    found = {}
    modules = loss_modules(head)
    iou, bce, l1 = modules["iou"], modules["obj"], modules["l1"]
    is_stock = getattr(iou, "loss_type", "") == "iou" and getattr(iou, "reduction", "") == "none"
    if not is_stock or fingerprint(getattr(type(iou), "forward", None)) != _IOU_LOSS:
        found["iou"] = _in_words(iou)
    weights = [getattr(bce, name, None) for name in ("weight", "pos_weight")]
    if type(bce) is not nn.BCEWithLogitsLoss or bce.reduction != "none" or weights != [None, None]:
        found["obj"] = found["cls"] = _in_words(bce)
    if type(l1) is not nn.L1Loss or l1.reduction != "none":
        found["l1"] = _in_words(l1)
    return found


def _in_words(module: Any) -> str:
    """A loss module by its class and the knobs that YOLOX's have."""
    knobs = [f"{name}={getattr(module, name)!r}" for name in ("loss_type", "reduction") if hasattr(module, name)]
    return f"{type(module).__module__}.{type(module).__qualname__}({', '.join(knobs)})"


@functools.cache
def _assignment_fingerprint(cls: Any) -> str:
    """The fingerprint of all the code by which this head class assigns labels."""
    functions = [getattr(cls, name) for name in _ASSIGNMENT_METHODS if hasattr(cls, name)]
    functions.append(importlib.import_module("yolox.utils").bboxes_iou)
    code = ",".join(fingerprint(function) for function in functions)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def assignment_rule(cls: Any) -> Rule | None:
    """The rule by which this head class assigns labels, None when its code is not one that the kit knows."""
    return KNOWN_RULES.get(_assignment_fingerprint(cls))


def describe() -> dict[str, str]:
    """Host, version and fingerprints as plain data, for the run record.

    The name says whose code it is: a copy of 0.3.0 under another name (yolox-datamint) is 0.3.0.
    """
    cls: Any = head_class()
    stage, rule = fingerprint(cls.__dict__["get_losses"]), _assignment_fingerprint(cls)
    name = KNOWN_GET_LOSSES.get(stage, "unknown")
    if name != "unknown":
        name = _NAMED_BY_RULE.get(rule, name if rule in KNOWN_RULES else f"{name}, with a label assignment of its own")
    return {
        "name": name,
        "version": str(getattr(yolox(), "__version__", "unknown")),
        "get_losses": stage,
        "assignment": rule,
        "path": _folder(),
    }


def postprocess() -> Callable[..., Any]:
    """The host's score threshold and NMS."""
    return importlib.import_module("yolox.utils").postprocess


def is_coco_evaluator(evaluator: Any) -> bool:
    """Whether this is the host's COCO evaluator itself, not a subclass, which may evaluate otherwise."""
    return type(evaluator) is _attribute("evaluators", "COCOEvaluator", "CocoEvaluator")
