#!/usr/bin/env bash
# Check and test: makes the environment if need be, then ruff, mypy and pytest. More arguments go to pytest.
#
#   scripts/test.sh                        everything: about twelve minutes on two idle cores
#   scripts/test.sh quick                  without the tests that are marked slow: about three minutes
#   scripts/test.sh tests/losses -k ciou   some of it
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
select=()
if [ "${1-}" = quick ]; then
    select=(-m "not slow")
    shift
fi
scripts/setup.sh --test
# On a desk the tests of a YOLOX that pip cannot get are skipped. In CI they have to run.
[ -z "${CI-}" ] || PYTHON=.venv/bin/python scripts/get_hosts.sh

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check yolox_loss_patch tests benchmarks scripts exps
.venv/bin/python -m mypy

# One thread per process: the tests run in parallel, and tiny tensors gain nothing from more.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 ${select[@]+"${select[@]}"} "$@"
