"""Writes docs/zoo.md: the published detectors and segmenters whose weights can be imported, and how their counts compare with ours.

    python scripts/dev/make_zoo.py

Nothing is run: parameters and multiplications are counted from shapes.
"""

import pathlib
import sys

import jax
import numpy as np
from absl import app

from detzoo.costs.counts import multiply_adds, parameter_count
from detzoo.inference.predictor import detector_of, prediction_of
from detzoo.types import Inputs
from detzoo.weights.exchange import config_of, shapes_of
from detzoo.weights.zoo import MODELS, Model

PATH = pathlib.Path(__file__).parents[2] / 'docs' / 'zoo.md'
TEXT = """# Published weights

`detzoo import --source=FILE --model=MODEL --workdir=DIR` makes a workdir of a published file, from which
`detzoo evaluate`, `detzoo predict` and fine-tuning work. FILE is what the publisher of MODEL offers for download.

*Published* is what the publisher says: AP of COCO's val2017 in percent, of masks behind the stroke; of the YOLOs AP50, of
COCO's test-dev or of VOC 2007; of segmenters the mean IoU over VOC's classes and background on COCO's val2017; parameters;
billions of multiplications, each with its addition (GMACs), of an image. *Here* is what our model of the same arguments has and
does, by `python scripts/dev/make_zoo.py`. AP was not measured here. What was
compared instead, layer by layer and detection by detection, is in [parity.md](parity.md): of `yolov3-tiny` with the published
file, of the others, whose files were not at hand, with drawn weights.

`yolov3-tiny` has the anchors that its weights were trained with, `mask = 1,2,3` in the second [yolo] section of a .cfg file;
darknet's file of today has `mask = 0,1,2`, for trainings to come
([its issue 851](https://github.com/pjreddie/darknet/issues/851)). With that file as `--cfg`, and these weights, the boxes of the
finer level come out about half as wide and high, here as in darknet.

Parameters of R-CNNs differ by the boxes (4,100) and the mask (257) of background, which there are none of here. GMACs are of a
square image as large as the shorter side. Second stages run here on as many proposals and masks as there may be; the published
counts have those that an image of noise happened to give: with MobileNet few proposals, and masks for
`maskrcnn_resnet50_fpn_v2` alone. The two counts of `yolov1` differ by its locally connected layer. Those of
segmenters differ by the auxiliary head, which torchvision runs in prediction too, and by the enlargement of logits, which
counts here.

| MODEL | from | FILE | AP, published | parameters, published | here | GMACs, published | here |
|---|---|---|---|---|---|---|---|
"""


def counts(model: Model) -> tuple[int, float]:
    """Counts the parameters, and the billions of multiply-adds of an image."""
    config, num_classes = config_of(model), len(model.classes.class_names)
    height, width = model.canvases[0]
    canvas = min(height, width), min(height, width)
    params, model_state = shapes_of(config, num_classes)
    images, window = ((1, *canvas, 3), np.uint8), ((1, 4), np.float32)
    inputs = Inputs(jax.ShapeDtypeStruct(*images), jax.ShapeDtypeStruct(*window))
    predict = prediction_of(detector_of(config, num_classes))
    return parameter_count(params), multiply_adds(predict, params, model_state, inputs) / 1e9


def row(name: str, model: Model) -> str:
    """Writes a line of the table."""
    published = model.published
    score = f'{published.AP}' if published.AP else f'AP50 {published.AP50}' if published.AP50 else ''
    score = f'mean IoU {published.mean_iou}' if published.mean_iou else score
    score += f' / {published.mask_AP}' if published.mask_AP else ''
    gmacs = f'{published.gflops / (2 if model.source == "darknet" else 1):.2f}' if published.gflops else ''
    parameters, here = counts(model)
    file, total = published.file, f'{published.parameters:,}' if published.parameters else ''
    return f'| `{name}` | {model.source} | `{file}` | {score} | {total} | {parameters:,} | {gmacs} | {here:.2f} |'


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: arguments have the form --FLAG=VALUE')
    rows = []
    for name, model in MODELS.items():
        rows.append(row(name, model))
        print(rows[-1], file=sys.stderr, flush=True)
    PATH.write_text(TEXT + '\n'.join(rows) + '\n')


if __name__ == '__main__':
    app.run(main)
