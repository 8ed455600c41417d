"""A race: looks are planned and share the error, what is settled gets no further seeds, unplanned seeds do not count."""

import json

import numpy as np
import pytest
from conftest import load_script
from made_runs import make_data, make_run

from yolox_loss_patch import cli
from yolox_loss_patch.compare.comparison import analyse, compare
from yolox_loss_patch.compare.statistics import BETTER, EQUAL, UNCLEAR, difference, is_out_of_reach, over_looks, verdict
from yolox_loss_patch.errors import ConfigError, RunError
from yolox_loss_patch.runs.race import Race, find_race, read_race
from yolox_loss_patch.sweep.race import looks_to_take, plan_race, run_race
from yolox_loss_patch.sweep.training import PlannedTraining

# setting -> losses, and the error of its made detections; stock's is 0.12
RIVALS = {"stock": ({}, 0.12), "ciou": ({"loss_iou": "ciou"}, 0.03), "giou": ({"loss_iou": "giou"}, 0.1205)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=12)


def grid(folder, seeds=range(5)):
    return [
        PlannedTraining(f"t-{name}-seed{seed}", folder / f"t-{name}-seed{seed}", [], 4, f"t-{name}")
        for name in RIVALS
        for seed in seeds
    ]


class Trainer:
    """Makes the runs that are asked for, and notes which."""

    def __init__(self, data, fails=()):
        self.data, self.fails, self.asked = data, fails, []

    def __call__(self, runs):
        self.asked.append([run.name for run in runs if run.state != "finished"])
        for run in runs:
            name, seed = run.name.removeprefix("t-").split("-seed")
            losses, error = RIVALS[name]
            run.state = "failed" if run.name in self.fails else "finished"
            if run.state == "finished" and not run.folder.exists():
                make_run(run.folder, self.data, error, int(seed), losses)


@pytest.mark.slow
def test_what_is_settled_gets_no_further_seeds(tmp_path, data):
    runs, said = grid(tmp_path), []
    race = plan_race(runs, tmp_path / "t-sweep", (2, 4, 5))
    race.write()
    train = Trainer(data)
    wanted = run_race(runs, race, train, said.append)
    assert train.asked[0] == [f"t-{name}-seed{seed}" for name in RIVALS for seed in (0, 1)]
    settled_first = [line for line in said if "t-ciou is settled: better" in line]
    assert settled_first and settled_first[0].startswith(("look 1 of 3, 2 seeds", "look 2 of 3, 4 seeds"))
    seeds = {name: sum(run.setting == f"t-{name}" for run in wanted) for name in RIVALS}
    assert seeds["ciou"] < 5 and seeds["stock"] == max(seeds.values())  # the baseline goes on as long as any rival
    assert said[-1] == f"{len(wanted)} of 15 trainings were needed; {15 - len(wanted)} were saved." and len(wanted) < 15
    # the same command again: nothing is trained, and the same is said
    again, heard = Trainer(data), []
    assert [run.name for run in run_race(grid(tmp_path), race, again, heard.append)] == [run.name for run in wanted]
    assert heard == said
    text = compare([str(tmp_path / "t-*seed*")], out=str(tmp_path / "out"))
    assert "3 looks were planned, after 2, 4, 5 seeds, and share the error" in text
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["looks"] == 3
    assert [group["verdict"] for group in told["groups"]][1] == BETTER


def test_a_loss_of_which_a_run_fails_leaves_the_race(tmp_path, data):
    runs, said = grid(tmp_path), []
    race = plan_race(runs, tmp_path / "t-sweep", (2, 5))
    race.write()
    train = Trainer(data, fails=("t-giou-seed1",))
    wanted = run_race(runs, race, train, said.append)
    assert not any("giou" in name for names in train.asked[1:] for name in names)
    assert [run.name for run in wanted if run.state == "failed"] == ["t-giou-seed1"]


def test_the_looks_share_the_error():
    rng = np.random.default_rng(0)
    values = [dict(enumerate(rng.normal(0.005, 0.004, 8))), dict.fromkeys(range(8), 0.0)]
    once = difference(*values)
    shared = difference(*values, looks=4)
    assert shared.p == pytest.approx(4 * once.p) and shared.mean == once.mean
    assert shared.interval.high - shared.mean > 1.3 * (once.interval.high - once.mean)
    first = difference(*({unit: side[unit] for unit in range(3)} for side in values), looks=4)
    assert over_looks([first, shared]).p == min(first.p, shared.p)
    other_way = difference(values[1], values[0], looks=4)
    assert over_looks([other_way, shared]).p == shared.p  # a look that said the opposite is no evidence


def test_equal_needs_its_share_too():
    rng = np.random.default_rng(1)
    base = dict.fromkeys(map(str, range(5)), 0.5)
    same = {unit: 0.5 + rng.normal(0, 0.0032) for unit in base}
    found = [difference(same, base, looks=looks) for looks in (1, 4)]
    assert verdict(found[0], found[0].p) == EQUAL and verdict(found[1], found[1].p) == UNCLEAR
    assert found[1].p_equal == pytest.approx(4 * found[0].p_equal)


