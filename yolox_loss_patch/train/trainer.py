"""Training on any device: YOLOX's trainer with an honest exit, exact resume and a run record."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from loguru import logger
from yolox.core import Trainer as HostTrainer
from yolox.utils import MeterBuffer, ModelEMA, adjust_status, occupy_mem

from ..errors import KitError, NonFiniteError, RunError, break_off
from ..exp.loading import adapt
from ..exp.settings import check_settings, loss_config
from .checkpoints import Checkpoints, Resumed, Trained
from .data import TrainingData
from .device import Compute, unwrapped
from .logs import Curves, log_file, log_progress
from .model import build_model, log_model
from .seeds import choose_seed, seed_epoch
from .statistics import EpochStatistics, StageClock, average_norms, not_finite_error, not_finite_terms
from .status import RunStatus, facts_of_run, facts_to_agree_on
from .validation.patience import Patience
from .workers.signals import stop_signals
from .workers.team import current_team


class Trainer(HostTrainer):
    """YOLOX's trainer without its assumptions: any device, exact resume, a record, a loss that must stay finite.

    Args:
        exp: the experiment; one that is no ``LossExp`` is made one.
        args: the namespace of YOLOX's ``tools.train``; ``device`` besides (``auto`` when it is missing).
        exit_on_error: end the process with status 1 on an error, for callers that would swallow it.
        when_finished: called with the run's folder after the last epoch, in the worker of rank 0.
    """

    def __init__(
        self,
        exp: Any,
        args: argparse.Namespace,
        exit_on_error: bool = False,
        when_finished: Callable[[Path], None] | None = None,
    ) -> None:
        # YOLOX's own __init__ makes a CUDA scaler and a CUDA device, so its attributes are set here instead.
        self.exp = adapt(exp)
        self.args = args
        self.exit_on_error = exit_on_error
        self.when_finished = when_finished
        self.losses = loss_config(exp)
        self.team = current_team()
        self.is_distributed = self.team is not None
        self.rank = self.team.rank if self.team else 0
        self.world = self.team.world if self.team else 1
        check_settings(exp, args, self.world)
        if self.team is not None:
            self.team.agree(facts_to_agree_on(exp, args))
        self.max_epoch = exp.max_epoch
        self.eval_interval = exp.eval_interval
        self.compute = Compute(getattr(args, "device", "auto"), half=bool(args.fp16))
        self.device, self.local_rank = self.compute.device, self.compute.local_rank
        self.amp_training, self.scaler = self.compute.half, self.compute.scaler
        self.use_model_ema = exp.ema
        self.save_history_ckpt = exp.save_history_ckpt
        self.input_size = tuple(exp.input_size)
        self.best_ap = 0.0
        self.start_epoch = 0
        self.meter = MeterBuffer(window_size=exp.print_interval)
        self.file_name = os.path.join(exp.output_dir, args.experiment_name)
        self.folder = Path(self.file_name)
        self.seed = choose_seed(exp.seed, self.folder, args.resume)
        self.status = RunStatus(self.folder, self.team, self.rank)
        self.patience = Patience(getattr(args, "patience", None), self.folder, self.rank, self.world)
        self.checkpoints = Checkpoints(self.folder, self.device, self.status.note_hash)

    def train(self) -> None:
        """Train from the start or from where the run stopped, to the last epoch.

        Raises:
            KitError: what a user can mend; the record says ``failed``.
        """
        try:
            with stop_signals() as ignore_signals:
                if self.rank == 0:
                    self.status.open(self.facts, self.args.resume)
                with log_file(self.folder, self.rank):
                    self.status.follow(self.train_in_epoch, ignore_signals)
                    if self.when_finished is not None and self.rank == 0:
                        self.when_finished(self.folder)
        except Exception as error:
            if not self.exit_on_error:
                raise
            logger.opt(exception=None if isinstance(error, KitError) else error).error(str(error))
            raise SystemExit(1) from error

    def facts(self) -> dict[str, Any]:
        """What the record says of this run before it starts."""
        device = self.compute.description()
        return facts_of_run(self.exp, self.args, self.losses, self.seed, device, self.world)

    def train_in_epoch(self) -> None:
        """All epochs."""
        self.before_train()
        try:
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.before_epoch()
                self.train_in_iter()
                self.after_epoch()
                if (end := self.patience.end()) is not None:
                    self.status.note_early_stop(end, epoch + 1, self.max_epoch)
                    break
            self.after_train()
        except Exception as error:
            break_off(error)
            raise

    def before_train(self) -> None:
        """Model, optimizer, weights, data, learning rate, EMA, logs."""
        exp, args = self.exp, self.args
        logger.info(f"args: {args}")
        logger.info(f"exp value:\n{exp}")
        self.compute.select()
        model, self.stage = build_model(exp, self.losses, self.amp_training)
        self.clock = StageClock(self.stage, self.compute) if getattr(args, "profile", False) else None
        log_model(model, self.losses, self.rank, exp.test_size)
        model.to(self.device)
        self.optimizer = exp.get_optimizer(args.batch_size)
        self.trained = Trained(model, self.stage, self.optimizer, self.scaler)
        resumed = self.load(self.trained)
        model.to(self.device)

        mosaic = self.start_epoch < self.first_epoch_without_mosaic()
        self.data = TrainingData(exp, args, self.compute, self.world, mosaic)
        self.max_iter, self.evaluator = self.data.batches_per_epoch, self.data.evaluator
        if self.team is not None:
            self.team.agree({**self.data.to_agree_on(), "epochs done": self.start_epoch})
        self.status.note_data(self.data.facts, self.max_iter, self.start_epoch)
        mosaic_until = self.first_epoch_without_mosaic()
        self.prefetcher = self.data.batches(self.seed, self.rank, start=self.start_epoch, mosaic_until=mosaic_until)
        self.lr_scheduler = exp.get_lr_scheduler(exp.basic_lr_per_img * args.batch_size, self.max_iter)
        if args.occupy and self.compute.is_cuda:
            occupy_mem(self.local_rank)
        self.model = self.compute.distributed(model) if self.is_distributed else model
        if self.use_model_ema:
            self.ema_model = ModelEMA(self.model, 0.9998)
            self.ema_model.updates = self.max_iter * self.start_epoch
            self.trained.ema = self.ema_model.ema
            if resumed is not None and resumed.ema_weights is not None:
                self.ema_model.ema.load_state_dict(resumed.ema_weights)
        first_step = self.start_epoch * self.max_iter
        self.curves = Curves(exp, self.losses.to_dict(), args, self.folder, first_step, self.rank)
        logger.info("Training start...")

    def load(self, trained: Trained) -> Resumed | None:
        """Weights to start from; what the run goes on from, None for a new run."""
        args = self.args
        if not args.resume:
            if args.ckpt is not None:
                self.checkpoints.fine_tune(trained.model, args.ckpt)
            return None
        start = None if args.start_epoch is None else args.start_epoch - 1
        resumed = self.checkpoints.resume(trained, args.ckpt, start)
        self.best_ap, self.start_epoch = resumed.best_ap, resumed.start_epoch
        self.input_size = resumed.input_size or self.input_size
        self.status.note_resume(resumed, self.world)
        return resumed

    def before_epoch(self) -> None:
        """Start an epoch from a state that depends on the seed and its number only."""
        logger.info(f"---> start train epoch{self.epoch + 1}")
        seed_epoch(self.seed, self.rank, self.epoch)
        if self.epoch >= self.first_epoch_without_mosaic():
            if self.epoch == max(self.first_epoch_without_mosaic(), self.start_epoch):
                logger.info("--->No mosaic aug now!")
            self.eval_interval = 1
        head = unwrapped(self.model).head
        if self.epoch >= self.first_epoch_with_l1():
            if not head.use_l1:
                logger.info("--->Add additional L1 loss now!")
            head.use_l1 = True
        self.statistics = EpochStatistics(self.stage, self.compute)
        self.stage.set_epoch(self.epoch + 1)

    def train_one_iter(self) -> None:
        """One step; the weights are left alone when the loss is not finite."""
        started = time.perf_counter()
        images, targets, self.image_ids = self.prefetcher.next()
        images, targets = self.exp.preprocess(images, targets, self.input_size)
        data_done = time.perf_counter()
        with self.compute.autocast():
            try:
                outputs = self.model(images, targets)
            except NonFiniteError as error:
                raise self.not_finite(error.terms) from error
        losses = self.statistics.add(outputs)
        if (terms := not_finite_terms(losses)) is not None:
            raise self.not_finite(terms)
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

    def after_iter(self) -> None:
        """Progress in the log and the curves, and the next input size."""
        done = self.progress_in_iter + 1
        if (self.iter + 1) % self.exp.print_interval == 0 or self.iter + 1 == self.max_iter:
            epoch, iteration = (self.epoch + 1, self.max_epoch), (self.iter + 1, self.max_iter)
            self.curves.log(log_progress(self.meter, self.compute, self.input_size[0], epoch, iteration), done)
        if done % 10 == 0:
            self.input_size = tuple(self.exp.random_resize(self.prefetcher, self.epoch, self.rank, self.is_distributed))

    def after_epoch(self) -> None:
        """Evaluate when it is due, then write the epoch down, then the checkpoint."""
        self.statistics.join(self.world)
        if self.is_distributed:
            average_norms(self.model, *([self.ema_model.ema] if self.use_model_ema else []))
        row = self.statistics.row(self.epoch + 1, self.meter["lr"].latest or self.optimizer.param_groups[0]["lr"])
        means = {f"train/{name}": row[name] for name in ("fg_iou", "obj_fg", "obj_bg")}
        self.curves.log({name: value for name, value in means.items() if value is not None}, self.epoch + 1)
        if self.clock is not None:
            self.clock.report(self.statistics.seconds)
        is_due = (self.epoch + 1) % self.eval_interval == 0 or self.epoch + 1 == self.max_epoch
        is_best = self.evaluate(row) if is_due else False
        self.status.note_epoch(row)
        if self.rank == 0:
            self.save(evaluated=is_due, is_best=is_best)
        proof = self.stage.proof.to_dict()
        self.status.note_progress(epochs_done=self.epoch + 1, best_ap=self.best_ap, assignment=proof)

    def evaluate(self, row: dict[str, float | None]) -> bool:
        """AP of the EMA weights, or of the model's, into the row; whether it is the best so far."""
        model = self.ema_model.ema if self.use_model_ema else unwrapped(self.model)
        self.data.measure_losses_of(None if getattr(self.args, "no_val_loss", False) else self.stage)
        with adjust_status(model, training=False):
            ap, ap50, summary = self.exp.eval(model, self.evaluator, self.is_distributed)[:3]
        ap, ap50 = float(ap), float(ap50)  # numpy scalars in a checkpoint are what current torch refuses to load
        is_best = ap > self.best_ap
        self.best_ap = max(self.best_ap, ap)
        if self.rank == 0:
            logger.info(f"\n{summary}")
            measured = self.data.keep_predictions(self.folder, self.epoch + 1, self.status.note_hash)
            row.update({"AP": ap, "AP50": ap50, **measured})
            self.curves.log({"val/COCOAP50": ap50, "val/COCOAP50_95": ap}, self.epoch + 1)
        if self.is_distributed:
            dist.barrier()
        return is_best

    def save(self, evaluated: bool, is_best: bool) -> None:
        """YOLOX's checkpoints under YOLOX's names."""
        epoch = self.epoch + 1
        names = ["last_mosaic_epoch"] if epoch == self.first_epoch_without_mosaic() else []
        if evaluated:
            names += ["last_epoch", *(["best"] if is_best else [])]
            names += [f"epoch_{epoch}"] if self.save_history_ckpt else []
        self.checkpoints.save(self.trained, epoch, self.best_ap, tuple(self.input_size), self.world, names)
        self.curves.keep_checkpoint(is_best)

    def after_train(self) -> None:
        """Say what came out."""
        if self.data.facts["val"].get("boxes_kept") == 0:
            logger.info("Training of experiment is done; its AP is unknown, as the validation set has no box")
        else:
            logger.info(f"Training of experiment is done and the best AP is {self.best_ap * 100:.2f}")
        self.curves.close()

    def first_epoch_without_mosaic(self) -> int:
        """The first epoch without mosaic, from 0, as YOLOX counts it; its L1 term starts with it."""
        return max(self.max_epoch - self.exp.no_aug_epochs - 1, 0)

    def first_epoch_with_l1(self) -> int:
        """The first epoch with the L1 term, from 0."""
        start = self.stage.l1_start
        return self.first_epoch_without_mosaic() if start is None else start - 1

    def not_finite(self, terms: str) -> RunError:
        """The error that names these terms and the batch."""
        files = self.data.files(self.image_ids)
        return not_finite_error(terms, self.epoch + 1, self.iter + 1, self.max_iter, files, self.folder)
