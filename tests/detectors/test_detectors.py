"""The contract of a detector, for all of them: what every loss, prediction and assignment promises, whatever is inside.

`contract.VARIANTS` has the detectors. Everything is compiled once a variant, for 8 images of 64 x 64 with 4 rows of ground truth.
"""

import ast
import functools
import importlib
import inspect
import re

import jax
import numpy as np
import optax
import pytest
from contract import (
    BATCH,
    BLOCKS,
    CANVAS,
    CLASSES,
    MORE_VARIANTS,
    NOTHING,
    ROWS,
    VARIANTS,
    make_batch,
    tiny_variant,
    with_windows,
)
from tiny import CATEGORY_IDS

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.detectors import DETECTORS, make_detector, mask_rcnn, ssd
from detzoo.detectors import retinanet as retinanet_module
from detzoo.evaluation import class_agnostic, coco_metrics
from detzoo.inference.predictor import ImageDetections, to_coco
from detzoo.run.parallel import AXIS, parallel, replicate
from detzoo.types import Assignment, Detections


@pytest.fixture(
    scope='module', params=[*VARIANTS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_VARIANTS)]
)
def tiny(request):
    """A variant, compiled."""
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


def garble(batch, rows=True, pixels=True):
    """Garbage in the padding rows of the ground truth, and outside of the windows."""
    rng = np.random.RandomState(3)
    images, boxes, labels, masks = (
        x.copy() for x in (batch.inputs.images, batch.gt.boxes, batch.gt.labels, batch.gt.masks)
    )
    crowd = batch.gt.crowd | ~batch.gt.valid
    if pixels:
        for image, (_, _, width, height) in zip(images, batch.inputs.window.astype(int)):
            outside = np.ones(CANVAS, bool)
            outside[:height, :width] = False
            image[outside] = rng.randint(0, 256, (outside.sum(), 3))
        batch = batch._replace(inputs=batch.inputs._replace(images=images))
    if rows:
        padding = ~batch.gt.valid
        garbage = [[-50, np.nan, 1e9, 3], [0, 0, 64, 64], [9, 9, 9, 9], [30, 30, 10, np.inf]]
        boxes[padding] = np.array(garbage)[rng.randint(4, size=padding.sum())]
        labels[padding] = rng.randint(-5, 1000, padding.sum())
        masks[padding] = rng.randint(2, size=masks[padding].shape)
        batch = batch._replace(gt=batch.gt._replace(boxes=boxes, labels=labels, crowd=crowd, masks=masks))
    return batch


def test_init_makes_finite_parameters_from_the_key(tiny):
    leaves = jax.tree.leaves((tiny.params, tiny.model_state))
    assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves)
    template = jax.eval_shape(lambda key: tiny.detector.init(key, CANVAS), jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), template)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), (tiny.params, tiny.model_state))
    # The canvas is no part of the parameters.
    other = jax.eval_shape(lambda key: tiny.detector.init(key, (96, 160)), jax.random.key(0))
    assert (shapes == jax.tree.map(lambda x: (x.shape, x.dtype), other)) == tiny.variant.any_canvas


def fans(shape):
    """The inputs and outputs of a kernel [..., inputs, outputs]: channels times cells."""
    return np.prod(shape[:-1]), np.prod(shape[:-2]) * shape[-1]


SPREAD_RULES = {
    'he_fan_in': lambda shape: (2 / fans(shape)[0]) ** 0.5,
    'he_fan_out': lambda shape: (2 / fans(shape)[1]) ** 0.5,
    'fan_in': lambda shape: (1 / fans(shape)[0]) ** 0.5,
    'xavier': lambda shape: (2 / sum(fans(shape))) ** 0.5,
    '0.01': lambda shape: 0.01,
    '0.001': lambda shape: 0.001,
}


