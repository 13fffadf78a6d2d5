"""Costs: what is read from a compiled program, and the estimate by stage on a program written by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from detzoo.config import complete
from detzoo.costs.counts import compiled_cost, multiply_adds, parameter_count
from detzoo.costs.latency import interleaved_latency
from detzoo.costs.programs import random_batch, train_program
from detzoo.costs.scopes import stage_in, stage_of
from detzoo.costs.tpu import topology_devices
from detzoo.costs.tpu_time import estimated_time

# As the TPU compiler writes it, shortened. Cycles: backbone 1000 forward + 2000 backward; post 100 rounds of 30 + 3 + 5
# (the copy of 3 has no name, and is the loop's) and 8 rounds of 50; loss max(7, 9) of two branches; other 40 without a
# stage and 60 without a name. The sort carries no figure; neither do the small 'add' and the joining, which
# costs nothing. The fusion's inner 999 is part of its own 1000.
PROGRAM = """
HloModule jit__fun, is_scheduled=true, num_partitions=8

%fused.1 (p: f32[8,128]) -> f32[8,128] {
  ROOT %inner = f32[8,128]{1,0:T(8,128)} add(%p, %p), metadata={op_name="jit(f)/jvp(backbone)/add"}, backend_config={"window_config":{"estimated_cycles":"999"}}
}

%nms_body (p.1: (s32[2], f32[2,100])) -> (s32[2], f32[2,100]) {
  %p.1 = (s32[2]{0:T(128)}, /*index=1*/f32[2,100]{1,0:T(2,128)S(1)}) parameter(0)
  %best = f32[2,100]{1,0:T(2,128)S(1)} fusion(%p.1), kind=kLoop, calls=%fused.1, metadata={op_name="jit(f)/post/vmap()/while/body/argmax"}, backend_config={"window_config":{"estimated_cycles":"30"}}
  %moved = f32[2,100]{1,0:T(2,128)S(1)} copy(%best), backend_config={"window_config":{"estimated_cycles":"3"}}
}

%nms_condition (p.2: (s32[2], f32[2,100])) -> pred[] {
  %bound = s32[2]{0:T(128)} constant({100, 100})
  %lowest = f32[]{:T(128)} constant(-inf)
  ROOT %any = pred[]{:T(512)} fusion(%p.2, %bound), kind=kLoop, calls=%fused.1, metadata={op_name="jit(f)/post/while/cond/or"}, backend_config={"window_config":{"estimated_cycles":"5"}}
}

%scan_body (p.3: (s32[], f32[10])) -> (s32[], f32[10]) {
  %step = f32[10]{0:T(128)} multiply(%p.3, %p.3), metadata={op_name="jit(f)/post/while/body/mul"}, backend_config={"window_config":{"estimated_cycles":"50"}}
}

%data_condition (p.4: (s32[], f32[10])) -> pred[] {
  ROOT %more = pred[]{:T(512)} compare(%p.4, %p.4), direction=LT
}

%cheap (p.5: f32[9]) -> f32[9] {
  ROOT %seven = f32[9]{0} negate(%p.5), metadata={op_name="jit(f)/loss/neg"}, backend_config={"estimated_cycles":"7"}
}

%dear (p.6: f32[9]) -> f32[9] {
  ROOT %nine = f32[9]{0} negate(%p.6), metadata={op_name="jit(f)/loss/neg"}, backend_config={"estimated_cycles":"9"}
}

