"""The contract of a segmenter, for all of them: what every loss and prediction promises, whatever is inside.

Everything is compiled once a variant, for 8 images of 48 x 48 with 4 rows of ground truth.
"""

import collections
import functools
import types

import jax
import ml_collections
import numpy as np
import optax
import pytest
from tiny import OPTIMIZED, draw_blocks

from detzoo.allowed import MODEL, check_value
from detzoo.config import flatten, model_defaults
from detzoo.core.matching import IGNORE
from detzoo.evaluation.semantic import confusion_matrix, semantic_metrics
from detzoo.run.parallel import AXIS, parallel, replicate
from detzoo.segmenters import SEGMENTERS, make_segmenter, pixels
from detzoo.types import Batch, GroundTruth, Inputs, Segmenter

BATCH, CANVAS, ROWS, CLASSES = 8, (48, 48), 4, 3
NARROW = dict(width=0.125, norm='batch_norm')
VARIANTS = {
    'deeplab': dict(
        name='deeplab',
        backbone=dict(NARROW, name='tiny', dilation=1, width=0.5),
        backbone_strides=(2, 4),
        features=16,
        rates=(1, 2),
        auxiliary_features=8,
        dropout=0.1,
    ),
    'fcn': dict(name='fcn', backbone=dict(NARROW, fc6_dilation=2), backbone_strides=(2, 4, 8), dropout=0.1),
    'unet': dict(
        name='unet', backbone=dict(NARROW, width=0.25), backbone_strides=(1, 2), dropout=0.1, border_sigma=1.0
    ),
}
# Compiled for more than the contract only with --full.
SOME = [name if name == 'unet' else pytest.param(name, marks=pytest.mark.full) for name in VARIANTS]
# The learning rate at first and the steps with which a batch is learnt by heart.
LEARNING = {'deeplab': (2e-2, 120), 'fcn': (1e-2, 200), 'unet': (3e-2, 70)}


def make_batch(rows=ROWS):
    """Images of blocks on canvases which they do not fill; the third without objects, the fourth with a crowd."""
    images = np.zeros((BATCH, *CANVAS, 3), np.uint8)
    gt = GroundTruth(
        boxes=np.zeros((BATCH, rows, 4), np.float32),
        labels=np.zeros((BATCH, rows), np.int32),
        valid=np.zeros((BATCH, rows), bool),
        crowd=np.zeros((BATCH, rows), bool),
        dropped=np.zeros(BATCH, np.int32),
        cropped=np.zeros(BATCH, np.int32),
        masks=np.zeros((BATCH, rows, 8, 8), bool),
    )
    window = np.zeros((BATCH, 4), np.float32)
    for i in range(BATCH):
        height, width = 48 - i, 40 + i
        images[i, :height, :width], boxes, labels = draw_blocks(20 + i, height, width, 0 if i == 2 else 3)
        count = len(boxes)
        gt.boxes[i, :count] = boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0)))
        gt.labels[i, :count], gt.valid[i, :count], gt.masks[i, :count] = labels, True, True
        window[i, 2:] = width, height
    gt.crowd[3, 0] = True
    return Batch(Inputs(images, window), gt, np.arange(BATCH, dtype=np.int32), np.ones(BATCH, bool))


BLOCKS = make_batch()
NOTHING = BLOCKS._replace(gt=BLOCKS.gt._replace(valid=np.zeros_like(BLOCKS.gt.valid)))
LABELS = np.asarray(pixels.labels_of(pixels.paint_batch(BLOCKS), BLOCKS, CLASSES))


@functools.cache
def tiny_variant(name):
    """A variant, its parameters, and its functions compiled; `traces` counts their traces."""
    segmenter, traces = make_segmenter(num_classes=CLASSES, **VARIANTS[name]), collections.Counter()

    def compiled(name, function, options=None):
        def counted(*args):
            traces[name] += 1
            return function(*args)

        return jax.jit(counted, compiler_options=options)

    params, model_state = jax.jit(segmenter.init, static_argnums=1)(jax.random.key(0), CANVAS)
    random = np.random.RandomState(0)
    # FCN's scores start with kernels of zeros, which let no gradient through.
    params = jax.tree.map(lambda x: x + np.float32(0.02) * random.standard_normal(x.shape).astype(np.float32), params)
    step = compiled('loss', jax.value_and_grad(segmenter.loss, has_aux=True), OPTIMIZED)
    return types.SimpleNamespace(
        name=name,
        segmenter=segmenter,
        params=params,
        model_state=model_state,
        traces=traces,
        value_and_grad=step,
        gradient=lambda batch, seed=0: step(params, model_state, batch, jax.random.key(seed)),
        predict=compiled('predict', segmenter.predict),
    )


@pytest.fixture(scope='module', params=VARIANTS)
def tiny(request):
    return tiny_variant(request.param)


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close(first, second, tolerance=1e-5):
    """Compares trees leaf by leaf, each to a tolerance relative to its largest value."""

    def check(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.abs(b).max(initial=1e-2)  # what a norm takes away is 0 but for rounding
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, first, second)


