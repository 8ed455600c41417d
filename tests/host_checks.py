"""What works on the YOLOX that is found first on the Python path: one line of JSON, check -> answer.

A script, as one process can have one `yolox` only:  PYTHONPATH=.hosts/NAME python tests/host_checks.py WORK DATA
"""

import contextlib
import io
import json
import os
import pickle
import runpy
import sys
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import EXP, assert_same, checkpoint, make_batch, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch.cli import main
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head import hosts
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.runs.record import AP_COLUMNS, read_metrics, read_run

BY_CLASS = hosts.has_config_classes()
CHECKS = {}

# The same experiment as a config class of pixeltable-yolox.
CONFIG = (
    EXP.replace("from yolox.exp.default.yolox_nano import Exp as BaseExp", "from yolox.config import YoloxNano")
    .replace("class Exp(ylp.LossExp, BaseExp)", "class Config(ylp.LossConfigMixin, YoloxNano)")
    .replace("self.seed = 3", 'self.seed = 3\n        self.name = "tiny"\n        self.output_dir = "YOLOX_outputs"')
)


def check(name):
    """Register a check: it raises, or returns the cell of the table ("yes" without one)."""

    def register(function):
        CHECKS[name] = function
        return function

    return register


def make_head(num_classes=3, use_l1=False):
    torch.manual_seed(0)
    head = hosts.head_class()(num_classes, width=0.25)
    head.initialize_biases(1e-2)
    head.use_l1 = use_l1
    return head.train()


def assert_equal_runs(stock, ours):
    for one, other in zip([*stock[0], *stock[1]], [*ours[0], *ours[1]], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(torch.as_tensor(one), torch.as_tensor(other)), (one, other)


def words(tool, name, epochs=2, **settings):
    """The command line of a tool in the host's own words, with overrides."""
    settings = {"max_epoch": epochs, **settings}
    if BY_CLASS:
        options = [word for key, value in settings.items() for word in ("-D", f"{key}={value}")]
        return [tool, "-c", "my_config:Config", "-n", name, "-b", "8", *options]
    options = [str(word) for pair in settings.items() for word in pair]
    return [tool, "-f", "tiny.py", "-expn", name, "-b", "8", *options]


def kit(tool, name, *flags, **settings):
    made = words(tool, name, **settings)
    return main([made[0], "--device", "cpu", *flags, *made[1:]])


def stock_model(exp):
    """From the host's own get_model, which patches nothing."""
    return next(cls for cls in type(exp).__mro__ if not issubclass(cls, ylp.LossExp)).get_model(exp)


def tiny():
    return load_exp(*((None, "my_config:Config") if BY_CLASS else ("tiny.py", None)))


def folder(name):
    return Path("YOLOX_outputs") / name


@check("recognised as")
def _():
    """By its code; the label assignment too, so that the kit's fast one takes its place."""
    assert hosts.assignment_rule(hosts.head_class()) is not None
    assert hosts.edited_modules(make_head()) == {}
    return hosts.describe()["name"]


@check("losses and gradients equal stock's")
def _():
    """All six outputs and every gradient, to the bit."""
    for batch, size, classes, boxes, use_l1 in ((2, 96, 3, 5, False), (3, 160, 1, 12, True), (1, 64, 80, 0, True)):
        head, inputs = make_head(classes, use_l1), make_batch(batch, size, size + 32, classes, boxes, seed=boxes)
        stock = run_head(head, inputs)
        with ylp.patched():
            assert stage_of(head) is not None
            assert_equal_runs(stock, run_head(head, inputs))
        ylp.patch_model(head)
        assert_equal_runs(stock, run_head(head, inputs))
        ylp.unpatch_model(head)
        assert_equal_runs(stock, run_head(head, inputs))


@check("ten steps end in stock's weights")
def _():
    def train(patch):
        exp = load_exp(name="yolox_nano")
        exp.num_classes = 3
        torch.manual_seed(0)
        model = stock_model(exp)
        assert stage_of(model) is None
        if patch:
            ylp.patch_model(model)
        optimizer = exp.get_optimizer(4)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for step in range(10):
            _, labels, _ = make_batch(2, 64, 64, boxes=4, seed=step, empty_every=0)
            images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(step)) * 255
            model.head.use_l1 = step >= 5
            optimizer.zero_grad()
            model(images, labels)["total_loss"].backward()
            optimizer.step()
        return model.state_dict()

    assert_same(train(False), train(True))


