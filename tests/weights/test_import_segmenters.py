"""Torchvision's segmenters by `import_weights`: files of drawn weights in their layout become workdirs that predict."""

import numpy as np
import pytest
import safetensors.numpy
from tiny import with_backbone

from detzoo.data.readers.voc import CLASS_NAMES
from detzoo.inference.predictor import canvas_for, load
from detzoo.weights import exchange, torchvision_segmentation, zoo
from detzoo.weights.exchange import import_weights
from detzoo.weights.mapping import flatten
from detzoo.weights.zoo import MODELS

TORCH_AXES = {4: (3, 2, 0, 1)}  # of our kernels in the file's order
SMALL = dict(features=16, auxiliary_features=8)


def draw_file(path, monkeypatch, name):
    """Writes a narrow model's entries in torchvision's names and order, background first; MODELS knows it as 'tiny'."""
    whole = MODELS[name]
    model = whole._replace(model=with_backbone(whole.model, name='resnet18', width=0.125) | SMALL)
    model = model._replace(recipe={**model.recipe, 'shorter_side': 32}, canvases=((32, 56), (56, 32)))
    monkeypatch.setitem(zoo.MODELS, 'tiny', model)
    random, entries = np.random.RandomState(0), {}
    for ours, leaf in flatten(exchange.shapes_of(exchange.config_of(model), 20)).items():
        shape = [leaf.shape[axis] for axis in TORCH_AXES.get(len(leaf.shape), range(len(leaf.shape)))]
        values = random.uniform(0.5, 1.5, shape) if ours.endswith('var') else 0.3 * random.standard_normal(shape)
        entries[model.mapping.name_of(ours.partition('/')[2])] = values.astype(np.float32)
    safetensors.numpy.save_file(entries, path)
    return entries


@pytest.mark.parametrize('name', ['fcn_resnet50', 'deeplabv3_resnet50'])
def test_files_of_torchvisions_layout_become_runs_that_predict(tmp_path, monkeypatch, name):
    entries = draw_file(tmp_path / 'tiny.safetensors', monkeypatch, name)
    assert {entries[f'{head}.4.bias'].shape for head in ('classifier', 'aux_classifier')} == {(21,)}
    imported = import_weights(tmp_path / 'tiny.safetensors', tmp_path / 'run', model='tiny')
    for part, head in (('classifier', 'head'), ('aux_classifier', 'auxiliary_head')):
        bias = imported.params[head]['logits']['bias']
        np.testing.assert_array_equal(bias, [*entries[f'{part}.4.bias'][1:], entries[f'{part}.4.bias'][0]])
    predictor = load(tmp_path / 'run')
    config = predictor.config
    assert config.data.name == 'voc' and predictor.classes.class_names == CLASS_NAMES
    assert config.data.mask_size and config.data.recipe.interpolation == 'bilinear'
    found = predictor(np.random.RandomState(1).randint(0, 256, (70, 90, 3)).astype(np.uint8))
    assert found.class_map.shape == (70, 90) and found.class_map.max() <= 20 and np.isfinite(found.scores).all()


def test_images_are_resized_as_torchvision_does():
    # Resize(520), no padding: 480 x 640 becomes 520 x 693 of 693.33.
    config = exchange.config_of(MODELS['deeplabv3_resnet101'])
    assert canvas_for((480, 640), config) == (520, 928) and canvas_for((640, 480), config) == (928, 520)
    config.evaluation.exact = True
    assert canvas_for((480, 640), config) == (520, 693) and canvas_for((300, 1200), config) == (520, 2080)


def test_published_files_are_known_by_their_checksums(tmp_path):
    assert exchange.model_by_checksum(tmp_path / 'any.pth', '1167a1af' + 56 * '0') == 'fcn_resnet50'
    with pytest.raises(ValueError, match='damaged: its SHA-256 begins with 00000000'):
        exchange.model_by_checksum(tmp_path / 'deeplabv3_resnet50_coco-cd0a2569.pth', 64 * '0')
    assert set(torchvision_segmentation.PEERS) < set(MODELS)
