"""Experiment files: the mix-in, strict overrides, loading."""

import argparse
import random

import numpy as np
import pytest
import torch
from loguru import logger
from yolox.exp import Exp as BaseExp
from yolox.exp.default.yolox_nano import Exp as NanoExp

import yolox_loss_patch as ylp
from yolox_loss_patch.exp.code import user_code
from yolox_loss_patch.exp.loading import adapt, load_exp
from yolox_loss_patch.exp.settings import check_settings
from yolox_loss_patch.head.patch import stage_of


class Exp(ylp.LossExp, NanoExp):
    def __init__(self):
        super().__init__()
        self.num_classes = 3


def test_losses_are_settings_that_yolox_prints():
    exp = Exp()
    assert {key: vars(exp)[key] for key in ("loss_obj", "loss_cls", "loss_iou", "loss_l1")} == {
        "loss_obj": "bce",
        "loss_cls": "bce",
        "loss_iou": "iou",
        "loss_l1": "l1",
    }
    assert "loss_iou" in repr(exp)


def test_losses_may_stand_on_the_class():
    class Swapped(ylp.LossExp, NanoExp):
        loss_iou = "giou"

    assert vars(Swapped())["loss_iou"] == "giou"


@pytest.mark.parametrize("base", [BaseExp, NanoExp])
def test_the_model_is_patched_where_it_is_built(base):
    """Also where the base's get_model does not call super, as YOLOX-nano's."""

    class Own(ylp.LossExp, base):
        def __init__(self):
            super().__init__()
            self.depth, self.width = 0.33, 0.25
            self.loss_obj = "varifocal"

    exp = Own()
    model = exp.get_model()
    assert stage_of(model).config == ylp.LossConfig(loss_obj="varifocal")
    assert exp.get_model() is model
    exp.loss_obj = "focal"
    assert stage_of(exp.get_model()).config == ylp.LossConfig(loss_obj="focal")


def test_adapt_makes_an_experiment_of_yolox_one_of_the_kits():
    exp = NanoExp()
    adapt(exp)
    exp.merge(["loss_iou", "ciou", "max_epoch", "7"])
    assert exp.max_epoch == 7 and isinstance(exp, NanoExp)
    assert stage_of(exp.get_model()).config == ylp.LossConfig(loss_iou="ciou")


# overrides, and the attribute they end in
MERGES = [
    (["max_epoch", "50"], "max_epoch", 50),
    (["ema", "False"], "ema", False),
    (["ema", "off"], "ema", False),
    (["enable_mixup", "true"], "enable_mixup", True),
    (["warmup_lr", "0.001"], "warmup_lr", 0.001),  # an int by default, yet a number
    (["degrees", "3"], "degrees", 3.0),
    (["input_size", "(256, 320)"], "input_size", (256, 320)),
    (["input_size", "256,320"], "input_size", (256, 320)),
    (["random_size", "(7,9)"], "random_size", (7, 9)),  # YOLOX reads it without setting it
    (["seed", "3"], "seed", 3),
    (["data_dir", "some/where"], "data_dir", "some/where"),
    (["data_dir", "None"], "data_dir", None),
    (["exp_name", "7"], "exp_name", "7"),
    (["loss_iou", "ciou"], "loss_iou", "ciou"),
    (["loss_bbox", "ciou"], "loss_iou", "ciou"),
    (["loss_obj.type", "varifocal", "loss_obj.gamma", "1.5"], "loss_obj", {"type": "varifocal", "gamma": 1.5}),
    (["loss_obj.gamma", "1.5", "loss_obj.type", "focal"], "loss_obj", {"type": "focal", "gamma": 1.5}),
    (["loss_obj", "focal", "loss_obj.gamma", "1"], "loss_obj", {"type": "focal", "gamma": 1}),
    (["loss_obj.gamma", "1", "loss_obj", "focal"], "loss_obj", {"type": "focal", "gamma": 1}),  # not lost
    (["loss_obj.target", "iou"], "loss_obj", {"type": "bce", "target": "iou"}),
    (["loss_iou", "{'type': 'alpha_iou', 'alpha': 2}"], "loss_iou", {"type": "alpha_iou", "alpha": 2}),
    (["loss_iou.type", "ciou", "loss_iou.gate", "true"], "loss_iou", {"type": "ciou", "gate": True}),
    (["wandb-project", "mine"], "max_epoch", 300),  # read by the logger, not by the experiment
]


