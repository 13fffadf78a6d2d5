"""Runs YOLOs with the same weights here, in OpenCV and in darknet.

    drawn_weights -> a .weights file -> read_weights -> run_detector   -> tensors
                                     -> OpenCV       -> run_opencv     -> the same tensors, for YOLO v2 and v3
                                     -> darknet      -> Darknet.run    -> the last layer's output, for v1 too
                                                        Darknet.detect -> detections in a photo of any size

Weights are drawn, not downloaded. OpenCV 4 has its own reader of darknet's files and its own layers. Only darknet itself runs
YOLO v1; `Darknet` needs it, and gcc.
"""

import ctypes
import itertools
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.core import box_coding
from detzoo.core import boxes as box_ops
from detzoo.core.anchors import cell_anchors
from detzoo.core.postprocess import postprocess, top_per_level
from detzoo.detectors import make_detector
from detzoo.parity.compare import predict_with_intermediates
from detzoo.types import Detections, Inputs, ModelState, Params
from detzoo.weights.darknet_layers import arguments_of, cfg_text, layers
from detzoo.weights.mapping import Template


def drawn_weights(model: Mapping[str, Any], template: Template) -> bytes:
    """Draws the content of a .weights file, each entry from a stream of its own, seeded by its place in the file.

    Activations keep their size through the layers, scores spread over 0..1, and boxes stay near their anchors.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.

    Returns:
        a header and the numbers.
    """
    described = layers(model, template)
    parts = [struct.pack('<3iQ', 0, 2, 0, 0)]
    for index, (layer, following) in enumerate(itertools.pairwise(described)):
        for entry in layer.entries:
            kind = entry.variable.rpartition('/')[2]
            random = np.random.RandomState(zlib.crc32(f'{index} {layer.kind} {kind}'.encode()))
            shape = [entry.shape[axis] for axis in entry.permutation]
            linear = layer.options['activation'] == 'linear'
            if kind == 'kernel':
                values = random.standard_normal(shape)
                inputs = (-1,) if layer.kind == 'local' else tuple(range(1, len(shape)))
                if index > 0:
                    # Inputs come from a leaky ReLU: with their common mean outputs would hardly vary.
                    values -= values.mean(axis=inputs, keepdims=True)
                values *= (1.0 if linear else 1.55) / np.sqrt(np.prod([shape[axis] for axis in inputs]))
            elif kind == 'var':
                values = random.uniform(0.5, 1.5, shape)
            elif kind == 'scale':
                # The last norm of a residual block is small, so that 23 of them do not add up to an explosion.
                values = random.uniform(0.8, 1.2, shape) * (0.25 if following.kind == 'shortcut' else 1)
            else:
                values = random.standard_normal(shape) * (1.0 if linear else 0.1)
            if (
                following.kind == 'detection'
            ):  # its outputs are scores, confidences and roots of sizes, as they are: in 0..1
                values = 0.08 * values + (0.5 if kind == 'bias' else 0)
            elif linear:  # the logarithms of sizes
                values.reshape(-1, 5 + following.options['classes'], values.size // shape[0])[:, 2:4] *= 0.4
            parts.append(values.astype('<f4').tobytes())
    return b''.join(parts)


def run_detector(
    model: Mapping[str, Any], params: Params, model_state: ModelState, image: np.ndarray
) -> tuple[dict[str, np.ndarray], Detections]:
    """Runs a YOLO of ours on one image.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        params, model_state: that detector's variables.
        image: [H, W, 3] uint8 RGB, as large as a canvas.

    Returns:
        tensors: for YOLO v1 'output' [S * S * (K + 5 P)]; for v2 and v3 as `run_opencv` returns them.
        detections: detections in the image.
    """
    canvas, arguments = image.shape[:2], arguments_of(model)
    inputs = Inputs(image[None], np.float32([[0, 0, canvas[1], canvas[0]]]))
    predict = jax.jit(partial(predict_with_intermediates, make_detector(**model)))
    found, outputs = jax.tree.map(np.asarray, predict(params, model_state, inputs))
    detections = Detections(*(None if x is None else x[0] for x in found))
    if model['name'] == 'yolo_v1':
        return {'output': outputs['head'][0][0]}, detections
    of_v2 = model['name'] == 'yolo_v2'
    levels = [level[0] for level in ([outputs['head']] if of_v2 else outputs['head'])]
    sizes = [arguments['anchor_sizes']] if of_v2 else arguments['anchor_sizes']
    rows = np.concatenate([level.reshape(-1, 5 + arguments['num_classes']) for level in levels])  # [A, 5 + K]
    anchors, strides = cell_anchors(canvas, [level.shape[:2] for level in levels], sizes)
    boxes = box_ops.xyxy_to_cxcywh(box_coding.decode_cells(rows[:, :4], anchors, strides)) / np.tile(canvas[::-1], 2)
    objectness, probability = jax.nn.sigmoid(rows[:, 4]), (jax.nn.softmax if of_v2 else jax.nn.sigmoid)(rows[:, 5:])
    tensors = {f'level{number}': level for number, level in enumerate(levels, 1)}
    tensors |= {'boxes': boxes, 'objectness': objectness, 'scores': objectness[:, None] * probability}
    return jax.tree.map(np.asarray, tensors), detections


def run_opencv(
    model: Mapping[str, Any], template: Template, weights: bytes, image: np.ndarray
) -> dict[str, np.ndarray]:
    """Runs a YOLO v2 or v3 with OpenCV's reader and layers.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        template: (params, model_state) of that detector.
        weights: content of its .weights file.
        image: [H, W, 3] uint8 RGB, as large as a canvas.

    Returns:
        level1, ..., finest first: [h, w, n * (5 + K)], the network's raw outputs.
        boxes: [A, 4] centre x and y, width, height as shares of the canvas; objectness: [A]; scores: [A, K].
    """
    # To OpenCV `thresh` is a limit on scores, not the loss's.
    text = re.sub(r'^thresh=.*\n', '', cfg_text(model, template, image.shape[:2]), flags=re.MULTILINE)
    text = re.sub(r'^\[(region|yolo)\]\n', r'[\1]\nthresh=0\n', text, flags=re.MULTILINE)
    net = cv2.dnn.readNetFromDarknet(np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights, np.uint8))
    net.setInput(cv2.dnn.blobFromImage(image, 1 / 255))
    ends = [index for index, layer in enumerate(layers(model, template)) if layer.kind in ('region', 'yolo')]
    ends = ends[::-1]  # darknet ends with the finest level
    levels = [level[0] for level in net.forward([f'permute_{index}' for index in ends])]
    of_v2 = model['name'] == 'yolo_v2'
    rows = np.concatenate(net.forward(['detection_out'] if of_v2 else [f'yolo_{index}' for index in ends]))
    scores = rows[:, 5:]
    if of_v2:
        # OpenCV's [region] ends in an NMS of its own, which sets scores to 0 and cannot be switched off.
        probability = np.asarray(jax.nn.softmax(levels[0].reshape(rows.shape)[:, 5:]))
        scores = np.where(scores > 0, scores, rows[:, 4:5] * probability)
    tensors = {f'level{number}': level for number, level in enumerate(levels, 1)}
    return tensors | {'boxes': rows[:, :4], 'objectness': rows[:, 4], 'scores': scores}


