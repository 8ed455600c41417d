"""Several processes: they train what one would, agree before they start, and end together with a record that says why."""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import EXP, assert_same, checkpoint, cli, cli_here

from yolox_loss_patch.cli import main
from yolox_loss_patch.errors import ConfigError, KitError, RunError
from yolox_loss_patch.runs.record import fail_run, read_metrics
from yolox_loss_patch.train.workers.place import Place, from_torchrun

TRAIN = ("train", "-f", "tiny.py", "-b", "8", "--device", "cpu")
LOSSES = ("loss_obj.type", "varifocal", "loss_iou.type", "ciou")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")

# The process of one rank sends itself, or the process that started it, a signal in its Nth iteration.
CRASH = """
    def preprocess(self, inputs, targets, tsize):
        import os, signal, time
        import torch.distributed as dist

        self.calls = getattr(self, "calls", 0) + 1
        rank, call, name, whom = os.environ.get("CRASH", "-1 0 SIGKILL self").split()
        if (dist.get_rank() if dist.is_initialized() else 0) == int(rank) and self.calls == int(call):
            open("crashed", "w").write(str(time.time()))
            number = getattr(signal, name)
            if whom == "group":  # as Ctrl-C in a terminal
                os.killpg(os.getpgrp(), number)
            else:
                os.kill(os.getpid() if whom == "self" else os.getppid(), number)
            time.sleep(60 if whom != "self" else 0)
        return super().preprocess(inputs, targets, tsize)
"""
# Batch norm sees the images of its own rank only. Without it nothing depends on how the images are dealt out.
GROUP_NORM = """
    def get_model(self):
        from torch import nn

        model = super().get_model()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.GroupNorm(1, child.num_features))
        return model
"""
GLOBAL = [word for term in ("obj", "cls", "iou", "l1") for word in (f"loss_{term}.avg_factor", "global")]


def exp_file(folder, digits, *parts):
    (folder / "tiny.py").write_text(EXP.format(data=str(digits)) + "".join(parts))


def run_folder(work):
    return work / "YOLOX_outputs" / "tiny"


def record(work):
    return json.loads((run_folder(work) / "run.json").read_text())


def seconds_since_the_crash(work):
    return time.time() - float((work / "crashed").read_text())


def assert_follows(work, alone):
    """The run's rows and weights are those of one process, but for the rounding of sums in another order."""
    rows, expected = read_metrics(run_folder(work)), read_metrics(run_folder(alone))
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        for column in (
            "total_loss",
            "iou_loss",
            "conf_loss",
            "cls_loss",
            "l1_loss",
            "fg_iou",
            "obj_fg",
            "obj_bg",
            "lr",
        ):
            assert row[column] == pytest.approx(other[column], rel=1e-4), (row["epoch"], column)
    one, two = checkpoint(run_folder(work))["model"], checkpoint(run_folder(alone))["model"]
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-4), key


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits):
    """Three epochs in one process, each anchor of the batch counted the same, without batch norm."""
    folder = tmp_path_factory.mktemp("alone")
    exp_file(folder, digits, CRASH, GROUP_NORM)
    cli_here(folder, *TRAIN, *LOSSES, *GLOBAL, "max_epoch", "3")
    assert record(folder)["workers"] == 1
    return folder


