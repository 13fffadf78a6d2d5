#!/usr/bin/env bash
# Runs all tests in an environment of their own, .venv-test. Arguments go to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_nms.py -x
#   bash scripts/test.sh --full               # also the whole contract for every variant of a detector
#
# $PYTHON chooses the Python. The environment holds libtpu (half a gigabyte), for the test that compiles for TPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/venv.sh .venv-test test,tpu
# Without these, JAX looks for a TPU and libtpu asks the network about it.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
exec .venv-test/bin/python -m pytest -q --durations=15 "$@"
