#!/usr/bin/env python3
"""What works on which YOLOX: run the checks of tests/host_checks.py on each, write benchmarks/hosts.csv, print the table.

    scripts/get_hosts.sh
    YOLOX_MAIN=/path/to/a/checkout python benchmarks/hosts.py

tests/head/test_hosts.py runs the same checks and compares what they answer with the file.
"""

import csv
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "hosts.csv"
# Name in the table -> folder in front of the Python path; None: the YOLOX of this Python.
HOSTS = {
    "yolox 0.3.0": None,
    "YOLOX main": os.environ.get("YOLOX_MAIN") and Path(os.environ["YOLOX_MAIN"]),
    "pixeltable-yolox 0.4.3": ROOT / ".hosts" / "pixeltable-yolox",
    "yolox-datamint 0.3.1": ROOT / ".hosts" / "yolox-datamint",
}
FORKS = ("fork, other backbone", "fork, a branch more in the head")  # tests/forks.py makes them


def run(folder, work, data, python):
    """Check -> answer, for the YOLOX in a folder (None: the one of this Python); and what was printed on the way.

    ``python`` starts a process, as `cli` of tests/conftest.py does.
    """
    work.mkdir(parents=True, exist_ok=True)
    front = [] if folder is None else [str(folder)]
    path = os.pathsep.join([*front, str(ROOT), str(ROOT / "tests")])
    done = python(work, work, data, python=(ROOT / "tests" / "host_checks.py",), PYTHONPATH=path)
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def read():
    """Host -> check -> answer, of the file."""
    answers = {}
    with TABLE.open(newline="") as file:
        for row in csv.DictReader(file):
            answers.setdefault(row["host"], {})[row["check"]] = row["answer"]
    return answers


def markdown(answers):
    """The table of docs/hosts.md: a row per check, a column per host."""
    checks = list(next(iter(answers.values())))
    lines = [["", *answers], ["---"] * (len(answers) + 1)]
    lines += [[check, *(found[check] for found in answers.values())] for check in checks]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import forks
    from conftest import cli, load_script

    if HOSTS["YOLOX main"] is None:
        sys.exit("hosts: name a checkout of YOLOX's git main in the environment variable YOLOX_MAIN")
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        data = work / "digits"
        load_script("scripts/make_digits").make(data, train=24, val=8, size=96, seed=1)
        folders = dict(HOSTS)
        for name, edits in zip(FORKS, (forks.BACKBONE, forks.BRANCH), strict=True):
            folders[name] = forks.make(work / name, edits)
        answers = {}
        for host, folder in folders.items():
            print(f"hosts: {host}", file=sys.stderr)
            answers[host], _ = run(folder, work / "runs" / host, data, cli)
    with TABLE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["host", "check", "answer"])
        rows.writerows([host, check, answer] for host, found in answers.items() for check, answer in found.items())
    print(markdown(answers))


if __name__ == "__main__":
    main()