def of_fields():
    """A config class may be a dataclass, as YoloxConfig is; it is pickled for the workers that YOLOX spawns."""
    Path("fields.py").write_text(
        "import dataclasses\nfrom yolox.config import YoloxConfig\nimport yolox_loss_patch as ylp\n\n\n"
        "@dataclasses.dataclass\nclass Config(ylp.LossConfigMixin, YoloxConfig):\n"
        '    name: str = "fields"\n    width: float = 0.25\n    loss_iou: str = "ciou"\n'
    )
    config = pickle.loads(pickle.dumps(load_exp(name="fields:Config")))
    assert "loss_iou='ciou'" in repr(config)
    config.update({"loss_iou.type": "giou"})
    assert stage_of(config.get_model()).config == ylp.LossConfig(loss_iou="giou")
    config.deterministic, config.input_size = True, (64, 96)
    assert config.random_resize(None, 0, 0, False) == (64, 96)
    config.loss_iou = "ciuo"
    with pytest.raises(ylp.ConfigError, match="Did you mean 'ciou'"):
        config.validate()


@check("losses in the experiment")
def _():
    exp = tiny()
    assert type(exp).__mro__[1] is (ylp.LossConfigMixin if BY_CLASS else ylp.LossExp)
    exp.loss_iou = "giou"
    exp.loss_obj = dict(type="varifocal", alpha=0.5, target="hard")  # what a swapped module can have too
    model = exp.get_model()
    assert stage_of(model).config == ylp.LossConfig.from_exp(exp) != ylp.LossConfig()
    assert "giou" in repr(exp)
    if BY_CLASS:
        of_fields()
    return "config class" if BY_CLASS else "exp file"


@check("element-wise losses of every term")
def _():
    """Each changes its own term and leaves the others stock's."""
    head, inputs = make_head(use_l1=True), make_batch()
    stock = run_head(head, inputs)[0]
    for index, specs in enumerate(
        ({"loss_iou": "ciou"}, {"loss_obj": "focal"}, {"loss_cls": "focal"}, {"loss_l1": "smooth_l1"}), start=1
    ):
        ylp.patch_model(head, specs)
        ours = run_head(head, inputs)[0]
        ylp.unpatch_model(head)
        different = [place for place in range(1, 5) if not torch.equal(stock[place], ours[place])]
        assert different == [index], specs


@check("IoU targets, samplers, region losses, avg_factor")
def _():
    head, inputs = make_head(), make_batch()
    sampler = dict(type="RandomSampler", num=64)
    asked = [{"loss_obj": dict(type="bce", target="iou")}, {"loss_obj": dict(type="bce", sampler=sampler)},
             {"loss_obj": "dice"}, {"loss_iou": dict(type="iou", avg_factor="batch")}]  # fmt: skip
    stock, refused = run_head(head, inputs)[0], []
    for specs in asked:
        try:
            ylp.patch_model(head, specs)
        except ylp.ConfigError as error:
            refused.append(error)
            continue
        assert not torch.equal(stock[0], run_head(head, inputs)[0][0])
        ylp.unpatch_model(head)
    assert len(refused) in (0, len(asked))
    return "refused: its loss modules only are swapped" if refused else "yes"


@check("the kit's fast label assignment")
def _():
    head = make_head()
    ylp.patch_model(head, {"loss_assign": "fast"})
    with mock.patch.object(head, "get_assignments", wraps=head.get_assignments) as own:
        run_head(head, make_batch())
    return "the host's own" if own.called else "yes"


@check("strict overrides")
def _():
    """What the host drops or misreads is an error or is read right."""
    exp = tiny()

    def override(**values):
        if BY_CLASS:
            exp.update(values)
        else:
            exp.merge([word for pair in values.items() for word in pair])

    override(**{"loss_iou": "ciou", "loss_obj.type": "varifocal", "loss_obj.gamma": "1.5", "ema": "False"})
    assert exp.loss_obj == dict(type="varifocal", gamma=1.5) and exp.loss_iou == "ciou" and exp.ema is False
    for wrong, near in ({"los_iou": "ciou"}, "loss_iou"), ({"loss_iou": "ciuo"}, "ciou"), ({"ema": "ture"}, "true"):
        try:
            override(**wrong)
        except ylp.ConfigError as error:
            assert f"Did you mean {near!r}" in str(error)
        else:
            raise AssertionError(f"{wrong} was taken")
    return "-D key=value" if BY_CLASS else "key value"


