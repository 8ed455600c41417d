"""Kills, pauses, a second owner, a full disk, damaged files, at random: in the end each run is the one that nothing disturbed."""

import os
import random
import signal
import time

import forked
import pytest
from conftest import EXP, assert_same, checkpoint, cli
from plugin import under_ci

from yolox_loss_patch.runs.process import is_alive
from yolox_loss_patch.runs.record import read_metrics, read_run

ROUNDS = int(os.environ.get("ROUNDS", "50" if under_ci() else "5"))
EPOCHS = 5
TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu")
SETTINGS = ("max_epoch", EPOCHS, "eval_interval", 1, "loss_iou", "wiou", "loss_obj", "focal")
# A file that is too large for the limit ends as on a full disk: with an error of the system.
FULL_DISK = """
import os
if os.environ.get("ROOM"):
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["ROOM"]), resource.RLIM_INFINITY))
"""
FILES = ("run.json", "metrics.csv", "latest_ckpt.pth")


class Run:
    """One run that is disturbed until it is finished."""

    def __init__(self, work, name, rng):
        self.work, self.name, self.rng = work, name, rng
        self.folder = work / "YOLOX_outputs" / name
        self.started = 0

    def start(self, **environ):
        """The command that a user would type now."""
        self.started += 1
        place = self.work / f"{self.name}-{self.started}"
        place.mkdir()
        resume = ["--resume"] if (self.folder / "latest_ckpt.pth").exists() else []
        words = [*TRAIN, "-expn", self.name, *resume, *SETTINGS]
        environ = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environ}
        process = forked.start(("-m", "yolox_loss_patch"), [*map(str, words)], self.work, environ, place)
        return process, place

    def ends(self, process, place, status, *words):
        """Wait for the end; the exit status and the words of the last message are as promised."""
        process.join(200)
        text = (place / "err").read_text()
        assert process.exitcode == status, text
        assert not is_alive(process.pid) and "Traceback" not in text, text
        for word in words:
            assert word in text, text

    def until(self, process, epochs):
        """Wait until so many epochs are done, and a random moment more."""
        end = time.monotonic() + 200
        while process.is_alive() and self.epochs() < epochs and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(self.rng.uniform(0, 0.6))

    def epochs(self):
        record = read_run(self.folder) if self.folder.exists() else None
        return (record or {}).get("epochs_done", 0)

    def status(self):
        return (read_run(self.folder) or {}).get("status")

    # The disturbances. Each leaves the run as somebody would find it.

    def killed(self):
        process, _ = self.start()
        self.until(process, self.epochs() + 1)
        process.kill()
        process.join()

    def interrupted(self):
        process, place = self.start()
        self.until(process, self.epochs() + 1)
        if process.is_alive():
            os.kill(process.pid, self.rng.choice([signal.SIGTERM, signal.SIGHUP]))
        process.join()
        assert self.status() in ("interrupted", "finished"), (place / "err").read_text()

    def paused(self):
        process, place = self.start()
        self.until(process, self.epochs() + 1)
        if process.is_alive():
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(1)
            second, there = self.start()  # a pause is no end
            self.ends(second, there, 2, "is training in")
            os.kill(process.pid, signal.SIGCONT)
        self.ends(process, place, 0)

    def two_owners(self):
        before = self.status()
        both = [self.start(), self.start()]
        for process, _ in both:
            process.join(200)
        statuses = sorted(process.exitcode for process, _ in both)
        texts = [(place / "err").read_text() for _, place in both]
        assert statuses == [0, 2] and any("is training in" in text for text in texts), (before, statuses, texts)

    def full_disk(self):
        process, place = self.start(ROOM=str(100_000))
        self.ends(process, place, 1, "cannot be written: File too large")
        assert self.status() == "failed" and not list(self.folder.glob(".*.new"))

    def damaged(self):
        names = [name for name in FILES if (self.folder / name).exists()]
        if not names:
            return
        name = self.rng.choice(names)
        content = (self.folder / name).read_bytes()
        (self.folder / name).write_bytes(content[: self.rng.randrange(1, len(content) - 1)])
        process, place = self.start()
        self.ends(process, place, 2, name)
        (self.folder / name).write_bytes(content)  # from a backup


@pytest.mark.slow
def test_whatever_happens_each_run_ends_as_if_nothing_had_happened(work, digits):
    (work / "tiny.py").write_text(FULL_DISK + EXP.format(data=str(digits)))
    cli(work, *TRAIN, "-expn", "calm", *SETTINGS)
    calm = work / "YOLOX_outputs" / "calm"
    rng = random.Random(0)
    kinds = ["killed", "interrupted", "paused", "two_owners", "full_disk", "damaged"]
    rounds = [kind for _ in range(ROUNDS // len(kinds) + 1) for kind in rng.sample(kinds, len(kinds))][:ROUNDS]
    number = 0
    run = Run(work, f"run{number}", rng)
    runs = [run]
    for kind in rounds:
        if run.folder.exists() and run.status() == "finished":
            number += 1
            run = Run(work, f"run{number}", rng)
            runs.append(run)
        getattr(run, kind)()
    for run in runs:
        while run.status() != "finished":
            run.ends(*run.start(), 0)
        assert_same(checkpoint(run.folder)["model"], checkpoint(calm)["model"])
        assert [row["epoch"] for row in read_metrics(run.folder)] == list(range(1, EPOCHS + 1))
        same = ("AP", "total_loss", "fg_iou", "lr")
        told = [[[row[name] for name in same] for row in read_metrics(folder)] for folder in (run.folder, calm)]
        assert told[0] == told[1]
        assert not [path.name for path in run.folder.glob(".*") if not path.name.startswith(".resume_state")]
