"""The command line outside of training: verbs, exit status, list, and a machine without YOLOX."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from yolox_loss_patch import cli


def test_list_prints_every_loss_with_its_knobs(capsys):
    import yolox_loss_patch as ylp

    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for term, names in ylp.available_losses().items():
        assert f"loss_{term}" in text
        for name in names:
            assert f"  {name} " in text
    assert "gamma=2.0 (a number at least 0 and at most 100)" in text


def test_list_of_one_loss(capsys):
    assert cli.main(["list", "ciou"]) == 0
    text = capsys.readouterr().out
    assert "1911.08287" in text and "giou" not in text
    assert cli.main(["list", "cious"]) == 2


@pytest.mark.parametrize("words", [["trian"], [], ["train", "--nonsense", "x", "-f"]])
def test_a_wrong_command_is_not_a_success(words):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2


# words of the command, words of the answer
WRONG = [
    (["train"], ["-f", "-n"]),
    (["train", "-f", "nowhere.py"], ["no experiment file 'nowhere.py'"]),
    (["train", "-n", "yolox-ss"], ["Did you mean 'yolox_s'"]),
    (["train", "-n", "yolox-nano", "max_epoch"], ["pairs"]),
    (["train", "-n", "yolox-nano", "--device", "cpu", "-d", "0"], ["-d is at least 1"]),
    (["train", "-n", "yolox-nano", "--device", "cpu", "-b", "0"], ["-b is at least 1"]),
    (["train", "-n", "yolox-nano", "--device", "cpu", "-e", "3"], ["-e 3", "needs --resume"]),
    (["eval", "-n", "yolox-nano", "--device", "cpu", "-c", "nowhere.pth"], ["no checkpoint 'nowhere.pth'"]),
    (["eval", "-n", "yolox-nano", "--trt", "--fuse", "--speed", "-d", "7"], ["leave out --trt, --fuse, --speed, -d"]),
    (["doctor", "-f", "x.py", "-c", "x.pth"], ["doctor takes no checkpoint", "leave out x.pth"]),
    (["verify", "-f", "x.py", "-c", "x.pth"], ["verify takes no checkpoint", "leave out x.pth"]),
]


@pytest.mark.parametrize("words,answers", WRONG)
def test_a_mistake_is_one_clear_message(words, answers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for answer in answers:
        assert answer in error


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_crash():
    """As `yolox-loss list | head -1`."""
    words, pipe = [sys.executable, "-m", "yolox_loss_patch", "list"], subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as done:
        done.stdout.readline()
        done.stdout.close()
        assert "Traceback" not in done.stderr.read().decode()


def test_a_device_that_is_not_there(monkeypatch, tmp_path, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["train", "-n", "yolox-nano", "--device", "cuda"]) == 2
    assert "no cuda device" in capsys.readouterr().err


BLOCK = """
import sys
sys.path.insert(0, {root!r})
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
import yolox_loss_patch as ylp
from yolox_loss_patch import cli
ylp.build_loss("iou", "ciou")   # the losses need no YOLOX
sys.exit(cli.main(["train", "-n", "yolox-s"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing,answer", [("yolox", "YOLOX is not installed"), ("thop", "'thop', which it imports, is not")]
)
def test_no_yolox(missing, answer, tmp_path):
    code = BLOCK.format(root=str(ROOT), missing=[missing])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and answer in done.stderr and "pip install" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Dependencies in layers.

# An import of anything but the core's three packages, YOLOX and the standard library, made by the kit, is refused.
CORE = """
import builtins, sys
sys.path.insert(0, {root!r})
allowed = {{"torch", "numpy", "loguru", "yolox", "yolox_loss_patch", *sys.stdlib_module_names}}
plain_import = builtins.__import__
def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if importer.startswith("yolox_loss_patch") and level == 0 and name.split(".")[0] not in allowed:
        raise ModuleNotFoundError(f"No module named {{name!r}} for {{importer}}", name=name)
    return plain_import(name, globals, locals, fromlist, level)
builtins.__import__ = refuse
class Block:  # of these YOLOX has no need either
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hotcoco", "scipy", "submitit", "cloudpickle"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())

import torch
import yolox_loss_patch as ylp
from yolox.exp.default.yolox_nano import Exp as BaseExp
from yolox.models import YOLOXHead

class Exp(ylp.LossExp, BaseExp):
    def __init__(self):
        super().__init__()
        self.num_classes = 3
        self.loss_obj, self.loss_iou = "varifocal", dict(type="ciou", loss_weight=2.0)

assert ylp.LossConfig.from_exp(Exp()).loss_obj == "varifocal"
assert ylp.build_loss("iou", "giou")(torch.rand(2, 4) + 1, torch.rand(2, 4) + 1) > 0
images, labels = torch.rand(1, 3, 64, 64) * 255, torch.tensor([[[1.0, 30, 30, 20, 24]]])
exp = Exp()
exp.merge(["loss_cls", "focal"])
model = exp.get_model()
model(images, labels)["total_loss"].backward()
assert model.head.obj_preds[0].weight.grad.abs().sum() > 0
ylp.unpatch_model(model)
ylp.patch_model(model, ylp.LossConfig(loss_obj="focal"))
stock = YOLOXHead.get_losses
ylp.apply(loss_iou="eiou")
assert ylp.is_applied() and YOLOXHead.get_losses is not stock
ylp.revert()
assert YOLOXHead.get_losses is stock
print("done")
"""


@pytest.mark.slow
def test_the_core_needs_torch_numpy_and_loguru_only(tmp_path):
    code = CORE.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr


def test_the_extras_are_those_of_the_distribution():
    """By the names under which the distributions are imported."""
    modules = {"pillow": "PIL"}
    text = (ROOT / "pyproject.toml").read_text()
    for extra, names in cli.EXTRAS.items():
        written = re.findall(r'"([\w.-]+)[^"]*"', re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)[1])
        assert {modules.get(name, name) for name in written} == set(names)
    assert re.search(r"^dependencies = \[\"torch[^\"]*\", \"numpy\", \"loguru\"\]$", text, re.MULTILINE)
    assert {extra for verb in cli.VERBS.values() for extra in verb.extras} == set(cli.EXTRAS)


@pytest.mark.parametrize(
    "words,missing,extra",
    [
        (["train", "-n", "yolox-s"], "pycocotools", "train"),
        (["eval", "-n", "yolox-s"], "tqdm", "train"),
        (["verify"], "tensorboard", "train"),
        (["compare", "run"], "hotcoco", "compare"),
        (["plot", "ciou", "--out", "a.png"], "matplotlib", "compare"),
        (["calibrate", "-n", "yolox-s", "loss_obj", "focal"], "tabulate", "compare"),
        (["sweep", "-n", "yolox-s"], "submitit", "sweep"),
    ],
)
def test_a_verb_whose_extra_is_missing_names_the_command_that_installs_it(words, missing, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words[0]} needs {missing}") and f"pip install 'yolox-loss-patch[{extra}]'" in line


def test_help_and_import_do_not_wait_for_torch(tmp_path):
    """benchmarks/startup.csv has the seconds."""
    code = (
        "import sys, yolox_loss_patch\n"
        "from yolox_loss_patch import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'yolox', 'loguru'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_an_error_shows_its_traceback_only_when_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "-f", "nowhere.py", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
