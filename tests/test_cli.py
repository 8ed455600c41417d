"""The command line outside of training: verbs, exit status, list, and a machine without YOLOX."""

import os
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
    assert "gamma=2.0 (a number at least 0)" in text


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


@pytest.mark.parametrize(
    "missing,answer", [("yolox", "YOLOX is not installed"), ("thop", "'thop', which it imports, is not")]
)
def test_no_yolox(missing, answer, tmp_path):
    code = BLOCK.format(root=str(ROOT), missing=[missing])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and answer in done.stderr and "pip install" in done.stderr
    assert "Traceback" not in done.stderr
