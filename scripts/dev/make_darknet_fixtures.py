"""Makes the golden arrays of YOLO's tests with darknet itself, so that the tests do not need darknet.

  git clone https://github.com/pjreddie/darknet && make -C darknet
  python scripts/dev/make_darknet_fixtures.py --darknet=darknet
  python scripts/dev/make_darknet_fixtures.py --source=darknet

Debian's package `darknet` has the same files in /usr/lib/darknet. The script also needs gcc. Darknet prints what it is doing.
The second command makes the arrays of YOLO9000, with a darknet that it builds itself (`build_with_trees` says why).

tests/fixtures/darknet_deltas.npz has the gradients that the last layers of YOLO v1, v2 and v3 send back in training (l.delta), for
random raw outputs and chosen objects: several in a cell, several at an anchor, none at all. For each version:

    settings  JSON: the settings of the loss: the canvas, anchors in pixels, strides, scales, ...
    truths    [3, M, 5] for three images: centre x and y, width, height as shares of the canvas, and class; zeros are padding
    raw       the network's raw outputs. For v1 [3, S * S * (K + 5 n)], in darknet's order: the class scores of all cells,
              the confidences of all boxes, the boxes. For v2 and v3 [3, A, 5 + K]: level by level, finest first, cell by
              cell, anchor by anchor
    output    like raw: the layer's output, l.output: the logistic of x, y and objectness, and for v2 the softmax of the
              classes, for v3 their logistic; for v1 it equals raw
    delta     like raw: l.delta, minus the gradient of the loss with respect to raw. For x, y and objectness of v2 it is with
              respect to output: darknet multiplies it by output * (1 - output) after the layer, on GPUs only

v2 has four deltas: `delta` after 12,800 images, `delta_warm_up` before, and the same two for a network without `rescore`. In v1
the last object in a cell is the one that counts.

tests/fixtures/darknet_tree.npz has the same for a tree of classes ('parents'), `delta` before and after the first 12,800 images;
the third image has a label and no box. And of a whole network, narrow and with random weights: its arguments as JSON, an image,
'output', and for thresholds of the descent the detections in the image: x, y, w, h as shares of it, score and class.

tests/fixtures/darknet_yolov1.npz has the outputs of both versions of YOLO v1 for one image, narrow and with random weights
(`drawn_weights`), together with the arguments of our detector, as JSON, and the .cfg file.
"""

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app

from detzoo.cli.paths import define_path
from detzoo.detectors import make_detector
from detzoo.parity.darknet import Darknet, build_with_trees, drawn_weights
from detzoo.weights.darknet import PREDICTION, PUBLISHED
from detzoo.weights.darknet_layers import TREE, cfg_text
from detzoo.weights.darknet_tree import tree_text

_DARKNET = define_path('darknet', '/usr/lib/darknet', 'A folder with libdarknet.so and include/darknet.h.')
_SOURCE = define_path('source', None, "A checkout of darknet, to make YOLO9000's arrays.")

FIXTURES = pathlib.Path(__file__).parents[2] / 'tests' / 'fixtures'
CLASSES = 3
# A tree of classes: 0 (2, 3 (6, 7, 8)), 1 (4 (9), 5)
PARENTS = (-1, -1, 0, 0, 1, 1, 3, 3, 3, 4)
DESCENTS = 0.1, 0.3, 0.6  # thresholds
# Objects of three images, in pixels: centre x, centre y, width, height, class. The canvas is 96 high and 128 wide.
OBJECTS = (
    # Three objects in one cell of stride 32: two have similar shapes and take the same anchor, the third takes another one.
    ((40, 50, 22, 26, 0), (50, 42, 44, 34, 1), (44, 54, 18, 22, 2), (80, 40, 72, 58, 1), (120, 90, 14, 10, 0)),
    (),
    ((16, 16, 24, 24, 2), (48, 48, 40, 36, 0), (90, 30, 60, 50, 1), (100, 80, 30, 28, 1), (70, 70, 120, 60, 2)),
)


def layer_text(canvas: tuple[int, int, int], kind: str, options: Mapping[str, Any]) -> str:
    """Writes the .cfg file of a network of one layer, whose input is as large as a canvas (h, w, channels)."""
    net = dict(zip(('height', 'width', 'channels'), canvas), batch=1)
    return '\n'.join(
        f'[{name}]\n' + ''.join(f'{key}={value}\n' for key, value in section.items())
        for name, section in (('net', net), (kind, options))
    )