def garble(batch):
    """Garbage in the padding rows of the ground truth, and outside of the windows."""
    rng, padding = np.random.RandomState(3), ~batch.gt.valid
    images, boxes, labels, masks = (
        x.copy() for x in (batch.inputs.images, batch.gt.boxes, batch.gt.labels, batch.gt.masks)
    )
    for image, (_, _, width, height) in zip(images, batch.inputs.window.astype(int)):
        outside = np.ones(CANVAS, bool)
        outside[:height, :width] = False
        image[outside] = rng.randint(0, 256, (outside.sum(), 3))
    garbage = [[-50, np.nan, 1e9, 3], [0, 0, 48, 48], [9, 9, 9, 9], [30, 30, 10, np.inf]]
    boxes[padding] = np.array(garbage)[rng.randint(4, size=padding.sum())]
    labels[padding] = rng.randint(-5, 1000, padding.sum())
    masks[padding] = rng.randint(2, size=masks[padding].shape)
    gt = batch.gt._replace(boxes=boxes, labels=labels, masks=masks, crowd=batch.gt.crowd | padding)
    return batch._replace(inputs=batch.inputs._replace(images=images), gt=gt)


def test_every_segmenter_has_a_variant():
    assert {variant['name'] for variant in VARIANTS.values()} == set(SEGMENTERS)


def test_labels_are_those_of_the_blocks():
    assert set(np.unique(LABELS)) == {IGNORE, *range(CLASSES + 1)}
    for i, (_, _, width, height) in enumerate(BLOCKS.inputs.window.astype(int)):
        expected = np.full(CANVAS, CLASSES)
        for row in np.flatnonzero(BLOCKS.gt.valid[i]):
            x1, y1, x2, y2 = BLOCKS.gt.boxes[i, row].astype(int)
            expected[y1:y2, x1:x2] = IGNORE if BLOCKS.gt.crowd[i, row] else BLOCKS.gt.labels[i, row]
        expected[height:] = expected[:, width:] = IGNORE
        np.testing.assert_array_equal(LABELS[i], expected)


def test_init_makes_finite_parameters_for_every_canvas(tiny):
    assert isinstance(tiny.segmenter, Segmenter) and tiny.segmenter.finds_masks
    leaves = jax.tree.leaves((tiny.params, tiny.model_state))
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (tiny.params, tiny.model_state))
    other = jax.eval_shape(lambda key: tiny.segmenter.init(key, (96, 160)), jax.random.key(0))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), other)


def test_loss_gives_scalars_and_trains_every_parameter(tiny):
    (loss, (model_state, metrics)), grads = tiny.gradient(BLOCKS)
    assert loss.shape == () and loss.dtype == np.float32 and np.isfinite(loss) and loss > 0
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(model_state) == shapes(tiny.model_state) and shapes(grads) == shapes(tiny.params)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not leaf.any()]
    running = [jax.tree.leaves(state['batch_stats']) for state in (model_state, tiny.model_state)]
    assert not any((new == old).all() for new, old in zip(*running, strict=True))


def test_loss_is_traced_once_and_depends_on_objects_and_key(tiny):
    before = tiny.gradient(BLOCKS)[0][0]
    others = [tiny.gradient(batch, seed)[0][0] for seed, batch in ((0, NOTHING), (1, BLOCKS), (0, BLOCKS))]
    assert tiny.traces['loss'] == 1
    assert others[0] != before and others[1] != before and others[2] == before  # the key is that of dropout


def test_loss_ignores_padding_rows_and_pixels_outside_of_the_window(tiny):
    garbled = garble(BLOCKS)
    assert (garbled.inputs.images != BLOCKS.inputs.images).mean() > 0.05
    assert_same(tiny.gradient(garbled), tiny.gradient(BLOCKS))
    assert_same(*(tiny.predict(tiny.params, tiny.model_state, batch.inputs) for batch in (garbled, BLOCKS)))


def test_loss_does_not_depend_on_the_number_of_rows(tiny):
    more = jax.jit(tiny.segmenter.loss)(tiny.params, tiny.model_state, make_batch(rows=9), jax.random.key(0))
    assert_close(more, tiny.gradient(BLOCKS)[0])


def test_loss_without_objects_or_pixels_is_finite(tiny):
    empty = NOTHING._replace(inputs=NOTHING.inputs._replace(window=np.zeros((BATCH, 4), np.float32)))
    for batch in (NOTHING, garble(NOTHING), empty):
        (loss, (_, metrics)), grads = tiny.gradient(batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, metrics, grads)))
        assert any(leaf.any() for leaf in jax.tree.leaves(grads)) == (batch is not empty)


def test_crowds_have_no_class(tiny):
    # Another label of the fourth image's crowd changes nothing; as an object it would.
    labels = BLOCKS.gt.labels.copy()
    labels[3, 0] += 1
    assert_same(tiny.gradient(BLOCKS._replace(gt=BLOCKS.gt._replace(labels=labels))), tiny.gradient(BLOCKS))
    objects = BLOCKS._replace(gt=BLOCKS.gt._replace(crowd=np.zeros_like(BLOCKS.gt.crowd)))
    assert tiny.gradient(objects)[0][0] != tiny.gradient(BLOCKS)[0][0]


