"""Experiment files: the mix-in that makes losses a setting, strict overrides, and loading."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from . import hosts
from .config import ALIASES, KEYS, LossConfig
from .errors import ConfigError, KitError
from .knobs import as_python, nearest
from .patch import patch_model, stage_of, unpatch_model
from .stage import ElementWeights

# Settings that YOLOX reads although its own Exp does not set them.
_OPTIONAL = ("random_size",)
_SETTINGS = (*KEYS, "loss_assign")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class LossExp:
    """Mix-in for experiment files: ``class Exp(LossExp, BaseExp)`` with any host's Exp as base.

    Attributes (plain data, so that YOLOX can print and log them):
        loss_obj, loss_cls, loss_iou, loss_l1: a name or a dict with ``type`` and knobs; stock YOLOX by default.
            ``loss_bbox`` is another name of ``loss_iou``.
        loss_assign: ``auto``, ``fast`` or ``host``, see `LossConfig`.

    A method ``loss_weights(self, assignment)`` of the experiment weighs the elements of each batch: it gets an
    `yolox_loss_patch.assign.Assignment` and returns a dict (or None) with any of ``label_weights`` ``(num_fg,)`` or
    ``(num_fg, C)`` for the class term, ``bbox_weights`` ``(num_fg,)`` for the box and L1 terms, ``obj_weights``
    ``(B * A,)`` for the objectness term.

    The model is patched where it is built, so the losses are there in every process that builds it: YOLOX's own
    ``tools.train``, spawned workers, notebooks.
    """

    loss_obj: Any = "bce"
    loss_cls: Any = "bce"
    loss_iou: Any = "iou"
    loss_l1: Any = "l1"
    loss_assign: str = "auto"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Into the instance, because YOLOX prints and overrides what stands there; a subclass may have set them already.
        for key in _SETTINGS:
            setattr(self, key, getattr(self, key))

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        """The base's model with the losses of this experiment."""
        LossConfig.from_exp(self)  # a loss that cannot be is told before anything is built
        return patch_from_exp(super().get_model(*args, **kwargs), self)  # type: ignore[misc]

    def get_trainer(self, args: Any) -> Any:
        """The kit's trainer, which runs on any device; a trainer of the base's own is left in its place."""
        inherited = getattr(super(), "get_trainer", None)
        if inherited is not None and inherited.__func__ is not getattr(hosts.exp_class(), "get_trainer", None):
            return inherited(args)
        from .train import Trainer

        # YOLOX's own main logs every Exception and exits with 0.
        try:
            return Trainer(self, hosts.arguments(args), exit_on_error=True)
        except KitError as error:
            logger.error(str(error))
            raise SystemExit(1) from error

    def get_data_loader(self, *args: Any, **kwargs: Any) -> Any:
        """The base's loader; with ``--cache``, of cached images.

        YOLOX main leaves it to its ``tools.train`` to make the cached data set, and stops here when nobody did.
        """
        cache = kwargs.get("cache_img")
        if cache and getattr(self, "dataset", ...) is None:
            self.dataset = self.get_dataset(cache=True, cache_type=cache)  # type: ignore[attr-defined]
        return super().get_data_loader(*args, **kwargs)  # type: ignore[misc]

    def random_resize(self, data_loader: Any, epoch: int, rank: int, is_distributed: bool) -> Any:
        """The base's next multi-scale input size (height, width).

        YOLOX's own draws it into a CUDA tensor; this draws the same sizes without one.
        """
        inherited = super().random_resize  # type: ignore[misc]
        if inherited.__func__ is not hosts.exp_class().random_resize:
            return inherited(data_loader, epoch, rank, is_distributed)
        size = [0, 0]
        if rank == 0:
            height, width = self.input_size  # type: ignore[attr-defined]
            if getattr(self, "random_size", None) is None:
                span = self.multiscale_range  # type: ignore[attr-defined]
                self.random_size = (int(height / 32) - span, int(height / 32) + span)
            step = random.randint(*self.random_size)
            size = [32 * step, 32 * int(step * (width * 1.0 / height))]
        if is_distributed:
            import torch.distributed as dist

            dist.broadcast_object_list(size, 0)
        return tuple(size)

    def merge(self, cfg_list: Sequence[Any]) -> None:
        """Overrides from the command line: ``["max_epoch", "50", "loss_iou", "ciou", "loss_obj.gamma", "1.5"]``.

        YOLOX's own drops unknown keys and reads ``ema False`` as True. Here every value takes the type of the setting it
        replaces, and nothing is changed unless all of them can be.

        Raises:
            ConfigError: an odd list, an unknown key, a value of the wrong type, a loss that cannot be.
        """
        merge(self, cfg_list)


