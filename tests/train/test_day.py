"""A user's day: what people do with YOLOX around a training works with the kit's runs."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import EXP, ROOT, assert_same, checkpoint, cli, cli_here, load_script

from yolox_loss_patch.data.checks import check_dataset
from yolox_loss_patch.errors import DataError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.runs.record import read_metrics

TRAIN = ("train", "-b", "8", "--device", "cpu", "-f")

# Weights & Biases as far as YOLOX's logger uses it; it writes down what it is told.
WANDB = """
import json, types

run = None
told = []

def tell(what, **facts):
    told.append([what, facts])
    with open("wandb.json", "w") as file:
        json.dump(told, file, default=str)

class Run:
    id = "abc"
    config = types.SimpleNamespace(update=lambda values: tell("config", **values))
    def define_metric(self, *args, **kwargs): pass
    def log(self, metrics, step=None): tell("log", **metrics)
    def log_artifact(self, artifact, aliases): tell("artifact", file=artifact.file, aliases=aliases)
    def finish(self): tell("finish")

class Artifact:
    def __init__(self, name, type): pass
    def add_file(self, file, name): self.file = file

def init(**kwargs):
    global run
    tell("init", **kwargs)
    run = Run()
    return run
"""

# An experiment of plain YOLOX: not a word of the kit.
PLAIN = """
from yolox.exp.default.yolox_nano import Exp as BaseExp

class Exp(BaseExp):
    def __init__(self):
        super().__init__()
        self.num_classes = 10
        self.test_size = (96, 96)
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory, digits):
    """A folder with a copy of the data, an experiment file and its run of one epoch, logged to Weights & Biases."""
    folder = tmp_path_factory.mktemp("day")
    shutil.copytree(digits, folder / "digits")
    (folder / "first").mkdir()
    (folder / "first" / "tiny.py").write_text(EXP.format(data=str(folder / "digits")))
    (folder / "wandb.py").write_text(WANDB)
    words = ("loss_iou", "ciou", "max_epoch", "1", "wandb-project", "digits", "wandb-name", "monday")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    cli(folder, *TRAIN, "first/tiny.py", "-l", "wandb", *words, PYTHONPATH=path)
    return folder


def run_folder(folder, name="tiny"):
    return folder / "YOLOX_outputs" / name


@pytest.mark.slow
def test_wandb_gets_its_keys_and_the_run(day):
    told = json.loads((day / "wandb.json").read_text())
    facts = dict(told)
    assert facts["init"]["project"] == "digits" and facts["init"]["name"] == "monday"
    assert facts["config"]["loss_iou"] == "ciou" and facts["config"]["max_epoch"] == 1
    assert "wandb-project" not in facts["config"]
    logged = [set(facts) for what, facts in told if what == "log"]
    assert {"train/total_loss", "train/iou_loss", "train/lr"} <= logged[0] and {"val/COCOAP50_95"} <= set().union(
        *logged
    )
    assert facts["artifact"]["file"].endswith("latest_ckpt.pth") and told[-1][0] == "finish"


@pytest.mark.slow
def test_a_cached_run_is_the_run_and_a_stale_cache_is_refused(day):
    words = (*TRAIN, "first/tiny.py", "--cache", "-expn")
    cli_here(day, *words, "cached", "loss_iou", "ciou", "max_epoch", "1")
    assert_same(checkpoint(run_folder(day))["model"], checkpoint(run_folder(day, "cached"))["model"])
    cache = day / "digits" / "img_resized_cache_train2017.array"
    whole = cache.read_bytes()

    def check(size="96,96"):
        exp = load_exp(str(day / "first" / "tiny.py"))
        exp.merge(["input_size", size])
        loader = exp.get_data_loader(batch_size=8, is_distributed=False, cache_img=True)
        return check_dataset(loader.dataset, 10, "train")

    assert check()["images"] == 24
    with pytest.raises(DataError, match=r"it holds images of \[96, 96\], and input_size is \[64, 64\]\. Remove it"):
        check(size="64,64")
    cache.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # killed while it was made
    cache.with_name(f"{cache.name}.json").unlink()
    os.utime(cache, (1, 1))
    with pytest.raises(DataError, match="does not hold"):
        check()


