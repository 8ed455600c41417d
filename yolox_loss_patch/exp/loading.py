"""Experiments by file or by name, adapted so that ``loss_*`` works on them."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..head import hosts
from ..specs.config import LossConfig
from ..specs.knobs import nearest
from .mixin import LossConfigMixin, LossExp, show_settings
from .overrides import DATA_SETTINGS, OPTIONAL, SETTINGS


def load_exp(exp_file: str | None = None, name: str | None = None) -> Any:
    """An experiment by file or by YOLOX's model name, adapted so that ``loss_*`` works on it.

    YOLOX's own loader imports the file by its bare name, so that two files of one name in two folders are one module,
    and answers every mistake in the file with "doesn't contains class named 'Exp'".

    On pixeltable-yolox, which has no experiment files, ``name`` is a model or ``module:Class``.

    Raises:
        ConfigError: no such file or name, no class ``Exp`` in it, an error while it is made.
    """
    if hosts.has_config_classes():
        if exp_file is not None:
            raise ConfigError(
                f"This YOLOX has no experiment files, so {exp_file!r} cannot be one. Write a config class, class "
                "Config(LossConfigMixin, YoloxS), and name it as module:Class."
            )
        exp = _load_config(name)
    elif exp_file is not None:
        path = Path(exp_file)
        if not path.is_file():
            raise ConfigError(f"There is no experiment file {exp_file!r} (looked in {Path.cwd()}).")
        module = _load_module(path)
        if not hasattr(module, "Exp"):
            raise ConfigError(f"The experiment file {exp_file!r} has no class named 'Exp'.")
        exp = _make(module.Exp, exp_file)
        # A file that does not name its run would share a folder such as "yolox_base" with every other.
        if not _names_its_run(path):
            exp.exp_name = path.stem
        _check_class(exp, path)
        _refuse_mistyped(exp)
    elif name is not None:
        stem = name.replace("-", "_")
        folder = Path(next(iter(importlib.import_module("yolox.exp.default").__path__)))
        # In a checkout the models stand in exps/default beside the package, and the import finds them there.
        files = [*folder.glob("*.py"), *folder.parents[2].glob("exps/default/*.py")]
        names = sorted({item.stem for item in files} - {"__init__"})
        if stem not in names:
            raise ConfigError(
                f"YOLOX has no model {name!r}.{nearest(stem, names)} Choose one of: {', '.join(names)}, or give a file with -f."
            )
        exp = _make(importlib.import_module(f"yolox.exp.default.{stem}").Exp, name)
    else:
        raise ConfigError("Say what to train: an experiment file with -f, or one of YOLOX's models with -n.")
    adapt(exp)
    LossConfig.from_exp(exp)
    return exp


def _names_its_run(path: Path) -> bool:
    """Whether the code of an experiment file has anything to do with ``exp_name``."""
    nodes = ast.walk(ast.parse(path.read_bytes()))  # bytes, for a file that says in which encoding it is
    return any("exp_name" in (getattr(node, name, None) for name in ("attr", "id", "value")) for node in nodes)


def _refuse_mistyped(exp: Any) -> None:
    """Refuse settings that nothing reads because they are mistyped, as ``max_epochs`` is.

    An attribute that the code of the experiment reads is none of them.

    Raises:
        ConfigError: the attribute and the setting that was meant.
    """
    known = {*dir(hosts.exp_class()()), *OPTIONAL, *DATA_SETTINGS, *SETTINGS}
    read: set[str] | None = None
    for name in vars(exp):
        match = difflib.get_close_matches(name, known, 1, 0.9)
        # Of mistyped losses `LossConfig` says more.
        if name in known or name.startswith("_") or not match or match[0] in SETTINGS:
            continue
        read = _read_names(type(exp)) if read is None else read
        if name not in read:
            raise ConfigError(
                f"The experiment sets self.{name}, which nothing reads. Did you mean {match[0]!r}? Correct the name, or "
                "remove the line."
            )


def _check_class(exp: Any, path: Path) -> None:
    """Refuse a class that does not call YOLOX's ``__init__``, or that puts the mix-in behind YOLOX's class.

    Raises:
        ConfigError: the line and the mistake.
    """
    cls = type(exp)
    classes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ClassDef)]
    node = next((node for node in classes if node.name == cls.__name__), None)
    line = f"line {node.lineno} of {str(path)!r}" if node is not None else repr(str(path))
    if not hasattr(exp, "max_epoch") or not hasattr(exp, "num_classes"):
        raise ConfigError(
            f"The settings of YOLOX are missing in class {cls.__name__} ({line}): its __init__ does not call that of its base. "
            "Write super().__init__() as the first line of __init__."
        )
    order = [
        base
        for base in cls.__mro__
        if base is LossExp or (_is_below(base, hosts.exp_class()) and not _is_below(base, LossExp))
    ]
    if LossExp in order and order[0] is not LossExp:
        raise ConfigError(
            f"Class {cls.__name__} ({line}) names {order[0].__name__} before LossExp, so YOLOX's methods come first and the "
            f"losses never arrive. Write class {cls.__name__}(LossExp, BaseExp)."
        )


def _read_names(cls: type[Any]) -> set[str]:
    """The attributes that the files of an experiment's classes read, by name or with ``getattr``."""
    names: set[str] = set()
    for module in {base.__module__ for base in cls.__mro__}:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or module.split(".")[0] in ("yolox", "builtins", __name__.split(".")[0]):
            continue
        for node in ast.walk(ast.parse(Path(file).read_bytes())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def _load_config(name: str | None) -> Any:
    """A config of pixeltable-yolox by the name of a model or as ``module:Class``."""
    if name is None:
        raise ConfigError("Say what to train: a config class with -c module:Class, or one of YOLOX's models with -c.")
    base = hosts.exp_class()
    module_name, colon, class_name = name.partition(":")
    if not colon:
        config = base.get_named_config(name)
        if config is None:
            models = [cls for cls in vars(importlib.import_module(base.__module__)).values() if _is_below(cls, base)]
            names = [model().name for model in models if model is not base]
            raise ConfigError(
                f"YOLOX has no model {name!r}.{nearest(name.replace('-', '_'), names)} Choose one of: {', '.join(names)}, or "
                "name a config class as module:Class."
            )
        return config
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for `python -m`; a console script has its own folder there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        raise ConfigError(
            f"There is no module {error.name!r} (looked in {Path.cwd()} and on the Python path)."
        ) from error
    except Exception as error:
        raise _broken(name, error) from error
    cls = getattr(module, class_name, None)
    if not _is_below(cls, base):
        classes = [key for key, value in vars(module).items() if _is_below(value, base)]
        raise ConfigError(
            f"{module_name} has no config class {class_name!r}, a subclass of {base.__name__}.{nearest(class_name, classes)} "
            f"It has: {', '.join(classes) or 'none'}."
        )
    return _make(cls, name)


def _is_below(value: Any, base: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def adapt(exp: Any) -> Any:
    """Make an experiment whose class is not a `LossExp` into one, in place; returns it."""
    if not isinstance(exp, LossExp):
        cls = type(exp)
        mixin = LossConfigMixin if hosts.has_config_classes() else LossExp
        exp.__class__ = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
        show_settings(exp)
    return exp


def _load_module(path: Path) -> Any:
    path = path.resolve()
    module_name = f"yolox_exp_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"The experiment file {str(path)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # In sys.modules so that its classes can be pickled, and its folder on the path so that it can import its neighbours.
    sys.modules[module_name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _broken(str(path), error) from error
    return module


def _make(cls: Any, where: str) -> Any:
    try:
        return cls()
    except (Exception, SystemExit) as error:
        raise _broken(where, error) from error


def _broken(where: str, error: BaseException) -> Exception:
    if isinstance(error, ConfigError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    line = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return ConfigError(f"The experiment {where!r} cannot be loaded: {type(error).__name__}: {error}{line}.")