@check("a mistake is an exit status and a message")
def _():
    if BY_CLASS:
        mistakes = [
            (["-c", "yolox_nan"], "Did you mean 'yolox_nano'"),
            (["-c", "my_confi:Config"], "There is no module 'my_confi'"),
            (["-c", "my_config:Confi"], "Did you mean 'Config'"),
            (["-c", "broken:Config"], "cannot be loaded: ZeroDivisionError"),
            (["-c", "my_config:Config", "-D", "loss_iou"], "KEY=VALUE"),
            ([], "-c module:Class"),
        ]
    else:
        mistakes = [
            (["-n", "yolox-nan"], "Did you mean 'yolox_nano'"),
            (["-f", "tinyy.py"], "no experiment file 'tinyy.py'"),
            (["-f", "broken.py"], "cannot be loaded: ZeroDivisionError"),
            ([], "an experiment file with -f"),
        ]
    Path("broken.py").write_text("1 / 0\n")
    for flags, message in mistakes:
        with contextlib.redirect_stderr(io.StringIO()) as text:
            assert main(["train", *flags]) == 2
        assert message in text.getvalue(), text.getvalue()
    if BY_CLASS:
        with contextlib.redirect_stderr(io.StringIO()) as text:
            assert main(["sweep", "-c", "my_config:Config", "--set", "loss_iou=iou,ciou"]) == 2
        assert "experiment files" in text.getvalue()


@check("trains on a CPU")
def _():
    assert kit("train", "straight", loss_iou="ciou") == 0
    assert read_run(folder("straight"))["status"] == "finished"
    assert read_run(folder("straight"))["resolved_losses"]["iou"]["type"] == "ciou"
    checkpoint(folder("straight"))


@check("resumes to the bit")
def _():
    from yolox_loss_patch.train.trainer import Trainer

    before_epoch = Trainer.before_epoch

    def stop(self):
        before_epoch(self)
        if self.epoch == 1:
            raise KeyboardInterrupt

    with mock.patch.object(Trainer, "before_epoch", stop):
        assert kit("train", "stopped", loss_iou="ciou") == 130
    assert kit("train", "stopped", "--resume", loss_iou="ciou") == 0
    assert_same(checkpoint(folder("straight"))["model"], checkpoint(folder("stopped"))["model"])


@check("evaluates on a CPU")
def _():
    from yolox_loss_patch.train.evaluate import evaluate

    found = []
    with mock.patch("yolox_loss_patch.train.evaluate.evaluate", lambda args: found.append(evaluate(args))):
        assert kit("eval", "straight", "--ckpt", str(folder("straight") / "latest_ckpt.pth")) == 0
    row = read_metrics(folder("straight"))[-1]
    assert {key: row[key] for key in AP_COLUMNS} == pytest.approx(found[0], abs=1e-12)


@check("checkpoints are the host's")
def _():
    weights = checkpoint(folder("straight"))["model"]
    exp = tiny()
    stock = stock_model(exp)
    stock.load_state_dict(weights, strict=True)
    model = exp.get_model()
    model.load_state_dict(stock.state_dict(), strict=True)


@check("cached images")
def _():
    # argparse has no public list of a parser's flags
    takes_kind = any(action.dest == "cache" and action.nargs for action in hosts.parser("train")._actions)
    assert kit("train", "cached", "--cache", *(["ram"] if takes_kind else []), epochs=1) == 0


@check("losses under the host's own train command")
def _():
    module = "yolox.cli" if BY_CLASS else "yolox.tools.train"
    made = words("train", "native", epochs=1, loss_iou="ciou")
    with mock.patch.object(sys, "argv", [module, *made[0 if BY_CLASS else 1 :]]), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    run = read_run(folder("native"))
    assert run["status"] == "finished" and run["resolved_losses"]["iou"]["type"] == "ciou"
    return f"python -m {module}{' train' if BY_CLASS else ''}"


def run_checks(work, data):
    """Check -> "yes" or what it returned; a failure starts with "no"."""
    os.chdir(work)
    (Path("my_config.py") if BY_CLASS else Path("tiny.py")).write_text((CONFIG if BY_CLASS else EXP).format(data=data))
    results = {}
    for name, function in CHECKS.items():
        try:
            results[name] = function() or "yes"
        except BaseException as error:
            traceback.print_exc()
            results[name] = f"no: {type(error).__name__}: {error}"
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, "")
    results = run_checks(*sys.argv[1:])
    print("\n" + json.dumps(results))