@pytest.mark.slow
def test_fine_tuning_from_a_stock_checkpoint_with_another_class_count(day):
    """And from a second file of the same name: its own losses, its own folder."""
    from yolox.exp import get_exp

    torch.manual_seed(5)
    stock = get_exp(None, "yolox-nano").get_model()  # 80 classes
    # as YOLOX saves it, with the best AP as a numpy scalar
    torch.save(
        {"start_epoch": 300, "model": stock.state_dict(), "optimizer": {}, "best_ap": np.float64(0.25)}, day / "80.pth"
    )
    (day / "second").mkdir()
    frozen = "        self.basic_lr_per_img, self.weight_decay = 1e-60, 0.0\n        self.ema = False\n"
    text = (day / "first" / "tiny.py").read_text() + "        self.loss_iou = 'giou'\n" + frozen
    (day / "second" / "tiny.py").write_text(text)
    refused = cli_here(day, *TRAIN, "second/tiny.py", "-c", "80.pth", "max_epoch", "1", check=False)
    assert refused.returncode == 2 and "another configuration" in refused.stderr and "-expn" in refused.stderr
    done = cli_here(day, *TRAIN, "second/tiny.py", "-c", "80.pth", "-expn", "tuned", "max_epoch", "1")
    assert "another class count; trained anew: head.cls_preds.0.weight" in done.stderr
    record = json.loads((run_folder(day, "tuned") / "run.json").read_text())
    assert record["resolved_losses"]["iou"]["type"] == "giou" and record["exp"]["num_classes"] == 10
    before, after = stock.state_dict(), checkpoint(run_folder(day, "tuned"))["model"]
    for key, value in before.items():
        if key.startswith("head.cls_preds"):
            assert after[key].shape[0] == 10
        elif not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(after[key], value), key  # the learning rate is 0 in fp32: what was loaded is still there
    both = [load_exp(str(day / name / "tiny.py")) for name in ("first", "second")]
    assert [exp.loss_iou for exp in both] == ["iou", "giou"]


@pytest.mark.slow
def test_unpatched_yolox_uses_the_checkpoint(day):
    """Its demo draws what the model finds, in a process that cannot import the kit; its model gives the kit's numbers."""
    (day / "plain.py").write_text(PLAIN)
    image = next((day / "digits" / "val2017").iterdir())
    code = f"""
import runpy, sys
import cv2, torch
sys.modules["yolox_loss_patch"] = None  # importing it is an error
cv2.waitKey = lambda delay: 27  # a machine without a screen
from yolox.exp import get_exp
model = get_exp("plain.py", None).get_model()
model.load_state_dict(torch.load({str(run_folder(day) / "latest_ckpt.pth")!r})["model"], strict=True)
torch.save(model.eval()(torch.linspace(0, 255, 3 * 96 * 96).view(1, 3, 96, 96)).detach(), "plain.pt")
sys.argv = ["demo", "image", "-f", "plain.py", "-c", {str(run_folder(day) / "latest_ckpt.pth")!r}, "--path", {str(image)!r},
            "--conf", "1e-6", "--nms", "0.65", "--save_result"]
runpy.run_module("yolox.tools.demo", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=day, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    import cv2

    (drawn,) = (day / "YOLOX_outputs").rglob(f"vis_res/*/{image.name}")
    assert (cv2.imread(str(drawn)) != cv2.imread(str(image))).any()
    model = load_exp(str(day / "first" / "tiny.py")).get_model()
    model.load_state_dict(checkpoint(run_folder(day))["model"])
    with torch.no_grad():
        own = model.eval()(torch.linspace(0, 255, 3 * 96 * 96).view(1, 3, 96, 96))
    assert torch.equal(torch.load(day / "plain.pt"), own)
    assert read_metrics(run_folder(day))[0]["AP"] is not None


@pytest.mark.slow
def test_torchscript_by_yoloxs_own_tool(day):
    words = ("-f", "first/tiny.py", "-c", "YOLOX_outputs/tiny/latest_ckpt.pth", "--output-name", "tiny.torchscript.pt")
    # In a Python of its own: torch.jit in a forked process once left no file.
    tool = [sys.executable, "-m", "yolox.tools.export_torchscript", *words]
    done = subprocess.run(tool, cwd=day, capture_output=True, text=True, timeout=300)
    assert (day / "tiny.torchscript.pt").is_file(), done.stdout + done.stderr  # the tool exits with 0 after a crash
    model = load_exp(str(day / "first" / "tiny.py")).get_model().eval()
    model.load_state_dict(checkpoint(run_folder(day))["model"])
    model.head.decode_in_inference = False
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        assert torch.equal(torch.jit.load(day / "tiny.torchscript.pt")(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize("decode", [False, True])
def test_onnx(day, decode):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    exp = load_exp(str(day / "first" / "tiny.py"))
    out = day / f"tiny{decode}.onnx"
    difference = load_script("scripts/export_onnx").export(
        exp, run_folder(day) / "latest_ckpt.pth", out, decode, opset=11
    )
    assert difference < 1e-5
    image = np.random.default_rng(2).uniform(0, 255, (1, 3, 96, 96)).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(str(out)).run(["output"], {"images": image})
    model = exp.get_model().eval()
    assert model.head.decode_in_inference is decode
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).numpy()
    assert got.shape == (1, 144 + 36 + 9, 15)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_export_onnx_without_a_checkpoint_says_so(day):
    script = str(ROOT / "scripts/export_onnx.py")
    done = cli(day, "-f", "first/tiny.py", "-c", "nowhere.pth", check=False, python=(script,))
    assert done.returncode == 2 and "There is no checkpoint" in done.stderr
