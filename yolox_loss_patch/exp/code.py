"""The code of an experiment file as hashes: what it does besides settings."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from typing import Any

from ..head import hosts


def user_code(exp: Any) -> dict[str, str]:
    """What an experiment's files do besides settings: ``method()``, function or class -> a hash of its code.

    Comments and layout do not count. Methods are those of the experiment's own classes, YOLOX's and the kit's left out;
    ``__init__`` makes the settings, which are told apart by their values.
    """
    found: dict[str, str] = {}
    ours = [cls for cls in type(exp).__mro__ if cls.__module__.split(".")[0] not in _NOT_USER_CODE]
    for cls in ours:
        for name, member in vars(cls).items():
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(member) and name != "__init__":
                found.setdefault(f"{name}()", _code_hash(member))
    for module in dict.fromkeys(cls.__module__ for cls in ours if cls.__module__ != "__main__"):
        for name, value in vars(sys.modules.get(module)).items() if module in sys.modules else ():
            is_local = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module
            if is_local and not (inspect.isclass(value) and issubclass(value, hosts.exp_class())):
                found.setdefault(name, _code_hash(value))
    return found


_NOT_USER_CODE = ("yolox", (__package__ or "").split(".")[0], "builtins")


def _code_hash(code: Any) -> str:
    try:
        text = ast.dump(ast.parse(textwrap.dedent(inspect.getsource(code))))
    except (OSError, TypeError, SyntaxError):  # no source at hand, as for what was typed into a prompt
        text = repr(getattr(getattr(code, "__code__", None), "co_code", None))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
