"""Costs by stage: the program of prediction is cut where its stages end, and nothing is lost or counted twice."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny import (
    TINY_FASTER_RCNN,
    TINY_FASTER_RCNN_C4,
    TINY_MASK_RCNN,
    TINY_RCNN,
    TINY_RETINANET,
    TINY_SSD,
    TINY_YOLO_V1,
    TINY_YOLO_V2,
    TINY_YOLO_V3,
)

from detzoo.config import complete
from detzoo.costs import stages
from detzoo.costs.counts import compiled_cost, parameter_count
from detzoo.costs.programs import random_batch, state_shapes
from detzoo.data.catalog import open_dataset
from detzoo.data.geometry import place, resize_rule
from detzoo.data.records import decode_image
from detzoo.inference.predictor import detector_of, load
from detzoo.run import parallel
from detzoo.training.finetune import initial_state
from detzoo.types import Inputs

CANVAS = 64, 64
TINY = dict(
    retinanet=TINY_RETINANET,
    ssd=TINY_SSD,
    yolo_v1=TINY_YOLO_V1,
    yolo_v2=TINY_YOLO_V2,
    yolo_v3=TINY_YOLO_V3,
    faster_rcnn=TINY_FASTER_RCNN,
    faster_rcnn_c4=TINY_FASTER_RCNN_C4,
    mask_rcnn=TINY_MASK_RCNN,
    rcnn=TINY_RCNN,
)


def config_of(model):
    c = ml_collections.ConfigDict()
    c.data = dict(canvases=(CANVAS,), max_boxes=3)
    if model['name'] == 'rcnn':
        c.data.update(dict(train_proposals='ground_truth', max_proposals=80))  # more than a chunk of them
    c.model = dict(model)
    return complete(c)


def traced(model):
    """A tiny detector's prediction as a closed jaxpr, and the shapes of its parameters."""
    config = config_of(model)
    state = state_shapes(config, 3)
    inputs = random_batch(config, CANVAS, 2, 3).inputs
    return jax.make_jaxpr(detector_of(config, 3).predict)(state.params, state.model_state, inputs), state.params


def product(x, weights):
    """Three stages of matrix products, in and around what may hide a scope; the first lines are in none."""
    x = 2 * x
    with jax.named_scope('backbone'):
        x = jax.lax.platform_dependent(  # [4, 8] [8, 16]
            x, weights['a'], cpu=jax.jit(jnp.dot), default=lambda x, a: x @ a @ a.T @ a
        )
    x = -x
    with jax.named_scope('heads'):
        x = jax.vmap(lambda row: row @ weights['b'])(x)  # [4, 16] [16, 32]
    with jax.named_scope('post'):
        x, _ = jax.lax.scan(lambda carry, _: (carry @ weights['c'], None), x, length=1)  # [4, 32] [32, 32]
    with jax.named_scope('heads'):
        return x @ weights['d'], weights['b']  # [4, 32] [32, 2]


SHAPES = dict(a=(8, 16), b=(16, 32), c=(32, 32), d=(32, 2))
WEIGHTS = {name: np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}
X = np.random.RandomState(1).uniform(-1, 1, (4, 8)).astype(np.float32)


def test_segments_follow_the_scopes():
    jaxpr = jax.make_jaxpr(product)(X, WEIGHTS).jaxpr
    found = stages.segments(jaxpr)
    assert [segment.stage for segment in found] == ['input', 'backbone', 'heads', 'post', 'heads']
    ends = [segment.end for segment in found]
    assert ends == sorted(set(ends)) and ends[-1] == len(jaxpr.eqns)


def post(x):
    with jax.named_scope('post'):
        return jnp.sin(x)


@pytest.mark.parametrize(
    'wrapped',
    [
        jax.jit(post),
        jax.vmap(post),
        jax.jit(jax.vmap(jax.jit(post))),
        lambda x: jax.lax.scan(lambda carry, row: (carry, post(row)), 0, x)[1],
        lambda x: jax.lax.cond(x[0, 0] > 0, jnp.cos, post, x),
        lambda x: jax.lax.platform_dependent(x, tpu=jnp.cos, default=post),
    ],
    ids=['jit', 'vmap', 'jit of vmap of jit', 'scan', 'branch', 'branch of a platform'],
)
def test_segments_find_a_stage_that_begins_inside_an_equation(wrapped):
    found = stages.segments(jax.make_jaxpr(lambda x: wrapped(2 * x))(X).jaxpr)
    assert [segment.stage for segment in found] == ['input', 'post']


def test_segments_refuse_an_equation_that_holds_two_stages():
    with pytest.raises(ValueError, match='a single jit contains the stages backbone, heads, post: open their'):
        stages.segments(jax.make_jaxpr(jax.jit(product))(X, WEIGHTS).jaxpr)


