"""The values that the keys of a config may have: a table, and the sentence about a value that is not among them.

    kind of the default (finite numbers, as deep in tuples) -> the range of the key: ALLOWED, of a detector's argument MODEL

`data.augment.check_recipe` knows the ranges of `data.recipe`; a detector's `make` knows which of its arguments fit together.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from detzoo.backbones import BACKBONES
from detzoo.backbones.norms import NORMS
from detzoo.core.hierarchy import DESCENTS
from detzoo.core.masks import PASTES


class Allowed(NamedTuple):
    """Some of the values of a default's kind.

    words: what a value must be.
    holds: tells whether a value is.
    """

    words: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Allowed:
    """Allows a number from a limit on."""
    return Allowed(f'at least {low}', lambda x: x >= low)


def within(low: float, high: float) -> Allowed:
    """Allows a number between two limits, and these."""
    return Allowed(f'in {low}..{high}', lambda x: low <= x <= high)


def one_of(*values: Any) -> Allowed:
    """Allows what is listed."""
    return Allowed(f'one of {", ".join(map(repr, values))}', lambda x: x in values)


def leaves(value: Any) -> Iterator[Any]:
    """Yields the leaves of nested tuples."""
    if is_tuple(value):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and value >= 1


def is_canvas(value: Any) -> bool:
    return is_tuple(value) and len(value) == 2 and all(map(is_count, value))


def is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def has_no_empty_tuple(value: Any) -> bool:
    return not is_tuple(value) or (len(value) > 0 and all(map(has_no_empty_tuple, value)))


COUNT, AMOUNT, SHARE = at_least(1), at_least(0), within(0, 1)
POSITIVE = Allowed('above 0', lambda x: x > 0)
DECAY = Allowed('at least 0 (none) and below 1', lambda x: 0 <= x < 1)
COUNTS = Allowed('whole numbers of at least 1', lambda x: has_no_empty_tuple(x) and all(map(is_count, leaves(x))))
LENGTHS = Allowed('positive numbers, one or more in each tuple', lambda x: has_no_empty_tuple(x) and min(leaves(x)) > 0)

ALLOWED: Mapping[str, Allowed] = {
    'seed': within(0, 2 * 10**9),  # leaves room in 32 bits for seed + num_replicas
    'data.canvases': Allowed(
        'one or more (height, width) of at least 1 pixel, like ((128, 128),)',
        lambda x: len(x) > 0 and all(map(is_canvas, x)),
    ),
    'data.canvas_steps': COUNT,
    'data.mask_size': AMOUNT,
    'data.max_boxes': COUNT,
    'data.class_names': Allowed(
        'names, each once', lambda x: all(isinstance(y, str) for y in x) and len(set(x)) == len(x)
    ),
    'data.renamed': Allowed(
        "pairs of names, like (('tvmonitor', 'tv'),)",
        lambda x: all(is_tuple(y) and len(y) == 2 and all(isinstance(z, str) for z in y) for y in x),
    ),
    'data.labelled_share': Allowed('above 0 and below 1', lambda x: 0 < x < 1),
    'data.threads': COUNT,
    'data.max_proposals': COUNT,
    'data.proposal_mask_size': AMOUNT,
    'training.steps': COUNT,
    'training.batch_size': COUNT,
    'training.accumulate': COUNT,
    'training.num_replicas': COUNT,
    'training.checkpoint_every': COUNT,
    'training.evaluate_every': AMOUNT,
    'training.early_stopping_patience': AMOUNT,
    'training.skip_nonfinite': AMOUNT,
    'optimizer.name': one_of('adamw', 'sgd'),
    'optimizer.learning_rate': AMOUNT,
    'optimizer.schedule': one_of('cosine', 'steps', 'constant'),
    'optimizer.decay_at': Allowed(
        'shares of the run above 0 and below 1, in ascending order',
        lambda x: all(0 < share < 1 for share in x) and list(x) == sorted(set(x)),
    ),
    'optimizer.warmup_steps': AMOUNT,
    'optimizer.weight_decay': AMOUNT,
    'optimizer.momentum': DECAY,
    'optimizer.epsilon': POSITIVE,
    'optimizer.clip_norm': AMOUNT,
    'optimizer.ema_decay': DECAY,
    'optimizer.frozen': Allowed("a regular expression, like 'backbone/(stem|stage1)'", is_expression),
    'evaluation.batch_size': COUNT,
    'evaluation.canvases': Allowed(
        '(height, width) each of at least 1 pixel, like ((128, 128),), or empty', lambda x: all(map(is_canvas, x))
    ),
    'evaluation.divisor': COUNT,
    'evaluation.mask_paste': one_of(*PASTES),
    'evaluation.min_pixels': COUNT,
    'evaluation.panoptic_score': SHARE,
}

# Arguments of detectors. A name means the same in each detector and in each group; one that does not stands here with its group.
MODEL: Mapping[str, Allowed] = {
    # the network
    'backbone.name': one_of(*BACKBONES),
    'backbone_stride': COUNT,
    'backbone_strides': COUNTS,
    'extra_levels_from': one_of('p5', 'c5'),
    'width': Allowed('above 0 and at most 100', lambda x: 0 < x <= 100),
    'norm': one_of(*NORMS),
    'fpn_norm': one_of(*NORMS),
    'trunk_norm': one_of(*NORMS),
    'norm_epsilon': AMOUNT,
    'l2_norm_scale': POSITIVE,
    'dilation': one_of(1, 2, 4),
    'fc6_dilation': COUNT,
    'fpn_features': COUNT,
    'trunk_features': COUNT,
    'features': COUNT,
    'head_features': COUNTS,
    'local_features': COUNT,
    'passthrough_features': COUNT,
    'head_depth': AMOUNT,
    'layers': AMOUNT,
    'mask_features': COUNT,
    'mask_layers': AMOUNT,
    'trunk_conv_layers': AMOUNT,
    'trunk_fc_layers': AMOUNT,
    'extra_layers': Allowed(
        'five whole numbers a layer: channels of its two convolutions, kernel and stride of at least 1, padding of at least 0',
        lambda x: all(len(layer) == 5 and all(map(is_count, layer[:4])) and is_count(layer[4] + 1) for layer in x),
    ),
    'dropout': DECAY,
    'prior_probability': Allowed('above 0 and below 1', lambda x: 0 < x < 1),
    'dtype': one_of('float32', 'bfloat16'),
    'mean': Allowed('3 numbers, one a channel', lambda x: len(x) == 3),
    'std': Allowed('3 positive numbers, one a channel', lambda x: len(x) == 3 and min(x) > 0),
    'pad_value': Allowed('a number', lambda x: True),
    # anchors, and what they are trained towards
    'boxes_per_cell': COUNT,
    'anchor_sizes': LENGTHS,
    'aspect_ratios': Allowed('one or more positive numbers', lambda x: len(x) > 0 and all(y > 0 for y in leaves(x))),
    'anchor_strides': Allowed('positive numbers', lambda x: isinstance(x, str) or all(y > 0 for y in x)),
    'delta_weights': Allowed('4 positive numbers', lambda x: len(x) == 4 and min(x) > 0),
    'positive_iou': SHARE,
    'negative_iou': SHARE,
    'ignore_iou': SHARE,
    'samples': COUNT,
    'positive_share': SHARE,
    'negatives_per_positive': AMOUNT,
    'warm_up_images': AMOUNT,
    # labels of pixels
    'rates': COUNTS,
    'auxiliary_features': COUNT,
    'auxiliary_dropout': DECAY,
    'class_weights': Allowed(
        'positive numbers, one a class or one for all, and one for background, or none', lambda x: all(y > 0 for y in x)
    ),
    'border_sigma': Allowed('above 0 and at most 22', lambda x: 0 < x <= 22),
    **dict.fromkeys(('auxiliary_loss_weight', 'border_weight'), AMOUNT),
    # windows at several scales
    'scales': Allowed(
        'one or more numbers above 0 and at most 16', lambda x: len(x) > 0 and all(0 < y <= 16 for y in x)
    ),
    'size': COUNT,
    'object_share': POSITIVE,
    **dict.fromkeys(('shift', 'octaves', 'negative_shift', 'negative_octaves'), POSITIVE),
    'rank': COUNT,
    'score_features': COUNT,
    'score_loss_weight': AMOUNT,
    'mask_size': COUNT,
    'mask_threshold': Allowed('above 0 and below 1', lambda x: 0 < x < 1),
    'refine_strides': Allowed('whole numbers of at least 1, or none', lambda x: all(map(is_count, x))),
    'refine_features': COUNT,
    'hidden_features': COUNTS,
    # regions of interest
    'output_size': COUNT,
    'samples_per_bin': AMOUNT,
    'max_samples_per_bin': COUNT,
    'canonical_size': POSITIVE,
    'pyramid': COUNTS,
    'crop_size': COUNT,
    'context': AMOUNT,
    # losses
    'focal_gamma': AMOUNT,
    'focal_alpha': SHARE,
    **dict.fromkeys(
        ('box_loss_beta', 'box_loss_weight', 'cls_loss_weight', 'rpn_loss_weight', 'mask_loss_weight'), AMOUNT
    ),
    **dict.fromkeys(('object_scale', 'no_object_scale', 'class_scale', 'box_scale'), AMOUNT),
    # a tree of classes
    'tree': Allowed(
        'the parent of each class, -1 for a root', lambda x: len(x) > 0 and all(is_count(y + 2) for y in x)
    ),
    'descent': one_of(*DESCENTS),
    'descent_threshold': SHARE,
    # detections
    **dict.fromkeys(
        ('pre_nms_topk', 'train_pre_nms_topk', 'post_nms_topk', 'train_post_nms_topk', 'max_detections'), COUNT
    ),
    'rounds': COUNT,
    'score_threshold': SHARE,
    'iou_threshold': SHARE,
    'min_size': AMOUNT,
}


def check_value(key: str, value: Any, example: Any) -> None:
    """Refuses a value of another kind than an example, or out of its range.

    Args:
        key: dotted key of the config.
        value: value of the key.
        example: the key's default, or another value of its kind; None allows all kinds.

    Raises:
        ValueError: the message has the key, the value, and what it must be.
    """
    *_, group, name = key.split('.') if '.' in key else ('', key)
    allowed = MODEL.get(f'{group}.{name}', MODEL.get(name)) if key.startswith('model.') else ALLOWED.get(key)
    if not is_alike(value, example):
        raise ValueError(f'{key} is {value!r}: it must be {kind(example)}')
    if allowed is not None and not allowed.holds(value):
        raise ValueError(f'{key} is {value!r}: it must be {allowed.words}')


def is_alike(value: Any, example: Any) -> bool:
    """Tells whether a value has the kind of an example: True and NaN are not numbers; tuples must have the same depth."""
    if example is None:
        return True
    if isinstance(example, bool | str):
        return isinstance(value, type(example))
    if is_tuple(example):
        inner = example[0] if depth(example) > 1 else 0.0
        return is_tuple(value) and (not example or all(is_alike(item, inner) for item in value))
    number, limit = (Integral, 2**31) if isinstance(example, Integral) else (Real, 3e38)
    return isinstance(value, number) and not isinstance(value, bool) and abs(value) < limit


def kind(example: Any) -> str:
    """Describes the kind of an example in words."""
    if is_tuple(example):
        return 'numbers in a tuple' + ' of tuples' * (depth(example) - 1)
    return {bool: 'True or False', str: 'text', int: 'a whole number of 32 bits'}.get(type(example), 'a finite number')


def depth(value: Any) -> int:
    """Counts how deep tuples are."""
    return 1 + max(map(depth, value), default=0) if is_tuple(value) else 0


def is_tuple(value: Any) -> bool:
    """Tells whether a value is a tuple, or a list, into which JSON turns tuples."""
    return isinstance(value, tuple | list)
