#!/usr/bin/env bash
# Runs all tests in an environment of their own, .venv-test. Arguments go to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/core/test_nms.py -x
#   bash scripts/test.sh --full               # also the whole contract for every variant of a detector
#
# $PYTHON chooses the Python. The environment holds libtpu (half a gigabyte), for the test that compiles for TPU.
# Without files among the arguments two processes share the tests, since hardly one of them keeps two cores busy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/venv.sh .venv-test test,tpu
# Without these, JAX looks for a TPU and libtpu asks the network about it.
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
pytest=(.venv-test/bin/python -m pytest -q --durations=15 "$@")
for argument in "$@"; do
    if [[ $argument == tests* ]]; then exec "${pytest[@]}"; fi
done

# What takes half of the time: what trains, and starts processes.
apart=(tests/training tests/sweeps/test_runner.py tests/test_tpu.py tests/cli/test_scripts.py tests/costs/test_stages.py
       tests/inference tests/report tests/weights/test_exchange.py tests/test_config.py tests/test_notebooks.py tests/parity)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
DETZOO_TESTS_HALF=0 "${pytest[@]}" "${apart[@]}" > "$log" 2>&1 &
status=0
DETZOO_TESTS_HALF=1 "${pytest[@]}" tests "${apart[@]/#/--ignore=}" || status=$?
wait $! || status=$?
cat "$log"
exit $status
