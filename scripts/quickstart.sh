#!/usr/bin/env bash
# Installs detzoo into .venv, trains small detectors of five families on drawn shapes, and compares them in a report.
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --detectors=retinanet      # one of them, with all the steps of its config
#   bash scripts/quickstart.sh --config.training.steps=100
#
# Arguments of the form --config.KEY=VALUE go to every training. What was stopped goes on with the same command; what is
# done is not done again. $PYTHON chooses the Python, $TFDS_DATA_DIR where data lie (default: ~/tensorflow_datasets).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

detectors=
arguments=()
for argument in "$@"; do
    case $argument in
        --detectors=*) detectors=${argument#--detectors=} ;;
        *) arguments+=("$argument") ;;
    esac
done
run=runs/quickstart${detectors:+_${detectors//,/_}}

echo '1/3 installing'
bash scripts/venv.sh .venv plots
echo '2/3 training, evaluating, and measuring what prediction costs'
.venv/bin/detzoo sweep --experiment="quickstart${detectors:+:$detectors}" --workdir="$run" --jobs=2 --costs \
    --cost_batches=1 ${arguments[@]+"${arguments[@]}"}
echo '3/3 comparing'
.venv/bin/detzoo report --workdir="$run"

cat <<END

Done. In $PWD/$run:
  report.html                 tables, figures, and the detections side by side
  runs/DETECTOR/              what was trained: .venv/bin/detzoo predict --workdir=$run/runs/DETECTOR --images=...
  runs/DETECTOR/tensorboard/  curves: pip install tensorboard; tensorboard --logdir=$run/runs
END
