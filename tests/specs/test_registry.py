"""Losses of a user's own, and what the registry tells."""

import copy

import pytest
import torch
from conftest import make_batch, make_head, run_head

import yolox_loss_patch as ylp
from yolox_loss_patch import cli
from yolox_loss_patch.specs.registry import LOSSES


def test_every_name_can_be_built_and_shows_its_knobs():
    for term, names in ylp.available_losses().items():
        assert len(set(names)) == len(names) > 0
        for name in names:
            loss = ylp.build_loss(term, name)
            row = LOSSES.get(term, name)
            assert (name if row.alias is None else row.alias.of) in repr(loss)
            assert LOSSES.get(term, name).formula and LOSSES.get(term, name).source


def test_a_loss_of_ones_own():
    @ylp.LOSSES.register_module()
    class HuberBox(torch.nn.Module):
        """Huber on the corners."""

        term = "iou"

        def __init__(self, delta=1.0, loss_weight=1.0):
            super().__init__()
            self.delta, self.loss_weight = delta, loss_weight

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            loss = torch.nn.functional.huber_loss(pred, target, reduction="sum", delta=self.delta)
            return self.loss_weight * loss / avg_factor

    assert "HuberBox" in ylp.available_losses()["iou"]
    assert "HuberBox" not in ylp.available_losses()["obj"]
    head, inputs = make_head(), make_batch()
    with ylp.patched(loss_iou="HuberBox"):
        one = run_head(head, inputs)[0][1]
    with ylp.patched(loss_iou=dict(type="HuberBox", loss_weight=3.0)):
        three = run_head(head, inputs)[0][1]
    assert float(three) == pytest.approx(3 * float(one)) and float(one) > 0
    with pytest.raises(ValueError, match="Did you mean 'delta'"):
        ylp.build_loss("iou", dict(type="HuberBox", dleta=1))
    with pytest.raises(ValueError, match="takes no 'reduction'"):
        ylp.build_loss("iou", dict(type="HuberBox", reduction="sum"))


def test_a_loss_of_ones_own_that_takes_no_weight_is_weighed_by_the_kit(capsys):
    @ylp.register_loss("l1", "plain")
    class Plain(torch.nn.Module):
        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            loss = (pred - target).abs()
            return loss if reduction_override == "none" else loss.sum() / (avg_factor or len(loss))

    one, three = torch.zeros(2, 4), torch.ones(2, 4)
    loss = ylp.build_loss("l1", dict(type="plain", loss_weight=3.0))
    assert float(loss(one, three)) == 12 and loss(one, three, reduction_override="none").tolist() == [[3.0] * 4] * 2
    assert copy.deepcopy(loss)(one, three) == 12
    with pytest.raises(ValueError, match="takes no 'reduction', so it is 'mean'"):  # before a training is started
        ylp.LossConfig(loss_l1=dict(type="plain", reduction="sum"))
    assert cli.main(["list", "plain"]) == 0
    text = capsys.readouterr().out
    assert "loss_weight" in text and "reduction" not in text and "Base class" not in text


def test_register_loss_names_the_term_and_a_name_is_taken_once():
    @ylp.register_loss("obj", "mine")
    class Mine(torch.nn.Module):
        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            return pred.sum() * 0

    assert ylp.available_losses()["obj"][-1] == "mine"

    class Other(Mine):
        pass

    for name in ("mine", "focal", "FocalLoss"):
        with pytest.raises(ValueError, match="is taken"):
            ylp.register_loss("obj", name)(Other)


def test_a_class_defined_anew_takes_its_own_place(tmp_path):
    """An experiment file is read twice in a process: by the kit and by YOLOX, by a notebook cell run again."""
    from yolox.exp import get_exp

    from yolox_loss_patch.exp.loading import load_exp

    text = (
        "import torch, yolox_loss_patch as ylp\n"
        "from yolox.exp.default.yolox_nano import Exp as Base\n"
        "@ylp.register_loss('l1', 'anew')\n"
        "class Anew(torch.nn.Module):\n"
        "    def __init__(self, scale=1.0):\n"
        "        super().__init__()\n"
        "class Exp(ylp.LossExp, Base):\n"
        "    pass\n"
    )
    one, other = tmp_path / "read_twice.py", tmp_path / "another.py"
    for path in (one, other):
        path.write_text(text)
    load_exp(str(one))
    one.write_text(text.replace("scale", "factor"))
    load_exp(str(one))
    get_exp(str(one))
    ylp.build_loss("l1", dict(type="anew", factor=2.0))
    with pytest.raises(ylp.ConfigError, match="'anew' is taken"):
        load_exp(str(other))


