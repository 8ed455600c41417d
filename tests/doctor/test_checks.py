"""doctor: every finding it is there for, the remedy beside it, and the exit status."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import EXP, ROOT

from yolox_loss_patch import cli
from yolox_loss_patch.doctor import environment
from yolox_loss_patch.doctor.checks import doctor
from yolox_loss_patch.doctor.experiment import check_experiment
from yolox_loss_patch.doctor.report import guarded

pytestmark = pytest.mark.filterwarnings("ignore")  # it looks at what torch says in warnings


def findings(check, look):
    return list(guarded(check, look))


def only(check, look):
    (finding,) = findings(check, look)
    return finding


def test_a_healthy_experiment_has_no_error(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    status = cli.main(["doctor", "-f", "tiny.py", "loss_obj", "varifocal", "loss_iou", "ciou"])
    text = capsys.readouterr().out
    assert status == 0, text
    lines = text.splitlines()
    assert all(line.split()[0] in ("ok", "warning") for line in lines[:-1])
    assert lines[-1].endswith(", 0 errors")
    checks = [line.split()[1] for line in lines[:-1]]
    assert list(dict.fromkeys(checks)) == ["python", "torch", "torchvision", "pycocotools", "opencv", "device", "yolox",
                                           "trainer", "experiment", "losses", "model", "train", "val"]  # fmt: skip
    for word in (torch.__version__, np.__version__, "(known)", "num_classes=10", "loss_obj=varifocal ", "loss_iou=ciou ",
                 "24 images", "8 images"):  # fmt: skip
        assert word in text


def test_without_an_experiment_the_environment_is_looked_at(capsys):
    assert cli.main(["doctor"]) == 0
    assert "none named; -f EXP_FILE or -n NAME" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Data.


def own(tmp_path, digits, monkeypatch):
    """A copy of the digits to break, with an experiment on it."""
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "tiny.py").write_text(EXP.format(data="data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def before(tmp_path_factory, digits):
    """What there is to say of the digits as they are."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("healthy")
        own(folder, digits, patch)
        return list(check_experiment("tiny.py", None, []))


def edit(change, split="train"):
    """Change the annotation file of a split: a function of its content, or a text in its place."""

    def break_(folder):
        path = folder / "data" / "annotations" / f"instances_{split}2017.json"
        if isinstance(change, str):
            path.write_text(change)
            return
        coco = json.loads(path.read_text())
        change(coco)
        path.write_text(json.dumps(coco))

    return break_


def first_box(**values):
    return edit(lambda coco: coco["annotations"][0].update(values))


def move(old, new):
    return lambda folder: (folder / "data" / old).rename(folder / "data" / new)


def remove_image(folder):
    next((folder / "data" / "val2017").iterdir()).unlink()


def spoil_image(folder):
    next((folder / "data" / "train2017").iterdir()).write_text("no image")


def turn_sizes(coco):
    for image in coco["images"]:
        image["height"] += 32


