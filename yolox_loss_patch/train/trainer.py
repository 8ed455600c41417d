"""Training on any device: YOLOX's trainer with an honest exit, exact resume and a run record."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import socket
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import yolox.utils.dist as host_dist
from loguru import logger
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from yolox.core import Trainer as HostTrainer
from yolox.utils import MeterBuffer, ModelEMA, adjust_status, get_model_info, occupy_mem

from ..data.checks import file_names, open_data
from ..data.loader import Prefetcher, seed_everything, training_loader
from ..errors import ConfigError, KitError, NonFiniteError, RunError
from ..exp.code import own_code
from ..exp.data import check_split_of
from ..exp.device import choose_device, local_rank
from ..exp.loading import adapt, load_exp
from ..exp.settings import check_settings, loss_config, resolved_losses, settings
from ..head import hosts
from ..head.half import decode_in_fp32, half_dtype
from ..head.patch import find_head, stage_with
from ..runs.checkpoint import load_checkpoint, sha256, starting_weights
from ..runs.differences import changed_since, record_differences
from ..runs.files import save_atomically
from ..runs.process import is_alive
from ..runs.record import (
    GRADIENT_COLUMNS,
    LOSS_COLUMNS,
    RunRecord,
    fail_run,
    predictions_file,
    read_run,
    write_predictions,
)
from . import workers
from .evaluator import Evaluator

STATE = "resume_state.pth"


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | Path, strict: bool) -> None:
    """Weights of a checkpoint into a model.

    Args:
        model: YOLOX.
        weights: its state_dict, or another's to fine-tune from.
        path: of the checkpoint, for messages.
        strict: every weight must fit; else the last layers may be of another class count.

    Raises:
        RunError: the checkpoint is of another model.
    """
    own = model.state_dict()
    wrong = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    if not strict:
        retrained = [key for key in wrong if key.startswith("head.cls_preds.")]
        if retrained:
            logger.info(f"{path}: another class count; trained anew: {', '.join(retrained)}")
        wrong = [key for key in wrong if key not in retrained]
        if missing and len(missing) <= len(own) // 2:
            logger.warning(
                f"{path} lacks {len(missing)} of {len(own)} weights, first {missing[0]}; they start at random"
            )
            missing = []
        unknown = []
    if wrong or missing or unknown:
        if wrong:
            key = wrong[0]
            what = f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        else:
            what = f"{missing[0]} is not in it" if missing else f"{unknown[0]} is not in this model"
        raise RunError(
            f"The checkpoint {str(path)!r} is of another model: {what} ({len(wrong)} of another shape, {len(missing)} "
            f"missing, {len(unknown)} unknown, of {len(own)})."
        )
    model.load_state_dict({key: value for key, value in weights.items() if key in own and key not in wrong
                           and value.shape == own[key].shape}, strict=strict)  # fmt: skip


class Trainer(HostTrainer):
    """YOLOX's trainer without its assumptions: any device, exact resume, a record, a loss that must stay finite.

    Args:
        exp: the experiment; one that is no ``LossExp`` is made one.
        args: the namespace of YOLOX's ``tools.train``; ``device`` besides (``auto`` when it is missing).
        exit_on_error: end the process with status 1 on an error, for callers that would swallow it.
    """

    def __init__(self, exp: Any, args: argparse.Namespace, exit_on_error: bool = False) -> None:
        # YOLOX's own __init__ makes a CUDA scaler and a CUDA device, so its attributes are set here instead.
        self.exp = adapt(exp)
        self.args = args
        self.exit_on_error = exit_on_error
        self.losses = loss_config(exp)
        self.team = workers.team()
        self.is_distributed = self.team is not None
        self.rank = self.team.rank if self.team else 0
        self.world = self.team.world if self.team else 1
        check_settings(exp, args, self.world)
        if self.team is not None:
            self.team.agree(self._to_agree_on())
        self.max_epoch = exp.max_epoch
        self.eval_interval = exp.eval_interval
        self.local_rank = local_rank()
        self.device = choose_device(getattr(args, "device", "auto"))
        self.amp_training = bool(args.fp16)
        self.amp_dtype = half_dtype(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_training and self.device.type == "cuda")
        self.use_model_ema = exp.ema
        self.save_history_ckpt = exp.save_history_ckpt
        self.input_size = tuple(exp.input_size)
        self.best_ap = 0.0
        self.start_epoch = 0
        self.meter = MeterBuffer(window_size=exp.print_interval)
        self.file_name = os.path.join(exp.output_dir, args.experiment_name)
        self.folder = Path(self.file_name)
        self.seed = self._choose_seed()
        self.record: RunRecord | None = None

    def _to_agree_on(self) -> dict[str, Any]:
        """What must be the same in every worker before it starts; folders may differ from machine to machine."""
        exp_file = getattr(self.args, "exp_file", None)
        arguments = ("batch_size", "fp16", "resume", "start_epoch", "device")
        return {
            "losses": resolved_losses(self.exp),
            "exp": {key: value for key, value in settings(self.exp).items() if key not in ("data_dir", "output_dir")},
            "args": {key: getattr(self.args, key, None) for key in arguments},
            "experiment file (sha256)": sha256(Path(exp_file)) if exp_file else None,
            "yolox_loss_patch (sha256)": sha256(*sorted(Path(__file__).parents[1].rglob("*.py"))),
            "yolox (fingerprint)": hosts.describe()["get_losses"],
            "python": ".".join(map(str, sys.version_info[:2])),
            "torch": torch.__version__,
        }

    def _choose_seed(self) -> int:
        """The experiment's seed; without one a fresh one, the same on every rank and in every part of a resumed run."""
        if self.exp.seed is not None:
            return int(self.exp.seed)
        before = read_run(self.folder) if self.args.resume else None
        seed = before.get("seed") if before else None
        box = [int(seed) if seed is not None else random.SystemRandom().randrange(2**31)]
        if self.is_distributed:
            dist.broadcast_object_list(box, 0)
        return box[0]

    # -----------------------------------------------------------------------------------------------------------------
    # The run as a whole.

    def train(self) -> None:
        """Train from the start or from where the run stopped, to the last epoch.

        Raises:
            KitError: what a user can mend; the record says ``failed``.
        """
        try:
            with workers.stop_signals() as ignore_signals:
                self._train(ignore_signals)
        except Exception as error:
            if not self.exit_on_error:
                raise
            logger.opt(exception=None if isinstance(error, KitError) else error).error(str(error))
            raise SystemExit(1) from error

    def _train(self, ignore_signals: Callable[[], None]) -> None:
        if self.rank == 0:
            self._open_record()
        sinks = self._open_log()
        try:
            watch = self.team.watch(self._fail) if self.team else contextlib.nullcontext()
            with watch:
                try:
                    self._run()
                except BaseException as error:
                    # A signal that came while C code failed is seen by Python at its next call, which is this one. No
                    # `suppress`: making it would be that call.
                    try:  # noqa: SIM105
                        ignore_signals()
                    except KeyboardInterrupt:
                        pass  # the error has the word; what comes now is ignored as well
                    lost = self._end(error)
                    if lost is not None:
                        raise RunError(lost) from error
                    raise
                self._close_record("finished", None)
            if self.is_distributed:
                dist.barrier()  # nobody goes while another still looks after it
        finally:
            if self.team is not None:
                self.team.leave()
            for sink in sinks:
                logger.remove(sink)

    def _run(self) -> None:
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.train_in_iter()
            self.after_epoch()
        self.after_train()

    def _end(self, error: BaseException) -> str | None:
        """Write down why the run ends; returns the reason when it is another worker and not this error."""
        is_stop = isinstance(error, KeyboardInterrupt)
        if self.team is not None and (is_stop or (isinstance(error, RuntimeError) and not isinstance(error, KitError))):
            # When one worker is lost the others are stopped, or fail in a collective whose words say nothing of it.
            lost = self.team.lost(wait=1 if is_stop else 5)
            if lost is not None:
                self._fail(lost)
                return lost
        if is_stop:
            self._close_record("interrupted", str(error) or "interrupted from the keyboard")
            logger.warning(f"Interrupted; go on with --resume. The run is in {self.folder}")
        else:
            text = str(error) if isinstance(error, KitError) and self.team else f"{type(error).__name__}: {error}"
            self._fail(f"rank {self.rank}: {text}" if self.team else text)
        return None

    def _fail(self, text: str) -> None:
        """Write down that the run failed: in the record and, in a worker, in its log and for the others."""
        self._close_record("failed", text)
        if self.team is None:
            return
        self.team.announce(text)
        if self.rank != 0:
            logger.error(text)
            if not self.team.is_there(0):
                fail_run(self.folder, [self.team.members[0][0]], text)

    def _open_record(self) -> None:
        before = read_run(self.folder)
        facts: dict[str, Any] = {
            "command": sys.argv,
            "losses": self.losses.to_dict(),
            "resolved_losses": self.losses.resolved(),
            "exp": settings(self.exp),
            "code": own_code(self.exp),
            "args": vars(self.args),
            "starting_weights": starting_weights(self.args),
            "seed": self.seed,
            "host": hosts.describe(),
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
                         "opencv": cv2.__version__},
            "device": self._device_name(),
            "threads": torch.get_num_threads(),
            "workers": self.world,
            "machine": socket.gethostname(),
            "epochs_done": 0,
        }  # fmt: skip
        other = before is not None and before["status"] == "running" and before.get("pid") != os.getpid()
        if (
            before
            and other
            and before.get("machine") == facts["machine"]
            and is_alive(before.get("pid"), before.get("pid_born"))
        ):
            raise RunError(f"Process {before['pid']} is training in {self.folder} right now; choose another -expn.")
        holds_weights = any(self.folder.glob("*_ckpt.pth"))
        differences = record_differences(before, facts) if before and holds_weights else []
        if self.args.resume:
            differences = [line for line in differences if not line.startswith("max_epoch:")]
        if differences:
            raise RunError(
                f"{self.folder} holds a run of another configuration: {'; '.join(differences)}. Choose another folder with "
                "-expn NAME, or remove this one."
            )
        if before and holds_weights and not self.args.resume and before["status"] != "finished":
            raise RunError(
                f"{self.folder} holds this run, {before['status']} after epoch {before.get('epochs_done')}. Go on with "
                "--resume; or choose another folder with -expn NAME, or remove this one, to start anew."
            )
        if before is None and not self.args.resume and holds_weights:
            raise RunError(
                f"{self.folder} holds checkpoints of a run without a record, which would be overwritten. Choose another "
                "folder with -expn NAME, or remove this one."
            )
        if before is not None and holds_weights and not self.args.resume:
            logger.warning(
                f"{self.folder} holds this run, finished {before.get('ended')}; it is trained anew and replaced."
            )
        if before is not None and self.args.resume:
            part = {"epoch": before.get("epochs_done"), "was": before["status"], "workers": before.get("workers", 1)}
            if changed := changed_since(before, facts):
                part["changed"] = changed
            facts["resumed"] = [*before.get("resumed", []), part]
            kept = ("started", "starting_weights", "epochs_done", "best_ap", "data", "batches_per_epoch")
            facts.update({key: before[key] for key in kept if key in before})
        self.record = RunRecord(self.folder, facts)

    def _close_record(self, status: str, error: str | None) -> None:
        if self.record is not None:
            self.record.finish(status, error)

    def _open_log(self) -> list[int]:
        """YOLOX's log file and format; a worker logs into a file of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ValueError):
            logger.remove(0)  # loguru's own, which would print every line twice
        if self.rank != 0:
            return [logger.add(self.folder / f"train_log_rank{self.rank}.txt")]
        line = "<green>{time:YYYY-MM-DD HH:mm:ss}</green> | <level>{level: <8}</level> | <level>{message}</level>"
        # The stream is looked up at each line, so that a redirected stderr (a notebook, a test) gets what is its own.
        screen = logger.add(lambda text: print(text, end="", file=sys.stderr), format=line, colorize=_is_terminal())
        return [screen, logger.add(self.folder / "train_log.txt")]

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return f"cuda: {torch.cuda.get_device_name(self.device)}"
        return self.device.type

    def before_train(self) -> None:
        """Model, optimizer, data, EMA, evaluator, loggers."""
        exp, args = self.exp, self.args
        logger.info(f"args: {args}")
        logger.info(f"exp value:\n{exp}")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        model = exp.get_model()
        if self.amp_training:
            decode_in_fp32(find_head(model))
        stage = stage_with(model, self.losses)
        stage.collect = True
        stage.l1_is_scheduled = True
        if getattr(args, "profile", False):
            stage.get_losses = self._timed(stage.get_losses)  # type: ignore[method-assign]
        self.stage = stage
        logger.info(f"losses (rank {self.rank}): {stage.config}")
        for term, spec in stage.config.resolved().items():
            if spec["reduction"] == "sum":
                logger.warning(
                    f"loss_{term}: reduction='sum' is not divided by the foreground anchors, as YOLOX's terms are, and "
                    "MMDetection's in its own head: it counts some hundred times as much. For their scale write 'mean'."
                )
        logger.info(f"Model Summary: {get_model_info(model, exp.test_size)}")
        model.to(self.device)
        self.optimizer = exp.get_optimizer(args.batch_size)
        state = self._load(model)
        model.to(self.device)

        loader = open_data(
            lambda: exp.get_data_loader(
                batch_size=args.batch_size,
                is_distributed=self.is_distributed,
                no_aug=self.start_epoch >= self._plain_from(),
                cache_img=args.cache,
            ),
            exp.data_dir, exp.train_ann, "train_ann",
        )  # fmt: skip
        self.dataset = loader.dataset
        self.max_iter = len(loader)
        if not self.max_iter:
            raise RunError(
                f"The training set gives no batch of {args.batch_size} images a worker; lower the batch size with -b."
            )
        data = {"train": check_split_of(exp, loader.dataset, "train")}
        evaluator = open_data(
            lambda: exp.get_evaluator(batch_size=args.batch_size, is_distributed=self.is_distributed),
            exp.data_dir, exp.val_ann, "val_ann",
        )  # fmt: skip
        data["val"] = check_split_of(exp, evaluator.dataloader.dataset, "val", may_be_empty=True)
        if hosts.is_coco_evaluator(evaluator):
            evaluator = Evaluator(evaluator, self.device)
            evaluator.host.dataloader.pin_memory = self.device.type == "cuda"
        elif self.device.type != "cuda":
            logger.warning(f"{type(evaluator).__name__} is not the kit's and may need CUDA.")
        self.evaluator = evaluator
        if self.team is not None:
            hashes = {
                split: {key: facts.get(key) for key in ("sha256", "images", "boxes")} for split, facts in data.items()
            }
            self.team.agree({"data": hashes, "batches an epoch": self.max_iter, "epochs done": self.start_epoch})
        if self.record is not None:
            self._note_other_data(data)
            self.record.update(data=data, batches_per_epoch=self.max_iter, epochs_done=self.start_epoch)
            self.record.keep_epochs(self.start_epoch)

        self.prefetcher = Prefetcher(
            training_loader(
                loader,
                seed=self.seed,
                rank=self.rank,
                world=self.world,
                start=self.start_epoch * self.max_iter,
                mosaic_until=self._plain_from() * self.max_iter,
                pin_memory=self.device.type == "cuda",
            ),
            self.device,
        )
        self.lr_scheduler = exp.get_lr_scheduler(exp.basic_lr_per_img * args.batch_size, self.max_iter)
        if args.occupy and self.device.type == "cuda":
            occupy_mem(self.local_rank)
        if self.is_distributed:
            ids = [self.local_rank] if self.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
        if self.use_model_ema:
            self.ema_model = ModelEMA(model, 0.9998)
            self.ema_model.updates = self.max_iter * self.start_epoch
            if state is not None:
                self.ema_model.ema.load_state_dict(state)
        self.model = model
        if self.rank == 0:
            self._open_logger()
        logger.info("Training start...")

    def _note_other_data(self, data: dict[str, Any]) -> None:
        """Say in the log and the record that a resumed run goes on with other annotations."""
        if self.record is None or not self.record.data.get("resumed"):
            return
        before, part = self.record.data.get("data", {}), self.record.data["resumed"][-1]
        for split, facts in data.items():
            old, new = before.get(split, {}).get("sha256"), facts.get("sha256")
            if old != new and old is not None:
                line = f"{split} annotations (sha256): {old[:12]} before, {str(new)[:12]} now"
                part.update(exact=False, changed=[*part.get("changed", []), line])
                logger.warning(f"The run goes on with other data: {line}. {_NOT_COMPARED}")

    def _timed(self, function: Any) -> Any:
        """The loss stage with a clock, for ``--profile``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.stage_seconds += time.perf_counter() - started
            return result

        return timed

    def _plain_from(self) -> int:
        """The first epoch without mosaic, as YOLOX counts it; its L1 term starts with it."""
        return max(self.max_epoch - self.exp.no_aug_epochs - 1, 0)

    def _l1_from(self) -> int:
        """The first epoch with the L1 term."""
        start = self.stage.l1_start
        return self._plain_from() if start is None else start - 1

    def _open_logger(self) -> None:
        if self.args.logger == "tensorboard":
            purge = self.start_epoch * self.max_iter if self.start_epoch else None
            self.tblogger = SummaryWriter(os.path.join(self.file_name, "tensorboard"), purge_step=purge)
        elif self.args.logger == "wandb":
            from yolox.utils import WandbLogger

            options = zip(self.args.opts[::2], self.args.opts[1::2], strict=True)
            named = {key.removeprefix("wandb-"): value for key, value in options if key.startswith("wandb-")}
            self.wandb_logger = WandbLogger(config={**settings(self.exp), **self.losses.to_dict()}, **named)
        else:
            raise ConfigError(f"-l is tensorboard or wandb; got {self.args.logger!r}.")

    def after_train(self) -> None:
        """Say what came out."""
        logger.info(f"Training of experiment is done and the best AP is {self.best_ap * 100:.2f}")
        if self.rank == 0:
            if self.args.logger == "wandb":
                self.wandb_logger.finish()
            else:
                self.tblogger.close()

    # -----------------------------------------------------------------------------------------------------------------
    # Epochs and iterations.

    def before_epoch(self) -> None:
        """Start an epoch from a state that depends on the seed and its number only."""
        logger.info(f"---> start train epoch{self.epoch + 1}")
        seed_everything(self.seed, self.rank, 2**31 + self.epoch)
        head = getattr(self.model, "module", self.model).head
        if self.epoch >= self._plain_from():
            if self.epoch == max(self._plain_from(), self.start_epoch):
                logger.info("--->No mosaic aug now!")
            self.eval_interval = 1
        if self.epoch >= self._l1_from():
            if not head.use_l1:
                logger.info("--->Add additional L1 loss now!")
            head.use_l1 = True
        self.epoch_started = time.perf_counter()
        self.stage_seconds = 0.0
        self.sums: dict[str, float] = dict.fromkeys((*LOSS_COLUMNS, *_STATS), 0.0)
        self.stage.gradients.clear()

    def train_one_iter(self) -> None:
        """One step; the weights are left alone when the loss is not finite."""
        started = time.perf_counter()
        images, targets, self.image_ids = self.prefetcher.next()
        images, targets = self.exp.preprocess(images, targets, self.input_size)
        data_done = time.perf_counter()
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_training):
            try:
                outputs = self.model(images, targets)
            except NonFiniteError as error:
                raise self._not_finite(str(error)) from error
        losses = self._check(outputs)
        self.optimizer.zero_grad()
        self.scaler.scale(outputs["total_loss"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.use_model_ema:
            self.ema_model.update(self.model)
        lr = self.lr_scheduler.update_lr(self.progress_in_iter + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.meter.update(iter_time=time.perf_counter() - started, data_time=data_done - started, lr=lr, **losses)

    def _check(self, outputs: dict[str, Any]) -> dict[str, float]:
        """The loss terms and the stage's statistics as numbers, in one transfer.

        Raises:
            RunError: a term is not finite.
        """
        values = [*(outputs[name] for name in LOSS_COLUMNS), *(self.stage.stats[name] for name in _STATS)]
        on_device = [torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in values]
        numbers = torch.stack(on_device).tolist()
        losses = dict(zip(LOSS_COLUMNS, numbers, strict=False))
        for name, number in zip((*LOSS_COLUMNS, *_STATS), numbers, strict=True):
            self.sums[name] += number
        bad = [name for name in LOSS_COLUMNS[1:] if not math.isfinite(losses[name])]
        if bad or not math.isfinite(losses["total_loss"]):
            terms = {"iou_loss": "iou", "conf_loss": "obj", "cls_loss": "cls", "l1_loss": "l1"}
            named = ", ".join(f"{terms[name]} ({name} = {losses[name]})" for name in bad) or "the sum of the terms"
            raise self._not_finite(named)
        return losses

    def _not_finite(self, terms: str) -> RunError:
        files = ", ".join(file_names(self.dataset, self.image_ids))
        return RunError(
            f"The loss is not finite: {terms} in epoch {self.epoch + 1}, iteration {self.iter + 1} of {self.max_iter}, "
            f"images {files}. No step was made from it; the last good checkpoint is "
            f"{self.folder / 'latest_ckpt.pth'} (epoch {self.epoch}). "
            "Often the learning rate is too high for this loss: lower basic_lr_per_img or the term's loss_weight."
        )

    def after_iter(self) -> None:
        """Progress in the log and TensorBoard, and the next input size."""
        done = self.progress_in_iter + 1
        if (self.iter + 1) % self.exp.print_interval == 0 or self.iter + 1 == self.max_iter:
            left = self.max_iter * self.max_epoch - done
            eta = timedelta(seconds=int(self.meter["iter_time"].global_avg * left))
            losses = {name: self.meter[name].latest for name in LOSS_COLUMNS}
            lr = self.meter["lr"].latest
            memory = ""
            if self.device.type == "cuda":
                memory = f"mem: {torch.cuda.max_memory_allocated(self.device) / 2**20:.0f}Mb, "
            logger.info(
                f"epoch: {self.epoch + 1}/{self.max_epoch}, iter: {self.iter + 1}/{self.max_iter}, {memory}"
                + "".join(f"{name}: {self.meter[name].avg:.3f}s, " for name in ("iter_time", "data_time"))
                + "".join(f"{name}: {value:.4f}, " for name, value in losses.items())
                + f"lr: {lr:.3e}, size: {self.input_size[0]}, ETA: {eta}"
            )
            self._log({f"train/{name}": value for name, value in {**losses, "lr": lr}.items()}, done)
            self.meter.clear_meters()
        if done % 10 == 0:
            self.input_size = tuple(self.exp.random_resize(self.prefetcher, self.epoch, self.rank, self.is_distributed))

    def _log(self, scalars: dict[str, float], step: int) -> None:
        if self.rank != 0:
            return
        if self.args.logger == "wandb":
            self.wandb_logger.log_metrics(dict(scalars))
            return
        for tag, value in scalars.items():
            self.tblogger.add_scalar(tag, value, step)

    def after_epoch(self) -> None:
        """Evaluate when it is due, then write the epoch down, then the checkpoint."""
        unknown = 0.0 if self.stage.gradients else math.nan  # a fork's own get_losses does not tell
        self.sums.update({name: float(self.stage.gradients.get(name, unknown)) for name in GRADIENT_COLUMNS})
        if self.is_distributed:
            self._join_epoch()
        row: dict[str, float | None] = {
            "epoch": self.epoch + 1,
            **{name: self.sums[name] / self.max_iter for name in LOSS_COLUMNS},
            "fg_iou": _mean(self.sums["fg_iou"], self.sums["num_fg"]),
            "obj_fg": _mean(self.sums["obj_fg"], self.sums["num_fg"]),
            "obj_bg": _mean(self.sums["obj_bg"], self.sums["num_bg"]),
            **{name: _mean(self.sums[name], self.max_iter) for name in GRADIENT_COLUMNS},
            "lr": self.meter["lr"].latest or self.optimizer.param_groups[0]["lr"],
        }
        means = {name: row[name] for name in ("fg_iou", "obj_fg", "obj_bg")}
        logger.info(
            f"epoch {self.epoch + 1}: mean foreground IoU {_text(means['fg_iou'])}, mean objectness on foreground "
            f"{_text(means['obj_fg'])}, on background {_text(means['obj_bg'])}"
        )
        self._log({f"train/{name}": value for name, value in means.items() if value is not None}, self.epoch + 1)
        row["seconds"] = seconds = time.perf_counter() - self.epoch_started
        row["memory_mib"] = _peak_memory(self.device)
        if self.stage_seconds:
            logger.info(
                f"profile: the loss stage (forward) took {self.stage_seconds:.3f} s, "
                f"{100 * self.stage_seconds / seconds:.1f}% of the epoch's {seconds:.2f} s of training"
            )
        is_due = (self.epoch + 1) % self.eval_interval == 0 or self.epoch + 1 == self.max_epoch
        is_best = False
        if is_due:
            is_best = self._evaluate(row)
        if self.record is not None:
            self.record.add_epoch(row)
        self._save(evaluated=is_due, is_best=is_best)
        if self.record is not None:
            self.record.update(epochs_done=self.epoch + 1, best_ap=self.best_ap)

    def _join_epoch(self) -> None:
        """The epoch of all ranks in each of them: the sums, and norm layers that every rank has the same of.

        So the losses in the record are of the whole batches, every rank evaluates the model that rank 0 saves, and a
        resumed run starts every rank from what it had.
        """
        sums = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        self.sums = dict(zip(self.sums, sums.tolist(), strict=True))
        for name in (*LOSS_COLUMNS, *GRADIENT_COLUMNS):
            self.sums[name] /= self.world
        _average_norms(self.model, *([self.ema_model.ema] if self.use_model_ema else []))

    def _evaluate(self, row: dict[str, float | None]) -> bool:
        """AP of the EMA weights, or of the model's, into the row; whether it is the best so far."""
        model = self.ema_model.ema if self.use_model_ema else getattr(self.model, "module", self.model)
        with adjust_status(model, training=False):
            ap, ap50, summary = self.exp.eval(model, self.evaluator, self.is_distributed)[:3]
        ap, ap50 = float(ap), float(ap50)  # numpy scalars in a checkpoint are what current torch refuses to load
        is_best = ap > self.best_ap
        self.best_ap = max(self.best_ap, ap)
        if self.rank == 0:
            logger.info(f"\n{summary}")
            row.update(AP=ap, AP50=ap50)
            if isinstance(self.evaluator, Evaluator):
                row.update(self.evaluator.metrics)
                write_predictions(predictions_file(self.folder, self.epoch + 1), self.evaluator.predictions)
            self._log({"val/COCOAP50": ap50, "val/COCOAP50_95": ap}, self.epoch + 1)
        if self.is_distributed:
            dist.barrier()
        return is_best

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints.

    def _save(self, evaluated: bool, is_best: bool) -> None:
        """YOLOX's checkpoints under YOLOX's names, and beside them what an exact resume needs.

        A checkpoint holds the EMA weights, as YOLOX's do; the weights in training go into a file of their own, written
        before the checkpoint and renamed after it, so that one of its two names always fits.
        """
        if self.rank != 0:
            return
        model = getattr(self.model, "module", self.model)
        shown = self.ema_model.ema if self.use_model_ema else model
        checkpoint = {
            "start_epoch": self.epoch + 1,
            "model": shown.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_ap": self.best_ap,
        }
        state = {
            "epoch": self.epoch + 1,
            "model": model.state_dict(),
            "scaler": self.scaler.state_dict(),
            "input_size": tuple(self.input_size),
            "losses": self.stage.running_state(),
            "workers": self.world,
        }
        coming = self.folder / f".{STATE}.next"
        save_atomically(state, coming)
        save_atomically(checkpoint, self.folder / "latest_ckpt.pth")
        os.replace(coming, self.folder / STATE)
        names = []
        if self.epoch + 1 == self._plain_from():
            names.append("last_mosaic_epoch")
        if evaluated:
            names.append("last_epoch")
            names += ["best"] if is_best else []
            names += [f"epoch_{self.epoch + 1}"] if self.save_history_ckpt else []
        for name in names:
            save_atomically(checkpoint, self.folder / f"{name}_ckpt.pth")
        if self.args.logger == "wandb":
            self.wandb_logger.save_checkpoint(self.file_name, "latest", is_best)
        logger.info(f"Saved to {self.folder}: {', '.join(['latest', *names])}")

    def _load(self, model: torch.nn.Module) -> dict[str, Any] | None:
        """Weights to start from; returns those of the EMA when they differ from the model's."""
        args = self.args
        if not args.resume:
            if args.ckpt is not None:
                logger.info(f"loading checkpoint for fine tuning: {args.ckpt}")
                load_weights(model, load_checkpoint(args.ckpt, self.device)["model"], args.ckpt, strict=False)
            return None
        path = Path(args.ckpt) if args.ckpt is not None else self.folder / "latest_ckpt.pth"
        if not path.is_file():
            raise RunError(f"There is nothing to resume: {path} does not exist. Start the run without --resume.")
        checkpoint = load_checkpoint(path, self.device)
        load_weights(model, checkpoint["model"], path, strict=True)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.best_ap = float(checkpoint.get("best_ap", 0.0))
        self.start_epoch = checkpoint["start_epoch"] if args.start_epoch is None else args.start_epoch - 1
        state = self._resume_state(path, self.start_epoch)
        if state is None:
            logger.warning(
                f"{path} comes without the kit's {STATE}: training goes on from the EMA weights, as YOLOX does it, and "
                "will differ from a run that was never stopped."
            )
            logger.info(f"resumed from {path} (epoch {self.start_epoch})")
            return None
        model.load_state_dict(state["model"])
        self.scaler.load_state_dict(state["scaler"])
        self.input_size = tuple(state["input_size"])
        self.stage.load_running_state(state["losses"])
        before = state.get("workers", 1)
        part = self.record.data["resumed"][-1] if self.record is not None and "resumed" in self.record.data else None
        if part is not None and part.get("changed"):
            logger.warning(
                f"resumed from {path} (epoch {self.start_epoch}), but not as if it had never been stopped: "
                f"{'; '.join(part['changed'])}. {_NOT_COMPARED}"
            )
        elif before == self.world:
            logger.info(f"resumed exactly from {path} (epoch {self.start_epoch})")
            if part is not None:
                part["exact"] = True  # for compare: as if it had never been stopped
        else:
            logger.info(
                f"resumed from {path} (epoch {self.start_epoch}) with another number of workers (before {before}, now "
                f"{self.world}): weights, schedule and the order of the images go on, but not to the last bit"
            )
        return checkpoint["model"]

    def _resume_state(self, path: Path, epoch: int) -> dict[str, Any] | None:
        for name in (STATE, f".{STATE}.next"):
            if path.name == "latest_ckpt.pth" and (path.parent / name).is_file():
                state = load_checkpoint(path.parent / name, self.device)
                if state["epoch"] == epoch:
                    return state
        return None


_NOT_COMPARED = "compare takes it for another training than those of one setting."
_STATS = ("fg_iou", "obj_fg", "obj_bg", "num_fg", "num_bg")


def _mean(total: float, count: float) -> float | None:
    return total / count if count and not math.isnan(total) else None


def _peak_memory(device: torch.device) -> float | None:
    """The most memory held so far, in MiB: of the device on CUDA, of this process on the CPU; MPS does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    try:
        import resource
    except ImportError:  # Windows has no such count
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _is_terminal() -> bool:
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


def _average_norms(*models: torch.nn.Module) -> None:
    """The mean of all ranks' running statistics into the norm layers of each."""
    norms = [module for model in models for module in model.modules()
             if isinstance(module, torch.nn.modules.batchnorm._NormBase)]  # fmt: skip
    values = [buffer for module in norms for buffer in module.buffers() if buffer.is_floating_point()]
    if not values:
        return
    mean = torch.cat([value.flatten() for value in values])
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for value, part in zip(values, mean.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


# ---------------------------------------------------------------------------------------------------------------------
# From the command line to workers.


def run(args: argparse.Namespace) -> None:
    """Train as the parsed command line says: in one process, in ``-d N`` workers, or as one of torchrun's.

    Raises:
        KitError: what a user can mend.
    """
    place = workers.from_torchrun(args)
    if place is not None and place.world > 1:
        _worker(place, None, args)
        return
    here = _workers(args)
    if here * args.num_machines == 1:
        _train(args)
        return
    if not 0 <= args.machine_rank < args.num_machines:
        last = args.num_machines - 1
        raise ConfigError(
            f"--machine_rank is 0 to {last} with --num_machines {args.num_machines}; got {args.machine_rank}."
        )
    exp = _make_exp(args)  # a mistake is told once, here, and not by every worker
    check_settings(exp, args, args.num_machines * here)
    places = [
        workers.Place(args.machine_rank * here + local, args.num_machines * here, local, here) for local in range(here)
    ]
    # Spawned workers share nothing with this process: each builds its experiment, and with it the losses, itself.
    workers.launch(_worker, (args,), places, _meeting_point(args), Path(exp.output_dir) / args.experiment_name)


def _meeting_point(args: argparse.Namespace) -> str:
    """``HOST:PORT`` of ``--dist-url``; a free port of this machine without."""
    url = args.dist_url
    if url in (None, "auto"):
        if args.num_machines > 1:
            raise ConfigError("Several machines need --dist-url tcp://HOST:PORT, the address of the first.")
        return "127.0.0.1:0"
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    if not url.startswith("tcp://") or not host or not port.isdecimal():
        raise ConfigError(f"--dist-url is tcp://HOST:PORT, the address of the first machine; got {url!r}.")
    return f"{host}:{port}"


def _workers(args: argparse.Namespace) -> int:
    """How many workers ``-d`` asks for on this machine."""
    device = choose_device(args.device).type
    if args.devices is None:
        return torch.cuda.device_count() if device == "cuda" else 1
    if args.devices < 1:
        raise ConfigError(f"-d is at least 1; got {args.devices}.")
    if device == "cuda" and args.devices > torch.cuda.device_count():
        raise RunError(f"-d {args.devices} asks for more GPUs than there are ({torch.cuda.device_count()}).")
    if device == "mps" and args.devices > 1:
        raise RunError("MPS has one device; use -d 1.")
    return args.devices


def _worker(place: workers.Place, store: Any | None, args: argparse.Namespace) -> None:
    """One of several workers.

    Args:
        place: among them.
        store: where they meet; None under torchrun.
        args: the parsed command line.
    """
    device = choose_device(args.device).type
    if device == "cuda":
        if place.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"Worker {place.local_rank} of this machine has no GPU; there are {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(place.local_rank)
    elif device == "mps":
        raise RunError("MPS has one device; train on it in one process.")
    elif store is not None:  # torchrun has set the threads
        torch.set_num_threads(max(1, torch.get_num_threads() // place.local_world))
    # YOLOX asks this group for the rank within the machine.
    host_dist._LOCAL_PROCESS_GROUP = workers.join(place, args.dist_backend if device == "cuda" else "gloo", store)
    workers.work(lambda: _train(args), tell=store is None)


def _make_exp(args: argparse.Namespace) -> Any:
    exp = load_exp(args.exp_file, args.name)
    exp.merge(args.opts)
    if not args.experiment_name:
        args.experiment_name = exp.exp_name
    return exp


def _train(args: argparse.Namespace) -> None:
    exp = _make_exp(args)
    check_settings(exp, args)  # the seed is used right away
    configure(exp.seed)
    Trainer(exp, args).train()


def configure(seed: int | None) -> None:
    """Seeds and thread settings of a process that trains."""
    if seed is not None:
        seed_everything(seed, 0, 0)
        torch.backends.cudnn.deterministic = True
    else:
        torch.backends.cudnn.benchmark = True
    cv2.setNumThreads(0)  # the loader's workers are the parallelism
    # YOLOX 0.3.0 asks for autocast by its old name in every assignment.
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp\.autocast.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*meshgrid.*indexing.*", category=UserWarning)
    warnings.filterwarnings("ignore", message=r".*TypedStorage is deprecated.*", category=UserWarning)
