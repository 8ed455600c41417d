"""Losses as text: ``bce+0.5*dice(smooth=2)``, for the command line and for labels."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import ConfigError


def is_formula(text: str) -> bool:
    """Whether a text is more than a name."""
    return any(sign in text for sign in "+*(")


def parse(where: str, text: str) -> list[dict[str, Any]]:
    """The parts of ``bce+0.5*dice(smooth=2)`` as dicts with ``type``, knobs and ``loss_weight``.

    Args:
        where: the start of a message, ``loss_obj``.
        text: names with ``+`` between them, each with a number and ``*`` in front where it has a weight, and with its
            knobs in parentheses.

    Raises:
        ConfigError: a text of another form.
    """
    try:
        return [_part(node) for node in _summands(ast.parse(text.strip(), mode="eval").body)]
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{where}: {text!r} cannot be read. A sum of losses is written bce+0.5*dice, knobs in parentheses: "
            "0.5*dice(smooth=2)."
        ) from error


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    return [node]


def _part(node: ast.expr) -> dict[str, Any]:
    weight = None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        weight, node = ast.literal_eval(node.left), node.right
    knobs: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("knobs are written name=value")
        knobs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        node = node.func
    if not isinstance(node, (ast.Name, ast.Attribute)) or "type" in knobs:
        raise ValueError("a part is the name of a loss")
    if weight is not None:
        if "loss_weight" in knobs:
            raise ValueError("loss_weight twice")
        knobs["loss_weight"] = weight
    return {"type": ast.unparse(node), **knobs}
