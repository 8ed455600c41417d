"""verify: it sees equality where there is equality, and a difference wherever one is planted."""

import pytest
import torch
from conftest import EXP

import yolox_loss_patch as ylp
from yolox_loss_patch import cli
from yolox_loss_patch.doctor.verify import verify
from yolox_loss_patch.head import hosts, stage, targets

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor:UserWarning")


@pytest.fixture(autouse=True)
def settings():
    """verify sets what a process that trains sets; the other tests go on as before."""
    state = torch.get_rng_state(), torch.backends.cudnn.deterministic
    yield
    torch.set_rng_state(state[0])
    torch.backends.cudnn.deterministic = state[1]
    ylp.revert()


def look(folder, *opts, steps=3, **kwargs):
    """The lines by their check; the worst where a check has several."""
    order = ("ok", "warning", "error")
    lines = {}
    for finding in verify(str(folder / "tiny.py"), None, opts, steps=steps, device="cpu", **kwargs):
        known = lines.get(finding.check)
        if known is None or order.index(finding.level) >= order.index(known.level):
            lines[finding.check] = finding
    return lines


def levels(lines, *checks):
    return [lines[check].level for check in checks]


@pytest.mark.slow
def test_on_real_data_with_losses_of_its_own(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    words = ["-f", "tiny.py", "--steps", "4", "--device", "cpu", "loss_obj", "varifocal", "loss_iou", "ciou"]
    assert cli.main(["verify", *words]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * (len(lines) - 1), output.out
    for check, text in {
        "experiment": "10 classes, 96x96 px, batches of 2",
        "data": "4 training batches",
        "losses": "difference 0 (0 expected)",
        "gradients": "difference 0 (0 expected)",
        "training": "difference 0 (0 expected), 4 steps",
        "own losses": "loss_obj='varifocal'",
        "time": " s in all",
    }.items():
        assert any(check in line and text in line for line in lines), (check, output.out)
    assert "instances_train2017.json" in output.out
    assert "training steps: 100%" in output.err and "4/4" in output.err


def test_the_training_moves_the_weights_and_both_sides_differ_in_their_code(work, monkeypatch):
    """Otherwise a difference of 0 would prove nothing."""
    calls, weights = [], []
    ours = stage.LossStage.get_losses

    def spy(self, head, *args, **kwargs):
        calls.append("kit")
        weights.append(head.obj_preds[0].weight.detach().clone())
        return ours(self, head, *args, **kwargs)

    from yolox.models import YOLOXHead

    theirs = YOLOXHead.get_losses
    monkeypatch.setattr(stage.LossStage, "get_losses", spy)

    class Counted(YOLOXHead):
        def get_assignments(self, *args, **kwargs):
            calls.append("stock")
            return super().get_assignments(*args, **kwargs)

    assert Counted.get_losses is theirs
    monkeypatch.setattr("yolox.models.YOLOXHead", Counted)
    lines = look(work, "loss_assign", "fast", steps=3)
    assert levels(lines, "losses", "gradients", "training") == ["ok"] * 3
    assert calls.count("kit") == 1 + 3 + 1  # one batch, three steps, the own losses
    assert calls.count("stock") > 3
    assert not torch.equal(weights[1], weights[3])


def test_the_difference_of_a_wrong_loss_is_found(work, monkeypatch, capsys):
    monkeypatch.setattr(hosts, "BOX_WEIGHT", 5.000001)
    monkeypatch.chdir(work)
    assert cli.main(["verify", "-f", "tiny.py", "--steps", "2", "--device", "cpu"]) == 2
    output = capsys.readouterr()
    for check in ("losses", "gradients", "training"):
        assert any(line.startswith("error") and line.split()[1] == check for line in output.out.splitlines())
    assert "3 errors found: losses, gradients, training" in output.err


def test_the_difference_of_a_wrong_gradient_is_found(work, monkeypatch):
    backward = targets.SplitOutputs.backward

    def wrong(ctx, boxes, obj, cls):
        return backward(ctx, boxes * (1 + 1e-6), obj, cls)

    monkeypatch.setattr(targets.SplitOutputs, "backward", staticmethod(wrong))
    lines = look(work)
    assert levels(lines, "losses", "gradients", "training") == ["ok", "error", "error"]
    assert "first off in step 1" in lines["training"].text


def test_a_difference_that_comes_late_is_found(work, monkeypatch):
    ours, calls = stage.LossStage.get_losses, []

    def later(self, *args, **kwargs):
        calls.append(1)
        total, *rest = ours(self, *args, **kwargs)
        return (total * (1 + 1e-6) if len(calls) > 3 else total, *rest)

    monkeypatch.setattr(stage.LossStage, "get_losses", later)
    lines = look(work, steps=4)
    assert levels(lines, "losses", "gradients", "training") == ["ok", "ok", "error"]
    assert "first off in step 3" in lines["training"].text


def test_made_batches_where_there_is_no_data(work, capsys):
    lines = look(work, "data_dir", "/nowhere/at/all", "num_classes", "1", steps=2)
    assert lines["data"].level == "warning" and "made batches" in lines["data"].text and lines["data"].remedy
    assert levels(lines, "losses", "gradients", "training", "own losses") == ["ok"] * 4
    assert "Traceback" not in capsys.readouterr().err


def test_without_an_experiment_it_takes_yolox_nano(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "1", "-b", "1", "--device", "cpu", "input_size", "64,96", "data_dir", "nowhere"]
    assert cli.main(["verify", *words]) == 0
    text = capsys.readouterr().out
    assert "yolox_nano" in text and "80 classes, 64x96 px, batches of 1" in text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["classes", "image", "json"])
def test_data_that_is_there_but_wrong_is_an_error(damage, tmp_path, digits):
    import shutil

    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "tiny.py").write_text(EXP.format(data=str(tmp_path / "data")))
    opts, words = [], {"classes": "10 categories", "image": "does not exist", "json": "readable JSON"}[damage]
    if damage == "classes":
        opts = ["num_classes", "4"]
    elif damage == "image":
        next((tmp_path / "data" / "train2017").iterdir()).unlink()
    else:
        (tmp_path / "data" / "annotations" / "instances_train2017.json").write_text("{")
    lines = look(tmp_path, *opts, steps=1)
    assert lines["data"].level == "error" and words in lines["data"].text
    assert levels(lines, "losses", "training") == ["ok", "ok"]


