#!/usr/bin/env bash
# Check and test: makes the environment if need be, then ruff, mypy and pytest. Arguments go to pytest:
#
#   scripts/test.sh                        everything
#   scripts/test.sh tests/losses -k ciou   some of it
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --test

.venv/bin/python -m ruff check .
.venv/bin/python -m mypy

# One thread a process: the tests run in parallel, and tiny tensors gain nothing from more.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 "$@"
