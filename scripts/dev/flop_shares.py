"""Prints how the multiply-adds of convolutions and dense layers divide over the stages, for the configs of COCO.

    python scripts/dev/flop_shares.py

Forward, for an image, in prediction and in training. The share outside of backbone and neck, in a column of its own, is what
no formulation of the other operations can go below, if all products are equally fast.
"""

import collections
import pathlib

import jax

from detzoo.config import load_config
from detzoo.costs.counts import multiply_adds
from detzoo.costs.programs import random_batch, shapes, state_shapes
from detzoo.costs.stages import prefix, segments
from detzoo.inference.predictor import detector_of, evaluation_canvases

CLASSES = 80
COCO = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*_coco.py'))


def by_stage(function, *arguments) -> dict[str, int]:
    """Counts the multiply-adds of each stage of a function."""
    closed = jax.make_jaxpr(function)(*arguments)
    counts: collections.Counter = collections.Counter()
    before = 0
    for stage, end in segments(closed.jaxpr):
        total = multiply_adds(prefix(closed, end), *jax.tree.leaves(arguments))
        counts[stage] += total - before
        before = total
    return dict(+counts)


def main() -> None:
    for path in COCO:
        config = load_config(str(path))
        state, detector = state_shapes(config, CLASSES), detector_of(config, CLASSES)
        for name, canvas in (('predict', evaluation_canvases(config)[0]), ('training', config.data.canvases[0])):
            batch = shapes(random_batch(config, canvas, 1, CLASSES))
            if name == 'predict':
                counts = by_stage(detector.predict, state.params, state.model_state, batch.inputs)
            else:
                key = jax.eval_shape(lambda: jax.random.key(0))
                counts = by_stage(detector.loss, state.params, state.model_state, batch, key)
            total = sum(counts.values())
            outside = 1 - (counts.get('backbone', 0) + counts.get('neck', 0)) / total
            shares = ', '.join(f'{stage} {count / 1e9:.1f}' for stage, count in counts.items())
            print(
                f'{path.stem:<26}{name:<10}{canvas[0]:>5} x {canvas[1]:<6}{100 * outside:>4.0f} %  G: {shares}',
                flush=True,
            )


if __name__ == '__main__':
    main()