def test_predict_gives_probabilities_of_each_image_alone(tiny):
    found = np.asarray(tiny.predict(tiny.params, tiny.model_state, BLOCKS.inputs))
    assert found.shape == (BATCH, *CANVAS, CLASSES + 1) and found.dtype == np.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    reverse = tiny.predict(tiny.params, tiny.model_state, jax.tree.map(lambda x: x[::-1], BLOCKS.inputs))
    assert tiny.traces['predict'] == 1
    assert_close(np.asarray(reverse)[::-1], found, 1e-4)


@jax.enable_x64(True)
@pytest.mark.parametrize('tiny', SOME, indirect=True)
def test_loss_on_8_devices_equals_that_on_one(tiny):
    def make_step(axis_name):
        segmenter = make_segmenter(num_classes=CLASSES, **VARIANTS[tiny.name], dtype='float64', axis_name=axis_name)

        def step(params, model_state, batch):
            (loss, (model_state, metrics)), grads = jax.value_and_grad(segmenter.loss, has_aux=True)(
                params, model_state, batch, jax.random.key(0)
            )
            scalars = loss, metrics, grads
            return scalars if axis_name is None else jax.lax.pmean(scalars, axis_name), model_state

        return step

    on_one, on_8 = jax.jit(make_step(None)), parallel(make_step(AXIS), name='the step', traces=1)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), (tiny.params, tiny.model_state))
    # A device has one image each: with objects, without, with a crowd.
    results = on_8(*replicate(variables), jax.tree.map(lambda x: x[:, None], BLOCKS))
    expected = on_one(*variables, BLOCKS)
    for device in (0, 7):
        assert_close(jax.tree.map(lambda x: np.asarray(x)[device], results), expected, 2e-6)  # noqa: B023


def test_a_fresh_unet_tells_pixels_apart():
    # With logits of tiny weights, of few features, every object becomes background long before its class is learnt.
    tiny = tiny_variant('unet')
    probabilities = np.asarray(tiny.predict(tiny.params, tiny.model_state, BLOCKS.inputs))
    assert probabilities.std(axis=(0, 1, 2)).max() > 0.1


@pytest.mark.parametrize('tiny', SOME, indirect=True)
def test_segmenter_learns_a_batch_by_heart(tiny):
    rate, steps = LEARNING[tiny.name]
    optimizer = optax.adam(optax.linear_schedule(rate, rate / 10, steps))
    params, model_state = tiny.params, tiny.model_state
    opt_state = optimizer.init(params)

    @jax.jit
    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(steps):
        (_, (model_state, _)), grads = tiny.value_and_grad(params, model_state, BLOCKS, jax.random.key(step))
        params, opt_state = update(grads, opt_state, params)
    predicted = np.asarray(tiny.predict(params, model_state, BLOCKS.inputs)).argmax(axis=-1)
    metrics = semantic_metrics(confusion_matrix(LABELS, predicted, CLASSES + 1), 'abc_')
    assert metrics['mean_iou'] > 0.95, metrics


@pytest.mark.parametrize('name', SEGMENTERS)
def test_every_number_has_a_range_that_holds_its_default(name):
    defaults = ml_collections.ConfigDict(model_defaults(SEGMENTERS[name]))
    for key, value in flatten(defaults, 'model.'):
        argument = key.rpartition('.')[2]
        if value is not None and not isinstance(value, str | bool):
            assert argument in MODEL, key
            check_value(key, value, value)


@pytest.mark.parametrize(
    'name, arguments, error, words',
    [
        ('segnet', {}, ValueError, "unknown segmenter 'segnet': deeplab, fcn, unet are known"),
        ('unet', dict(droput=0.1), TypeError, "unet takes no argument 'droput': the nearest is 'dropout'"),
        (
            'fcn',
            dict(backbone=dict(nam='vgg16')),
            TypeError,
            "no argument 'backbone.nam': the nearest is 'backbone.name'",
        ),
        ('fcn', dict(backbone_strides=(8, 32)), ValueError, r'backbone_strides is \(8, 32\): each must be twice'),
        ('unet', dict(backbone_strides=()), ValueError, r'backbone_strides is \(\): each must be twice'),
        ('unet', dict(class_weights=(1.0, 2.0, 3.0)), ValueError, 'class_weights is .*: it must have 4 numbers'),
        ('deeplab', dict(head='psp'), ValueError, "head is 'psp': use one of 'aspp', 'fcn'"),
        ('deeplab', dict(head_norm='batchnorm'), ValueError, "head_norm is 'batchnorm': use one of 'batch_norm'"),
        (
            'deeplab',
            dict(backbone_strides=(8,)),
            ValueError,
            r'backbone_strides is \(8,\): it must have one stride, or two',
        ),
        (
            'deeplab',
            dict(backbone=dict(dilation=2)),
            ValueError,
            'dilation 2: it has .* strides 4, 8, 16 and 16, and the',
        ),
    ],
)
def test_make_segmenter_refuses_what_does_not_fit(name, arguments, error, words):
    with pytest.raises(error, match=words):
        make_segmenter(name, num_classes=CLASSES, **arguments)