# The standard deviation with which kernels start, by 'detector/path': the first pattern that is found decides.
SPREADS = [
    ('/rpn_head/', '0.01'),
    ('^ssd/(cls|box)_head/level[0-9]+/conv/', 'xavier'),
    ('^ssd/extra_layers_without_norm/', 'xavier'),
    ('/conv/kernel', 'he_fan_in'),  # of ConvNorm: VGG, MobileNet, darknet, and what SSD and YOLO add
    ('/(backbone|(masked_)?trunk)/(stem_conv|stage[1-4]_block[0-9]+)/', 'he_fan_out'),  # of ResNet
    ('/fpn/', 'fan_in'),
    ('/(trunk|mask_head)/(conv|fc|deconv)[0-9]*/', 'he_fan_in'),
    ('/box_head/cls_logits/', '0.01'),
    ('/box_head/box_deltas/', '0.001'),
    ('/mask_head/logits/', '0.01'),
    ('^(deepmask|sharpmask)/(reduce|score_hidden|(horizontal|vertical)_.)/', 'he_fan_in'),
    ('^(deepmask|sharpmask)/score/', '0.01'),
    ('^(deepmask|sharpmask)/(code|mask|coarse|output)/', 'fan_in'),
    ('^retinanet/(cls|box)_head/conv', 'he_fan_in'),  # before a norm
    ('^retinanet/head_without_norm/conv', '0.01'),
    ('^retinanet/.*/output/', '0.01'),
    ('^yolo_v[23]/head/.*output/', '0.01'),
    ('^yolo_v1/head/connected/', '0.01'),
    ('^yolo_v1/head/local/', 'he_fan_in'),
]


def constant_of(path, shape, prior):
    """What biases and scales start with; `prior` is the probability of an object."""
    constant = np.full(shape, 20.0 if '/l2_norm/' in path else float(path.endswith('scale')))
    logit = np.log(prior / (1 - prior))
    if 'retinanet/cls_head/output' in path:
        constant += logit
    if re.search('yolo_v[23]/.*output', path):
        constant.reshape(-1, 5 + CLASSES)[:, 4] += logit  # each anchor's objectness
    return constant


def check_initial_values(name, params, prior=0.5):
    """Compares each parameter with its rule; mean and spread of a kernel may be off by five deviations of such a sample's."""
    for path, values in jax.tree_util.tree_leaves_with_path(params):
        path, values = f'{name}/{"/".join(key.key for key in path)}', np.asarray(values, np.float64)
        if not path.endswith('kernel'):
            np.testing.assert_allclose(values, constant_of(path, values.shape, prior), rtol=1e-5, err_msg=path)
            continue
        rule = next(rule for pattern, rule in SPREADS if re.search(pattern, path))
        expected = SPREAD_RULES[rule](
            values.shape[2:] if '/local/' in path else values.shape
        )  # local: a kernel for each cell
        if '/connected/' in path:  # all cells share one map, and see nothing but themselves
            values = np.unique(values[values != 0])
        assert abs(values.std() / expected - 1) < 5 / (2 * values.size) ** 0.5, (
            f'{path}: {values.std()}, not {expected}'
        )
        assert abs(values.mean() / expected) < 5 / values.size**0.5, f'{path}: {values.mean()}, not 0'


def test_parameters_start_with_the_spread_of_their_rule(tiny):
    name = tiny.variant.arguments['name']
    check_initial_values(
        name, tiny.params, tiny.variant.arguments.get('prior_probability', 0.01 if name == 'retinanet' else 0.5)
    )