@pytest.mark.parametrize("words,key,value", MERGES)
def test_merge(words, key, value):
    exp = Exp()
    exp.merge(words)
    got = getattr(exp, key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "words,told",
    [
        (
            ["loss_obj.type", "varifocal"],
            "keeps its alpha=0.3, loss_weight=2.0. For the defaults of varifocal write loss_obj ",
        ),
        (["loss_obj.type", "varifocal", "loss_obj.alpha", "0.75"], "keeps its loss_weight=2.0."),
        (["loss_obj.type", "varifocal", "loss_obj.alpha", "0.75", "loss_obj.loss_weight", "1"], None),
        (["loss_obj", "varifocal"], None),
        (["loss_obj.alpha", "0.5"], None),
        (["loss_iou.type", "ciou"], None),
    ],
)
def test_a_loss_that_inherits_knobs_says_so(words, told):
    exp, lines = Exp(), []
    exp.loss_obj = dict(type="focal", alpha=0.3, loss_weight=2.0)
    sink = logger.add(lines.append, level="WARNING")
    exp.merge(words)
    logger.remove(sink)
    assert len(lines) == (told is not None) and (told is None or told in lines[0])


@pytest.mark.parametrize("name", ["loss_bbox", "loss_iou"])
def test_a_knob_is_of_the_loss_that_the_experiment_has_by_its_other_name(name):
    exp = Exp()
    exp.loss_bbox = dict(type="alpha_iou", alpha=2)
    exp.merge([f"{name}.alpha", "4"])
    assert ylp.LossConfig.from_exp(exp) == ylp.LossConfig(loss_iou=dict(type="alpha_iou", alpha=4))


def test_numbers_of_numpy_and_paths_are_values_too(tmp_path):
    exp = Exp()
    exp.max_epoch, exp.data_dir = np.int64(9), tmp_path
    exp.loss_obj = dict(type="focal", alpha=np.float32(0.5))
    exp.loss_cls = dict(type="bce", class_weight=np.array([1.0, 2.0, 3.0]))
    check_settings(exp, argparse.Namespace(batch_size=2))
    want = ylp.LossConfig(loss_obj=dict(type="focal", alpha=0.5), loss_cls=dict(type="bce", class_weight=[1, 2, 3]))
    assert ylp.LossConfig.from_exp(exp) == want
    exp.merge(["max_epoch", "7", "data_dir", str(tmp_path / "x")])
    assert (exp.max_epoch, exp.data_dir) == (7, tmp_path / "x")


# a key of an experiment that nobody would read, and the nearest of those that are read
STRANGERS = [
    ("loss_objj", "'loss_obj'"),
    ("loss_object", "'loss_obj'"),
    ("loss_box", "'loss_bbox'"),
    ("Loss_Obj", "'loss_obj'"),
    ("los_iou", "'loss_iou'"),
    ("loss_weigths", "'loss_weights'"),
    ("loss_of_mine", "begin with loss_"),
]


@pytest.mark.parametrize("name,answer", STRANGERS)
@pytest.mark.parametrize("place", ["instance", "class"])
def test_a_mistyped_key_of_an_experiment_is_answered(name, answer, place):
    exp = Exp() if place == "instance" else type("Sub", (Exp,), {name: "ciou"})()
    if place == "instance":
        setattr(exp, name, "ciou")
    with pytest.raises(ylp.ConfigError, match=f"sets {name}, which is no setting.*{answer}"):
        ylp.LossConfig.from_exp(exp)
    with pytest.raises(ylp.ConfigError, match=name):
        exp.get_model()