class LossConfigMixin(LossExp):
    """Mix-in for the config classes of pixeltable-yolox: ``class Config(LossConfigMixin, YoloxS)``.

    The losses are fields beside YOLOX's own, set in ``__init__`` or, in a class under ``@dataclass``, as fields, and
    overridden as those are: ``yolox train -c module:Config -D loss_iou=ciou -D loss_obj.gamma=1.5``. All that `LossExp`
    says holds here.
    """

    name: str

    def __repr__(self) -> str:
        """The host's, which shows the fields of YOLOX only, with the losses."""
        losses = ", ".join(f"{key}={getattr(self, key)!r}" for key in _SETTINGS)
        return f"{super().__repr__().removesuffix(')')}, {losses})"

    @property
    def exp_name(self) -> str:
        """The run's name as YOLOX's exp files call it; here it is ``name``."""
        return self.name

    @exp_name.setter
    def exp_name(self, name: str) -> None:
        """Name the run."""
        self.name = name

    def update(self, opts: Mapping[str, Any]) -> None:
        """Overrides from the command line, ``{"loss_iou": "ciou", "max_epoch": "50"}``, as strict as `LossExp.merge`.

        Raises:
            ConfigError: an unknown key, a value of the wrong type, a loss that cannot be.
        """
        merge(self, [word for pair in opts.items() for word in pair])

    def validate(self) -> None:
        """The host's checks, and the losses.

        Raises:
            ConfigError: a loss that cannot be.
        """
        super().validate()  # type: ignore[misc]
        LossConfig.from_exp(self)

    def random_resize(self, data_loader: Any, epoch: int, rank: int, is_distributed: bool) -> Any:
        """As `LossExp.random_resize`; with ``deterministic`` set the size stays, as in the host's trainer."""
        if self.deterministic:  # type: ignore[attr-defined]
            return self.input_size  # type: ignore[attr-defined]
        return super().random_resize(data_loader, epoch, rank, is_distributed)


def patch_from_exp(model: Any, exp: Any) -> Any:
    """Give a model the losses and the element weights of an experiment, whatever losses of the kit it has.

    Args:
        model: a YOLOX model, as ``exp.get_model()`` builds it.
        exp: any object with ``loss_*`` attributes; what it lacks is stock. See `LossExp`.

    Returns:
        The model.

    Raises:
        ConfigError, PatchError, HostError: as `LossConfig.from_exp` and `patch_model`.
    """
    config = LossConfig.from_exp(exp)
    stage = stage_of(model)
    if stage is not None and stage.config != config:
        unpatch_model(model)  # YOLOX keeps the model on the experiment; the experiment was changed since
    patch_model(model, config)
    stage = stage_of(model)
    weigh = getattr(exp, "loss_weights", None)
    if stage is not None and weigh is not None:
        stage.element_weights = ElementWeights(weigh)
    return model


