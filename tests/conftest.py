"""What the tests share: a small real data set, an experiment on it, heads with inputs, and the command line."""

import contextlib
import fcntl
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import forked
import pytest
import torch

pytest_plugins = ["plugin"]

ROOT = Path(__file__).resolve().parent.parent
# The results of the data's checks are kept between runs; those of the tests are for the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="yolox-loss-patch-tests-")
os.environ["YOLOX_LOSS_REPORT"] = "off"  # the page at the end of a training takes longer than most trainings here
os.environ.pop("PYTHONUNBUFFERED", None)  # what the tests start writes as it does for a user, in blocks when piped

EXP = """
from yolox.exp.default.yolox_nano import Exp as BaseExp
import yolox_loss_patch as ylp


class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.seed = 3
        self.data_dir = {data!r}
        self.num_classes = 10
        self.input_size = self.test_size = (96, 96)
        self.random_size = (2, 4)
        self.data_num_workers = 0
        self.max_epoch = 4
        self.warmup_epochs = 1
        self.no_aug_epochs = 1
        self.eval_interval = 2
        self.print_interval = 1
        self.basic_lr_per_img = 0.01 / 16
        self.save_history_ckpt = False
        self.test_conf = 1e-4  # so that a model that has seen twelve batches detects something
"""


def load_script(path):
    """A script of ``scripts/`` or ``benchmarks/``, such as ``"benchmarks/half"``, as a module."""
    name = path.replace("/", "_")  # benchmarks/losses.py must not be taken for another module called losses
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shared_folder(tmp_path_factory, name, make):
    """A folder that all workers of a test run share: ``make(folder)`` is called by the first that asks. Do not write into it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # a worker's own folder lies in the run's
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a worker left that could not make it
            make(folder)
            done.touch()
    return folder


@pytest.fixture(autouse=True)
def registry():
    """Forget the losses that a test registers, and the warnings that are given once per process."""
    from yolox_loss_patch.exp.settings import warn_once
    from yolox_loss_patch.specs.registry import LOSSES

    before = {term: dict(rows) for term, rows in LOSSES.rows.items()}
    warn_once.cache_clear()
    yield
    LOSSES.rows.update(before)


@pytest.fixture
def log_lines():
    """What the kit logs in this process, line by line, whatever the log's usual place is bound to."""
    from loguru import logger

    lines = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}")
    yield lines
    logger.remove(sink)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """24 training and 8 validation images of handwritten digits in COCO format, for reading."""
    make = load_script("scripts/make_digits").make
    return shared_folder(tmp_path_factory, "digits", lambda folder: make(folder, train=24, val=8, size=96, seed=1))


@pytest.fixture
def work(tmp_path, digits):
    """A folder with an experiment file ``tiny.py`` (stock losses) on the digits; a run in it takes seconds."""
    (tmp_path / "tiny.py").write_text(EXP.format(data=str(digits)))
    return tmp_path


def cli(folder, *words, check=True, python=("-m", "yolox_loss_patch"), **environ):
    """Run the command line in a folder, with these environment variables; returns the finished process with its text.

    The process is a fork of one that has imported torch, which saves four seconds of a core; a new Python is started
    where a variable is read by Python or torch as it starts, or Python runs a string.
    """
    environ = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environ}
    words = [*map(str, words)]
    read_at_start = [key for key in environ if key.startswith("PYTHON") and key != "PYTHONPATH"]
    if environ["OMP_NUM_THREADS"] == "1" and not read_at_start and python[0] != "-c":
        done = forked.run(python, words, folder, environ, timeout=500)
    else:
        done = subprocess.run(
            [sys.executable, *python, *words],
            cwd=folder,
            text=True,
            capture_output=True,
            timeout=500,
            env={**os.environ, **environ},
        )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def cli_here(folder, *words, check=True, **environ):
    """As `cli`, in the test's own process: for tests in which no process boundary matters. It saves seconds."""
    import cv2

    from yolox_loss_patch.cli import main
    from yolox_loss_patch.train.logs import log_to_screen

    words = [*map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    try:
        with (
            _inside(folder),
            mock.patch.dict(os.environ, environ),
            mock.patch.object(sys, "argv", ["yolox-loss", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            log_to_screen()
            status = main(words)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    done = subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def checkpoint(folder, name="latest"):
    """A checkpoint of a run, as stock torch loads it."""
    return torch.load(Path(folder) / f"{name}_ckpt.pth", weights_only=True)


def assert_same(one, other):
    """Two state dicts are the same bit for bit."""
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, different


def make_head(num_classes=3, seed=0, use_l1=False):
    """A YOLOX head of nano's width with YOLOX's own start."""
    from yolox.models import YOLOXHead

    torch.manual_seed(seed)
    head = YOLOXHead(num_classes, width=0.25)
    head.initialize_biases(1e-2)
    head.use_l1 = use_l1
    return head.train()


def make_batch(batch=2, height=96, width=96, num_classes=3, boxes=5, seed=0, empty_every=3):
    """Features of the three levels, labels and images; every ``empty_every``-th image has no box."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    features = [
        torch.randn(batch, channels, height // stride, width // stride, generator=generator)
        for channels, stride in ((64, 8), (128, 16), (256, 32))
    ]
    labels = torch.zeros(batch, boxes + 3, 5)
    for index in range(batch):
        count = 0 if empty_every and index % empty_every == empty_every - 1 else boxes
        labels[index, :count, 0] = torch.randint(0, num_classes, (count,), generator=generator).float()
        labels[index, :count, 1] = rand(count) * width
        labels[index, :count, 2] = rand(count) * height
        labels[index, :count, 3:] = 3 + rand(count, 2) * min(height, width) * 0.6
    return features, labels, torch.zeros(batch, 3, height, width)


def run_head(head, batch):
    """The six outputs of the loss stage and every gradient: of the parameters and of the features."""
    features, labels, images = batch
    features = [feature.clone().requires_grad_() for feature in features]
    head.zero_grad()
    outputs = head(features, labels, images)
    outputs[0].backward()
    return outputs, [p.grad for p in (*head.parameters(), *features)]