def with_loss(work, term, forward):
    """The experiment with a loss of its own."""
    name = "Mine" + str(abs(hash((forward, str(work)))))
    head, body = (work / "tiny.py").read_text().split("class Exp", 1)
    (work / "tiny.py").write_text(f"""{head}
import torch

@ylp.LOSSES.register_module()
class {name}(torch.nn.Module):
    term = {term!r}

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        return {forward}

class Exp{body}        self.loss_{term} = {name!r}
""")


# the term, the loss, level, words
OWN = {
    "a value": ("iou", "(pred - target).sum() * float('nan')", "error", "not finite: total_loss, iou_loss"),
    "a gradient": ("iou", "((pred - pred).sqrt()).sum()", "error", "not finite: the gradient of "),
    "nothing": ("obj", "((pred - target) * 0).sum()", "warning", "objectness learns nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OWN)
def test_an_own_loss_that_breaks_the_training(case, work):
    term, forward, level, words = OWN[case]
    with_loss(work, term, forward)
    lines = []
    for finding in verify(str(work / "tiny.py"), steps=1, device="cpu"):
        if finding.check == "own losses":
            lines.append(finding)
        else:
            assert finding.level == "ok"
    assert any(line.level == level and words in line.text for line in lines), lines


def test_a_model_without_the_losses_of_the_experiment(work):
    text = (work / "tiny.py").read_text()
    (work / "tiny.py").write_text(text + "    def get_model(self):\n        return BaseExp.get_model(self)\n")
    lines = look(work, steps=1)
    assert lines["own losses"].level == "error" and "get_model()" in lines["own losses"].text


def test_stock_that_cannot_be_had(work):
    ylp.apply(loss_iou="ciou")
    lines = look(work, steps=1)
    assert lines["verify"].level == "error" and "apply() is in force" in lines["verify"].text


def test_stock_that_diverges_is_not_the_kits_fault(work):
    lines = look(work, "basic_lr_per_img", "1e12", steps=6)
    assert lines["training"].level == "error" and "stock's own loss is not finite in step" in lines["training"].text


def noisy(work, size):
    """An experiment whose backward draws numbers outside of torch, as sums in any order on a GPU do."""
    text = (work / "tiny.py").read_text()
    (work / "tiny.py").write_text(f"""{text}
    def get_model(self):
        import random, torch
        model = super().get_model()
        def noise(gradient):
            drawn = torch.rand(gradient.shape, generator=torch.Generator().manual_seed(random.getrandbits(31)))
            return gradient * (1 + {size} * drawn)
        model.backbone.register_forward_hook(lambda module, args, outputs: [x.register_hook(noise) for x in outputs] and None)
        return model
""")


def test_where_stock_does_not_repeat_the_tolerance_is_said(work):
    noisy(work, 1e-6)
    lines = look(work, steps=1)
    assert lines["stock"].level == "warning" and "are not promised to repeat here" in lines["stock"].text
    for check in ("losses", "gradients", "training"):
        assert lines[check].level == "ok" and "up to 0.0001 allowed" in lines[check].text
    assert "difference 0 " not in lines["gradients"].text


def test_stock_that_does_not_repeat_at_all_proves_nothing(work):
    noisy(work, 0.5)
    lines = look(work, steps=1)
    assert lines["stock"].level == "error" and "nothing to compare with" in lines["stock"].text
    assert "training" not in lines


@pytest.mark.parametrize(
    "words,answer",
    [
        (["--steps", "0"], "--steps is at least 1"),
        (["-b", "0"], "-b is at least 1"),
        (["-f", "nowhere.py"], "no experiment file 'nowhere.py'"),
        (["-n", "yolox-ss"], "Did you mean 'yolox_s'"),
        (["-n", "yolox-nano", "max_epok", "3"], "Did you mean 'max_epoch'"),
    ],
)
def test_a_mistake_is_one_clear_message(words, answer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert answer in error and "Traceback" not in error