def test_what_a_fork_calls_loss_and_what_is_not_a_loss_stays():
    class ForkExp(BaseExp):
        def __init__(self):
            super().__init__()
            self.loss_type = "giou"

    ForkExp.__module__ = "yolox.exp.fork"

    class UserExp(ylp.LossExp, ForkExp):
        pass

    exp = UserExp()
    exp.loss_type, exp.class_weights, exp.glossary = "iou", [1.0], {}
    assert ylp.LossConfig.from_exp(exp) == ylp.LossConfig()


CODE = """
import torch
import yolox_loss_patch as ylp
from yolox.exp import Exp as Base

def scale(x):
    {comment}
    return {factor} * x

class Exp(ylp.LossExp, Base):
    def __init__(self):
        super().__init__()
        self.depth = {factor}

    def preprocess(self, inputs, targets, tsize):
        {comment}
        return super().preprocess({factor} * inputs, targets, tsize)
"""


def test_code_is_told_apart_by_what_it_does(tmp_path):
    def code(name, **parts):
        (tmp_path / name).write_text(CODE.format(**parts))
        return user_code(load_exp(str(tmp_path / name)))

    one = code("one.py", factor="1", comment="# plain")
    assert set(one) == {"preprocess()", "scale"}
    assert code("two.py", factor="1", comment="# other words") == one
    other = code("three.py", factor="2", comment="# plain")
    assert other["preprocess()"] != one["preprocess()"] and other["scale"] != one["scale"]
    assert user_code(load_exp(None, "yolox-nano")) == {}


def test_a_mistyped_setting_of_yolox_is_refused(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "from yolox.exp import Exp as B\nclass Exp(B):\n    def __init__(self):\n        super().__init__()\n"
        "        self.random_size = (3, 4)\n        self.my_own = 1\n"
    )
    load_exp(str(path))
    path.write_text(path.read_text() + "        self.max_epochs = 5\n")
    with pytest.raises(ylp.ConfigError, match=r"self\.max_epochs, which nothing reads\. Did you mean 'max_epoch'"):
        load_exp(str(path))


# overrides, and words of the answer
WRONG_MERGES = [
    (["max_epoch"], ["pairs"]),
    (["max_epochs", "5"], ["'max_epochs'", "Did you mean 'max_epoch'"]),
    (["get_model", "5"], ["'get_model'"]),
    (["loss_objj", "focal"], ["Did you mean 'loss_obj'"]),
    (["max_epoch", "many"], ["max_epoch", "a number", "'many'"]),
    (["ema", "Flase"], ["ema", "True or False", "'Flase'", "Did you mean 'false'"]),
    (["ema", "2"], ["True or False"]),
    (["input_size", "256"], ["2 values"]),
    (["input_size", "big,small"], ["2 values"]),
    (["loss_iou", "cuio"], ["'cuio'", "Choose one of"]),
    (["loss_obj.gamma", "2"], ["'bce' has no knob 'gamma'", "focal"]),
    (["loss_obj.type", "focal", "loss_obj.gamma", "-2"], ["at least 0"]),
    (["loss_obj.tpye", "focal"], ["'tpye'"]),
]


@pytest.mark.parametrize("words,answers", WRONG_MERGES)
def test_a_wrong_override_is_answered_and_changes_nothing(words, answers):
    exp = Exp()
    before = dict(vars(exp))
    with pytest.raises(ylp.ConfigError) as error:
        exp.merge(["print_interval", "77", *words])
    for answer in answers:
        assert answer in str(error.value)
    assert vars(exp) == before