def own_code(exp: Any) -> dict[str, str]:
    """What an experiment's files do besides settings: ``method()``, function or class -> a hash of its code.

    Comments and layout do not count. Methods are those of the experiment's own classes, YOLOX's and the kit's left out;
    ``__init__`` makes the settings, which are told apart by their values.
    """
    found: dict[str, str] = {}
    ours = [cls for cls in type(exp).__mro__ if cls.__module__.split(".")[0] not in _NOT_OWN]
    for cls in ours:
        for name, member in vars(cls).items():
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(member) and name != "__init__":
                found.setdefault(f"{name}()", _code_hash(member))
    for module in dict.fromkeys(cls.__module__ for cls in ours if cls.__module__ != "__main__"):
        for name, value in vars(sys.modules.get(module)).items() if module in sys.modules else ():
            is_own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module
            if is_own and not (inspect.isclass(value) and issubclass(value, hosts.exp_class())):
                found.setdefault(name, _code_hash(value))
    return found


_NOT_OWN = ("yolox", (__package__ or "").split(".")[0], "builtins")


def _code_hash(code: Any) -> str:
    try:
        text = ast.dump(ast.parse(textwrap.dedent(inspect.getsource(code))))
    except (OSError, TypeError, SyntaxError):  # no source at hand, as for what was typed into a prompt
        text = repr(getattr(getattr(code, "__code__", None), "co_code", None))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def merge(exp: Any, cfg_list: Sequence[Any]) -> None:
    """`LossExp.merge` for any experiment."""
    if len(cfg_list) % 2:
        raise ConfigError(
            f"Overrides are pairs of key and value; got {len(cfg_list)} words: {' '.join(map(str, cfg_list))}. "
            "Flags stand before them."
        )
    changes: dict[str, Any] = {}
    pairs = list(zip(cfg_list[::2], cfg_list[1::2], strict=True))
    for key, value in sorted(pairs, key=lambda pair: "." in pair[0]):  # a loss before its knobs, which it would replace
        if key.startswith("wandb-"):
            continue  # YOLOX's trainer reads these from the same list
        head, _, knob = key.partition(".")
        head = ALIASES.get(head, head)
        if head in KEYS:
            changes[head] = _spec(head, knob, changes.get(head, _spec_now(exp, head)), value)
            continue
        if not _is_setting(exp, key):
            keys = [*KEYS, *_settings(exp)]
            raise ConfigError(
                f"The experiment has no setting {key!r}.{nearest(key, keys)} It has: {', '.join(sorted(set(keys)))}."
            )
        changes[key] = _convert(key, getattr(exp, key, None), value)
    if any(key in changes for key in _SETTINGS):
        specs = {key: changes[key] if key in changes else _spec_now(exp, key) for key in _SETTINGS}
        LossConfig.from_specs({key: spec for key, spec in specs.items() if spec is not None})
        _warn_of_heirs(exp, changes, [key for key, _ in pairs])
    for key, value in changes.items():
        setattr(exp, key, value)
    for alias, key in ALIASES.items():
        if key in changes and hasattr(exp, alias):
            setattr(exp, alias, changes[key])


def _warn_of_heirs(exp: Any, changes: Mapping[str, Any], words: Sequence[str]) -> None:
    """Say which knobs of a loss went over to the one that took its place by ``loss_obj.type varifocal``."""
    for key in KEYS:
        now, new = _spec_now(exp, key), changes.get(key)
        if not (isinstance(now, Mapping) and isinstance(new, Mapping)) or now.get("type") == new.get("type"):
            continue
        names = [key, *(alias for alias, name in ALIASES.items() if name == key)]
        said = {word.partition(".")[2] for word in words if word.partition(".")[0] in names}  # "": the loss as a whole
        kept = [f"{knob}={value!r}" for knob, value in now.items() if knob not in said]
        if kept and "" not in said:
            logger.warning(
                f"{key}.type {new['type']} takes the place of {now.get('type')} and keeps its {', '.join(kept)}. "
                f"For the defaults of {new['type']} write {key} {new['type']}."
            )


def _settings(exp: Any) -> list[str]:
    names = {name for name in dir(exp) if not name.startswith("_")}
    return sorted(name for name in names if _is_setting(exp, name))