def test_prefixes_return_what_follows_needs():
    closed = jax.make_jaxpr(product)(X, WEIGHTS)
    weights = [WEIGHTS[name] for name in 'abcd']
    first, backbone, heads, post, whole = (
        stages.prefix(closed, segment.end)(X, *weights) for segment in stages.segments(closed.jaxpr)
    )
    np.testing.assert_allclose(first[0], 2 * X, rtol=1e-6)
    np.testing.assert_allclose(backbone[0], -(2 * X @ WEIGHTS['a']), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(heads[0], -(2 * X @ WEIGHTS['a']) @ WEIGHTS['b'], rtol=1e-4, atol=1e-5)
    assert [len(values) for values in (first, backbone, heads, post)] == [1] * 4
    np.testing.assert_array_equal(whole[0], product(X, WEIGHTS)[0])
    np.testing.assert_array_equal(whole[1], WEIGHTS['b'])  # an argument that is a result


def test_prefixes_do_not_return_what_only_unused_equations_read():
    def predict(x):
        with jax.named_scope('backbone'):
            used, unused = x + 1, jnp.sin(x)
        with jax.named_scope('heads'):
            jnp.cos(unused)
            return 2 * used

    closed = jax.make_jaxpr(predict)(X)
    (backbone,) = stages.prefix(closed, stages.segments(closed.jaxpr)[0].end)(X)
    np.testing.assert_array_equal(backbone, X + 1)


def test_prefixes_cost_what_their_products_do():
    closed = jax.make_jaxpr(product)(X, WEIGHTS)
    weights = [WEIGHTS[name] for name in 'abcd']
    flops = [
        compiled_cost(jax.jit(stages.prefix(closed, segment.end)).lower(X, *weights).compile()).flops
        for segment in stages.segments(closed.jaxpr)
    ]
    products = np.cumsum([0, 2 * 4 * 8 * 16, 2 * 4 * 16 * 32, 2 * 4 * 32 * 32, 2 * 4 * 32 * 2])
    np.testing.assert_allclose(flops, products, atol=150)  # 2 x and -x take 32 and 64, the scan counts its rounds


def test_stage_parameters_are_those_first_used_there():
    weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
    weights['unused'] = jax.ShapeDtypeStruct((5, 3), np.float32)
    jaxpr = jax.make_jaxpr(lambda weights, x: product(x, weights))(weights, X).jaxpr
    assert stages.stage_parameters(jaxpr, weights) == {'backbone': 128, 'heads': 512 + 64, 'post': 1024, 'other': 15}


@pytest.mark.parametrize('model', TINY.values(), ids=TINY)
def test_every_parameter_and_equation_belongs_to_a_stage(model):
    closed, params = traced(model)
    assert sum(stages.stage_parameters(closed.jaxpr, params).values()) == parameter_count(params)
    names = [segment.stage for segment in stages.segments(closed.jaxpr)]
    two_stage = {'rpn', 'roi'} if model['name'] in ('faster_rcnn', 'mask_rcnn') else set()
    assert names[:2] == ['input', 'backbone'] and {'heads', 'post'} | two_stage <= set(names)
    assert 'loss' not in names and len(names) <= 10


def used(jaxpr):
    """The indices of the equations that results depend on: what a compiler cannot drop."""
    needed, indices = {id(variable) for variable in jaxpr.outvars}, set()
    for index, equation in reversed(list(enumerate(jaxpr.eqns))):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
            indices.add(index)
    return indices


@pytest.mark.parametrize('model', [TINY_RETINANET, TINY_MASK_RCNN], ids=['retinanet', 'mask_rcnn'])
def test_no_prefix_lets_the_compiler_drop_what_prediction_needs(model):
    """What several levels or both heads need is more than one array."""
    closed, _ = traced(model)
    of_whole = used(closed.jaxpr)
    for _, end in stages.segments(closed.jaxpr):
        part = jax.make_jaxpr(stages.prefix(closed, end))(*closed.in_avals)
        assert len(used(part.jaxpr)) == sum(index < end for index in of_whole)


@pytest.fixture(scope='module')
def prepared():
    sizes = {'yolo_v1': (1, 2), 'mask_rcnn': (2,)}
    return {name: stages.prepare(config_of(TINY[name]), 3, batch_sizes) for name, batch_sizes in sizes.items()}


def test_lowest_score_threshold_is_for_models_that_have_one():
    thresholds = {name: stages.lowest_score_threshold({'name': name, **model}) for name, model in {
        'ssd': {'score_threshold': 0.1}, 'faster_rcnn': {'head': {'score_threshold': 0.1}}, 'deepmask': {}, 'unet': {}
    }.items()}  # fmt: skip
    ours = {'score_threshold': 0.0}
    assert thresholds == {'ssd': ours, 'faster_rcnn': {'head': ours}, 'deepmask': {}, 'unet': {}}


@pytest.mark.parametrize('name', ['yolo_v1', 'mask_rcnn'])
def test_the_last_prefix_is_prediction(prepared, name):
    """The same weights and images are drawn again."""
    config, last = prepared[name].config, prepared[name].programs[-1]
    assert (config.model.head if name == 'mask_rcnn' else config.model).score_threshold == 0
    state = initial_state(config, detector_of(config, 3, parallel.AXIS))
    inputs = random_batch(config, CANVAS, last.batch, 3).inputs
    expected = jax.jit(detector_of(config, 3).predict)(state.params, state.model_state, inputs)
    assert last.batch == 2 and expected.valid.any() and expected.boxes.shape == (2, 10, 4)
    found = jax.tree.unflatten(jax.tree.structure(expected), last.run())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_trained_detector_predicts_validation_images_in_turn(tiny_run):
    predictor = load(tiny_run)
    config, records = predictor.config, open_dataset('toy', 'validation', predictor.config.data.data_dir).records
    prepared = stages.prepare_trained(predictor, (1, 4))
    assert prepared.config == config
    predict = jax.jit(predictor.detector.predict)
    for program in [program for program in prepared.programs if program.stage == 'post']:
        for turn in range(2):
            rows = range(turn * program.batch, (turn + 1) * program.batch)
            images = [decode_image(records[row]['image'], name=f'{row}') for row in rows]
            placed = [place(image, CANVAS, resize_rule(config.data.recipe)) for image in images]
            inputs = Inputs(*map(np.stack, zip(*((image, where.window) for image, where in placed))))
            expected = predict(predictor.params, predictor.model_state, inputs)
            assert expected.valid.any()
            found = jax.tree.unflatten(jax.tree.structure(expected), program.run())
            jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), found, expected)


