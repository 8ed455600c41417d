"""Files and systems that are not as they should be: one sentence with the path and what to do, a row per mistake."""

import shutil

import pytest
import torch
from conftest import EXP

from yolox_loss_patch import cli
from yolox_loss_patch.exp.loading import load_exp

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu", "max_epoch", "1", "no_aug_epochs", "0")
RESUME = (*TRAIN[:7], "--resume", "-c", "given.pth", *TRAIN[7:])
EVAL = ("eval", "-f", "tiny.py", "-b", "8", "--device", "cpu", "-c", "given.pth")


def weights():
    return load_exp("tiny.py").get_model().state_dict()


def save(**content):
    """A checkpoint with this content; a function stands for what it returns."""
    return lambda: torch.save(
        {key: value() if callable(value) else value for key, value in content.items()}, "given.pth"
    )


def write(content):
    def make():
        with open("given.pth", "wb") as file:
            file.write(content)

    return make


def foreign():
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1).state_dict()


def file_as_folder():
    open("YOLOX_outputs", "w").close()


# what is made, the verb, words of the error
FILES = {
    "empty": (write(b""), EVAL, ["'given.pth' cannot be read as a checkpoint: it is empty"]),
    "a page": (
        write(b"<!DOCTYPE html><html>not found</html>"),
        EVAL,
        ["it is a web page, as a failed download leaves it"],
    ),
    "garbage": (write(b"garbage " * 100), EVAL, ["'given.pth' cannot be read as a checkpoint"]),
    "no model": (save(weights=1), EVAL, ["it has no 'model'"]),
    "only model": (
        save(model=weights),
        RESUME,
        ["holds no state to resume from (no 'optimizer'", "leave out --resume"],
    ),
    "no epoch": (save(model=weights, optimizer=dict), RESUME, ["holds no state to resume from (no 'start_epoch')"]),
    "foreign optimizer": (
        save(model=weights, optimizer=foreign, start_epoch=1),
        RESUME,
        ["is not that of this experiment"],
    ),
    "a file in place of the folder": (file_as_folder, TRAIN, ["YOLOX_outputs"]),
    "a logger that is not there": (None, (*TRAIN[:7], "-l", "wandb", *TRAIN[7:]), ["pip install wandb"]),
    "a word for doctor": (None, ("doctor", "tiny.py"), ["does not know 'tiny.py'", "Did you mean -f tiny.py?"]),
    "a word for verify": (
        None,
        ("verify", "tiny.py"),
        ["overrides belong to an experiment", "Did you mean -f tiny.py?"],
    ),
    "a name too long for the disk": (None, (*TRAIN[:7], "-expn", "a" * 300, *TRAIN[7:]), ["too long", "-expn"]),
    "a sweep's name too long": (None, ("sweep", *TRAIN[1:7], "-expn", "a" * 300, *TRAIN[7:]), ["too long", "-expn"]),
    "a picture's name too long": (None, ("plot", "ciou", "--out", "a" * 300 + ".png"), ["too long", "--out"]),
    "plot into a file": (write(b""), ("plot", "ciou", "--out", "given.pth/a.png"), ["given.pth"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_as_it_should_be_is_one_sentence(case, work, monkeypatch, capsys):
    make, words, answers = FILES[case]
    monkeypatch.chdir(work)
    if make is not None:
        make()
    assert cli.main(list(words)) == 2, capsys.readouterr()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for answer in answers:
        assert answer in error.splitlines()[-1], error


def test_a_checkpoint_from_inside_data_parallel_is_read(work, monkeypatch):
    from yolox_loss_patch.runs.checkpoint import load_checkpoint

    monkeypatch.chdir(work)
    torch.save({"model": {f"module.{key}": value for key, value in weights().items()}}, "given.pth")
    assert load_checkpoint("given.pth")["model"].keys() == weights().keys()


VOC = """
    def get_data_loader(self, batch_size, is_distributed, no_aug=False, cache_img=False):
        from yolox.data import VOCDetection
        return VOCDetection(data_dir="voc", image_sets=[("2007", "trainval")])
"""
XML = """<annotation><size><width>9</width><height>9</height></size><object><name>{name}</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,words",
    [
        (None, ["VOCDetection needs 'voc/VOC2007/Annotations/a.xml': No such file"]),
        ("unicorn", ["The class 'unicorn' stands in an annotation", "aeroplane", "VOC_CLASSES"]),
    ],
)
def test_voc_data_is_told_for_what_it_lacks(name, words, work, digits, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data=str(digits)) + VOC)
    (work / "voc/VOC2007/ImageSets/Main").mkdir(parents=True)
    (work / "voc/VOC2007/ImageSets/Main/trainval.txt").write_text("a\n")
    if name is not None:
        (work / "voc/VOC2007/Annotations").mkdir()
        (work / "voc/VOC2007/Annotations/a.xml").write_text(XML.format(name=name))
    assert cli.main(list(TRAIN)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in error, error


VOC_EVALUATOR = """
    def get_evaluator(self, batch_size, is_distributed, testdev=False, legacy=False):
        from torch.utils.data import DataLoader
        from yolox.data import ValTransform, VOCDetection
        from yolox.evaluators import VOCEvaluator
        data = VOCDetection("voc", [("2007", "test")], self.test_size, ValTransform())
        return VOCEvaluator(DataLoader(data), self.test_size, self.test_conf, self.nmsthre, self.num_classes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb,words",
    [
        (TRAIN, ["VOCEvaluator evaluates on CUDA only", "on cpu", "COCO"]),
        (EVAL, ["VOCEvaluator is not YOLOX's COCO evaluator", "COCO data sets"]),
    ],
)
def test_yoloxs_voc_evaluator_is_refused_before_the_first_epoch(verb, words, work, digits, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data=str(digits)) + VOC_EVALUATOR)
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (work / "voc/VOC2007" / folder).mkdir(parents=True)
    (work / "voc/VOC2007/ImageSets/Main/test.txt").write_text("a\n")
    (work / "voc/VOC2007/Annotations/a.xml").write_text(XML.format(name="cat"))
    shutil.copy(next((digits / "val2017").iterdir()), work / "voc/VOC2007/JPEGImages/a.jpg")
    save(model=weights)()
    assert cli.main(list(verb)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in error, error
    assert not list((work / "YOLOX_outputs").rglob("*_ckpt.pth"))


def test_an_image_that_goes_while_it_is_evaluated_is_named(work, digits, monkeypatch, capsys):
    """The check before the evaluation has seen it; the loader finds it gone, in a worker too."""
    from yolox_loss_patch.data import preflight

    monkeypatch.chdir(work)
    shutil.copytree(digits, work / "data")
    (work / "tiny.py").write_text(EXP.format(data="data"))
    torch.save({"model": weights()}, "given.pth")
    name = sorted((work / "data" / "val2017").glob("*.jpg"))[3].name
    (work / "data" / "val2017" / name).unlink()
    monkeypatch.setattr(preflight, "check_images", lambda *args: [])
    for workers in ("0", "1"):
        assert cli.main([*EVAL, "data_num_workers", workers]) == 2
        error = capsys.readouterr().err
        assert f"The image '{name}' in 'data/val2017' cannot be read: it does not exist." in error.splitlines()[-1]


KILL = """
    def get_data_loader(self, *args, **kwargs):
        import os
        loader = super().get_data_loader(*args, **kwargs)
        parent, inner = os.getpid(), loader.dataset._dataset.pull_item
        def pull_item(index):
            if os.getpid() != parent:
                os.kill(os.getpid(), 9)
            return inner(index)
        loader.dataset._dataset.pull_item = pull_item
        return loader
"""


def test_a_killed_data_worker_is_told(work, digits, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(EXP.format(data=str(digits)) + KILL)
    assert cli.main([*TRAIN, "data_num_workers", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "was killed" in error and "memory" in error and "--resume" in error