@pytest.mark.parametrize(
    'name, module, channels, arguments',
    [
        ('retinanet/head_without_norm', retinanet_module.Head(4, 3, 1, None, 0.0, np.float32), 32, dict(train=False)),
        ('ssd/extra_layers_without_norm', ssd.ExtraLayers(((16, 32, 3, 2, 1),), False, None, np.float32), None, {}),
        ('mask_rcnn/mask_head', mask_rcnn.MLPHead(3, 1, 64, np.float32), None, dict(valid=None, train=False)),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_parameters_of_other_heads_start_with_the_spread_of_their_rule(name, module, channels, arguments):
    x = np.zeros((1, 4, 4, channels or 32), np.float32)
    params = module.init(jax.random.key(0), [x] if channels else x, **arguments)['params']
    check_initial_values(name, params)


def test_loss_gives_scalars_and_the_same_state(tiny):
    (loss, (model_state, metrics)), grads = tiny.gradient(BLOCKS)
    assert loss.shape == () and loss.dtype == np.float32 and np.isfinite(loss) and loss > 0
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(model_state) == shapes(tiny.model_state)
    assert shapes(grads) == shapes(tiny.params)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, leaf in leaves if not leaf.any()]  # every parameter is trained
    running = [
        jax.tree_util.tree_leaves_with_path(state.get('batch_stats', {})) for state in (model_state, tiny.model_state)
    ]
    still = [jax.tree_util.keystr(path) for (path, new), (_, old) in zip(*running, strict=True) if (new == old).all()]
    assert not still  # statistics are those of the batch


def test_loss_is_traced_once_for_all_batches(tiny):
    before = tiny.gradient(BLOCKS)[0][0]
    others = [tiny.gradient(batch, seed)[0][0] for seed, batch in ((1, NOTHING), (2, garble(BLOCKS)), (0, BLOCKS))]
    assert tiny.traces['loss'] == 1
    assert others[0] != before and others[2] == before


def test_predict_gives_valid_detections(tiny):
    found = tiny.predict(tiny.params, tiny.model_state, BLOCKS.inputs)
    assert isinstance(found, Detections)
    count = found.valid.shape[1]
    assert found.boxes.shape == (BATCH, count, 4) and found.boxes.dtype == np.float32
    assert found.scores.shape == found.labels.shape == (BATCH, count)
    assert found.scores.dtype == np.float32 and found.labels.dtype == np.int32 and found.valid.dtype == bool
    assert found.valid.any()
    for boxes, scores, labels, valid, window in zip(*map(np.asarray, found[:4]), BLOCKS.inputs.window):
        assert (valid[:-1] >= valid[1:]).all()  # the padding is at the end
        boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
        assert (np.diff(scores) <= 0).all() and (scores > 0).all() and (scores <= 1).all()
        assert (labels >= 0).all() and (labels < CLASSES).all()
        assert (boxes[:, :2] >= window[:2]).all() and (boxes[:, 2:] <= window[2:]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_predict_treats_each_image_alone(tiny):
    # The other images of the batch are reversed: the same detections in reverse.
    found = tiny.predict(tiny.params, tiny.model_state, BLOCKS.inputs)
    reverse = tiny.predict(tiny.params, tiny.model_state, jax.tree.map(lambda x: x[::-1], BLOCKS.inputs))
    assert tiny.traces['predict'] == 1
    assert_close(jax.tree.map(lambda x: x[::-1], reverse), found, 1e-4)


def test_assign_names_objects_by_their_row(tiny):
    stages = tiny.assign(tiny.params, tiny.model_state, BLOCKS, jax.random.key(0))
    assert stages
    for assignment in stages.values():
        assert isinstance(assignment, Assignment)
        boxes, matched = map(np.asarray, assignment)
        assert boxes.shape == (*matched.shape, 4) and boxes.dtype == np.float32
        assert len(matched) == BATCH and matched.dtype == np.int32
        assert set(np.unique(matched)) <= {IGNORE, NEGATIVE, *range(ROWS)}
        for image in range(BATCH):
            rows = set(matched[image][matched[image] >= 0])
            assert rows <= set(np.flatnonzero(BLOCKS.gt.valid[image] & ~BLOCKS.gt.crowd[image]))
        # No object, no crowd: negatives only, of which some detectors choose; not SSD, whose negatives come with positives.
        assert not (matched[2] >= 0).any() and (matched[2] == NEGATIVE).any() == tiny.variant.learns_from_nothing


def test_assign_counts_what_the_loss_counts(tiny):
    for batch in (BLOCKS, NOTHING):
        _, (_, metrics) = tiny.gradient(batch)[0]
        stages = tiny.assign(tiny.params, tiny.model_state, batch, jax.random.key(0))
        assert set(tiny.variant.counts) == set(stages)
        for stage, counts in tiny.variant.counts.items():
            for metric, select in counts.items():
                expected = select(np.asarray(stages[stage].matched)).sum(axis=1).mean()
                assert metrics[metric] == pytest.approx(expected), (stage, metric)
                assert batch is NOTHING or expected > 0


def test_loss_ignores_what_padding_rows_hold(tiny):
    assert_same(tiny.gradient(garble(BLOCKS, pixels=False)), tiny.gradient(BLOCKS))
    assert_same(tiny.gradient(garble(NOTHING, pixels=False)), tiny.gradient(NOTHING))


def test_assign_ignores_what_padding_rows_hold(tiny):
    arguments = tiny.params, tiny.model_state
    garbled = tiny.assign(*arguments, garble(BLOCKS, pixels=False), jax.random.key(0))
    assert_same(garbled, tiny.assign(*arguments, BLOCKS, jax.random.key(0)))


def test_loss_does_not_depend_on_the_number_of_rows(tiny):
    more = jax.jit(tiny.detector.loss)(tiny.params, tiny.model_state, make_batch(rows=11), jax.random.key(0))
    assert_close(more, tiny.gradient(BLOCKS)[0])


def test_pixels_outside_of_the_window_change_nothing(tiny):
    garbled = garble(BLOCKS, rows=False)
    assert (garbled.inputs.images != BLOCKS.inputs.images).mean() > 0.1
    assert_same(tiny.gradient(garbled), tiny.gradient(BLOCKS))
    assert_same(*(tiny.predict(tiny.params, tiny.model_state, batch.inputs) for batch in (garbled, BLOCKS)))


def test_loss_without_objects_is_finite(tiny):
    # Neither a division by no positives nor the logarithm of a padding row's box.
    for batch in (NOTHING, garble(NOTHING)):
        (loss, (_, metrics)), grads = tiny.gradient(batch)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, metrics, grads)))
        learnt = any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
        assert learnt == tiny.variant.learns_from_nothing


