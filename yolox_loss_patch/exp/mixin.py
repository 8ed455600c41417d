"""The mix-ins for experiment files and config classes: losses as settings, the patched model, the kit's trainer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from loguru import logger

from .. import wiring
from ..data.ignored import IGNORE_KEYS, IgnoreSettings, ignore_in_evaluation, ignore_in_training
from ..data.repeat import check_repeat_factor, repeat_images
from ..data.scores import put_scores
from ..errors import ConfigError, KitError
from ..head import hosts
from ..head.patch import patch_model, stage_of, unpatch_model
from ..head.weights import ElementWeights
from ..specs.config import LossConfig
from .overrides import DATA_SETTINGS, SETTINGS, merge


class LossExp:
    """Mix-in for experiment files: ``class Exp(LossExp, BaseExp)`` with any host's Exp as base.

    Attributes (plain data, so that YOLOX can print and log them):
        loss_obj, loss_cls, loss_iou, loss_l1: a name or a dict with ``type`` and knobs; stock YOLOX by default.
            ``loss_bbox`` is another name of ``loss_iou``.
        loss_assign: ``auto``, ``fast`` or ``host``, see `LossConfig`.
        ignore_crowd: True: annotations with ``iscrowd: 1`` or ``ignore: 1`` are ignored regions. An anchor that lies in
            one and learns no box is no background: its objectness has weight 0. False: YOLOX's own, which trains what
            they cover as background.
        ignore_classes: names of categories whose annotations are such regions, as ``["ignored regions", "others"]`` of
            VisDrone; ``num_classes`` does not count them.
        repeat_factor: the share of images below which a class counts as rare, such as 0.01: images with rare classes are
            drawn more often, as in LVIS. None: every image once per epoch.
        gt_score: True: the key ``score`` or ``weight`` of an annotation, in [0, 1], is the weight of all terms of the anchors
            that learn its box. Needs the loader of this class, as ignored regions do.

    A method ``loss_weights(self, assignment)`` of the experiment weighs the elements of each batch: it gets an
    `yolox_loss_patch.head.assign.Assignment` and returns a dict (or None) with any of ``label_weights`` ``(num_fg,)`` or
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
    ignore_crowd: bool = False
    ignore_classes: Sequence[str] | None = None
    repeat_factor: float | None = None
    gt_score: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Into the instance, because YOLOX prints and overrides what stands there; a subclass may have set them already.
        show_settings(self)

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        """The base's model with the losses of this experiment."""
        LossConfig.from_exp(self)  # a loss that cannot be is told before anything is built
        return patch_from_exp(super().get_model(*args, **kwargs), self)  # type: ignore[misc]

    def get_trainer(self, args: Any) -> Any:
        """The kit's trainer, which runs on any device; where the base has a trainer of its own, that one."""
        inherited = getattr(super(), "get_trainer", None)
        if inherited is not None and inherited.__func__ is not getattr(hosts.exp_class(), "get_trainer", None):
            return inherited(args)
        # YOLOX's own main logs every Exception and exits with 0.
        try:
            return wiring.make_trainer(self, hosts.arguments(args), exit_on_error=True)
        except KitError as error:
            logger.error(str(error))
            raise SystemExit(1) from error

    def get_data_loader(self, *args: Any, **kwargs: Any) -> Any:
        """The base's loader; with ``--cache``, of cached images; with the ignored regions in the labels.

        YOLOX main leaves it to its ``tools.train`` to make the cached data set, and stops here when nobody did.
        """
        cache = kwargs.get("cache_img")
        if cache and getattr(self, "dataset", ...) is None:
            self.dataset = self.get_dataset(cache=True, cache_type=cache)  # type: ignore[attr-defined]
        ignored = IgnoreSettings.from_exp(self)
        loader = super().get_data_loader(*args, **kwargs)  # type: ignore[misc]
        if ignored:
            ignore_in_training(loader.dataset, ignored)
        if reads_scores(self):
            put_scores(loader.dataset)
        threshold = check_repeat_factor(self.repeat_factor)
        if threshold is not None:
            repeat_images(loader, threshold)
        return loader

    def get_eval_loader(self, *args: Any, **kwargs: Any) -> Any:
        """The base's loader of the validation set, without ``ignore_classes`` among its classes."""
        loader = super().get_eval_loader(*args, **kwargs)  # type: ignore[misc]
        ignore_in_evaluation(loader.dataset, IgnoreSettings.from_exp(self))
        return loader

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
        losses = ", ".join(f"{key}={getattr(self, key)!r}" for key in (*SETTINGS, *DATA_SETTINGS) if key in vars(self))
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


def show_settings(exp: Any) -> None:
    """Put the kit's settings into an experiment itself where they stand on its class: what stands there is recorded."""
    for key in SETTINGS:
        setattr(exp, key, getattr(exp, key))
    for key in DATA_SETTINGS:
        if getattr(exp, key) != getattr(LossExp, key):  # the record of a run without them stays as it was
            setattr(exp, key, getattr(exp, key))


def reads_scores(exp: Any) -> bool:
    """The setting ``gt_score`` of an experiment.

    Raises:
        ConfigError: no bool.
    """
    value = getattr(exp, "gt_score", False)
    if not isinstance(value, bool):
        raise ConfigError(f"gt_score is True or False; got {value!r}.")
    return value


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
    ignored = IgnoreSettings.from_exp(exp)
    if (ignored or reads_scores(exp)) and not isinstance(exp, LossExp):
        keys = " or ".join((*IGNORE_KEYS, "gt_score"))
        raise ConfigError(
            f"{type(exp).__name__} sets {keys}, but its data loader puts no regions into the labels and no scores. "
            "Write class Exp(LossExp, BaseExp), whose loader does; or leave them out."
        )
    stage = stage_of(model)
    if stage is not None and stage.config != config:
        unpatch_model(model)  # YOLOX keeps the model on the experiment; the experiment was changed since
    patch_model(model, config)
    stage = stage_of(model)
    weigh = getattr(exp, "loss_weights", None)
    if stage is not None and weigh is not None:
        stage.element_weights = ElementWeights(weigh)
    if stage is not None:
        stage.ignores_regions = bool(ignored)
        stage.reads_scores = reads_scores(exp)
    return model
