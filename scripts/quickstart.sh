#!/usr/bin/env bash
# Installs detzoo into .venv, trains a small RetinaNet on drawn shapes, evaluates it, and draws what it finds.
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --config.training.steps=300
#
# Arguments go to scripts/train.py. What was stopped goes on with the same command; what is done is not done again.
# $PYTHON chooses the Python, $TFDS_DATA_DIR where data lie (default: ~/tensorflow_datasets).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=runs/quickstart
python=.venv/bin/python

echo '1/4 installing'
bash scripts/venv.sh .venv
echo '2/4 training'
"$python" scripts/train.py --config=configs/retinanet_shapes.py --workdir="$run" "$@"
echo '3/4 evaluating the newest checkpoint'
"$python" scripts/evaluate.py --workdir="$run"
echo '4/4 detecting in eight validation pictures'
"$python" scripts/export_images.py --name=shapes --split='validation[:8]' --output="$run/pictures"
"$python" scripts/predict.py --workdir="$run" --images="$run/pictures" --output="$run/predictions" \
    --score_threshold=0.4

cat <<END

Done. In $PWD/$run:
  predictions/        the pictures with the detected boxes, and detections.json
  evaluation.json     the table above
  tensorboard/        curves and pictures of the run: pip install tensorboard; tensorboard --logdir=$run
END
