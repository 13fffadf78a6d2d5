"""What torchvision computed, as scripts/dev/make_parity_fixtures.py stored it, and our counterparts of its models."""

import functools
import json
import pathlib

import jax
import numpy as np
from tiny import with_backbone

from detzoo.detectors import make_detector
from detzoo.parity.torchvision import drawn_entries
from detzoo.weights.torchvision import PEERS

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
(
    RETINANET,
    SSD,
    SSDLITE,
    FASTER_RCNN,
    MASK_RCNN,
    RETINANET_V2,
    FASTER_RCNN_V2,
    MASK_RCNN_V2,
    MOBILENET,
    MOBILENET_320,
) = PEERS


@functools.cache
def template_of(name=RETINANET, **changes):
    """Shapes of (params, model_state) of a counterpart, or of a changed one; changes of its backbone are among the others."""
    model = PEERS[name].model
    inner = {'norm': changes.pop('norm')} if 'norm' in changes else {}
    inner |= {'name': changes.pop('backbone_name')} if 'backbone_name' in changes else {}
    detector = make_detector(**with_backbone(model, **inner) | changes)
    return jax.eval_shape(lambda rng: detector.init(rng, (320, 320)), jax.random.key(0))


@functools.cache
def golden_of(name):
    """The arrays of a fixture; of a detector also 'enlarged', the image that the model saw."""
    golden = dict(np.load(FIXTURES / f'{name}.npz'))
    if 'repeat' not in golden:
        return golden
    golden['enlarged'] = golden['image'].repeat(golden['repeat'], axis=0).repeat(golden['repeat'], axis=1)
    if 'masks' in golden:
        golden['masks'] = np.unpackbits(golden['masks'], axis=-1, count=golden['enlarged'].shape[1]).astype(bool)
    return golden


@functools.cache
def entries_of(name):
    """The drawn entries of a model."""
    return drawn_entries(json.loads(str(golden_of(name)['shapes'])))
