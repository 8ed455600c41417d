"""A skip with an unknown reason fails under CI, and a quick test that takes long is named."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SUITE = """
import pytest


def test_known():
    pytest.skip("no CUDA device")


def test_passes():
    pass


@pytest.mark.xfail
def test_expected():
    assert False
"""
UNKNOWN = """
def test_unknown():
    pytest.skip("not today")
"""
WHOLE_FILE = """
pytest.importorskip("no_such_package")
"""
LATE = """
def test_late():
    list(range(10_000_000))


@pytest.mark.slow
def test_marked():
    list(range(10_000_000))
"""


def run(folder, text, *words, ci="true"):
    """Run a suite with the plugin; returns the exit status and the output."""
    (folder / "test_made.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: as in the project\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "plugin", "-ra", *words],
        cwd=folder,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("text", "ci", "status", "answer"),
    [
        (SUITE, "true", 0, "1 passed, 1 skipped, 1 xfailed"),
        (SUITE + UNKNOWN, "", 0, "1 passed, 2 skipped, 1 xfailed"),
        (SUITE + UNKNOWN, "true", 1, "not in KNOWN_SKIPS of tests/plugin.py: 'not today'"),
        (SUITE + WHOLE_FILE, "true", 2, "not in KNOWN_SKIPS of tests/plugin.py: \"could not import 'no_such_package'"),
    ],
    ids=["known", "unknown, no CI", "unknown", "a file"],
)
def test_a_skip_under_ci(tmp_path, text, ci, status, answer):
    code, output = run(tmp_path, text, ci=ci)
    assert code == status, output
    assert answer in output


@pytest.mark.slow
def test_a_skip_in_a_worker(tmp_path):
    for text in (SUITE + UNKNOWN, SUITE + WHOLE_FILE):
        code, output = run(tmp_path, text, "-p", "xdist", "-n", "1")
        assert code == 1, output


def test_a_quick_test_that_takes_long_is_named(tmp_path):
    (tmp_path / "conftest.py").write_text("import plugin\nplugin.QUICK_SECONDS = 0.02\n")
    _, output = run(tmp_path, SUITE + LATE)
    assert "over 0.02 s of a core and not marked slow" in output
    assert "s  test_made.py::test_late" in output
    assert "test_marked" not in output and "s  test_made.py::test_passes" not in output