def select_detections(
    model: Mapping[str, Any], tensors: Mapping[str, np.ndarray], canvas: tuple[int, int]
) -> Detections:
    """Turns the boxes and scores of all anchors into detections, by the thresholds and the NMS of our detector.

    Args:
        model: the arguments of `make_detector`, with 'name' and 'num_classes'.
        tensors: what `run_opencv` returned.
        canvas: height and width, pixels.

    Returns:
        Detections of one image.
    """
    arguments = arguments_of(model)
    size = np.tile(np.float32(canvas[::-1]), 2)
    level_sizes = [tensors[name].size // (5 + arguments['num_classes']) for name in tensors if name.startswith('level')]
    boxes = box_ops.cxcywh_to_xyxy(tensors['boxes'] * size)
    finish = partial(
        postprocess,
        decode=lambda candidates: jnp.asarray(boxes)[candidates.row],
        select=partial(top_per_level, level_sizes=level_sizes, count=arguments['pre_nms_topk']),
        **{name: arguments[name] for name in ('score_threshold', 'iou_threshold', 'max_detections', 'clip_before_nms')},
    )
    return jax.tree.map(np.asarray, jax.jit(finish)(tensors['scores'], np.float32([0, 0, canvas[1], canvas[0]])))


_BINDING = r"""
#include <stdlib.h>
#include <string.h>
#include "darknet.h"

/* Frees a network and, what darknet forgets, its workspace. */
static void free_all(network *net)
{
    free(net->workspace);
    free_network(net);
}

/* Runs a network forwards on one image; with a truth as in training, and then the last layer's delta is copied too. */
void run(char *cfg, char *weights, size_t seen, float *input, float *truth, float *output, float *delta)
{
    network *net = load_network(cfg, weights, 0);
    layer last = net->layers[net->n - 1];
    float *own_input = net->input, *own_truth = net->truth;
    *net->seen = seen;
    net->input = input;
    net->truth = truth;
    net->train = truth != 0;
    forward_network(net);
    memcpy(output, last.output, last.outputs * sizeof(float));
    if (truth) memcpy(delta, last.delta, last.outputs * sizeof(float));
    net->input = own_input;
    net->truth = own_truth;
    free_all(net);
}

/* Detects in an image of any size: x, y, w, h as shares of it, score and class of each; returns how many there are. */
int detect(char *cfg, char *weights, float *pixels, int height, int width, float threshold, float nms, float *found, int limit,
           float hierarchy_threshold)
{
    network *net = load_network(cfg, weights, 0);
    image original = {width, height, 3, pixels};
    layer last = net->layers[net->n - 1];
    int boxes, classes = last.classes, count = 0, i, k;
    /* As its programs do: examples/yolo.c for YOLO v1, examples/detector.c for the others. */
    image boxed = last.type == DETECTION ? resize_image(original, net->w, net->h) : letterbox_image(original, net->w, net->h);
    detection *detections;
    set_batch_network(net, 1);
    network_predict(net, boxed.data);
    detections = get_network_boxes(net, width, height, threshold, hierarchy_threshold, 0, 1, &boxes);
    do_nms_sort(detections, boxes, classes, nms);
    for (i = 0; i < boxes; ++i) for (k = 0; k < classes; ++k) {
        if (detections[i].prob[k] == 0) continue;
        if (count < limit) {
            memcpy(found + 6 * count, &detections[i].bbox, 4 * sizeof(float));
            found[6 * count + 4] = detections[i].prob[k];
            found[6 * count + 5] = k;
        }
        ++count;
    }
    free_detections(detections, boxes);
    free_image(boxed);
    free_all(net);
    return count;
}
"""


def build_with_trees(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Builds darknet with a softmax over trees of classes that is right on CPUs.

    There its [region] layer takes the wrong numbers for the groups of a tree: an offset that counts channels as if they were
    pixels, the strides of another layout, and a temperature that no .cfg file sets. On GPUs it takes the right ones.

    Args:
        source: a checkout of github.com/pjreddie/darknet, which stays as it is.
        folder: an empty folder, which gets what `Darknet` needs.
    """
    source, folder = pathlib.Path(source).absolute(), pathlib.Path(folder).absolute()
    shutil.copytree(source / 'include', folder / 'include')
    shutil.copytree(source / 'src', folder / 'src')
    layer = folder / 'src' / 'region_layer.c'
    right = (
        'softmax_cpu(net.input + count*l.w*l.h, group_size, l.batch*l.n, l.inputs/l.n, l.w*l.h, 1, l.w*l.h, 1, '
        'l.output + count*l.w*l.h);'
    )
    text, count = re.subn(r'softmax_cpu\(net\.input \+ count,[^;]*;', right, layer.read_text())
    if count != 1:
        raise ValueError(
            f"{source}/src/region_layer.c: not darknet's: it has no softmax over a tree where it was expected"
        )
    layer.write_text(text)
    files = sorted(path.name for path in (folder / 'src').glob('*.c') if path.name != 'compare.c')
    command = [
        'gcc',
        '-O2',
        '-w',
        '-fcommon',
        '-shared',
        '-fPIC',
        '-I../include',
        *files,
        '-lm',
        '-lpthread',
        '-o',
        '../libdarknet.so',
    ]
    subprocess.run(command, cwd=folder / 'src', check=True)


class Darknet:
    """Runs networks with darknet itself, through a binding that is compiled for it.

    `folder` has libdarknet.so and include/darknet.h: a checkout of github.com/pjreddie/darknet in which `make` was run, or
    /usr/lib/darknet, where Debian's package `darknet` has them.
    """

    def __init__(self, folder: str):
        self.scratch = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.scratch.name)
        (self.path / 'binding.c').write_text(_BINDING)
        folder = pathlib.Path(folder).absolute()
        command = ['gcc', '-shared', '-fPIC', f'-I{folder}/include', 'binding.c', '-o', 'binding.so', f'-L{folder}',
                   '-ldarknet', f'-Wl,-rpath,{folder}']  # fmt: skip
        subprocess.run(command, cwd=self.path, check=True)
        self.binding = ctypes.CDLL(str(self.path / 'binding.so'))

    def run(
        self,
        text: str,
        image: np.ndarray,
        outputs: int,
        *,
        weights: str = '',
        truth: np.ndarray | None = None,
        seen: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs a network on one image.

        Args:
            text: text of the .cfg file.
            image: [C, H, W], what the network reads; pixels in 0..1.
            outputs: number of the last layer's outputs.
            weights: path of the .weights file, if the network has weights.
            truth: the objects as the last layer reads them; with it the network runs as in training.
            seen: how many images the network has been trained with.

        Returns:
            the last layer's output and delta, [outputs] float32 each; delta is zero without a truth.
        """
        (self.path / 'net.cfg').write_text(text)
        output, delta = np.zeros((2, outputs), np.float32)
        arrays = [x if x is None else np.ascontiguousarray(x, np.float32) for x in (image, truth)] + [output, delta]
        pointers = [x if x is None else x.ctypes.data_as(ctypes.c_void_p) for x in arrays]
        self.binding.run(str(self.path / 'net.cfg').encode(), weights.encode(), ctypes.c_size_t(seen), *pointers)
        return output, delta

    def detect(
        self,
        text: str,
        weights: str,
        image: np.ndarray,
        *,
        score_threshold: float,
        iou_threshold: float,
        limit: int = 10**5,
        hierarchy_threshold: float = 0.5,
    ) -> dict[str, np.ndarray]:
        """Detects in an image of any size as darknet does: letterbox (YOLO v1 stretches), network, NMS of each class.

        Args:
            text: text of the .cfg file.
            weights: path of the .weights file.
            image: [h, w, 3] uint8 RGB.
            score_threshold: scores are higher.
            iou_threshold: the NMS's threshold.
            limit: how many detections there is room for; darknet has no limit.
            hierarchy_threshold: probability down to which a descent in a tree of classes goes.

        Returns:
            'boxes' [n, 4] xyxy pixels of the image, not clipped; 'labels' [n]; 'scores' [n], best first.
        """
        (self.path / 'net.cfg').write_text(text)
        height, width = image.shape[:2]
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1) / 255, np.float32)
        found = np.zeros((limit, 6), np.float32)
        count = self.binding.detect(
            str(self.path / 'net.cfg').encode(),
            weights.encode(),
            pixels.ctypes.data_as(ctypes.c_void_p),
            height,
            width,
            ctypes.c_float(score_threshold),
            ctypes.c_float(iou_threshold),
            found.ctypes.data_as(ctypes.c_void_p),
            limit,
            ctypes.c_float(hierarchy_threshold),
        )
        if count > limit:
            raise ValueError(f'{count} detections, and room for {limit}: raise score_threshold')
        found = found[:count][np.argsort(-found[:count, 4], kind='stable')]
        sides = np.ones(4) if '[detection]' in text else np.tile([width, height], 2)
        boxes = np.asarray(box_ops.cxcywh_to_xyxy(found[:, :4] * sides))
        return {'boxes': boxes, 'labels': found[:, 5].astype(int), 'scores': found[:, 4]}
