#!/usr/bin/env bash
# Runs detzoo on an NVIDIA GPU in 8 minutes: tests, a short training, and times beside torchvision's.
#
#   WHEELS=DIR bash scripts/dev/gpu_check.sh fetch       # elsewhere, with a network: fetches what a machine with JAX and torch lacks
#   WHEELS=DIR OUT=RESULTS bash scripts/dev/gpu_check.sh
#   JAX_PLATFORMS=cpu bash scripts/dev/gpu_check.sh tiny     # a small image, to try the script on a CPU
#
# The machine needs CUDA, Python with JAX for CUDA, flax, optax, orbax, torch, torchvision and pytest, and no network. WHEELS is
# a folder of wheels that are unpacked for this run (none by default), OUT takes the logs and results.jsonl (default:
# runs/gpu_check), PARTS is the parts to run (default: tests train detzoo torch; there is also `steps`), PYTHON the Python.
# A part that fails or takes too long does not stop the others; the table of what was measured comes last. Most of the time goes
# to compiling: what is not compiled in time is left out. A second run with the same JAX_COMPILATION_CACHE_DIR gets further.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
if [[ ${1:-} == fetch ]]; then
    platforms=()
    for name in manylinux_2_28 manylinux_2_24 manylinux_2_17 manylinux2014; do platforms+=(--platform "${name}_x86_64"); done
    packages=(array_record dm-tree docstring_parser googleapis-common-protos grain hotcoco immutabledict importlib_resources
              ml_collections portpicker pycocotools simple-parsing tensorboardX tensorflow-datasets tensorflow-metadata
              termcolor toml)
    "$python" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
        -c constraints.txt -d "${WHEELS:?names the folder to fetch to}" "${packages[@]}"
    exec "$python" -m pip wheel --no-deps -c constraints.txt -w "$WHEELS" promise
fi

tiny=()
if [[ ${1:-} == tiny ]]; then tiny=(--tiny); fi
out=${OUT:-runs/gpu_check}
mkdir -p "$out"
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$site
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false       # torch and JAX share the card
# To compile in a minute and not in several: no products by Triton, and less checking of the algorithms that are tried out.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=2"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(mktemp -d)}

part() {  # NAME SECONDS COMMAND...: runs a part, if it is asked for, and logs it
    local name=$1 seconds=$2 status=0 begin=$SECONDS
    shift 2
    if [[ " ${PARTS:-tests train detzoo torch} " != *" $name "* ]]; then return; fi
    echo "== $name: $*"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.log" || status=$?
    echo "== $name: exit status $status after $((SECONDS - begin)) s"
}

# Float32 in full precision. tests/conftest.py lowers the level of optimisation, unless it is set.
core_tests() {
    JAX_DEFAULT_MATMUL_PRECISION=highest JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} \
        XLA_FLAGS="--xla_backend_optimization_level=3 ${XLA_FLAGS:-}" \
        "$python" -m pytest -q -p no:cacheprovider -p no:benchmark --tb=short --durations=5 "$@"
}
# Each kind of detector trains four steps, with an interruption and without: the same bits. It needs XLA's deterministic
# operations, which were wrong for Faster R-CNN in JAX 0.11.2 (docs/performance.md).
step_test() {
    XLA_FLAGS="--xla_gpu_deterministic_ops=true ${XLA_FLAGS:-}" core_tests "$@"
}
export -f core_tests step_test
export python

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
"$python" -c 'import jax, jaxlib, torch, torchvision
print("JAX", jax.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__, jax.devices())'

workers=(-n 8)
"$python" -c 'import xdist' 2> /dev/null || workers=()
# Without the tests of IoUs that equal a threshold: on a GPU XLA's division is not rounded correctly.
part tests 100 bash -c 'core_tests "$@"' - ${workers[@]+"${workers[@]}"} tests/core/test_nms.py tests/core/test_boxes.py \
    tests/core/test_matching.py tests/core/test_roi_features.py tests/core/test_postprocess.py \
    --deselect 'tests/core/test_nms.py::test_nms_equals_loops[0.1]' \
    --deselect tests/core/test_matching.py::test_match_by_threshold_by_hand
part steps 120 bash -c 'step_test "$@"' - ${workers[@]+"${workers[@]}"} tests/training/test_step.py -k every_kind

steps=200
if [[ ${#tiny[@]} -gt 0 ]]; then steps=4; fi
run=$(mktemp -d)
part train 90 "$python" scripts/train.py --config=retinanet_shapes --workdir="$run/shapes" \
    --config.data.data_dir="$run/data" --config.training.steps=$steps --config.training.evaluate_every=0

part detzoo 190 "$python" scripts/dev/benchmark_gpu.py --output="$out" --profile=. ${tiny[@]+"${tiny[@]}"}
part torch 100 "$python" scripts/dev/benchmark_gpu_torch.py --output="$out" ${tiny[@]+"${tiny[@]}"}
"$python" scripts/dev/gpu_cases.py "$out" | tee "$out/table.md"
