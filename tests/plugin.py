"""What holds the tests themselves: a skip needs a reason that is known, and a quick test has to be quick."""

import os
import re

import forked
import pytest

# Why a test may be skipped where CI is set. Any other skip fails there: a part of the suite that is silently left out
# is found by nobody.
KNOWN_SKIPS = (
    r"no CUDA device",
    r"git main is not on the package index: name a checkout .* YOLOX_MAIN",
    r"no Chromium here",
    r"this system does not say when a process began",
    r"Python 3\.10 always looks into the current folder first",
)
QUICK_SECONDS = 2.0  # of a core; a test that takes longer is marked slow


def under_ci():
    """The variable that continuous integration sets."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def refuse_unknown_skip(report):
    """Turn a skip without a known reason into a failure where CI is set."""
    if not report.skipped or hasattr(report, "wasxfail") or not under_ci():
        return
    reason = (
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
    )
    if not any(re.search(known, reason) for known in KNOWN_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"Skipped for a reason that is not in KNOWN_SKIPS of tests/plugin.py: {reason!r}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Look at each phase of a test."""
    outcome = yield
    refuse_unknown_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    """Look at each file, which may skip as a whole."""
    outcome = yield
    refuse_unknown_skip(outcome.get_result())


def cpu_seconds():
    """Time that this process and those it waited for have spent on a core: other programs do not make it longer."""
    return sum(os.times()[:4]) + forked.seconds


def measured(item):
    """Note what a phase of a test takes; for a hook wrapper."""
    start = cpu_seconds()
    yield
    item.user_properties.append(("cpu_seconds", round(cpu_seconds() - start, 2)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item):
    """Fixtures count: the first test that asks for a shared one pays for it."""
    yield from measured(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """And the test itself."""
    yield from measured(item)


def pytest_terminal_summary(terminalreporter):
    """Name the tests that are not marked slow and are."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    quick = [report for report in reports if getattr(report, "when", "") == "call" and "slow" not in report.keywords]
    seconds = {
        report.nodeid: max(dict([pair]).get("cpu_seconds", 0) for pair in report.user_properties) for report in quick
    }
    late = sorted(((took, test) for test, took in seconds.items() if took > QUICK_SECONDS), reverse=True)
    if late:
        terminalreporter.section(f"over {QUICK_SECONDS:g} s of a core and not marked slow")
        for took, test in late:
            terminalreporter.line(f"{took:.1f} s  {test}")
