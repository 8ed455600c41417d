"""One run folder, one owner: also with many claimants at once, dead owners, other machines and pauses."""

import json
import os
import subprocess
import sys
import time

import pytest

from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs import claim
from yolox_loss_patch.runs.claim import Claim, owner_of

HOLD = """
import sys, time
from pathlib import Path
from yolox_loss_patch.runs.claim import Claim
claim = Claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
# Each process claims the folder as often as it can for a while; a file that must not be there twice tells a double owner.
RACE = """
import os, sys, time
from pathlib import Path
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.claim import Claim
folder, won, until = Path(sys.argv[1]), 0, time.time() + 3
while time.time() < until:
    try:
        claim = Claim(folder)
    except RunError:
        continue
    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
    time.sleep(0.002)
    os.unlink(folder / "inside")
    claim.release()
    won += 1
print(won)
"""


def start(code, folder):
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def claims(folder):
    return sorted(path.name for path in folder.glob(".cl*"))


def change(folder, **facts):
    """Change what the claim in a folder says of its owner."""
    (path,) = folder.glob(".claim.*")
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    return path


def test_a_folder_has_one_owner_until_it_is_released(tmp_path):
    assert owner_of(tmp_path / "run") is None
    first = Claim(tmp_path / "run")
    with pytest.raises(RunError, match=rf"Process {os.getpid()} is training in .*run right now; choose another -expn"):
        Claim(tmp_path / "run")
    assert first.is_held() and owner_of(tmp_path / "run").pid == os.getpid()
    first.release()
    assert claims(tmp_path / "run") == []
    second = Claim(tmp_path / "run")
    assert second.taken_from is None
    first.release()  # once more: it is not the owner any longer
    assert second.is_held()
    second.release()


def test_a_dead_owner_is_taken_over_at_once(tmp_path):
    holder = start(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"Process {holder.pid} is training"):
        Claim(tmp_path)
    holder.kill()
    holder.wait()
    after = Claim(tmp_path)
    assert after.taken_from.pid == holder.pid and claims(tmp_path) == [".claim.2"]
    after.release()


@pytest.mark.parametrize("facts", [{"machine": "elsewhere"}, {"boot": "another"}, {"pids": "another container"}])
def test_an_owner_that_cannot_be_seen_is_judged_by_its_last_sign_of_life(tmp_path, facts):
    lost = Claim(tmp_path)
    path = change(tmp_path, **facts)
    with pytest.raises(RunError, match=r"of machine .*It gave a sign of life \d+ s ago.*is free 180 s after"):
        Claim(tmp_path)
    os.utime(path, (time.time() - claim.STALE - 5,) * 2)
    after = Claim(tmp_path)
    assert after.taken_from.age > claim.STALE and not after.taken_from.is_here
    assert not lost.is_held()
    with pytest.raises(RunError, match=r"took over .* leaves the folder alone"):
        lost.check()
    lost.release()
    assert after.is_held()
    after.check()
    after.release()


def test_a_pause_of_a_process_of_this_machine_is_no_end(tmp_path):
    holder = Claim(tmp_path)
    (path,) = tmp_path.glob(".claim.*")
    os.utime(path, (1, 1))
    with pytest.raises(RunError, match="right now"):
        Claim(tmp_path)
    holder.release()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    Claim(tmp_path)
    change(tmp_path, born="before the last boot 1")
    assert Claim(tmp_path).taken_from.pid == os.getpid()


@pytest.mark.parametrize("text", ["", "[1]", '{"token"'])
def test_a_claim_that_is_being_written_is_respected_for_a_while(tmp_path, text):
    path = tmp_path / ".claim.1"
    path.write_text(text)
    with pytest.raises(RunError, match="right now"):
        Claim(tmp_path)
    os.utime(path, (time.time() - claim.STALE - 5,) * 2)
    Claim(tmp_path).release()


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT", 0.05)
    holder = Claim(tmp_path)
    (path,) = tmp_path.glob(".claim.*")
    os.utime(path, (1, 1))
    until = time.time() + 5
    while path.stat().st_mtime == 1 and time.time() < until:
        time.sleep(0.02)
    assert time.time() - path.stat().st_mtime < 60
    holder.release()


@pytest.mark.slow
def test_many_at_once_are_never_two(tmp_path):
    racers = [start(RACE, tmp_path) for _ in range(4)]
    texts = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sum(map(int, texts)) > 20 and claims(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=r"cannot be written \(.*\)\. Choose another with output_dir"):
            Claim(folder)
