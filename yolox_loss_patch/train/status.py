"""The record of a run from its start to its end: what is trained, whether it may enter the folder, how it ended."""

from __future__ import annotations

import argparse
import contextlib
import errno
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from loguru import logger

from ..errors import KitError, RunError, break_off, exit_status
from ..exp.code import user_code
from ..exp.settings import resolved_losses, settings
from ..head import hosts
from ..runs.checkpoint import sha256, starting_weights
from ..runs.claim import Claim
from ..runs.differences import changed_since, record_differences
from ..runs.files import WriteError, refuse_links, remove_unfinished, write_error
from ..runs.record import RunRecord, fail_run, read_run
from .checkpoints import STATE, Resumed
from .device import cpu_name
from .seeds import deterministic_flags
from .workers.team import Team

_ANOTHER_TRAINING = "compare takes it for another training than those of one setting."


def facts_to_agree_on(exp: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same in every worker before it starts; folders may differ from machine to machine."""
    exp_file = getattr(args, "exp_file", None)
    arguments = ("batch_size", "fp16", "resume", "start_epoch", "device")
    return {
        "losses": resolved_losses(exp),
        "exp": {key: value for key, value in settings(exp).items() if key not in ("data_dir", "output_dir")},
        "args": {key: getattr(args, key, None) for key in arguments},
        "experiment file (sha256)": sha256(Path(exp_file)) if exp_file else None,
        "yolox_loss_patch (sha256)": sha256(*sorted(Path(__file__).parents[1].rglob("*.py"))),
        "yolox (fingerprint)": hosts.describe()["get_losses"],
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": torch.__version__,
    }


def facts_of_run(
    exp: Any, args: argparse.Namespace, losses: Any, seed: int, device: str, workers: int
) -> dict[str, Any]:
    """What is known of a run before it starts: how it was called, what is trained, with which software.

    Args:
        exp: the experiment.
        args: the parsed command line.
        losses: the losses of the experiment.
        seed: of the run.
        device: the kind of device.
        workers: how many processes train together.
    """
    return {
        "command": sys.argv,
        # As they were written: numbers per class by word or by name, which `resolved_losses` has as numbers.
        "losses": {key: getattr(exp, key, spec) for key, spec in losses.to_dict().items()},
        "resolved_losses": losses.resolved(),
        "exp": settings(exp),
        "code": user_code(exp),
        "args": vars(args),
        "starting_weights": starting_weights(args),
        "seed": seed,
        "host": hosts.describe(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
                     "opencv": cv2.__version__},
        "device": device,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "determinism": deterministic_flags(),
        "workers": workers,
        "machine": socket.gethostname(),
        "epochs_done": 0,
    }  # fmt: skip


class RunStatus:
    """Keeps the record of a run; on other ranks than 0 there is none.

    Args:
        folder: of the run.
        team: the processes that train together, None for a single one.
        rank: of this process.
    """

    def __init__(self, folder: Path, team: Team | None, rank: int) -> None:
        self.folder = folder
        self.team = team
        self.rank = rank
        self.record: RunRecord | None = None
        self.claim: Claim | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # The start.

    def open(self, make_facts: Callable[[], dict[str, Any]], resume: bool) -> None:
        """Claim the folder and start the record, unless the folder belongs to something else.

        Args:
            make_facts: gives the facts for the record; called when the folder is claimed, for it may take a while.
            resume: whether the run in the folder goes on.

        Raises:
            RunError: another process trains there; another configuration, an unfinished run or foreign checkpoints are
                in it.
        """
        if self.folder.is_dir():
            refuse_links(self.folder)
        self.claim = Claim(self.folder)
        remove_unfinished(self.folder)
        if (owner := self.claim.taken_from) is not None:
            logger.warning(f"{owner} had claimed {self.folder} and is gone; this process takes the folder over.")
        try:
            self._start_record(make_facts(), resume)
        except BaseException:
            self.claim.release()
            raise

    def _start_record(self, facts: dict[str, Any], resume: bool) -> None:
        before = read_run(self.folder)
        if any(self.folder.glob("*_ckpt.pth")):
            self._refuse_foreign_folder(before, facts, resume)
        if before is not None and resume:
            part = {"epoch": before.get("epochs_done"), "was": before["status"], "workers": before.get("workers", 1)}
            if changed := changed_since(before, facts):
                part["changed"] = changed
            facts["resumed"] = [*before.get("resumed", []), part]
            kept = ("started", "starting_weights", "epochs_done", "best_ap", "data", "batches_per_epoch", "files")
            facts.update({key: before[key] for key in kept if key in before})
        self.record = RunRecord(self.folder, facts)

    def _refuse_foreign_folder(self, before: dict[str, Any] | None, facts: dict[str, Any], resume: bool) -> None:
        if before is None:
            if resume:
                return
            raise RunError(
                f"{self.folder} holds checkpoints of a run without a record, which would be overwritten. Choose another "
                "folder with -expn NAME, or remove this one."
            )
        differences = record_differences(before, facts)
        if resume:
            differences = [line for line in differences if not line.startswith("max_epoch:")]
        if differences:
            raise RunError(
                f"{self.folder} holds a run of another configuration: {'; '.join(differences)}. Choose another folder with "
                "-expn NAME, or remove this one."
            )
        if resume:
            return
        if before["status"] != "finished":
            raise RunError(
                f"{self.folder} holds this run, {before['status']} after epoch {before.get('epochs_done')}. Go on with "
                "--resume; or choose another folder with -expn NAME, or remove this one, to start anew."
            )
        logger.warning(
            f"{self.folder} holds this run, finished {before.get('ended')}; it is trained anew and replaced."
        )

    def note_resume(self, resumed: Resumed, workers: int) -> None:
        """Say in the log and the record how exactly a run goes on.

        Args:
            resumed: what it goes on from.
            workers: how many processes train now.
        """
        where = f"{resumed.path} (epoch {resumed.start_epoch})"
        if resumed.workers is None:
            logger.warning(
                f"{resumed.path} comes without the kit's {STATE}: training goes on from the EMA weights, as YOLOX does it, "
                "and will differ from a run that was never stopped."
            )
            logger.info(f"resumed from {where}")
            return
        part = self._resumed_part()
        if part is not None and part.get("changed"):
            logger.warning(
                f"resumed from {where}, but not as if it had never been stopped: {'; '.join(part['changed'])}. "
                f"{_ANOTHER_TRAINING}"
            )
        elif resumed.workers == workers:
            logger.info(f"resumed exactly from {where}")
            if part is not None:
                part["exact"] = True  # for compare: as if it had never been stopped
        else:
            logger.info(
                f"resumed from {where} with another number of workers (before {resumed.workers}, now {workers}): weights, "
                "schedule and the order of the images go on, but not to the last bit"
            )

    def note_data(self, data: Mapping[str, Any], batches_per_epoch: int, epochs_done: int) -> None:
        """Write the data into the record, and drop the epochs that will be trained again.

        Args:
            data: facts of both data sets.
            batches_per_epoch: of each worker.
            epochs_done: the run goes on from there.
        """
        if self.record is None:
            return
        self._note_other_data(data)
        self.record.update(data=data, batches_per_epoch=batches_per_epoch, epochs_done=epochs_done)
        self.record.keep_epochs(epochs_done)

    def _note_other_data(self, data: Mapping[str, Any]) -> None:
        """Say in the log and the record that a resumed run goes on with other annotations."""
        part = self._resumed_part()
        if self.record is None or part is None:
            return
        before = self.record.data.get("data", {})
        for split, facts in data.items():
            old, new = before.get(split, {}).get("sha256"), facts.get("sha256")
            if old != new and old is not None:
                line = f"{split} annotations (sha256): {old[:12]} before, {str(new)[:12]} now"
                part.update(exact=False, changed=[*part.get("changed", []), line])
                logger.warning(f"The run goes on with other data: {line}. {_ANOTHER_TRAINING}")

    def _resumed_part(self) -> dict[str, Any] | None:
        """The record's note of this resume, None for a run that was not resumed."""
        parts = self.record.data.get("resumed") if self.record is not None else None
        return parts[-1] if parts else None

    def note_hash(self, name: str, digest: str) -> None:
        """Write the SHA-256 of a checkpoint that is about to take its place; the one before counts until then."""
        if self.record is not None:
            self.record.note_file(name, digest)

    def note_epoch(self, row: Mapping[str, float | None]) -> None:
        """Write an epoch's row, before its checkpoint.

        Raises:
            RunError: another process has taken over the folder.
        """
        if self.claim is not None:
            self.claim.check()
        if self.record is not None:
            self.record.add_epoch(row)

    def note_progress(self, epochs_done: int, best_ap: float, assignment: Mapping[str, Any]) -> None:
        """Write how far the run is, after its checkpoint.

        Args:
            epochs_done: how many epochs.
            best_ap: the best AP so far, in [0, 1].
            assignment: on an accelerator, what the proof of the fast label assignment found; else empty.
        """
        if self.record is not None:
            proof = {"assignment": dict(assignment)} if assignment else {}
            self.record.update(epochs_done=epochs_done, best_ap=best_ap, **proof)

    # -----------------------------------------------------------------------------------------------------------------
    # The end.

    def note_early_stop(self, facts: Mapping[str, Any], epoch: int, max_epoch: int) -> None:
        """Say in the log and the record that the training ends before its last epoch.

        Args:
            facts: ``patience`` and ``best_epoch``.
            epoch: the number of the last one.
            max_epoch: how many were planned.
        """
        logger.info(
            f"Stopped after epoch {epoch} of {max_epoch}: no better AP in {facts['patience']} evaluations, the best is of epoch "
            f"{facts['best_epoch']} (--patience {facts['patience']})."
        )
        if self.record is not None:
            self.record.update(stopped_early={"epoch": epoch, **facts})

    def follow(self, training: Callable[[], None], ignore_signals: Callable[[], None]) -> None:
        """Do the training and write down how it ended.

        Args:
            training: all of it.
            ignore_signals: called before an end is written down, so that no signal interrupts that.

        Raises:
            RunError: another worker ended the run; else what the training raised.
        """
        try:
            with self.team.watch(self._fail) if self.team else contextlib.nullcontext():
                try:
                    training()
                except BaseException as error:
                    # A signal that came while C code failed is seen by Python at its next call, which is this one. No
                    # `suppress`: making it would be that call.
                    try:  # noqa: SIM105
                        ignore_signals()
                    except KeyboardInterrupt:
                        pass  # the error is what is written down; later signals are ignored
                    reason = self._end(_in_words(error, self.folder))
                    if reason is not None:
                        if exit_status(error) == 1:
                            break_off(reason)
                        raise reason from error
                    raise
                self._close("finished", None)
            if self.team is not None:
                dist.barrier()  # nobody goes while another still watches it
        finally:
            if self.team is not None:
                self.team.leave()
            if self.claim is not None:
                self.claim.release()

    def _end(self, error: BaseException) -> RunError | None:
        """Write down why the run ends; returns the reason when that says more than what was raised."""
        is_stop = isinstance(error, KeyboardInterrupt)
        if self.team is not None and (is_stop or (isinstance(error, RuntimeError) and not isinstance(error, KitError))):
            # When one worker is lost the others are stopped, or fail in a collective whose words say nothing of it.
            lost = self.team.lost(wait=1 if is_stop else 5)
            if lost is not None:
                self._fail(lost)
                return RunError(lost)
        if is_stop:
            self._close("interrupted", str(error) or "interrupted from the keyboard")
            logger.warning(f"Interrupted; go on with --resume. The run is in {self.folder}")
        else:
            text = str(error) if isinstance(error, KitError) and self.team else f"{type(error).__name__}: {error}"
            self._fail(f"rank {self.rank}: {text}" if self.team else text)
        return error if isinstance(error, RunError) else None

    def _fail(self, text: str) -> None:
        """Write down that the run failed: in the record and, in a worker, in its log and for the others."""
        self._close("failed", text)
        if self.team is None:
            return
        self.team.announce(text)
        if self.rank != 0:
            logger.error(text)
            if not self.team.is_there(0):
                fail_run(self.folder, [self.team.members[0][0]], text)

    def _close(self, status: str, error: str | None) -> None:
        if self.record is not None and self.claim is not None and self.claim.is_held():
            try:
                self.record.finish(status, error)
            except RunError as unwritten:  # the disk is full, say
                logger.error(f"The record could not be closed as {status!r}: {unwritten}")


def _in_words(error: BaseException, folder: Path) -> BaseException:
    """The error; a sentence with the way on in place of one that says that a file or the screen could not be written."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, BrokenPipeError):
        found = found.__cause__ or found.__context__
    if found is not None:
        return RunError(
            "Whoever read the output of this training is gone (broken pipe). Send the output to a file, and go on with --resume."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        error = write_error(error, Path(error.filename or folder)) or error
    elif not isinstance(error, WriteError):
        return error
    if (folder / "latest_ckpt.pth").is_file():
        return RunError(f"{error} The last checkpoint is whole; go on with --resume.")
    return error
