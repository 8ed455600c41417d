"""Every YOLOX: the checks of host_checks.py on each, and the table that says so."""

import os
import subprocess
import sys

import forks
import pytest
from conftest import EXP, ROOT, cli, load_script

bench = load_script("benchmarks/hosts")


@pytest.fixture(scope="session")
def got_hosts(tmp_path_factory):
    """What scripts/get_hosts.sh says when it fails, else nothing; it does nothing when the hosts are there."""
    lock = tmp_path_factory.getbasetemp().parent / "get_hosts.lock"
    command = ["flock", str(lock), str(ROOT / "scripts" / "get_hosts.sh")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def assert_as_in_the_table(host, folder, work, digits):
    answers, text = bench.run(folder, work, digits, cli)
    written = bench.read()[host]
    different = {
        check: (answers.get(check), answer) for check, answer in written.items() if answers.get(check) != answer
    }
    assert not different and answers.keys() == written.keys(), f"{host} (now, in {bench.TABLE}): {different}\n{text}"
    assert not [answer for answer in answers.values() if answer.startswith("no")]


@pytest.mark.slow
@pytest.mark.parametrize("host", bench.HOSTS)
def test_what_works_on_a_host_is_what_the_table_says(host, tmp_path, digits, request):
    folder = bench.HOSTS[host]
    if host == "YOLOX main" and folder is None:
        pytest.skip(
            "git main is not on the package index: name a checkout of it in the environment variable YOLOX_MAIN"
        )
    if folder is not None and folder.is_relative_to(ROOT):
        failed = request.getfixturevalue("got_hosts")
        if failed:
            pytest.skip(f"pip could not get it: {failed}")
    assert_as_in_the_table(host, folder, tmp_path, digits)


@pytest.mark.slow
@pytest.mark.parametrize("fork,edits", list(zip(bench.FORKS, (forks.BACKBONE, forks.BRANCH), strict=True)))
def test_what_works_on_a_fork_is_what_the_table_says(fork, edits, tmp_path, digits):
    assert_as_in_the_table(fork, forks.make(tmp_path / "fork", edits), tmp_path / "run", digits)


@pytest.mark.slow
def test_a_fork_in_another_order_is_refused_in_words(tmp_path, digits):
    fork = forks.make(tmp_path / "fork", forks.ORDER)
    (tmp_path / "tiny.py").write_text(EXP.format(data=str(digits)))
    path = os.pathsep.join([str(fork), str(ROOT)])
    done = cli(tmp_path, "train", "-f", "tiny.py", "-b", "8", "--device", "cpu", check=False, PYTHONPATH=path)
    assert done.returncode == 2
    assert "calls self.bcewithlog_loss where YOLOX calls self.iou_loss" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_folder_yolox_without_its_tools_says_what_is_missing(tmp_path, digits):
    fork = forks.make(tmp_path / "fork", {})
    (fork / "yolox" / "tools" / "train.py").unlink()
    path = os.pathsep.join([str(fork), str(ROOT)])
    done = cli(tmp_path, "train", "-n", "yolox_nano", check=False, PYTHONPATH=path)
    assert done.returncode == 2
    assert "comes without yolox.tools.train" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_host_is_told_by_its_code_not_by_its_version(tmp_path):
    """A label assignment of a fork's own under 0.3.0's version and get_losses."""
    edits = {forks.HEAD: [("center_radius = 2.5", "center_radius = 3.5")]}
    fork = forks.make(tmp_path / "fork", edits)
    code = "from yolox_loss_patch.head import hosts; print(hosts.describe()['name'], hosts.assignment_rule(hosts.head_class()))"
    (tmp_path / "told.py").write_text(code)
    done = cli(tmp_path, python=(tmp_path / "told.py",), PYTHONPATH=os.pathsep.join([str(fork), str(ROOT)]))
    assert done.stdout.strip() == "yolox 0.3.0 (PyPI), with a label assignment of its own None"


def test_the_readme_has_the_table():
    assert bench.markdown(bench.read()) in (ROOT / "docs" / "hosts.md").read_text()