@pytest.mark.parametrize("size", [(416, 416), (256, 320)])
def test_random_resize_draws_what_yolox_draws(size, monkeypatch):
    """The same sizes from the same random stream, without a CUDA tensor."""
    ours, stock = Exp(), NanoExp()
    ours.input_size = stock.input_size = size
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # so that YOLOX's own runs here
    for seed in range(5):
        random.seed(seed)
        expected = stock.random_resize(None, 0, 0, False)
        random.seed(seed)
        assert ours.random_resize(None, 0, 0, False) == expected


def test_a_random_resize_of_the_users_own_is_kept():
    class Fixed(NanoExp):
        def random_resize(self, data_loader, epoch, rank, is_distributed):
            return 64, 96

    class Own(ylp.LossExp, Fixed):
        pass

    assert Own().random_resize(None, 0, 0, False) == (64, 96)


def test_a_trainer_of_the_users_own_is_kept():
    class Custom(NanoExp):
        def get_trainer(self, args):
            return "mine"

    class Own(ylp.LossExp, Custom):
        pass

    assert Own().get_trainer(None) == "mine"


def test_a_setting_that_cannot_be_is_no_success_under_yoloxs_own_tool():
    """Its main swallows every Exception, but not SystemExit."""
    exp = Exp()
    exp.max_epoch = 0
    with pytest.raises(SystemExit) as error:
        exp.get_trainer(argparse.Namespace(batch_size=1))
    assert error.value.code == 1


def test_load_exp_by_file_keeps_files_of_one_name_apart(tmp_path):
    text = (
        "from yolox.exp import Exp as B\nclass Exp(B):\n    def __init__(self):\n        super().__init__()\n        "
    )
    for folder, epochs in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.py").write_text(f"{text}self.max_epoch = {epochs}\n")
    one, two = load_exp(str(tmp_path / "a" / "my.py")), load_exp(str(tmp_path / "b" / "my.py"))
    assert (one.max_epoch, two.max_epoch) == (3, 5)
    assert one.exp_name == "my"  # and not yolox_base, which every unnamed file would share
    assert isinstance(one, ylp.LossExp)


NAMES = [("# no exp_name", "my"), ("self.exp_name = 'ours'", "ours"), ("setattr(self, 'exp_name', 'ours')", "ours")]


@pytest.mark.parametrize("line,name", NAMES)
def test_a_file_that_does_not_name_its_run_is_its_name(tmp_path, line, name):
    """Told from the code, in the encoding of the file."""
    text = (
        "# coding: latin-1\n# Gr\u00fc\u00dfe\nfrom yolox.exp import Exp as B\nclass Exp(B):\n    def __init__(self):\n"
    )
    text += f"        super().__init__()\n        {line}\n"
    (tmp_path / "my.py").write_bytes(text.encode("latin-1"))
    assert load_exp(str(tmp_path / "my.py")).exp_name == name


def test_load_exp_by_name():
    assert load_exp(None, "yolox-s").depth == 0.33
    assert load_exp(None, "yolox-nano").exp_name == "yolox_nano"


# text of the file, or None for no file; words of the answer
BROKEN = [
    (None, ["There is no experiment file"]),
    ("x = 1", ["no class named 'Exp'"]),
    ("import nothing_like_this", ["ModuleNotFoundError", "line 1"]),
    ("class Exp:\n    def __init__(self):\n        1 / 0\n", ["ZeroDivisionError", "line 3"]),
    (
        "import yolox_loss_patch as y\nfrom yolox.exp import Exp as B\n"
        "class Exp(y.LossExp, B):\n    def __init__(self):\n        super().__init__()\n        self.loss_iou = 'cious'\n",
        ["Did you mean 'ciou'"],
    ),
]


@pytest.mark.parametrize("text,answers", BROKEN)
def test_a_broken_file_is_answered_with_its_own_mistake(tmp_path, text, answers):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ylp.ConfigError) as error:
        load_exp(str(path))
    for answer in answers:
        assert answer in str(error.value)


def test_an_unknown_model_name_is_answered():
    with pytest.raises(ylp.ConfigError, match="Did you mean 'yolox_s'"):
        load_exp(None, "yolox-ss")
