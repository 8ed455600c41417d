"""Which runs can be compared, what makes them differ, and what is a group."""

import json
import os
import shutil
import socket

import pytest
from made_runs import edit, make_data, make_run

from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.differences import training_sizes
from yolox_loss_patch.runs.process import birth
from yolox_loss_patch.runs.selection import Run, differing, facts, group, read, select, surroundings


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Stock and two swaps with two seeds each, beside a failed run, one cut off, and a folder that is no run."""
    folder = tmp_path_factory.mktemp("work") / "YOLOX_outputs"
    data = make_data(folder.parent / "data", images=3)
    swaps = {"stock": {}, "ciou": {"loss_iou": "ciou"}, "focal": {"loss_obj": {"type": "focal", "alpha": 0.75}}}
    for name, losses in swaps.items():
        for seed in (0, 1):
            make_run(folder / f"{name}-seed{seed}", data, seed=seed, losses=losses)
    make_run(folder / "stock-seed7", data, seed=7, status="failed")
    make_run(folder / "stock-seed8", data, seed=8, status="interrupted", epochs=2)
    (folder / "stock-sweep").mkdir()
    return folder


def names(runs):
    return [run.name for run in runs]


def test_folders_globs_and_names_find_runs(outputs, monkeypatch):
    monkeypatch.chdir(outputs.parent)
    assert names(select([str(outputs / "ciou-seed0"), "YOLOX_outputs/focal-seed1"]).runs) == [
        "ciou-seed0",
        "focal-seed1",
    ]
    assert names(select(["ciou-seed0", "focal-*"]).runs) == ["ciou-seed0", "focal-seed0", "focal-seed1"]
    assert len(select(["YOLOX_outputs/*", "ciou-seed0"]).runs) == 6  # once each


def test_what_failed_or_is_not_finished_is_named_and_left_out(outputs):
    selection = select([str(outputs / "stock-*")])
    assert names(selection.runs) == ["stock-seed0", "stock-seed1"]
    text = "\n".join(selection.left_out)
    assert "stock-seed7: failed after epoch 4 of 4 (RunError: the loss is not finite)" in text
    assert "stock-seed8: interrupted after epoch 2 of 2; --resume" in text
    assert "stock-sweep" in text and "no run" in text


@pytest.mark.parametrize(
    "word,said",
    [
        ("gone", "There is no folder 'gone'"),
        ("gone-*", "No folder fits 'gone-*'"),
        ("stock-sweep", "is no run: it has neither"),
        (".", "is no run but holds some: ciou-seed0, "),
    ],
)
def test_a_word_that_is_no_run_is_answered(outputs, monkeypatch, word, said):
    monkeypatch.chdir(outputs)
    with pytest.raises(RunError, match=said.replace("*", r"\*")):
        select(["stock-seed0", word])


def test_the_runs_that_there_are_are_named_once(outputs, monkeypatch):
    monkeypatch.chdir(outputs.parent)
    (outputs / "ciou-seed0" / "train_log.txt").touch()
    with pytest.raises(RunError, match=r"There is no folder 'gone'.*holds: ciou-seed0, ciou-seed1, focal-seed0"):
        select(["gone"])


def test_a_run_that_was_killed_is_told_from_one_that_is_running(outputs, tmp_path):
    shutil.copytree(outputs / "stock-seed0", tmp_path / "run")
    edit(tmp_path / "run", status="running", machine=socket.gethostname(), pid=os.getpid(), pid_born=birth(os.getpid()))
    assert select([str(tmp_path / "run")]).left_out == ["run: running after epoch 4 of 4"]
    for change in ({"pid_born": "before the last boot"}, {"pid": 2**22 + 1}):
        edit(tmp_path / "run", **change)
        if birth(os.getpid()) is not None or "pid" in change:
            assert select([str(tmp_path / "run")]).left_out == [
                "run: killed after epoch 4 of 4; --resume would finish it"
            ]


@pytest.mark.parametrize("text", ['{"status": "runn', '["a list"]', '{"status": "finished"}', ""])
def test_a_half_written_record_is_said_to_be_one(outputs, tmp_path, text):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"cut.run\.json"):
        select([str(tmp_path / "cut")])
    selection = select([str(outputs / "ciou-seed0"), str(tmp_path / "c*")])
    assert "run.json" in selection.left_out[0] and names(selection.runs) == ["ciou-seed0"]


def test_two_folders_of_one_name_are_refused(outputs, tmp_path):
    make_run(tmp_path / "ciou-seed0", json.loads((outputs / "ciou-seed0" / "run.json").read_text())["data"]["val"])
    with pytest.raises(RunError, match="called ciou-seed0"):
        select([str(outputs / "ciou-seed0"), str(tmp_path / "ciou-seed0")])


def test_runs_that_differ_in_losses_and_seed_only_do_not_differ(outputs):
    runs = select([str(outputs / "*-seed[01]")]).runs
    assert len(runs) == 6 and differing(runs, facts) == {} and differing(runs, surroundings) == {}


CHANGES = [
    ({"exp__max_epoch": 9}, "max_epoch"),
    ({"exp__input_size": [128, 128]}, "input_size"),
    ({"exp__mosaic_prob": 0.3}, "mosaic_prob"),
    ({"args__batch_size": 4}, "-b"),
    ({"args__ckpt": "yolox_s.pth"}, "-c"),
    ({"args__fp16": True}, "--fp16"),
    ({"args__devices": 2}, "workers"),
    ({"workers": 2}, "workers"),
    ({"host": {"name": "yolox main", "get_losses": "77"}}, "host"),
    ({"data__val": {"sha256": "cd" * 32}}, "val annotations (sha256)"),
    ({"data__train": {"sha256": "cd" * 32}}, "train annotations (sha256)"),
    ({"resumed": [{"epoch": 2, "was": "interrupted"}]}, "resumed"),
]


@pytest.mark.parametrize("change,fact", CHANGES, ids=[fact for _, fact in CHANGES])
def test_everything_else_is_a_difference(outputs, tmp_path, change, fact):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    other = make_run(tmp_path / "other", data, seed=5)
    edit(other, **change)
    assert fact in differing([read(outputs / "stock-seed0"), read(other)], facts)


def test_what_moves_nothing_is_no_difference_and_versions_are_noted(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    other = make_run(tmp_path / "other", data, seed=5, print_interval=7, random_size=[10, 20])
    edit(other, versions={"torch": "2.15"}, resumed=[{"epoch": 2, "was": "interrupted", "exact": True}])
    runs = [read(outputs / "stock-seed0"), read(other)]
    assert differing(runs, facts) == {}
    assert differing(runs, surroundings) == {"torch version": ["2.14.1", "2.15"]}


def test_one_size_against_many_is_a_difference(outputs, tmp_path):
    """Where random_size is not set YOLOX works it out from multiscale_range, and only some records hold the outcome."""
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    sizes = {"many": {}, "told": {"random_size": [-2, 8]}, "one": {"random_size": [3, 3]}}
    many, told, one = (read(make_run(tmp_path / name, data, multiscale_range=5, **exp)) for name, exp in sizes.items())
    assert differing([many, one], facts) == {"random_size": ["[-2, 8]", "[3, 3]"]}
    assert differing([many, told], facts) == {}
    assert [training_sizes(one.record["exp"]) for one in (many, told, one)] == [[-2, 8], [-2, 8], [3, 3]]
    assert training_sizes({"random_size": "(2, ...", "multiscale_range": 5, "input_size": [96, 96]}) is None


# what the two records say, and what of it cannot be compared
CODES = [
    ({"get_optimizer()": "a"}, {"get_optimizer()": "a"}, {}),
    ({"get_optimizer()": "a"}, {}, {"code of get_optimizer()": ["a", "-"]}),
    ({"MyLoss": "a"}, {"MyLoss": "b"}, {"code of MyLoss": ["a", "b"]}),
    ({"MyLoss": "a"}, {}, {}),  # stock needs it not
    ({"get_optimizer()": "a"}, None, {}),  # a record that does not tell
    ({"loss_weights()": "a"}, {}, {}),  # element weights are a loss
]


@pytest.mark.parametrize("one,two,found", CODES)
def test_code_of_the_experiments_that_differs_is_a_difference(outputs, tmp_path, one, two, found):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    runs = []
    for name, code in (("one", one), ("two", two)):
        make_run(tmp_path / name, data)
        if code is not None:
            edit(tmp_path / name, code=code)
        runs.append(read(tmp_path / name))
    assert differing(runs, facts) == found


def test_starting_weights_are_told_apart_by_what_they_are_and_not_by_their_path(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]

    def run(name, path, weights, **args):
        edit(make_run(tmp_path / name, data), args__ckpt=path, starting_weights=weights, **args)
        return read(tmp_path / name)

    one = run("one", "start.pth", "aa")
    assert differing([one, run("same", "./start.pth", "aa")], facts) == {}
    assert differing([one, run("other", "start.pth", "bb")], facts) == {"-c": ["aa", "bb"]}
    assert differing([one, run("resumed", "latest_ckpt.pth", "aa", args__resume=True)], facts) == {}


def test_element_weights_of_the_experiment_are_a_loss(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    for name, code in (("a0", {}), ("b0", {"loss_weights()": "1"}), ("c0", {"loss_weights()": "2"})):
        edit(make_run(tmp_path / name, data), code=code)
    runs = select([str(tmp_path / "*")]).runs
    assert [one.label for one in group(runs)] == ["stock", "loss_weights()", "loss_weights() #2"]
    (one,) = group(runs, by="loss_obj")
    assert one.units == ["seed 0, stock", "seed 0, loss_weights() 1", "seed 0, loss_weights() 2"]


def test_settings_for_faulty_data_are_compared_like_losses(outputs, tmp_path):
    """A user weighs sampling, ignored regions and scores of boxes against losses."""
    runs = select([str(outputs / "stock-*")]).runs
    chosen = {"off": {"ignore_crowd": False}, "on": {"ignore_crowd": True, "repeat_factor": 0.3}}
    for name, settings in chosen.items():
        shutil.copytree(outputs / "stock-seed1", tmp_path / name)
        edit(tmp_path / name, seed=5, **{f"exp__{key}": value for key, value in settings.items()})
        runs.append(read(tmp_path / name))
    assert differing(runs, facts) == {}
    assert [repeats.label for repeats in group(runs)] == ["stock", "ignore_crowd + repeat_factor=0.3"]
    by_term = group(runs, "loss_iou")
    assert [repeats.units[-1] for repeats in by_term] == ["seed 5, ignore_crowd + repeat_factor=0.3"]


def test_groups_are_runs_of_the_same_losses(outputs):
    groups = group(select([str(outputs / "*-seed[01]")]).runs)
    assert [one.label for one in groups] == ["iou ciou", "obj focal(alpha=0.75)", "stock"]
    assert all(one.units == ["seed 0", "seed 1"] for one in groups)


def test_a_spec_written_in_another_way_is_the_same_loss(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    make_run(
        tmp_path / "long", data, seed=4, losses={"loss_iou": {"type": "iou", "mode": "square", "loss_weight": 1.0}}
    )
    groups = group([read(outputs / "stock-seed0"), read(tmp_path / "long")])
    assert [one.label for one in groups] == ["stock"]


def test_by_one_term_a_repeat_is_seed_and_the_other_losses(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    both = make_run(tmp_path / "both", data, seed=0, losses={"loss_iou": "ciou", "loss_obj": "focal"})
    runs = [read(outputs / name) for name in ("stock-seed0", "ciou-seed0")] + [read(both)]
    groups = group(runs, by="loss_iou")
    assert [(one.label, one.units) for one in groups] == [
        ("stock", ["seed 0, stock"]),
        ("iou ciou", ["seed 0, stock", "seed 0, obj focal"]),
    ]
    with pytest.raises(RunError, match="--by is one of"):
        group(runs, by="loss_ouch")


def test_the_same_seed_twice_is_refused(outputs, tmp_path):
    data = json.loads((outputs / "stock-seed0" / "run.json").read_text())["data"]["val"]
    make_run(tmp_path / "again", data, seed=0)
    with pytest.raises(RunError, match="stock-seed0 and again are the same run twice: stock, seed 0"):
        group([read(outputs / "stock-seed0"), read(tmp_path / "again")])


def test_the_end_of_a_run_is_its_last_epochs_in_a_row(tmp_path):
    def end(**epochs):
        rows = [{"epoch": float(name[1:]), "AP": value} for name, value in epochs.items()]
        return Run(tmp_path, {}, rows).end("AP")

    assert end(e2=0.1, e4=0.2, e5=0.3, e6=0.4) == [0.2, 0.3, 0.4]
    assert end(e1=0.1, e2=0.2, e3=0.3, e4=0.4, e5=0.5, e6=0.6) == [0.2, 0.3, 0.4, 0.5, 0.6]
    assert end(e2=0.1, e4=0.2) == [0.2] and end(e1=0.3, e2=-1.0, e3=0.4) == [0.4]