def test_predict_on_an_empty_window_finds_nothing(tiny):
    inputs = BLOCKS.inputs._replace(window=np.zeros((BATCH, 4), np.float32))
    assert not tiny.predict(tiny.params, tiny.model_state, inputs).valid.any()


def test_crowds_are_never_positive_and_nothing_in_them_is_negative(tiny):
    # One crowd covers the image of each object: no anchor that lies in it may be positive or negative.
    crowd = BLOCKS.gt.crowd.copy()
    crowd[:, 0] = BLOCKS.gt.valid[:, 0]
    boxes = BLOCKS.gt.boxes.copy()
    boxes[:, 0] = BLOCKS.inputs.window
    batch = BLOCKS._replace(gt=BLOCKS.gt._replace(boxes=boxes, crowd=crowd))
    stages = tiny.assign(tiny.params, tiny.model_state, batch, jax.random.key(0))
    for assigned, matched in stages.values():
        assigned, matched = np.asarray(assigned, np.float64), np.asarray(matched)
        shared = np.minimum(assigned[..., 2:], batch.inputs.window[:, None, 2:]) - np.maximum(assigned[..., :2], 0)
        own = np.prod(assigned[..., 2:] - assigned[..., :2], axis=-1)
        inside = (np.prod(shared.clip(0), axis=-1) > 0.501 * own) & batch.gt.valid[:, :1]
        assert inside.any() and (matched[inside] != NEGATIVE).all()
        assert not ((matched == 0) & crowd[:, :1]).any()