def test_what_is_no_class_or_name_is_not_registered():
    class Plain(torch.nn.Module):
        pass

    with pytest.raises(ylp.ConfigError, match="with its parentheses"):
        ylp.LOSSES.register_module(Plain)  # @ylp.LOSSES.register_module
    with pytest.raises(ylp.ConfigError, match="with a name; got 5"):
        ylp.LOSSES.register_module(name=5)
    with pytest.raises(ylp.ConfigError, match="as a class"):
        ylp.register_loss("obj", "function")(lambda pred, label: pred)
    assert "Plain" not in ylp.available_losses()["obj"] and "function" not in ylp.available_losses()["obj"]


def test_what_the_constructor_of_a_users_class_asks_for_is_told():
    @ylp.register_loss("iou", "picky")
    class Picky(torch.nn.Module):
        def __init__(self, scale, offset=0):
            super().__init__()
            if scale <= 0:
                raise ValueError("scale is above 0")

    with pytest.raises(ylp.ConfigError, match="loss_iou: 'picky' needs 'scale'"):
        ylp.LossConfig(loss_iou="picky")
    with pytest.raises(ylp.ConfigError, match=r"loss_iou: 'picky' refuses its knobs, .*-1.*: scale is above 0"):
        ylp.build_loss("iou", dict(type="picky", scale=-1))
    ylp.build_loss("iou", dict(type="picky", scale=1))


# term, spec, words of the answer, a word that is not in it
WRONG = [
    ("obj", dict(type=["focal"]), "there is no loss ['focal']", "unhashable"),
    ("iou", dict(type="wiou", version="3"), "one of 1, 2, 3; got '3'", "mean"),
    ("obj", dict(type="bce", reduction=["mean"]), "mean, sum, none; got ['mean']", "Did"),
    (
        "cls",
        dict(type="CrossEntropyLoss", use_sigmoid=True, ignore_index=255),
        "none is to be ignored; got 255",
        "sigmoids",
    ),
    ("cls", dict(type="CrossEntropyLoss", use_sigmoid=True, avg_non_ignore=True), "avg_non_ignore=False", "sigmoids"),
    ("cls", "CrossEntropyLoss", "write use_sigmoid=True, which is not the default there", "None"),
    ("iou", "SIoULoss", "write neg_gamma=True", "None"),
    ("iou", dict(type="IoULoss", linear="yes"), "linear is True or False; got 'yes'", "mode"),
]


@pytest.mark.parametrize("term,spec,words,absent", WRONG, ids=str)
def test_a_wrong_spec_is_answered(term, spec, words, absent):
    with pytest.raises(ylp.ConfigError) as error:
        ylp.build_loss(term, spec)
    assert words in str(error.value) and f"loss_{term}" in str(error.value)
    assert absent not in str(error.value)


def test_mmdetection_defaults_that_are_written_out_are_accepted():
    theirs = dict(
        type="CrossEntropyLoss", use_sigmoid=True, ignore_index=None, avg_non_ignore=False, class_weight=[1.0, 2.0]
    )
    assert ylp.LossConfig(loss_cls=theirs) == ylp.LossConfig(loss_cls=dict(type="bce", pos_weight=[1.0, 2.0]))


def test_a_constructor_that_swallows_knobs_is_refused():
    class Greedy(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()

    with pytest.raises(ValueError, match="name its parameters"):
        ylp.register_loss("obj", "greedy")(Greedy)


def test_a_loss_of_ones_own_has_the_five_steps_and_is_checked_by_name():
    from yolox_loss_patch.doctor.conformance import check_loss

    seen = {}

    @ylp.register_loss("iou", "corner")
    class Corner(torch.nn.Module):
        """L1 of the sides and centres, in sides of the image."""

        wants = ("image_size",)

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, image_size=None):
            seen.update(image_size=tuple(image_size), avg_factor=avg_factor)
            loss = torch.nn.functional.smooth_l1_loss(
                pred.float() if pred.dtype != torch.float64 else pred, target.to(torch.promote_types(pred.dtype, torch.float32)),
                reduction="none",
            ).sum(1) / max(image_size)  # fmt: skip
            loss = loss if weight is None else loss * weight
            if reduction_override == "none":
                return loss
            return loss.sum() / (1 if reduction_override == "sum" else avg_factor or max(len(loss), 1))

    check_loss("iou", "corner", pulls=True)
    with ylp.patched(loss_iou=dict(type="corner", avg_factor="batch")):
        run_head(make_head(), make_batch(batch=3, height=96, width=160))
    assert seen == {"image_size": (96, 160), "avg_factor": 3}