@pytest.mark.slow
def test_four_workers_of_two_machines_follow_one_process(alone, work, digits):
    exp_file(work, digits, CRASH, GROUP_NORM)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    machines = [
        subprocess.Popen(
            [sys.executable, *TORCHRUN, "--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1",
             "--master-port", str(port), "-m", "yolox_loss_patch", *TRAIN, *LOSSES, *GLOBAL, "max_epoch", "3"],
            cwd=work, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        for node in range(2)
    ]  # fmt: skip
    texts = [machine.communicate(timeout=500)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert record(work)["status"] == "finished" and record(work)["workers"] == 4
    assert_follows(work, alone)
    for rank in range(4):
        log = run_folder(work) / (f"train_log_rank{rank}.txt" if rank else "train_log.txt")
        assert re.search(rf"losses \(rank {rank}\): .*varifocal.*ciou", log.read_text())


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers(alone, work, digits):
    """One process, killed in epoch 2; two, one of them killed in epoch 3; one again: the losses of a run without a stop.

    In its second iteration, the fifth of that process: in the first, the other may still be writing epoch 2 down.
    """
    exp_file(work, digits, CRASH, GROUP_NORM)
    words = (*LOSSES, *GLOBAL, "max_epoch", "3")
    assert cli(work, *TRAIN, *words, check=False, CRASH="0 4 SIGKILL self").returncode == -9
    done = cli(work, *TRAIN, "--resume", "-d", "2", *words, check=False, CRASH="1 5 SIGKILL self")
    assert done.returncode == 1 and seconds_since_the_crash(work) < 40
    assert "rank 1 was ended by SIGKILL" in done.stderr and "Traceback" not in done.stderr
    assert record(work)["status"] == "failed" and "rank 1 was ended by SIGKILL" in record(work)["error"]
    assert "another number of workers (before 1, now 2)" in (run_folder(work) / "train_log.txt").read_text()
    done = cli_here(work, *TRAIN, "--resume", *words)
    assert "another number of workers (before 2, now 1)" in done.stderr and "resumed exactly" not in done.stderr
    assert [part["workers"] for part in record(work)["resumed"]] == [1, 2]
    assert_follows(work, alone)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, digits):
    """Three epochs of two workers that are never stopped, started as the console script does it.

    Each notes which addresses its process and its parent listen on, the weight of the class loss that is a schedule, and
    a hash of the model that it evaluates, the EMA copy. A file of the user has the name of a module of Python.
    """
    notes = """
    def preprocess(self, inputs, targets, tsize):
        import contextlib, os, pathlib
        mine = set()
        for path in (path for pid in (os.getpid(), os.getppid()) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(OSError):  # the one of the listing itself
                mine.add(os.readlink(path))
        rows = [row.split() for table in ("tcp", "tcp6") for row in open(f"/proc/net/{table}").read().splitlines()[1:]]
        with open("listening", "a") as file:
            file.writelines(row[1] + " " for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine)
        from loguru import logger
        from yolox_loss_patch.head.patch import stage_of

        if self.model.training:
            logger.info(f"in training {stage_of(self.model).losses['cls'].loss_weight.value():.2f}")
        return super().preprocess(inputs, targets, tsize)
"""
    folder = tmp_path_factory.mktemp("pair")
    exp_file(folder, digits, notes, EVALUATE)
    (folder / "queue.py").write_text("open('queue was run', 'w')\n")
    # As the console script does it: the current folder is not on the path.
    start = "import sys; sys.path.remove(''); from yolox_loss_patch.cli import main; sys.exit(main())"
    cli(folder, *PAIR, python=("-c", start))
    return folder


EVALUATE = """
    def eval(self, model, evaluator, is_distributed, half=False):
        import hashlib
        from loguru import logger
        from yolox_loss_patch.head.patch import stage_of

        logger.info(f"weight of the class loss {stage_of(model).losses['cls'].loss_weight.value():.2f}")
        state = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        logger.info(f"evaluated {hashlib.sha256(state).hexdigest()}")
        return super().eval(model, evaluator, is_distributed, half)
"""
PAIR = (*TRAIN, "-d", "2", *LOSSES, "max_epoch", "3", "loss_cls.loss_weight", "{1: 2.0, 3: 1.0}")


@pytest.mark.slow
def test_every_rank_evaluates_the_very_model_that_is_saved(pair):
    logs = [(run_folder(pair) / name).read_text() for name in ("train_log.txt", "train_log_rank1.txt")]
    models = [re.findall(r"evaluated (\w{64})", log) for log in logs]
    assert models[0] == models[1] and len(models[0]) == 2


@pytest.mark.slow
def test_a_schedule_has_the_same_epoch_in_every_rank_and_in_the_ema_copy(pair):
    """A resume, which gives the same weights, is below."""
    for name in ("train_log.txt", "train_log_rank1.txt"):
        log = (run_folder(pair) / name).read_text()
        assert list(dict.fromkeys(re.findall(r"in training (\S+)", log))) == ["2.00", "1.50", "1.00"]
        assert re.findall(r"weight of the class loss (\S+)", log) == ["1.50", "1.00"]


@pytest.mark.slow
def test_the_workers_of_one_machine_are_reached_from_this_machine_only(pair):
    """Their store and their own connections listen on the loopback interface; a queue.py of the user's is not run."""
    addresses = {row.split(":")[0] for row in (pair / "listening").read_text().split()}
    assert addresses == {"0100007F"} and not (pair / "queue was run").exists()


@pytest.mark.slow
def test_two_workers_stopped_and_resumed_are_two_workers_that_were_not(pair, work, digits):
    """Bit for bit, batch norm and all."""
    exp_file(work, digits, CRASH)
    done = cli(work, *PAIR, check=False, CRASH="1 5 SIGTERM parent")  # whoever stops the run stops the first process
    assert done.returncode == 130 and "--resume" in done.stderr and seconds_since_the_crash(work) < 40
    assert record(work)["status"] == "interrupted" and record(work)["epochs_done"] == 1
    cli(work, "train", "--resume", *PAIR[1:])
    assert_same(checkpoint(run_folder(pair))["model"], checkpoint(run_folder(work))["model"])


@pytest.mark.slow
def test_torchrun_a_killed_worker_ends_all(work, digits):
    """The first, which holds the store of all; the second is killed in a test above."""
    exp_file(work, digits, CRASH)
    python = (*TORCHRUN, "--standalone", "-m", "yolox_loss_patch")
    done = cli(work, *TRAIN, "max_epoch", "2", python=python, check=False, CRASH="0 4 SIGKILL self")
    assert done.returncode != 0 and seconds_since_the_crash(work) < 40
    facts = record(work)
    assert facts["status"] == "failed" and facts["ended"]
    assert re.match(r"rank 0 \(process \d+\) ended without a word: killed", facts["error"]), facts["error"]
    assert "error: rank 1: rank 0 (process" in done.stderr


def processes(session):
    """The processes of a session that still run, as ps tells them."""
    rows = subprocess.run(["ps", "-eo", "sid,pid,stat,args"], capture_output=True, text=True, check=True).stdout
    found = [row.split(None, 3) for row in rows.splitlines()[1:]]
    return [row for row in found if row[0] == str(session) and not row[2].startswith("Z")]


def signals_as_in_a_terminal(ignore_interrupt):
    """Whatever started the tests, nohup for instance, does not decide which signals the training heeds."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_interrupt else signal.default_int_handler)


# workers, the signal, who gets it, whether Ctrl-C is ignored as under nohup, and what the record says
ENDS = [
    (
        2,
        "SIGKILL",
        "parent",
        True,
        "failed",
        r"the process that started the workers \(\d+\) ended without a word: killed",
    ),
    (1, "SIGHUP", "self", False, "interrupted", "stopped by"),
    (2, "SIGINT", "group", False, "interrupted", "interrupted from the keyboard"),
]


@pytest.mark.slow
@pytest.mark.parametrize("number,name,whom,ignore,status,error", ENDS)
def test_no_process_outlives_the_one_that_started_the_training(work, digits, number, name, whom, ignore, status, error):
    """Workers, their data loaders, and the process that started them: all are gone, and the record says why."""
    exp_file(work, digits, CRASH)
    words = [*TRAIN, "-d", number, "max_epoch", "500", "data_num_workers", "1"]
    with (work / "screen.txt").open("w") as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "yolox_loss_patch", *map(str, words)],
            cwd=work,
            stdout=screen,
            stderr=screen,
            start_new_session=True,
            preexec_fn=lambda: signals_as_in_a_terminal(ignore),
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CRASH": f"0 2 {name} {whom}"},
        )
    process.wait(300)
    until = time.time() + 30
    while processes(process.pid) and time.time() < until:
        time.sleep(0.2)
    assert processes(process.pid) == [] and seconds_since_the_crash(work) < 60, (work / "screen.txt").read_text()
    assert process.returncode == (-9 if name == "SIGKILL" else 130)
    assert record(work)["status"] == status and re.search(error, record(work)["error"]), record(work)["error"]
    assert not list(run_folder(work).glob(".claim*")) or name == "SIGKILL"


@pytest.mark.slow
def test_a_training_whose_reader_went_away_leaves_no_process(work):
    """As ``yolox-loss train ... 2>&1 | head -1``."""
    words = [*TRAIN, "max_epoch", "2", "data_num_workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "yolox_loss_patch", *words],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) != 0
    assert processes(process.pid) == []
    assert record(work)["status"] == "failed" and "(broken pipe)" in record(work)["error"] and record(work)["ended"]
    assert not list(run_folder(work).glob(".claim*"))


@pytest.mark.slow
def test_workers_that_disagree_stop(work, digits):
    differ = """
        import torch.distributed as dist
        if dist.is_initialized() and dist.get_rank() == 1:
            self.loss_iou, self.max_epoch = "giou", 5
"""
    exp_file(work, digits, differ)
    python = (*TORCHRUN, "--standalone", "-m", "yolox_loss_patch")
    done = cli(work, *TRAIN, python=python, check=False)
    assert done.returncode != 0 and not run_folder(work).exists()
    for text in (
        "exp.max_epoch is 4 on rank 0 and 5 on rank 1",
        "losses.iou.type is 'iou' on rank 0 and 'giou' on rank 1",
    ):
        assert text in done.stderr
    assert "data.train" not in done.stderr and "sha256" not in done.stderr


@pytest.mark.slow
def test_a_mistake_in_a_worker_ends_the_run(work, digits):
    wrong = """
    def preprocess(self, inputs, targets, tsize):
        import torch.distributed as dist
        return (inputs * float("nan") if dist.get_rank() == 1 else inputs), targets
"""
    exp_file(work, digits, wrong)
    done = cli(work, *TRAIN, "-d", "2", check=False)
    assert done.returncode == 1 and done.stderr.count("error: rank 1: The loss is not finite: iou") == 1
    assert record(work)["status"] == "failed" and record(work)["error"].startswith("rank 1: The loss is not finite")
    assert "The loss is not finite" in (run_folder(work) / "train_log_rank1.txt").read_text()


@pytest.mark.parametrize(
    "words,answer",
    [
        (("-b", "7"), "7 does not divide among 2. Take 6 or 8"),
        (("--num_machines", "2"), "Several machines need --dist-url"),
        (("--num_machines", "2", "--dist-url", "somewhere"), "--dist-url is tcp://HOST:PORT"),
        (("--num_machines", "2", "--machine_rank", "2"), "--machine_rank is 0 to 1"),
    ],
)
def test_a_mistake_in_the_flags_is_told_before_a_worker_starts(work, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(work)
    assert main([*TRAIN, "-d", "2", *words]) == 2
    assert answer in capsys.readouterr().err and not run_folder(work).exists()


def arguments(**values):
    return argparse.Namespace(**{"devices": None, "num_machines": 1, "machine_rank": 0, "dist_url": None, **values})


ENV = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    "env,args,answer",
    [
        ({}, {}, None),
        (ENV, {}, Place(3, 4, 1, 2)),
        (ENV, {"devices": 2}, Place(3, 4, 1, 2)),
        ({"WORLD_SIZE": "4"}, {}, None),  # a cluster's own
        ({"RANK": "0", "WORLD_SIZE": "1"}, {"devices": 2}, None),  # a cluster's single process may spawn workers
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            {},
            (RunError, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ),
        ({**ENV, "LOCAL_RANK": "one"}, {}, (RunError, "LOCAL_RANK='one'")),
        (ENV, {"devices": 4}, (ConfigError, "torchrun started 2 workers on this machine and -d asks for 4")),
        (ENV, {"num_machines": 2}, (ConfigError, "leave --num_machines 2 out")),
        (ENV, {"machine_rank": 1}, (ConfigError, "leave --machine_rank 1 out")),
        (ENV, {"dist_url": "auto"}, (ConfigError, "leave --dist-url auto out")),
    ],
)
def test_torchruns_environment(monkeypatch, env, args, answer):
    for name in (*ENV, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if isinstance(answer, tuple):
        with pytest.raises(answer[0], match=re.escape(answer[1])) as caught:
            from_torchrun(arguments(**args))
        assert isinstance(caught.value, KitError)
    else:
        assert from_torchrun(arguments(**args)) == answer


@pytest.mark.slow
def test_a_process_that_hangs_although_another_is_lost_is_ended():
    """As nccl may do: the main thread never comes back from its collective."""
    code = """
import os, socket, subprocess, sys, time
from yolox_loss_patch.train.workers import team
other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
team.dist.get_rank, team.dist.get_world_size = lambda: 0, lambda: 2
team.gather = lambda mine: [mine, (other.pid, socket.gethostname())]
team.PATIENCE = 0.5
with team.Team(None).watch(lambda text: print("lost:", text, flush=True)):
    time.sleep(2.5)
    print("together", flush=True)
    other.kill()
    other.wait()
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"together\nlost: rank 1 \(process \d+\) ended without a word: .*\n", done.stdout)


def test_a_record_of_others_is_left_alone(tmp_path):
    path = tmp_path / "run.json"
    fail_run(tmp_path, [1], "lost")
    assert not path.exists()
    for pid, status, expected in ((1, "running", "failed"), (1, "finished", "finished"), (2, "running", "running")):
        path.write_text(json.dumps({"status": status, "pid": pid, "error": None}))
        fail_run(tmp_path, [1], "lost")
        facts = json.loads(path.read_text())
        assert facts["status"] == expected and facts["error"] == ("lost" if expected == "failed" else None)