@pytest.mark.parametrize('name', ['yolo_v1', 'mask_rcnn'])
def test_each_prefix_holds_the_work_of_those_before(prepared, name):
    flops = np.array([program.cost.flops for program in prepared[name].programs if program.batch == 2])
    assert flops[-1] > 0 and (np.diff(flops) >= 0).all()


def test_measure_adds_up(prepared):
    rows = stages.measure(prepared, repeats=4, budget=60)
    assert [(row['name'], row['batch']) for row in rows] == [('yolo_v1', 1), ('yolo_v1', 2), ('mask_rcnn', 2)]
    for row in rows:
        assert (
            row['runs'] == 4
            and row['canvas'] == [64, 64]
            and row['dtype'] == 'float32'
            and row['device'].startswith('cpu')
        )
        assert row['flops'] == pytest.approx(sum(stage['flops'] for stage in row['stages']))
        assert row['parameters'] == sum(stage['parameters'] for stage in row['stages'])
        assert row['argument_bytes'] > 4 * row['parameters'] and json.loads(json.dumps(row)) == row
        assert row['peak_bytes'] <= max(stage['peak_bytes'] for stage in row['stages'])
        assert 0 < row['p50_seconds'] <= row['p90_seconds']
    assert [stage['stage'] for stage in rows[0]['stages']] == ['input', 'backbone', 'heads', 'post']
    assert [stage['stage'] for stage in rows[2]['stages']] == [
        'input',
        'backbone',
        'neck',
        'rpn',
        'roi',
        'heads',
        'post',
    ]
    small, large = ({stage['stage']: stage['flops'] for stage in row['stages']} for row in rows[:2])
    assert large['backbone'] == pytest.approx(2 * small['backbone'], rel=0.05)  # of two images


def test_row_subtracts_prefixes_round_by_round(prepared):
    """Times by hand: a disturbance that meets two prefixes of a round alike is in neither difference."""
    one = prepared['mask_rcnn']
    names = [program.stage for program in one.programs]
    assert names == ['input', 'backbone', 'neck', 'rpn', 'roi', 'heads', 'post', 'roi', 'heads']
    own = np.float64([1, 5, 2, 3, 4, 6, 7, 2, 3])[:, None] * np.ones(3)  # seconds, rounds
    seconds = np.cumsum(own, axis=0) + np.float64([0, 100, 0])  # the second round is slow from its start
    row = stages._row('m', one, 2, range(len(names)), seconds)
    assert {stage['stage']: stage['p50_seconds'] for stage in row['stages']} == {
        'input': 1,
        'backbone': 5,
        'neck': 2,
        'rpn': 3,
        'roi': 4 + 2,
        'heads': 6 + 3,
        'post': 7,
    }
    assert (row['p50_seconds'], row['post_p50_seconds'], row['network_p50_seconds']) == (33, 7, 26)
    assert row['p90_seconds'] == pytest.approx(33 + 0.8 * 100) and row['post_p90_seconds'] == 7