def padded_truths(canvas: Sequence[int]) -> np.ndarray:
    """The objects as shares of a canvas (H, W), [3, M, 5] float32."""
    truths = np.zeros((len(OBJECTS), max(map(len, OBJECTS)), 5), np.float32)
    for row, objects in zip(truths, OBJECTS):
        row[: len(objects)] = np.reshape(objects, (-1, 5)) / np.array([canvas[1], canvas[0], canvas[1], canvas[0], 1])
    return truths


def v1_deltas(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of YOLO v1's [detection] layer."""
    settings = dict(canvas=(128, 128), side=4, num=2, classes=CLASSES, object_scale=1.0, noobject_scale=0.5, class_scale=1.0,
                    coord_scale=5.0, rescore=1, sqrt=1)  # fmt: skip
    side, num = settings['side'], settings['num']
    size = side * side * (CLASSES + 5 * num)
    options = {'softmax': 0, 'coords': 4, 'jitter': 0.2} | {k: v for k, v in settings.items() if k != 'canvas'}
    text = layer_text((side, side, size // side**2), 'detection', options)

    random = np.random.RandomState(1)
    raw = random.normal(0.3, 0.3, (len(OBJECTS), size))
    boxes = raw[:, -side * side * num * 4 :].reshape(-1, 4)
    boxes[:, :2] = random.normal(0.5, 0.4, boxes[:, :2].shape)  # centres in cells
    boxes[:, 2:] = random.normal(0.4, 0.3, boxes[:, 2:].shape)  # roots of the sizes; a negative one has its square too
    truths = padded_truths(settings['canvas'])
    raw = raw.astype(np.float32)
    results = []
    for image, objects in zip(raw, truths):
        grid = np.zeros((side, side, 1 + CLASSES + 4), np.float32)
        for x, y, w, h, label in objects[objects[:, 2] > 0]:
            row, column = int(y * side), int(x * side)
            grid[row, column] = 0  # here the last object gets the cell; darknet shuffles objects, and the first gets it
            grid[row, column, [0, 1 + int(label)]] = 1
            grid[row, column, -4:] = x * side - column, y * side - row, w, h
        results.append(darknet.run(text, image, size, truth=grid))
    output, delta = map(np.stack, zip(*results))
    return dict(settings=json.dumps(settings), truths=truths, raw=raw, output=output, delta=delta)


def level_run(
    darknet: Darknet, kind: str, options: Mapping[str, Any], raw: np.ndarray, truths: np.ndarray, seen: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a layer [region] or [yolo] alone.

    Args:
        darknet: the binding that runs the layer.
        kind, options: the layer's section in a .cfg file; anchors in cells.
        raw: [B, h, w, n, 5 + K].
        truths: [B, M, 5].
        seen: number of images that the network has been trained on.

    Returns:
        output and delta, each [B, h * w * n, 5 + K].
    """
    _, height, width, num, entries = raw.shape
    text = layer_text((height, width, num * entries), kind, options)
    results = []
    for image, objects in zip(raw, truths):
        truth = np.zeros((90, 5), np.float32)  # [yolo] reads up to 90, [region] up to 30
        truth[: len(objects)] = objects
        flat = darknet.run(text, image.transpose(2, 3, 0, 1), image.size, truth=truth, seen=seen)
        results.append(
            [x.reshape(num, entries, height, width).transpose(2, 3, 0, 1).reshape(-1, entries) for x in flat]
        )
    output, delta = map(np.stack, zip(*results))
    return output, delta


def listed_anchors(anchors: Sequence[Sequence[float]], stride: int) -> str:
    """Writes anchors in pixels as a .cfg file has them for a layer that takes a pixel for a cell."""
    return ','.join(f'{side / stride:.9g}' for anchor in anchors for side in anchor)


def drawn_level(
    random: np.random.RandomState,
    canvas: Sequence[int],
    stride: int,
    anchors: Sequence[Sequence[float]],
    truths: np.ndarray,
    classes: int = CLASSES,
) -> np.ndarray:
    """Draws raw outputs of a level; those in the cells of objects roughly predict the objects, so that some are ignored.

    Args:
        random: source of random numbers.
        canvas: height and width, pixels.
        stride: side of a cell, pixels.
        anchors: width and height of each of n anchors, pixels.
        truths: [B, M, 5].
        classes: K.

    Returns:
        [B, h, w, n, 5 + K] float32.
    """
    height, width = (side // stride for side in canvas)
    raw = random.normal(0, 0.6, (len(truths), height, width, len(anchors), 5 + classes))
    for image, objects in zip(raw, truths):
        for x, y, w, h, _ in objects[objects[:, 2] > 0]:
            column, row = int(x * width), int(y * height)
            offset = np.clip([x * width - column, y * height - row], 0.05, 0.95)
            exact = np.concatenate(
                [
                    np.tile(np.log(offset / (1 - offset)), (len(anchors), 1)),
                    np.log(np.array([w * canvas[1], h * canvas[0]]) / anchors),
                ],
                axis=1,
            )
            image[row, column, :, :4] = exact + random.normal(0, 0.15, exact.shape)
    return raw.astype(np.float32)


def v2_deltas(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of YOLO v2's [region] layer."""
    settings = dict(canvas=(96, 128), stride=32, anchors=((20, 24), (40, 36), (70, 60)), classes=CLASSES, thresh=0.6,
                    object_scale=5.0, noobject_scale=1.0, class_scale=1.0, coord_scale=1.0)  # fmt: skip
    anchors, stride = settings['anchors'], settings['stride']
    scales = {key: settings[key] for key in settings if key == 'thresh' or key.endswith('scale')}
    options = dict(anchors=listed_anchors(anchors, stride), num=len(anchors), classes=CLASSES, coords=4, softmax=1,
                   bias_match=1, absolute=1, **scales)  # fmt: skip

    truths = padded_truths(settings['canvas'])
    raw = drawn_level(np.random.RandomState(2), settings['canvas'], stride, anchors, truths)
    result = dict(settings=json.dumps(settings), truths=truths, raw=raw.reshape(len(raw), -1, 5 + CLASSES))
    for name, seen, rescore in (
        ('delta', 12800, 1),
        ('delta_no_rescore', 12800, 0),
        ('delta_warm_up', 0, 1),
        ('delta_warm_up_no_rescore', 0, 0),
    ):
        result['output'], result[name] = level_run(darknet, 'region', options | {'rescore': rescore}, raw, truths, seen)
    return result


def write_tree(folder: pathlib.Path) -> pathlib.Path:
    """Writes the tree of PARENTS into a folder."""
    path = folder / TREE
    path.write_text(tree_text([f'node{i}' for i in range(len(PARENTS))], PARENTS))
    return path


def tree_deltas(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of a [region] layer with a tree of classes; the last image has a label alone."""
    settings = dict(canvas=(96, 128), stride=32, anchors=((20, 24), (40, 36), (70, 60)), classes=len(PARENTS), thresh=0.6,
                    object_scale=5.0, noobject_scale=1.0, class_scale=1.0, coord_scale=1.0)  # fmt: skip
    anchors, stride = settings['anchors'], settings['stride']
    scales = {key: settings[key] for key in settings if key == 'thresh' or key.endswith('scale')}
    options = dict(anchors=listed_anchors(anchors, stride), num=len(anchors), classes=len(PARENTS), coords=4, softmax=1,
                   bias_match=1, absolute=1, rescore=1, tree=write_tree(darknet.path), **scales)  # fmt: skip
    truths, random = padded_truths(settings['canvas']), np.random.RandomState(4)
    truths[..., 4] = random.randint(len(PARENTS), size=truths.shape[:2]) * (truths[..., 2] > 0)
    raw = drawn_level(random, settings['canvas'], stride, anchors, truths, len(PARENTS))
    for_darknet = truths.copy()
    for_darknet[-1] = 0
    for_darknet[-1, 0] = 999999, 999999, 999999, 999999, truths[-1, 0, 4]  # as its loader marks a label without a box
    result = dict(settings=json.dumps(settings), truths=truths, raw=raw.reshape(len(raw), -1, 5 + len(PARENTS)))
    for name, seen in (('delta', 12800), ('delta_warm_up', 0)):
        result['output'], result[name] = level_run(darknet, 'region', options, raw, for_darknet, seen)
    return result


def tree_outputs(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of a narrow YOLO9000 with random weights."""
    image = np.random.RandomState(0).randint(0, 256, (16, 24, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    model = {**PREDICTION, 'name': 'yolo_v2', 'num_classes': len(PARENTS), 'backbone': {'width': 0.125}, 'tree': PARENTS,
             'head_features': None, 'passthrough_features': None, 'anchor_sizes': ((20, 24), (40, 36), (70, 60))}  # fmt: skip
    template = jax.eval_shape(lambda rng: make_detector(**model).init(rng, image.shape[:2]), jax.random.key(0))
    text = cfg_text(model, template, image.shape[:2])
    own = text.replace(f'tree={TREE}', f'tree={write_tree(darknet.path)}')
    size = template[0]['head']['output']['bias'].size * (image.shape[0] // 32) * (image.shape[1] // 32)
    result = {'model': json.dumps(model), 'cfg': text, 'image': image}
    with tempfile.NamedTemporaryFile() as file:
        file.write(drawn_weights(model, template))
        file.flush()
        result['output_of_network'], _ = darknet.run(own, image.transpose(2, 0, 1) / 255, size, weights=file.name)
        for threshold in DESCENTS:
            limits = dict(score_threshold=0.2, iou_threshold=0.45, hierarchy_threshold=threshold)
            found = darknet.detect(own, file.name, image, **limits)
            result |= {f'detections_{threshold}.{key}': value for key, value in found.items()}
    return result


def v3_deltas(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of YOLO v3's [yolo] layers at two levels."""
    settings = dict(
        canvas=(96, 128),
        strides=(16, 32),
        classes=CLASSES,
        ignore_thresh=0.7,
        truth_thresh=1,
        anchors=(((10, 13), (20, 24), (33, 23)), ((40, 36), (28, 56), (70, 60))),
    )
    truths = padded_truths(settings['canvas'])
    everything = [anchor for level in settings['anchors'] for anchor in level]
    random = np.random.RandomState(3)
    levels = []
    for level, (stride, anchors) in enumerate(zip(settings['strides'], settings['anchors'])):
        first = level * len(anchors)
        options = dict(
            anchors=listed_anchors(everything, stride),
            num=len(everything),
            classes=CLASSES,
            mask=','.join(str(first + i) for i in range(len(anchors))),
            ignore_thresh=settings['ignore_thresh'],
            truth_thresh=settings['truth_thresh'],
        )
        raw = drawn_level(random, settings['canvas'], stride, anchors, truths)
        levels.append((raw.reshape(len(raw), -1, 5 + CLASSES), *level_run(darknet, 'yolo', options, raw, truths)))
    raw, output, delta = (np.concatenate(parts, axis=1) for parts in zip(*levels))
    return dict(settings=json.dumps(settings), truths=truths, raw=raw, output=output, delta=delta)


def v1_outputs(darknet: Darknet) -> dict[str, Any]:
    """Makes the arrays of both published versions of YOLO v1, at an eighth of their width and a quarter of their stride."""
    image = np.random.RandomState(0).randint(0, 256, (12, 12, 3)).repeat(8, 0).repeat(8, 1)
    result = {}
    for name in ('yolov1', 'yolov1-tiny'):
        published = PUBLISHED[name].model
        backbone = {**published.get('backbone', {}), 'width': 0.125}
        model = {**published, 'num_classes': CLASSES, 'backbone': backbone, 'backbone_stride': 16}
        template = jax.eval_shape(
            lambda rng, model=model: make_detector(**model).init(rng, image.shape[:2]), jax.random.key(0)
        )
        text = cfg_text(model, template, image.shape[:2])
        outputs = template[0]['head']['connected']['bias'].size
        with tempfile.NamedTemporaryFile() as file:
            file.write(drawn_weights(model, template))
            file.flush()
            output, _ = darknet.run(text, image.transpose(2, 0, 1) / 255, outputs, weights=file.name)
        result |= {f'{name}.model': json.dumps(model), f'{name}.cfg': text, f'{name}.output': output}
    return {'image': image.astype(np.uint8), **result}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    if _SOURCE.value:
        with tempfile.TemporaryDirectory() as folder:
            build_with_trees(_SOURCE.value, folder)
            darknet = Darknet(folder)
            save('darknet_tree', tree_deltas(darknet) | tree_outputs(darknet) | {'parents': np.array(PARENTS)})
        return
    darknet = Darknet(_DARKNET.value)
    deltas = dict(v1=v1_deltas(darknet), v2=v2_deltas(darknet), v3=v3_deltas(darknet))
    named = {f'{version}.{key}': value for version, values in deltas.items() for key, value in values.items()}
    save('darknet_deltas', named)
    save('darknet_yolov1', v1_outputs(darknet))


def save(name: str, arrays: Mapping[str, Any]) -> None:
    """Writes a file of fixtures."""
    path = FIXTURES / f'{name}.npz'
    np.savez_compressed(path, **arrays)
    print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
    app.run(main)
