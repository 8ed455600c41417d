"""The job that trains one run of a sweep in a process of its own; submitit starts it here or on a node of a cluster."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

import cloudpickle

SCREEN = "screen.log"
# As the console script does it: the current folder is not on the path, so that a queue.py of the user's there is not taken
# for Python's own. The package is found where it is, also when it is not installed.
_START = """import sys
sys.path[:] = [folder for folder in sys.path if folder]
sys.path.append(sys.argv.pop(1))
sys.argv[0] = "yolox-loss"
from yolox_loss_patch.cli import main
sys.exit(main())"""


class TrainingJob:
    """What a job does: one training in a separate process, with its screen output in the run's folder.

    It is pickled by value, so that the process that waits for the training does not load torch.

    Args:
        words: of ``yolox-loss train``.
        folder: of the run.
        cwd: where the sweep was started.
        environ: variables to set, or to remove (None).
        package: the folder that holds this package.
        minutes: that the cluster gives the job, None where there is no limit.
        sweep: the process that the job ends with, None where it goes on without.
    """

    def __init__(
        self,
        words: list[str],
        folder: str,
        cwd: str,
        environ: dict[str, str | None],
        package: str,
        minutes: int | None = None,
        sweep: int | None = None,
    ) -> None:
        self.arguments = (words, folder, cwd, environ, package, minutes, sweep)
        self.words, self.folder, self.cwd, self.environ, self.package, self.minutes, self.sweep = self.arguments
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train to the end; returns the exit status of the training."""
        signal.signal(signal.SIGTERM, self._end)
        self.started, self.epochs_before = time.monotonic(), self._epochs()
        os.makedirs(self.folder, exist_ok=True)
        # Looked up here and not when it was submitted: the cluster may have requeued the job since.
        resume = ["--resume"] if os.path.isfile(os.path.join(self.folder, "latest_ckpt.pth")) else []
        words = ["train", *resume, *self.words]
        command = [sys.executable, "-c", _START, self.package, *words]
        # Unbuffered: its output is in the log at once, before the error that ends it; `sweep` shows the last line.
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environ.update({key: value for key, value in self.environ.items() if value is not None})
        for key, value in self.environ.items():
            if value is None:
                environ.pop(key, None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)  # a stranger's link is an error
        with open(os.open(os.path.join(self.folder, SCREEN), flags, 0o644), "ab") as log:
            log.write(f"$ {shlex.join(['yolox-loss', *words])}\n".encode())
            log.flush()
            # In a new session: Ctrl-C, and signals that the cluster sends to all processes, reach it through this process only.
            self.child = subprocess.Popen(
                command, cwd=self.cwd, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=self._signals_of_the_child,
            )  # fmt: skip
            try:
                # Not wait(), whose lock would keep a signal's handler from waiting too.
                while (status := self.child.poll()) is None:
                    time.sleep(0.2)
                    if self.sweep is not None and not _is_there(self.sweep):
                        log.write(b"The sweep that started this training is gone; the training is stopped.\n")
                        self._stop()
            except BaseException:
                self._stop()
                raise
            if status < 0:
                log.write(f"The training was killed by {signal.Signals(-status).name}.\n".encode())
        return status

    @staticmethod
    def _signals_of_the_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in this process, see `places.Local.submit`
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the cluster's warning, which is for this process

    def checkpoint(self) -> Any:
        """The job's time is up: stop the training, which resumes when the cluster starts the job again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        ran = (time.monotonic() - self.started) / 60
        if self.minutes is not None and ran > 0.3 * self.minutes and self._epochs() <= self.epochs_before:
            with open(os.path.join(self.folder, SCREEN), "a") as log:
                log.write(f"Not one epoch was finished in {ran:.0f} of the {self.minutes} minutes of this job, so it is "
                          "not queued again; give it more with --time.\n")  # fmt: skip
            return None
        return DelayedSubmission(type(self)(*self.arguments))

    def _end(self, number: int, frame: Any) -> None:
        self._stop()
        raise SystemExit(128 + number)

    def _stop(self) -> None:
        """End the training as Ctrl-C does, so that its record says so."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(60)
            except subprocess.TimeoutExpired:
                self.child.kill()

    def _epochs(self) -> int:
        try:
            with open(os.path.join(self.folder, "run.json"), encoding="utf-8") as file:
                return int(json.load(file).get("epochs_done", 0))
        except (OSError, ValueError):
            return 0


def _is_there(pid: int) -> bool:
    """As `runs.process.is_alive`, which a job sent to another process cannot import."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# The class is sent along with each job and not imported there, which would load torch.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