ENTRY %main.15_spmd (param: f32[8,128]) -> f32[8,128] {
  %param = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="flat_args[0]"}
  %forward = f32[8,128]{1,0:T(8,128)} fusion(%param), kind=kOutput, calls=%fused.1, metadata={op_name="jit(f)/jvp(backbone)/RetinaNet/heads_up/conv"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %backward = f32[8,128]{1,0:T(8,128)} fusion(%forward), kind=kOutput, calls=%fused.1, metadata={op_name="jit(f)/transpose(jvp(backbone))/conv"}, backend_config={"window_config":{"estimated_cycles":"2000"}}
  %sorted = (f32[4096]{0:T(1024)}, s32[4096]{0:T(1024)}) sort(%a, %b), dimensions={0}, to_apply=%fused.1, metadata={op_name="jit(f)/post/top_k"}
  %joined = f32[2,4096]{1,0} custom-call(%a, %b), custom_call_target="ConcatBitcast", metadata={op_name="jit(f)/post/concat"}
  %tiny = f32[2,100]{1,0} add(%a, %b), metadata={op_name="jit(f)/post/add"}
  %nms = (s32[2]{0:T(128)}, f32[2,100]{1,0:T(2,128)S(1)}) while(%t), condition=%nms_condition, body=%nms_body, metadata={op_name="jit(f)/post/while"}
  %scan = (s32[]{:T(128)}, f32[10]{0:T(128)}) while(%t), condition=%data_condition, body=%scan_body, backend_config={"known_trip_count":{"n":"8"}}
  %branch = f32[9]{0} conditional(%i, %x, %y), branch_computations={%cheap, %dear}
  %update = f32[8,128]{1,0:T(8,128)} multiply(%backward, %param), metadata={op_name="jit(f)/mul"}, backend_config={"estimated_cycles":"40"}
  ROOT %out = f32[8,128]{1,0:T(8,128)} copy(%update), backend_config={"estimated_cycles":"60"}
}
"""  # noqa: E501


def small_config(**model):
    """A RetinaNet of a few parameters on a canvas of 64 pixels."""
    c = ml_collections.ConfigDict()
    c.data = dict(canvases=((64, 64),), max_boxes=3)
    backbone = dict(name='resnet18', width=0.125, norm='group_norm')
    c.model = dict(name='retinanet', backbone=backbone, fpn_features=8, head_depth=1, **model)
    return complete(c)


def test_parameter_count_of_arrays_and_shapes():
    tree = {'kernel': np.zeros((3, 3, 2, 5)), 'bias': jax.ShapeDtypeStruct((5,), jnp.float32), 'scale': np.float32(1)}
    assert parameter_count(tree) == 90 + 5 + 1


def test_compiled_cost_of_a_matrix_product():
    f = jax.jit(lambda a, b: a @ b)
    found = compiled_cost(f.lower(np.zeros((32, 64), np.float32), np.zeros((64, 16), np.float32)).compile())
    assert found.flops == 2 * 32 * 64 * 16
    assert found.argument_bytes == 4 * (32 * 64 + 64 * 16)
    assert found.output_bytes == 4 * 32 * 16
    assert found.peak_bytes == found.argument_bytes + found.output_bytes + found.temporary_bytes


def test_compiled_cost_counts_donated_memory_once():
    f = jax.jit(lambda x: x + 1, donate_argnums=0)
    found = compiled_cost(f.lower(np.zeros(1000, np.float32)).compile())
    assert (found.argument_bytes, found.output_bytes) == (4000, 4000)
    assert found.peak_bytes == 4000 + found.temporary_bytes


def test_estimated_time_of_a_program_written_by_hand():
    found = estimated_time(PROGRAM, 'v5e:2x4')
    cycles = {stage: seconds * 1.5e9 for stage, seconds in found.seconds.items()}
    expected = {'backbone': 1000 + 2000, 'post': 100 * (30 + 3 + 5) + 8 * 50, 'loss': 9, 'other': 40 + 60}
    assert cycles == pytest.approx(expected)
    assert found.total * 1.5e9 == pytest.approx(3000 + 4200 + 9 + 100)
    assert found.not_counted == {'post': {'sort': 1}}
    assert found.outside == pytest.approx((4200 + 9 + 100) / (3000 + 4200 + 9 + 100))
    assert (found.bounded_loops, found.loops_counted_once) == (1, 0)


def test_estimated_time_counts_a_loop_without_a_stage_as_often_as_it_runs():
    found = estimated_time(PROGRAM.replace('/post/', '/'), 'v5e:2x4')
    assert found.seconds['other'] * 1.5e9 == pytest.approx(40 + 60 + 100 * (30 + 3 + 5) + 8 * 50)


def test_estimated_time_counts_a_loop_without_a_bound_once():
    found = estimated_time(PROGRAM.replace('"known_trip_count"', '"unknown"'), 'v5e:2x4')
    assert found.seconds['post'] * 1.5e9 == pytest.approx(100 * (30 + 3 + 5) + 50)
    assert found.loops_counted_once == 1


def test_estimated_time_reads_the_loops_of_a_real_program():
    """A CPU program has no cycles: give each product of the loop's body some, and count them."""

    def f(x):
        with jax.named_scope('post'):
            return jax.lax.fori_loop(0, 7, lambda i, x: jnp.tanh(x @ x), x)

    text = jax.jit(f).lower(np.zeros((40, 40), np.float32)).compile().as_text()
    lines = [f'{line}, "estimated_cycles":"100"' if '/dot_general' in line else line for line in text.splitlines()]
    assert lines != text.splitlines()
    found = estimated_time('\n'.join(lines), 'v4:2x2x1')
    assert found.seconds == {'post': pytest.approx(7 * 100 / 1.05e9)}
    assert found.loops_counted_once == 0


