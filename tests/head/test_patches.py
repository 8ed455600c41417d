"""The diffs of patches/: they fit, they come out again, and a patched checkout trains to the monkey patch's numbers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXP, ROOT, assert_same, checkpoint, cli

SCRIPT = ROOT / "scripts" / "apply_patch.sh"
# what the script needs besides patch or git
TOOLS = ("bash", "basename", "cat", "cmp", "cp", "dirname", "grep", "mkdir", "mktemp", "mv", "rm", "sed", "uniq")
LOSSES = {"loss_obj.type": "varifocal", "loss_obj.gamma": "1.5", "loss_iou": "ciou"}
BASE = "yolox/exp/yolox_base.py"


def installed_yolox():
    import yolox

    return Path(next(iter(yolox.__path__)))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The unpacked sdist of yolox 0.3.0 from the package index."""
    folder = tmp_path_factory.mktemp("sdist")
    pip = ("-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "yolox==0.3.0")
    done = subprocess.run([sys.executable, *pip, "-d", str(folder)], text=True, capture_output=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the sdist of yolox 0.3.0 cannot be had: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    subprocess.run(["tar", "-xf", next(folder.glob("*.tar.gz")), "-C", folder], check=True)
    return folder / "yolox-0.3.0"


def git_main():
    """A checkout of YOLOX's git main, which no package index has."""
    if not os.environ.get("YOLOX_MAIN"):
        pytest.skip("git main is not on the package index: name a checkout in the environment variable YOLOX_MAIN")
    return Path(os.environ["YOLOX_MAIN"])


@pytest.fixture(scope="session")
def pixeltable(tmp_path_factory):
    """pixeltable-yolox from the package index, as `pip install --target` leaves it."""
    if (ROOT / ".hosts" / "pixeltable-yolox").is_dir():
        return ROOT / ".hosts" / "pixeltable-yolox"
    folder = tmp_path_factory.mktemp("pixeltable")
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "pixeltable-yolox==0.4.3")
    done = subprocess.run([sys.executable, *pip], text=True, capture_output=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pixeltable-yolox cannot be had: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return folder


@pytest.fixture(params=["wheel", "sdist", "main", "pixeltable"])
def source(request):
    """A YOLOX as it came: the folder with ``yolox`` in it."""
    if request.param == "wheel":
        return installed_yolox().parent
    return git_main() if request.param == "main" else request.getfixturevalue(request.param)


@pytest.fixture
def checkout(source, tmp_path):
    """A copy of it, with spaces in its path."""
    folder = tmp_path / "a fork of" / "YOLOX"
    if source == installed_yolox().parent:
        copy(installed_yolox(), folder / "yolox")
    else:
        copy(source, folder)
    return folder


def host(checkout):
    """The folder of its diffs."""
    if (checkout / "yolox" / "config.py").exists():
        return "pixeltable-yolox"
    return "yolox-main" if (checkout / "yolox" / "utils" / "mlflow_logger.py").exists() else "yolox-0.3.0"


def copy(source, target):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "assets", "docs", ".git"))