def _is_setting(exp: Any, key: str) -> bool:
    if key in _OPTIONAL:
        return True
    return not key.startswith("_") and hasattr(exp, key) and not callable(getattr(exp, key))


def _literal(text: Any) -> Any:
    """A Python literal where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _spec_now(exp: Any, key: str) -> Any:
    """The spec that the experiment has now, by whichever name it was set."""
    aliases = [getattr(exp, alias, None) for alias, name in ALIASES.items() if name == key]
    return next((spec for spec in aliases if spec is not None), getattr(exp, key, None))


def _spec(key: str, knob: str, spec: Any, value: Any) -> Any:
    """The spec after ``loss_obj focal``, ``loss_obj.gamma 1.5`` or ``loss_obj {'type': 'focal'}``."""
    if isinstance(value, str):
        value = _WORDS[value.lower()] if value.lower() in ("true", "false") else _literal(value)
    if not knob:
        return value
    spec = {"type": spec} if isinstance(spec, str) else dict(spec or {"type": LossConfig.__dataclass_fields__[key].default})
    spec[knob] = value
    return spec


def _convert(key: str, old: Any, value: Any) -> Any:
    """The value in the type of the setting that it replaces."""

    def wrong(allowed: str) -> ConfigError:
        return ConfigError(f"{key} is {allowed} (now {old!r}); got {value!r}.{hint}")

    hint, old = "", as_python(old)
    if isinstance(old, bool):
        if isinstance(value, bool):
            return value
        if str(value).lower() not in _WORDS:
            hint = nearest(value, ["true", "false", "yes", "no", "on", "off"])
            raise wrong("True or False")
        return _WORDS[str(value).lower()]
    if isinstance(old, (str, Path)):
        return type(old)(value)
    new = _literal(value)
    if old is None:
        return new
    if isinstance(old, (int, float)):
        if isinstance(new, bool) or not isinstance(new, (int, float)):
            raise wrong("a number")
        return float(new) if isinstance(old, float) else new
    if isinstance(old, (tuple, list)):
        if isinstance(new, (int, float)) and not isinstance(new, bool):
            new = (new,)
        if not isinstance(new, (tuple, list)) or len(new) != len(old):
            raise wrong(f"{len(old)} values, as in '{','.join(map(str, old))}'")
        if any(isinstance(n, str) != isinstance(o, str) for n, o in zip(new, old, strict=True)):
            raise wrong(f"{len(old)} values of the kind in '{','.join(map(str, old))}'")
        return type(old)(new)
    if type(new) is not type(old):
        raise wrong(f"a {type(old).__name__}")
    return new


# ---------------------------------------------------------------------------------------------------------------------
# Loading.


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
        _warn_of_strangers(exp)
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


def _warn_of_strangers(exp: Any) -> None:
    """Say which settings of an experiment YOLOX will not read because they are mistyped, as ``max_epochs`` is."""
    known = {*dir(hosts.exp_class()()), *_OPTIONAL}
    for name in vars(exp):
        match = difflib.get_close_matches(name, known, 1, 0.9)
        if name not in known and not name.startswith("_") and match and match[0] not in _SETTINGS:
            logger.warning(f"The experiment sets {name}, which YOLOX does not read. Did you mean {match[0]!r}?")


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
        raise ConfigError(f"There is no module {error.name!r} (looked in {Path.cwd()} and on the Python path).") from error
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
        for key in _SETTINGS:
            setattr(exp, key, getattr(exp, key))
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
    except Exception as error:
        del sys.modules[module_name]
        raise _broken(str(path), error) from error
    return module


def _make(cls: Any, where: str) -> Any:
    try:
        return cls()
    except Exception as error:
        raise _broken(where, error) from error


def _broken(where: str, error: Exception) -> Exception:
    if isinstance(error, ConfigError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    line = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return ConfigError(f"The experiment {where!r} cannot be loaded: {type(error).__name__}: {error}{line}.")