def test_estimated_time_needs_a_tpu_program():
    compiled = jax.jit(lambda x: x + 1).lower(np.zeros(3, np.float32)).compile()
    with pytest.raises(ValueError, match='not compiled for a TPU'):
        estimated_time(compiled, 'v5e:2x4')


def test_topology_of_an_unknown_chip_is_refused():
    with pytest.raises(ValueError, match="'v9x:1' has an unknown chip: use one of v4, v5e, v6e"):
        topology_devices('v9x:1')


@pytest.mark.parametrize(
    ('name', 'stage'),
    [
        ('jit(f)/shard_map/jvp(neck)/fpn/conv', 'neck'),
        ('jit(f)/transpose(jvp(loss))/while/body/mul', 'loss'),
        ('jit(f)/heads/post/x', 'heads'),  # the outer one
        ('jit(postprocess)/my_loss/head', 'other'),
    ],
)
def test_stage_of_names(name, stage):
    assert stage_of(f'  %x = f32[] add(%a), metadata={{op_name="{name}" stack_frame_id=3}}') == stage


def test_random_batch_is_valid_and_seeded():
    config = small_config()
    batch = random_batch(config, (64, 96), 2, num_classes=5)
    assert batch.inputs.images.shape == (2, 64, 96, 3)
    boxes = batch.gt.boxes
    assert boxes.shape == (2, 3, 4) and (boxes[..., 2:] > boxes[..., :2]).all()
    assert (boxes >= 0).all() and (boxes <= [96, 64, 96, 64]).all()
    assert batch.gt.labels.max() < 5
    again = random_batch(config, (64, 96), 2, num_classes=5)
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_random_batch_has_proposals_where_the_config_gives_them():
    config = small_config()
    plain = random_batch(config, (64, 96), 2, num_classes=5)
    assert plain.inputs.proposals is None
    config.data.max_proposals = 7
    for key in ('train_proposals', 'validation_proposals'):
        config.data.update(dict(train_proposals=None, validation_proposals=None) | {key: 'ground_truth'})
        inputs = random_batch(config, (64, 96), 2, num_classes=5).inputs
        boxes = inputs.proposals
        assert boxes.shape == (2, 7, 4) and boxes.dtype == np.float32 and (boxes[..., 2:] > boxes[..., :2]).all()
        assert inputs.proposals_valid.shape == (2, 7) and inputs.proposals_valid.all()
        np.testing.assert_array_equal(inputs.images, plain.inputs.images)


def test_train_program_needs_no_weights():
    """The file does not exist; no parameter is made either. Each of 2 devices gets its half of the batch."""
    config = small_config()
    config.training.batch_size = 4
    lowered = train_program(config, 5, jax.devices()[:2])
    images = lowered.in_avals[0][1].inputs.images
    assert images.shape == (2, 2, 64, 64, 3)