@pytest.fixture
def wheel(tmp_path):
    """A copy of the installed package, as in site-packages."""
    folder = tmp_path / "site packages"
    copy(installed_yolox(), folder / "yolox")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def apply(*words, status=0, **environ):
    """The script; returns its text."""
    done = subprocess.run(
        [str(SCRIPT), *map(str, words)], text=True, capture_output=True, env={**os.environ, **environ}
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert bool(done.stderr) == bool(status), done.stderr
    return done.stdout + done.stderr


def path_with(folder, *tools):
    """A PATH with these tools only."""
    folder.mkdir()
    for tool in (*TOOLS, *tools):
        (folder / tool).symlink_to(shutil.which(tool) or pytest.skip(f"there is no {tool} here"))
    return str(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The script.


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["patch", "git"])
def test_in_and_out_again(checkout, tool, tmp_path):
    """With either tool, and in a git repository that ignores the folder as `pip install` into one does."""
    environ = {"PATH": path_with(tmp_path / "bin", tool)}
    if tool == "git":
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        (tmp_path / ".gitignore").write_text("*\n")
        (tmp_path / "temporary").mkdir()
        environ["TMPDIR"] = str(tmp_path / "temporary")  # inside the repository as well
    before = contents(checkout)
    assert apply("--check", checkout, **environ).count(": fits") == 2
    assert contents(checkout) == before

    text = apply(checkout, **environ)
    after = contents(checkout)
    changed = {name for name in before if after[name] != before[name]}
    exps, tools = ("exps/default", "tools") if (checkout / "tools").is_dir() else ("yolox/exp/default", "yolox/tools")
    own = {BASE, f"{exps}/yolox_nano.py", f"{exps}/yolov3.py", f"{tools}/train.py"}
    if host(checkout) == "pixeltable-yolox":
        own = {"yolox/config.py", "yolox/cli/train.py"}
    assert changed == {"yolox/core/trainer.py", *own}
    assert after.keys() == before.keys(), "something was left behind"
    assert all(str(checkout / name) in text for name in changed)
    for name in changed:
        compile(after[name], name, "exec")

    assert apply(checkout, **environ).count("applied already, nothing changed") == 2
    assert apply("--check", checkout, **environ).count("applied already") == 2
    assert contents(checkout) == after
    assert apply("--reverse", checkout, **environ).count("taken out") == 2
    assert contents(checkout) == before
    assert apply("--reverse", checkout, **environ).count("not there, nothing changed") == 2
    assert contents(checkout) == before


def test_each_diff_by_itself(wheel):
    """In any order, and by the `yolox` folder itself as well as by the folder with it."""
    before = contents(wheel)
    apply(wheel / "yolox", "trainer")
    assert b"patch_from_exp" not in contents(wheel)[BASE]
    assert "losses.diff: applied\n" in apply(wheel)
    assert "trainer.diff: taken out" in apply("--reverse", wheel / "yolox", "trainer")
    assert "losses.diff: applied already" in apply("--check", wheel, "losses")
    text = apply("--reverse", wheel)
    assert "losses.diff: taken out" in text and "trainer.diff: not there" in text
    assert contents(wheel) == before


def test_a_neighbours_tools_are_not_taken_for_yoloxs(wheel):
    """Some packages leave a folder ``tools`` of their own in site-packages."""
    (wheel / "tools").mkdir()
    (wheel / "tools" / "train.py").write_text("neighbour = True\n")
    apply(wheel)
    assert contents(wheel)["tools/train.py"] == b"neighbour = True\n"
    assert b"yolox_loss_patch" in contents(wheel)["yolox/tools/train.py"]


def test_what_is_there_in_part_is_completed(wheel):
    before = contents(wheel)
    apply(wheel)
    after = contents(wheel)
    (wheel / BASE).write_bytes(before[BASE])
    assert apply(wheel).count("diff: applied\n") == 2
    assert contents(wheel) == after
    (wheel / BASE).write_bytes(before[BASE])
    apply("--reverse", wheel)
    assert contents(wheel) == before


def edit(old, new):
    def change(path):
        text = path.read_bytes()
        assert text.count(old) >= 1
        path.write_bytes(text.replace(old, new))

    return change


# file, what a fork did to it, the diff that does not fit then, words of the answer
DIFFERENT = [
    (BASE, edit(b"self.model.train()", b"self.model.train(True)"), "losses",
     [f"{BASE}, hunk 3:", "-        return self.model", "+        return patch_from_exp(self.model, self)"]),
    ("yolox/core/trainer.py", edit(b"model = self.exp.get_model()", b"model = self.exp.get_model().cuda()"), "losses",
     ["yolox/core/trainer.py, hunk 2:", "model = self.exp.get_model()"]),
    ("yolox/exp/default/yolox_nano.py", edit(b"return self.model\n", b"return self.model\n\n    extra = 1\n"), "losses",
     ["yolox/exp/default/yolox_nano.py, hunk 2:"]),
    ("yolox/tools/train.py", edit(b"cudnn.benchmark = True", b"my_own_setup()"), "trainer",
     ["yolox/tools/train.py, hunk 2:", "-    cudnn.benchmark = True"]),
    ("yolox/tools/train.py", edit(b"\n", b"\r\n"), "trainer", ["yolox/tools/train.py, hunk 1:", "Windows line endings"]),
    ("yolox/exp/default/yolov3.py", Path.unlink, "losses", ["exps/default/yolov3.py: there is no such file"]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "file,change,kind,answers", DIFFERENT, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("tool", ["patch", "git"])
def test_a_fork_that_differs_gets_the_place_and_stays_as_it_is(wheel, tmp_path, file, change, kind, answers, tool):
    path = path_with(tmp_path / "bin", tool)
    change(wheel / file)
    before = contents(wheel)
    for words in ((), ("--check",)):
        text = apply(*words, wheel, status=1, PATH=path)
        for answer in (f"{kind}.diff does not fit", "Nothing was changed", *answers):
            assert answer in text, text
        assert text.count("hunk") == sum("hunk" in answer for answer in answers) or b"\r" in before.get(file, b""), text
        assert contents(wheel) == before
        assert text.count("does not fit") == 1
    other = {"losses": "trainer", "trainer": "losses"}[kind]
    assert f"{other}.diff: applied" in apply(wheel, other, PATH=path)


def test_all_that_differs_is_told_at_once(wheel):
    edit(b"self.model.train()", b"self.model.train(True)")(wheel / BASE)
    edit(b"cudnn.benchmark = True", b"my_own_setup()")(wheel / "yolox/tools/train.py")
    before = contents(wheel)
    text = apply(wheel, status=1)
    assert "losses.diff does not fit" in text and "trainer.diff does not fit" in text
    assert contents(wheel) == before


def test_a_file_that_cannot_be_written_leaves_all_as_they_were(wheel, tmp_path):
    """The third file's folder cannot be written to: here, `cp` into it fails."""
    path = path_with(tmp_path / "bin", "patch")
    (tmp_path / "bin" / "cp").unlink()
    (tmp_path / "bin" / "cp").write_text(
        f'#!/bin/bash\ncase "${{!#}}" in *yolox_nano.py.apply_patch) exit 1 ;; esac\nexec {shutil.which("cp")} "$@"\n'
    )
    (tmp_path / "bin" / "cp").chmod(0o755)
    before = contents(wheel)
    text = apply(wheel, status=1, PATH=path)
    assert "yolox_nano.py' cannot be written. Nothing was changed" in text
    assert contents(wheel) == before


# words of the command line, and of the answer; {wheel} and {empty} are folders
WRONG = [
    ([], "Use: apply_patch.sh"),
    (["{wheel}", "losses", "trainer"], "Use: apply_patch.sh"),
    (["{wheel}", "loss"], "There is no diff loss"),
    (["--dry-run", "{wheel}"], "There is no option --dry-run"),
    (["--check", "--reverse", "{wheel}"], "exclude each other"),
    (["{wheel}/nothing"], "There is no folder"),
    (["{empty}"], "is no YOLOX"),
]


@pytest.mark.parametrize("words,answer", WRONG)
def test_a_wrong_command_is_answered(wheel, tmp_path, words, answer):
    (tmp_path / "empty").mkdir()
    before = contents(wheel)
    text = apply(*(word.format(wheel=wheel, empty=tmp_path / "empty") for word in words), status=2)
    assert answer in text
    assert contents(wheel) == before


def test_without_patch_and_git(wheel, tmp_path):
    assert "needs patch or git" in apply(wheel, status=2, PATH=path_with(tmp_path / "bin"))


@pytest.mark.slow
def test_every_hunk_has_one_place_only(checkout):
    """A hunk with little context must not find a second place, neither on the way in nor on the way out."""

    def count(files, name, lines):
        return (b"\n" + files[name]).count(b"\n" + lines)

    before = contents(checkout)
    apply(checkout)
    after = contents(checkout)
    hunks = 0
    for diff in (ROOT / "patches" / host(checkout)).glob("*.diff"):
        for part in re.split(r"^--- a/", diff.read_text(), flags=re.MULTILINE)[1:]:
            name = part.split("\n", 1)[0]
            if not (checkout / name).is_file():
                name = name.replace("exps/default", "yolox/exp/default").replace("tools/", "yolox/tools/")
            for hunk in re.split(r"^@@ .*\n", part, flags=re.MULTILINE)[1:]:
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] != "+").encode()
                new = "".join(line[1:] for line in lines if line[0] != "-").encode()
                assert (count(before, name, old), count(before, name, new)) == (1, 0), (diff, name, hunk)
                assert (count(after, name, old), count(after, name, new)) == (0, 1), (diff, name, hunk)
                hunks += 1
    assert hunks >= 10


# ---------------------------------------------------------------------------------------------------------------------
# A patched checkout.

# The same experiment in the kit's way and in YOLOX's own, which knows nothing of the kit; for either kind of YOLOX.
FILES = {
    "kit": EXP,
    "plain": EXP.replace("import yolox_loss_patch as ylp\n", "").replace("ylp.LossExp, ", ""),
}
CLASSES = {
    name: text.replace("yolox.exp.default.yolox_nano import Exp as BaseExp", "yolox.config import YoloxNano as BaseExp")
    .replace("ylp.LossExp", "ylp.LossConfigMixin")
    .replace("self.seed = 3", 'self.seed = 3\n        self.output_dir = "YOLOX_outputs"')
    for name, text in FILES.items()
}
CRASH = """
    def preprocess(self, inputs, targets, tsize):
        import os
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5 and os.environ.get("CRASH"):  # in the second epoch
            raise RuntimeError("on purpose")
        return super().preprocess(inputs, targets, tsize)
"""


def train(checkout, folder, name, data, *flags, python=None, more="", **environ):
    """Train the experiment of this name for two epochs; by the kit, or by YOLOX's own tool where ``python`` is not given."""
    is_class = host(checkout) == "pixeltable-yolox"
    (folder / f"{name}.py").write_text((CLASSES if is_class else FILES)[name].format(data=str(data)) + more)
    settings = {**LOSSES, "max_epoch": "2"}
    words = ["-b", "8", "--device", "cpu", *flags]
    if is_class:
        tool = ("-m", "yolox.cli", "train")
        words += ["-c", f"{name}:Exp", "-n", name, *(f"-D{key}={value}" for key, value in settings.items())]
    else:
        own = checkout / "tools" / "train.py"
        tool = (own,) if own.is_file() else ("-m", "yolox.tools.train")
        words += ["-f", f"{name}.py", *(word for pair in settings.items() for word in pair)]
    path = os.pathsep.join((str(checkout), str(ROOT)))
    return cli(folder, *words, python=python or tool, PYTHONPATH=path, **environ)


@pytest.fixture(scope="module")
def monkey(tmp_path_factory, digits):
    """A function of a folder with YOLOX: the weights after training with the monkey patch; each host's trained once."""
    runs = {}

    def weights(source):
        if host(source) not in runs:
            folder = runs[host(source)] = tmp_path_factory.mktemp("monkey")
            train(source, folder, "kit", digits, python=("-m", "yolox_loss_patch", "train"))
        return checkpoint(runs[host(source)] / "YOLOX_outputs" / "kit")["model"]

    return weights


@pytest.mark.slow
def test_a_patched_checkout_trains_to_the_numbers_of_the_monkey_patch(source, checkout, monkey, work, digits):
    """Bit for bit, by an experiment that knows nothing of the kit."""
    apply(checkout)
    train(checkout, work, "plain", digits)
    run = work / "YOLOX_outputs" / "plain"
    assert_same(checkpoint(run)["model"], monkey(source))
    facts = json.loads((run / "run.json").read_text())
    assert facts["host"]["path"] == str(checkout / "yolox")
    assert facts["losses"]["loss_obj"] == {"type": "varifocal", "gamma": 1.5}


@pytest.mark.slow
def test_a_patched_trainer_says_when_it_crashed_and_resumes_exactly(wheel, monkey, work, digits):
    apply(wheel)
    crashed = train(wheel, work, "plain", digits, more=CRASH, check=False, CRASH="1")
    assert crashed.returncode == 1 and "on purpose" in crashed.stderr
    assert "resumed exactly" in train(wheel, work, "plain", digits, "--resume", more=CRASH).stderr
    assert_same(checkpoint(work / "YOLOX_outputs" / "plain")["model"], monkey(installed_yolox().parent))


# Run in a checkout with losses.diff only: YOLOX's own trainer, which wants CUDA, is stopped where it has the model.
LOSSES_ONLY = """
import argparse
import sys

import torch
import yolox.models
from yolox.core import Trainer

import yolox_loss_patch as ylp
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head import hosts
from yolox_loss_patch.head.patch import stage_of

CIOU = ylp.LossConfig(loss_iou="ciou")
if hosts.has_config_classes():
    from yolox.config import YoloxConfig, YoloxNano as Nano

    exps = [YoloxConfig("base"), YoloxConfig.get_named_config("yolox-nano")]
    mixin, merge = ylp.LossConfigMixin, "update"
    parts = yolox.models.YoloxModule, yolox.models.YoloPafpn, yolox.models.YoloxHead
else:
    from yolox.exp import Exp, get_exp
    from yolox.exp.default.yolox_nano import Exp as Nano

    yolox.models.YOLOFPN = torch.nn.Identity  # YOLOv3's is large
    exps = [Exp(), get_exp(exp_name="yolox-nano"), get_exp(exp_name="yolov3")]
    mixin, merge = ylp.LossExp, "merge"
    parts = yolox.models.YOLOX, yolox.models.YOLOPAFPN, yolox.models.YOLOXHead


def override(exp, **values):
    if merge == "update":
        exp.update(values)
    else:
        exp.merge([word for pair in values.items() for word in pair])


for exp in exps:
    assert (exp.loss_obj, exp.loss_cls, exp.loss_iou, exp.loss_l1, exp.loss_assign) == ("bce", "bce", "iou", "l1", "auto")
    assert "loss_iou" in repr(exp)
    exp.depth, exp.width = 0.33, 0.125
    assert stage_of(exp.get_model()).config == ylp.LossConfig()
    override(exp, **{"loss_iou": "ciou", "loss_l1.loss_weight": "1"})  # the model was built already
    assert stage_of(exp.get_model()).config == CIOU
try:
    override(exps[0], loss_objj="focal")
except ylp.ConfigError as error:
    assert "Did you mean 'loss_obj'" in str(error)
else:
    raise AssertionError("an unknown key passed")
assert load_exp(None, "yolox-nano").exp_name == "yolox_nano"


class OnClass(Nano):
    loss_iou = "ciou"


class MixedIn(mixin, Nano):
    loss_iou = "ciou"


class Weighed(Nano):
    loss_iou = "ciou"

    def loss_weights(self, assignment):
        return None


for cls in (OnClass, MixedIn, Weighed):
    exp = cls()
    assert exp.loss_iou == "ciou"
    assert stage_of(exp.get_model()).config == CIOU
assert stage_of(exp.get_model()).element_weights is not None


class Reached(Exception):
    pass


class Own(Nano):
    def get_model(self):
        model, neck, head = parts
        self.model = model(neck(0.33, 0.25), head(10, 0.25))
        return self.model

    def get_optimizer(self, batch_size):
        assert stage_of(self.model).config == CIOU
        raise Reached


exp = Own()
override(exp, loss_iou="ciou")
torch.cuda.set_device = lambda device: None
args = argparse.Namespace(fp16=False, name="own", experiment_name="own", batch_size=1, resume=False)
trainer = exp.get_trainer(args)
assert type(trainer) is Trainer
trainer.device = "cpu"
try:
    trainer.before_train()
except Reached:
    print("reached", file=sys.__stdout__, flush=True)  # YOLOX's logger has taken sys.stdout, whose flush does nothing now
"""


@pytest.mark.slow
def test_the_losses_without_the_kits_trainer(checkout, work):
    """Every way to a model has them: an experiment's own get_model too, whose model YOLOX's trainer gets."""
    apply(checkout, "losses")
    (work / "check.py").write_text(LOSSES_ONLY)
    done = cli(work, python=("check.py",), PYTHONPATH=os.pathsep.join((str(checkout), str(ROOT))))
    assert done.stdout.endswith("reached\n")