# what is done to the folder, overrides, level, words of the line
DATA = {
    "no folder": (move(".", "../elsewhere"), [], "error", ["data folder 'data' does not exist", "DATA_DIR/annotations"]),
    "no file": (lambda folder: None, ["train_ann", "nowhere.json"], "error", ["nowhere.json", "instances_train2017.json"]),
    "cut off": (edit('{"images": ['), [], "error", ["is not readable JSON"]),
    "a list": (edit("[]"), [], "error", ["not in COCO format"]),
    "no categories": (edit(lambda coco: coco.pop("categories")), [], "error", ["has no 'categories'"]),
    "no bbox": (edit(lambda coco: coco["annotations"][0].pop("bbox")), [], "error", ["has no 'bbox'"]),
    "text as ids": (edit(lambda coco: coco["images"][0].update(id="a")), [], "error", ["train"]),
    "null": (edit(lambda coco: coco.update(annotations=None)), [], "error", ["has no list of 'annotations'", "COCO's format"]),
    "no image": (edit(lambda coco: coco.update(images=[])), [], "error", ["lists no image"]),
    "half a box": (first_box(bbox=[1, 2]), [], "error", ["the bbox of annotation 1 is [x, y, width, height]", "[1, 2]"]),
    "words": (first_box(iscrowd="no"), [], "error", ["the iscrowd of annotation 1 is 'no'", "1 for a crowd"]),
    "few classes": (lambda folder: None, ["num_classes", "7"], "error", ["10 categories", "Set self.num_classes = 10"]),
    "many classes": (lambda folder: None, ["num_classes", "12"], "error", ["never be learned", "self.num_classes = 10"]),
    "unlike classes": (edit(lambda coco: coco["categories"][3].update(name="x"), "val"), [], "error", ["same categories"]),
    "no image folder": (move("train2017", "images"), [], "error", ["train2017' does not exist", "DATA_DIR/train2017"]),
    "no image file": (remove_image, [], "error", ["val ", "the image", "does not exist"]),
    "broken image": (spoil_image, [], "error", ["not an image that OpenCV can read"]),
    "other size": (edit(turn_sizes), [], "error", ["(is 96x96, annotated 96x128)"]),
    "zero width": (first_box(bbox=[10, 10, 0, 5]), [], "warning", ["1 have a side of 0 (ids 1)", "not trained on"]),
    "zero area": (first_box(area=0), [], "warning", ["1 have an area of 0 (ids 1)"]),
    "outside": (first_box(bbox=[90, 90, 60, 60]), [], "warning", ["outside the image boundary"]),
    "orphan": (first_box(image_id=987654), [], "error", ["not present in 'images'", "(ids of the annotations: 1)"]),
    "double id": (edit(lambda coco: coco["annotations"][1].update(id=coco["annotations"][0]["id"])), [], "error",
                  ["1 ids of annotations repeat (1)", "Number the annotations anew"]),
    "empty images": (edit(lambda coco: coco.update(annotations=coco["annotations"][:40])), [], "warning", ["no annotation"]),
    "empty set": (edit(lambda coco: coco.update(annotations=[])), [], "error", ["nothing to learn"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", DATA)
def test_broken_data(case, before, tmp_path, digits, monkeypatch, capsys):
    break_, opts, level, words = DATA[case]
    own(tmp_path, digits, monkeypatch)
    assert not [finding for finding in before if finding.level == "error"]
    break_(tmp_path)
    after = list(check_experiment("tiny.py", None, opts))
    new = [str(finding) for finding in after if finding.level == level and finding not in before]
    assert any(all(word in line for word in words) for line in new), "\n".join(map(str, after))
    assert all(finding.remedy for finding in after if finding.level != "ok" and finding not in before)
    assert level == "error" or all(finding.level != "error" for finding in after)
    output = capsys.readouterr()
    assert "Traceback" not in output.err and "loading annotations" not in output.out


def test_an_error_is_an_exit_status_and_stands_with_the_others(tmp_path, digits, monkeypatch, capsys):
    own(tmp_path, digits, monkeypatch)
    remove_image(tmp_path)
    assert cli.main(["doctor", "-f", "tiny.py", "num_classes", "7"]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if line.startswith("error")]
    assert len(lines) == 3  # the categories of both files, and the image
    assert output.err == "error: 3 errors found: train, val. What to do stands above.\n"


def test_data_of_another_kind_is_left_alone(work):
    text = (work / "tiny.py").read_text()
    (work / "tiny.py").write_text(
        text
        + """
    def get_data_loader(self, *args, **kwargs):
        import torch
        return torch.utils.data.DataLoader([1, 2, 3])
"""
    )
    (line,) = [f for f in check_experiment(str(work / "tiny.py"), None, []) if f.check == "train"]
    assert line.level == "warning" and "not a COCO data set" in line.text


# ---------------------------------------------------------------------------------------------------------------------
# The experiment.

BODY = "class Exp(BaseExp):\n    "
# text of the experiment file, overrides, words of the error
EXPERIMENTS = {
    "syntax": ("def Exp(:", [], ["SyntaxError"]),
    "no class": ("x = 1", [], ["no class named 'Exp'"]),
    "crash": (EXP + "        self.x = 1 / 0\n", [], ["ZeroDivisionError", "line"]),
    "exit": ("import sys; sys.exit(0)", [], ["SystemExit"]),
    "missing import": ("import nowhere_to_be_found", [], ["nowhere_to_be_found"]),
    "loss": (EXP + "        self.loss_iou = 'cious'\n", [], ["Did you mean 'ciou'"]),
    "override": (EXP, ["max_epok", "3"], ["Did you mean 'max_epoch'"]),
    "half a pair": (EXP, ["max_epoch"], ["pairs"]),
    "size": (EXP, ["input_size", "100,96"], ["input_size is (height, width) in multiples of 32; got (100, 96)"]),
    "model": (EXP + "    def get_model(self):\n        return BaseExp.get_model(self)\n", [], ["super().get_model()"]),
    "model crash": (EXP + "    def get_model(self):\n        return 1 / 0\n", [], ["model", "ZeroDivisionError"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPERIMENTS)
def test_broken_experiment(case, work, digits, monkeypatch, capsys):
    text, opts, words = EXPERIMENTS[case]
    monkeypatch.chdir(work)
    (work / "tiny.py").write_text(text.format(data=str(digits)) if text.startswith(EXP) else text)
    assert cli.main(["doctor", "-f", "tiny.py", *opts]) == 2
    output = capsys.readouterr()
    errors = [line for line in output.out.splitlines() if line.startswith("error")]
    assert any(all(word in line for word in words) for line in errors), output.out
    assert "Traceback" not in output.err


def test_a_file_or_name_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "-f", "nowhere.py"]) == 2
    assert "no experiment file 'nowhere.py'" in capsys.readouterr().out
    assert cli.main(["doctor", "-n", "yolox-ss"]) == 2
    assert "Did you mean 'yolox_s'" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# The environment.


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


BLOCK = """
import sys
sys.path.insert(0, {root!r})
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r} or name.startswith({missing!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
from yolox_loss_patch import cli
sys.exit(cli.main(["{verb}", "-n", "yolox-s"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb,missing,answer",
    [
        ("doctor", "yolox", "YOLOX is not installed"),
        ("doctor", "tensorboard", "training needs 'tensorboard'"),
        ("verify", "yolox.exp", "has no 'yolox.exp'"),
    ],
)
def test_an_environment_without_a_part(verb, missing, answer, tmp_path):
    code = BLOCK.format(root=str(ROOT), missing=missing, verb=verb)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert answer in done.stdout + done.stderr and "pip install" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_torchvision_of_another_torch(monkeypatch):
    import torchvision

    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    monkeypatch.setattr(torchvision.ops, "nms", raises(RuntimeError("operator torchvision::nms does not exist\nmore")))
    finding = only("torchvision", environment.check_torchvision)
    assert finding.level == "error" and "operator torchvision::nms does not exist" in finding.text
    assert "torchvision==0.19.*" in finding.remedy
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, scores, threshold: torch.tensor([0, 1, 2]))
    assert "kept [0, 1, 2]" in only("torchvision", environment.check_torchvision).text


def test_no_torchvision(monkeypatch):
    monkeypatch.setattr(
        environment.metadata, "version", raises(environment.metadata.PackageNotFoundError("torchvision"))
    )
    finding = only("torchvision", environment.check_torchvision)
    assert finding.level == "error" and "pip install 'torchvision==0." in finding.remedy


def test_pycocotools_that_does_not_fit_numpy(monkeypatch):
    from yolox_loss_patch.train import evaluator

    monkeypatch.setattr(evaluator, "coco_metrics", raises(AttributeError("module 'numpy' has no attribute 'float'")))
    finding = only("pycocotools", environment.check_pycocotools)
    assert finding.level == "error" and "'float'" in finding.text and "pycocotools" in finding.remedy
    monkeypatch.setattr(evaluator, "coco_metrics", lambda *args: ({"AP": 0.5}, ""))
    assert "AP 0.5, not 1" in only("pycocotools", environment.check_pycocotools).text


def test_torch_that_does_not_fit_numpy(monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", raises(RuntimeError("Numpy is not available")))
    finding = only("torch", environment.check_torch)
    assert finding.level == "error" and "numpy<2" in finding.remedy


def test_opencv_without_its_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(environment, "version_of", {"opencv-python": "4.5.5"}.get)
    finding = only("opencv", environment.check_opencv)
    assert finding.level == "error" and "ModuleNotFoundError" in finding.text
    assert "pip uninstall -y opencv-python, then pip install opencv-python-headless" in finding.remedy


def test_opencv_twice(monkeypatch):
    there = {"opencv-python": "4.5.5", "opencv-python-headless": "4.10.0"}
    monkeypatch.setattr(environment, "version_of", lambda name: there.get(name, ""))
    finding = only("opencv", environment.check_opencv)
    assert finding.level == "warning" and "opencv-python 4.5.5, opencv-python-headless 4.10.0" in finding.text
    assert "pip uninstall -y opencv-python opencv-python-headless" in finding.remedy


def test_yolox_twice(monkeypatch):
    monkeypatch.setattr(
        environment.metadata, "packages_distributions", lambda: {"yolox": ["yolox", "pixeltable-yolox"]}
    )
    known, double = findings("yolox", environment.check_host)
    assert known.level == "ok" and double.level == "warning" and "pixeltable-yolox and yolox" in double.text


def test_a_yolox_of_another_make(monkeypatch, work):
    """Without what the kit looks for; the experiment, which needs it, is left alone."""
    monkeypatch.setattr("yolox_loss_patch.head.hosts.describe", raises(AttributeError("no attribute 'YOLOXHead'")))
    lines = list(doctor(str(work / "tiny.py")))
    assert [(line.level, line.check) for line in lines[-2:]] == [("error", "yolox"), ("warning", "experiment")]
    assert "'YOLOXHead'" in lines[-2].text and "pip install" in lines[-2].remedy


def test_a_yolox_that_the_kit_refuses(monkeypatch):
    from yolox.models import YOLOXHead

    def get_losses(self, *args):
        return 0.0

    monkeypatch.setattr(YOLOXHead, "get_losses", get_losses)
    finding = only("yolox", environment.check_host)
    assert finding.level == "error" and "get_losses" in finding.text


# CUDA build of torch, driver there, CUDA_VISIBLE_DEVICES, what torch says, level, words
DEVICES = {
    "no driver": ("13.0", False, None, None, "ok", "no NVIDIA driver"),
    "CPU build": (None, True, None, None, "warning", "built without CUDA"),
    "hidden": ("13.0", True, "", None, "warning", "hides the GPUs"),
    "old driver": ("13.0", True, None, "The NVIDIA driver is too old", "warning", "driver is too old"),
}


@pytest.mark.parametrize("case", DEVICES)
def test_a_device_that_cannot_be_used(case, monkeypatch):
    build, driver, visible, reason, level, words = DEVICES[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", raises(RuntimeError(reason)))
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(environment.os.path, "exists", lambda path: driver)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = only("device", environment.check_device)
    assert finding.level == level and words in finding.text
    assert bool(finding.remedy) == (level != "ok")


def test_a_gpu_that_this_torch_is_not_built_for(monkeypatch):
    class Facts:
        name, total_memory, major, minor = "Old GPU", 8 * 2**30, 5, 2

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Facts)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    monkeypatch.setattr(torch, "ones", raises(RuntimeError("no kernel image is available\nmore")))
    finding = environment.check_cuda_device(0)
    assert finding.level == "error" and "Old GPU, 8 GiB" in finding.text and "sm_52" in finding.remedy