def test_train_program_has_an_axis_of_replicas():
    config = small_config()
    config.training.batch_size, config.training.num_replicas = 4, 3
    state, batch = train_program(config, 5, jax.devices()[:2]).in_avals[0]
    assert batch.inputs.images.shape == (2, 3, 2, 64, 64, 3)
    assert all(leaf.shape[:2] == (2, 3) for leaf in jax.tree.leaves(state))


def test_train_program_refuses_a_batch_that_cannot_be_split():
    config = small_config()
    config.training.batch_size = 3
    with pytest.raises(ValueError, match='training.batch_size is 3, not a multiple of the 2 devices'):
        train_program(config, 5, jax.devices()[:2])


def test_interleaved_latency_takes_turns_and_runs_at_least_three_rounds():
    runs = []
    steps = {name: (lambda name=name: runs.append(name) or np.zeros(1)) for name in 'ab'}
    times = interleaved_latency(steps, repeats=50, budget=0.0)
    assert {name: seconds.shape for name, seconds in times.items()} == {'a': (3,), 'b': (3,)}
    assert runs == list('abababab')  # with the round that is not counted
    assert interleaved_latency(steps, repeats=5, budget=60.0)['b'].shape == (5,)


@pytest.mark.parametrize(
    'scopes, stage',
    [
        ('jit(f)/transpose(jvp(backbone))/add', 'backbone'),
        ('vmap(post)', 'post'),
        ('RetinaNet/heads/while/body', 'heads'),
        ('RetinaNet/heads_up/conv', None),
        ('neck.conv', None),
        ('', None),
    ],
)
def test_stage_in_finds_whole_scopes(scopes, stage):
    assert stage_in(scopes) == stage


def test_multiply_adds_by_hand():
    def function(x, kernel, deep, up, matrix):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), 'SAME', dimension_numbers=NHWC
        )  # 2 x 4 x 5 x 7 outputs of 9 x 3
        y = jax.lax.conv_general_dilated(
            y, deep, (1, 1), 'SAME', dimension_numbers=NHWC, feature_group_count=7
        )  # of 9 x 1
        y = jax.lax.conv_transpose(y, up, (2, 2), 'SAME', dimension_numbers=NHWC)  # 2 x 4 x 5 inputs to 2 x 2 x 6 each
        y, _ = jax.lax.scan(lambda y, _: (y @ matrix, None), y, length=3)  # 2 x 8 x 10 times 6 x 6, thrice
        return jax.jit(lambda y: jnp.sin(y) + y)(y)

    NHWC = ('NHWC', 'HWIO', 'NHWC')
    shapes = [(2, 8, 10, 3), (3, 3, 3, 7), (3, 3, 1, 7), (2, 2, 7, 6), (6, 6)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    first, second = 2 * 4 * 5 * 7 * 27, 2 * 4 * 5 * 7 * 9
    third, fourth = 2 * 4 * 5 * 7 * 24, 3 * 2 * 8 * 10 * 36
    assert multiply_adds(function, *arguments) == first + second + third + fourth


def test_multiply_adds_counts_one_branch():
    """The default of several platforms, for the gradient too, and the largest of other branches."""
    once, thrice = lambda x: x @ x, lambda x: x @ x @ x @ x

    def of_platforms(x):
        return jax.lax.platform_dependent(x, cpu=thrice, default=once)

    x = jax.ShapeDtypeStruct((5, 5), jnp.float32)
    assert multiply_adds(of_platforms, x) == 125
    assert multiply_adds(jax.grad(lambda x: of_platforms(x).sum()), x) == 3 * 125
    assert multiply_adds(lambda x: jax.lax.platform_dependent(x, cpu=once, tpu=thrice), x) == 3 * 125
    assert multiply_adds(lambda x: jax.lax.cond(x[0, 0] > 0, thrice, once, x), x) == 3 * 125
