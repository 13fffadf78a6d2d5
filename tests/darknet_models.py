"""Narrow YOLOs, and files of drawn weights for them, in darknet's format."""

import functools
import json

import jax

from detzoo.detectors import make_detector
from detzoo.parity.darknet import drawn_weights
from detzoo.weights.darknet import PUBLISHED

CANVAS = (96, 128)


def model_of(name, width=1 / 16, norm='batch_norm', **changes):
    model = PUBLISHED[name].model
    backbone = {**model.get('backbone', {}), 'width': width, 'norm': norm}
    return {**model, 'num_classes': 2, 'backbone': backbone, **changes}


TINY = model_of('yolov3-tiny')
MODELS = {
    'v1': model_of('yolov1', backbone_stride=8),
    'v1-tiny': model_of('yolov1-tiny', backbone_stride=4),
    'v2': model_of('yolov2', backbone_stride=8),
    'v2-frozen': model_of('yolov2-tiny', norm='frozen_batch_norm'),
    'v3': model_of('yolov3', backbone_stride=8),
    'v3-tiny': TINY,
}


@functools.cache
def _template(text, canvas):
    detector = make_detector(**json.loads(text))
    return jax.eval_shape(lambda rng: detector.init(rng, canvas), jax.random.key(0))


def template_of(model, canvas=CANVAS):
    """Shapes of (params, model_state) of a model."""
    return _template(json.dumps(model), canvas)


def draw(folder, model, canvas=CANVAS):
    """Writes drawn weights to a file in a folder; returns the model's template, and the file's path."""
    template = template_of(model, canvas)
    path = folder / 'drawn.weights'
    path.write_bytes(drawn_weights(model, template))
    return template, str(path)