def test_seeds_outside_of_the_plan_are_told_and_not_counted(tmp_path, data):
    runs = grid(tmp_path, range(3))
    race = plan_race(runs, tmp_path / "t-sweep", (2, 3))
    race.write()
    Trainer(data)(runs)
    words = [str(tmp_path / "t-*seed*")]
    before = analyse(words)
    make_run(tmp_path / "t-giou-seed7", data, 0.0, 7, {"loss_iou": "giou"})
    make_run(tmp_path / "t-stock-seed7", data, 0.3, 7)
    after = analyse(words)
    assert any("not counted in the verdicts: t-stock-seed7, t-giou-seed7" in note for note in after.notes)
    for one, other in zip(before.results, after.results, strict=True):
        assert (one.verdict, one.difference) == (other.verdict, other.difference)


def test_losses_that_are_left_out_of_the_table_count_in_it(tmp_path, data):
    runs = grid(tmp_path, range(3))
    plan_race(runs, tmp_path / "t-sweep", (3,)).write()
    Trainer(data)(runs)
    (_, ciou) = analyse([str(tmp_path / "t-stock-*"), str(tmp_path / "t-ciou-*")]).results
    assert ciou.p_holm == pytest.approx(2 * ciou.difference.p)  # of two rivals


def test_a_plan_is_not_changed(tmp_path):
    runs = grid(tmp_path)
    plan_race(runs, tmp_path / "t-sweep", (2, 5)).write()
    plan_race(runs, tmp_path / "t-sweep", (2, 5)).write()
    with pytest.raises(RunError, match=r"the plan of another race \(looks 2, 5, 3 settings\).*-expn"):
        plan_race(runs, tmp_path / "t-sweep", (3, 5)).write()
    path = tmp_path / "t-sweep" / "race.json"
    assert read_race(path).looks == (2, 5) and find_race([runs[0].folder]).looks == (2, 5)
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "is no plan"),
        ('{"looks": [3, 2], "settings": {}, "metric": "AP", "margin": 0.1}', "'looks' is"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=words):
            read_race(path)


@pytest.mark.parametrize(
    "text,seeds,looks", [(None, 12, (3, 5, 8, 12)), (None, 6, (3, 5, 6)), ("2,4", 9, (2, 4, 9)), (None, 2, (2,))]
)
def test_looks(text, seeds, looks):
    assert looks_to_take(text, seeds) == looks


@pytest.mark.parametrize(
    "text,seeds,words",
    [
        ("5,3", 9, "rising"),
        ("1,3", 9, "from 2 on"),
        ("3,x", 9, "'3,x'"),
        ("3,12", 9, "12 seeds"),
        (None, 1, "at least 2"),
    ],
)
def test_looks_that_cannot_be(text, seeds, words):
    with pytest.raises(ConfigError, match=words):
        looks_to_take(text, seeds)


@pytest.mark.parametrize(
    "words,answer",
    [
        (["--looks", "3"], "--looks 3 is for a race; add --race"),
        (["--race", "--seeds", "0,1,2"], "at least two with --set"),
        (["--race", "--set", "loss_iou=iou,ciou", "--seeds", "0"], "at least 2 seeds"),
        (["--race", "--set", "max_epoch=2,3"], "A race is between losses"),
    ],
)
def test_a_mistake_is_answered(work, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(work)
    assert cli.main(["sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu", *words]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.slow
def test_a_race_on_the_command_line(work, monkeypatch, capsys):
    """Real trainings: two looks, and the comparison that follows."""
    monkeypatch.chdir(work)
    words = ["sweep", "-f", "tiny.py", "-b", "8", "--device", "cpu", "--race", "--looks", "2", "--seeds", "0,1,2",
             "--set", "loss_iou=iou,ciou", "max_epoch", "1", "no_aug_epochs", "0", "warmup_epochs", "0"]  # fmt: skip
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "look 1 of 2, 2 seeds:" in out and "trainings were needed" in out
    assert "2 looks were planned, after 2, 3 seeds" in out
    assert read_race(work / "YOLOX_outputs" / "tiny-sweep" / "race.json") == Race(
        work / "YOLOX_outputs" / "tiny-sweep" / "race.json",
        (2, 3),
        {f"tiny-iou_{name}": [f"tiny-iou_{name}-seed{seed}" for seed in range(3)] for name in ("iou", "ciou")},
        "AP",
        0.005,
    )


def test_the_simulation_judges_as_the_kit_does():
    """benchmarks/race.py has the rules once more, for many trials at once."""
    script = load_script("benchmarks/race")
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        look, images = int(rng.choice([3, 5, 8])), int(rng.choice([80, 1000]))
        values = rng.normal(rng.choice([0.0, 0.005, 0.02]), rng.choice([0.0005, 0.003, 0.01]), look)
        noise = rng.normal(0, rng.choice([0.0005, 0.004]), 400)
        sides = [
            {str(seed): value + (values[seed] if ours else 0.0) for seed, value in enumerate([0.5] * look)}
            for ours in (1, 0)
        ]
        draws = [
            {unit: value + (noise if ours else 0 * noise) for unit, value in side.items()}
            for ours, side in zip((1, 0), sides, strict=True)
        ]
        found = difference(*sides, *draws, images, looks=len(script.LOOKS))
        parts = [np.array([[value]]) for value in (found.mean, found.se_seeds**2, found.se_images**2)]
        p, inside, is_over = (value.item() for value in script.verdicts(*parts, look, images, len(script.LOOKS)))
        assert p == pytest.approx(found.p, rel=0.02, abs=1e-7)
        assert inside == (verdict(found, 1.0) == EQUAL)
        told = found.interval90.high < 0.005 or is_out_of_reach(found, script.LOOKS[-1])
        assert is_over == told
        seen |= {("equal", inside), ("over", is_over), ("found", p < 0.05)}
    assert len(seen) == 6  # each answer was given