@jax.enable_x64(True)
def test_loss_on_8_devices_equals_that_on_one(tiny):
    # In float64: what is 0 but for rounding may pass a ReLU or not, and one such number changes gradients by a percent.
    # A channel that is constant comes out of a norm as its bias, which begins with 0: all parameters are moved a little.
    def make_step(axis_name):
        detector = with_windows(
            make_detector(num_classes=CLASSES, **tiny.variant.arguments, dtype='float64', axis_name=axis_name)
        )

        def step(params, model_state, batch):
            (loss, (model_state, _)), grads = jax.value_and_grad(detector.loss, has_aux=True)(
                params, model_state, batch, jax.random.key(0)
            )
            return (loss, grads) if axis_name is None else jax.lax.pmean((loss, grads), axis_name), model_state

        return step

    on_one, on_8 = jax.jit(make_step(None)), parallel(make_step(AXIS), name='the step', traces=1)
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda x: x + 0.02 * random.standard_normal(x.shape), tiny.params)
    variables = params, jax.tree.map(lambda x: np.asarray(x, np.float64), tiny.model_state)
    replicas = replicate(variables)
    for batch in (BLOCKS, NOTHING):  # a device has one image each: with objects, without, with a crowd
        results, expected = on_8(*replicas, jax.tree.map(lambda x: x[:, None], batch)), on_one(*variables, batch)
        for device in (0, 7):
            assert_close(jax.tree.map(lambda x: np.asarray(x)[device], results), expected, tiny.variant.rounding)  # noqa: B023


def test_detector_learns_a_batch_by_heart(tiny):
    optimizer = optax.adam(optax.linear_schedule(*tiny.variant.rates, tiny.variant.steps - 50))
    params, model_state = tiny.params, tiny.model_state
    opt_state = optimizer.init(params)

    @jax.jit
    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(tiny.variant.steps):
        (_, (model_state, _)), grads = tiny.value_and_grad(params, model_state, BLOCKS, jax.random.key(step))
        params, opt_state = update(grads, opt_state, params)
    found = jax.tree.map(np.asarray, tiny.predict(params, model_state, BLOCKS.inputs))
    results = []
    for i in range(BATCH):
        rows = found.valid[i]
        fields = (
            found.boxes[i][rows],
            found.scores[i][rows],
            found.labels[i][rows],
            np.take(CATEGORY_IDS, found.labels[i][rows]),
        )
        results += to_coco(ImageDetections(*fields, ()), i)
    truth = truth_of(BLOCKS)
    if tiny.detector.class_agnostic:
        results = [{**row, 'category_id': 1} for row in results]
        truth, _ = class_agnostic(truth, [])
    assert coco_metrics(truth, results)['boxes']['AP'] > tiny.variant.AP


def truth_of(batch):
    """The ground truth of a batch as a COCO dict."""
    annotations = []
    for number, (i, j) in enumerate(zip(*np.nonzero(batch.gt.valid)), 1):
        x1, y1, x2, y2 = batch.gt.boxes[i, j].tolist()
        where = dict(image_id=i, bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
        what = dict(category_id=CATEGORY_IDS[batch.gt.labels[i, j]], iscrowd=int(batch.gt.crowd[i, j]))
        annotations.append(dict(id=number) | where | what)
    categories = [dict(id=i, name=str(i)) for i in CATEGORY_IDS]
    return dict(images=[dict(id=i) for i in range(BATCH)], annotations=annotations, categories=categories)


@pytest.mark.parametrize('name', [*DETECTORS, 'rpn', 'stages', 'windows'])
def test_every_argument_does_more_than_being_checked(name):
    """An argument that is accepted and then forgotten is a lie; Python's linters see its check and are content."""
    module = ast.parse(inspect.getsource(importlib.import_module(f'detzoo.detectors.{name}')))
    makers = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith('make')]
    assert makers
    for make in makers:
        checks = [
            node
            for node in ast.walk(make)
            if isinstance(node, ast.If) and any(isinstance(x, ast.Raise) for x in node.body)
        ]
        checked = {node for check in checks for node in ast.walk(check)}
        used = {
            x.id for x in ast.walk(make) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load) and x not in checked
        }
        alike = {'num_classes'} if name in ('deepmask', 'sharpmask') else set()  # to which all classes are one
        assert not {argument.arg for argument in make.args.kwonlyargs} - used - alike


# RetinaNet