def test_a_users_loss_takes_part_in_sums_and_schedules():
    @ylp.register_loss("obj", "squared")
    class Squared(torch.nn.Module):
        def __init__(self, power=2):
            super().__init__()
            self.power = power

        def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
            loss = (pred.float().sigmoid() - target).abs() ** self.power
            loss = loss if weight is None else loss * weight
            return loss if reduction_override == "none" else loss.sum() / (avg_factor or max(loss.numel(), 1))

    @ylp.register_loss("obj", "takes_weight")
    class TakesWeight(Squared):
        def __init__(self, loss_weight=1.0):
            super().__init__()
            self.loss_weight = loss_weight

        def forward(self, *args, **kwargs):
            return self.loss_weight * super().forward(*args, **kwargs)

    head, inputs = make_head(), make_batch()

    def obj(spec, epoch=None):
        ylp.patch_model(head, {"loss_obj": spec})
        if epoch is not None:
            ylp.set_epoch(head, epoch)
        value = float(run_head(head, inputs)[0][2])
        ylp.unpatch_model(head)
        return value

    bce, alone = obj("bce"), obj("squared(power=3)")
    assert obj("bce+0.5*squared(power=3)") == pytest.approx(bce + 0.5 * alone, rel=1e-6)
    plain = obj("squared")
    for name in ("squared", "takes_weight"):
        scheduled = [dict(type="bce", loss_weight={1: 1, 3: 0}), dict(type=name, loss_weight={1: 0, 3: 4})]
        assert obj(scheduled, epoch=2) == pytest.approx(bce / 2 + 2 * plain, rel=1e-6)
        with pytest.raises(ylp.ConfigError, match="does not tell the epoch"):
            obj(scheduled)
        ylp.unpatch_model(head)
    config = ylp.LossConfig(loss_obj="bce+0.5*squared(power=3)")
    assert config == ylp.LossConfig(loss_obj=["bce", dict(type="squared", power=3, loss_weight=0.5)])
    assert "loss_obj=bce+0.5*squared(power=3)" in str(config)


def test_a_users_loss_may_ask_for_facts_by_name():
    from yolox_loss_patch.losses.terms import FACTS

    seen = {}
    for term in ("obj", "cls", "iou"):

        @ylp.register_loss(term, f"curious_{term}")
        class Curious(torch.nn.Module):
            wants = tuple(FACTS)
            place = term

            def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **facts):
                seen[self.place] = (len(pred), facts)
                return pred.float().square().sum() / avg_factor

    head = make_head()
    ylp.patch_model(head, {f"loss_{term}": f"curious_{term}" for term in ("obj", "cls", "iou")})
    run_head(head, make_batch(batch=3, height=96, width=128, boxes=4, empty_every=0))
    anchors = 12 * 16 + 6 * 8 + 3 * 4
    for term, (rows, facts) in seen.items():
        assert set(facts) == set(FACTS) and facts["images"] == 3 and tuple(facts["image_size"]) == (96, 128)
        assert all(facts[name].shape == (rows,) for name in ("ious", "image_indices", "strides"))
        assert set(facts["strides"].tolist()) <= {8.0, 16.0, 32.0}
        if term == "obj":
            assert rows == 3 * anchors
            assert facts["image_indices"].tolist() == [image for image in range(3) for _ in range(anchors)]
            assert facts["strides"][:192].unique().tolist() == [8.0]
    foreground = seen["obj"][1]["ious"].nonzero().squeeze(1)
    for name in ("ious", "image_indices", "strides"):
        matched = seen["cls"][1]["ious"] > 0
        torch.testing.assert_close(seen["obj"][1][name][foreground], seen["cls"][1][name][matched])
    with pytest.raises(ylp.ConfigError, match=r"knows no fact 'iouss'.*Did you mean 'ious'"):

        @ylp.register_loss("obj", "wrong")
        class Wrong(torch.nn.Module):
            wants = ("iouss",)


def test_a_constructor_with_a_word_of_the_loss_stage_is_refused():
    class Clash(torch.nn.Module):
        def __init__(self, target=1):
            super().__init__()

    with pytest.raises(ValueError, match="'target' is the loss stage's"):
        ylp.register_loss("obj", "clash")(Clash)


def test_list_and_plot_know_the_losses_of_an_experiment_file(tmp_path, capsys):
    from yolox_loss_patch import cli

    (tmp_path / "mine.py").write_text(
        "import torch, yolox_loss_patch as ylp\n"
        "from yolox.exp.default.yolox_nano import Exp as Base\n"
        "@ylp.register_loss('l1', 'cubic')\n"
        "class Cubic(torch.nn.Module):\n"
        "    '''The cube.'''\n"
        "    def __init__(self, scale, odd='no'):\n"
        "        super().__init__()\n"
        "    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):\n"
        "        return (pred - target).abs() ** 3\n"
        "class Exp(ylp.LossExp, Base):\n"
        "    pass\n"
    )
    assert cli.main(["list", "cubic", "-f", str(tmp_path / "mine.py")]) == 0
    told = capsys.readouterr().out
    assert "The cube." in told and "[]" not in told
    assert "scale = None: no default, has to be given" in told and "odd = 'no': what the class allows" in told
    LOSSES.rows["l1"].pop("cubic")
    words = [
        "plot",
        "{'type': 'cubic', 'scale': 1}",
        "l1",
        "-f",
        str(tmp_path / "mine.py"),
        "--out",
        str(tmp_path / "a.svg"),
    ]
    assert cli.main(words) == 0 and (tmp_path / "a.svg").is_file()
