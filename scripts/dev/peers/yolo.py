"""YOLO v3 and v3-tiny at 416 x 416: detzoo, OpenCV's DNN module and darknet's library, from the same .weights file.

Timed is, on all sides: from an image [416, 416, 3] uint8 in memory to the detections after NMS. OpenCV: `blobFromImage`, `forward`
to the [yolo] layers, which decode, and `NMSBoxesBatched` over all pairs of box and class above the threshold. darknet:
`network_predict_image`, `get_network_boxes`, `do_nms_sort`. The score threshold is chosen so that `WANTED` detections are left.

How darknet's library was built decides its speed; Debian's has matrix products in C, without a BLAS. Its detections are compared in
number only; scripts/dev/check_darknet_parity.py compares them one by one.
"""

import ctypes
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detzoo.parity.compare import drawn_image, match_detections
from peers.machine import cores
from peers.turns import OURS, Case, Program, Side

NAMES = ('yolov3-tiny', 'yolov3')
CANVAS = 416, 416
WANTED = 25  # detections
LIBRARIES = {OURS: ('jax', 'detzoo.parity.darknet'), 'OpenCV': ('cv2', 'detzoo.parity.darknet')}
DARKNET = 'darknet'
LIBDARKNET = '/usr/lib/darknet/libdarknet.so'  # of Debian's package `darknet`


def cases(library: str = LIBDARKNET) -> list[Case]:
    """Lists the cases of the sections yolo and darknet; the second is empty without libdarknet.so."""
    listed = []
    for name in NAMES:
        sides = {
            OURS: Side('peers.yolo:detzoo', {'name': name}, LIBRARIES[OURS], OURS),
            'OpenCV': Side('peers.yolo:opencv', {'name': name}, LIBRARIES['OpenCV'], 'OpenCV'),
        }
        listed.append(Case('yolo', f'{name} 416 x 416', sides, check, rounds=9, expected=30))
        if pathlib.Path(library).exists():
            side = Side('peers.yolo:darknet', {'name': name, 'library': library}, LIBRARIES[OURS], DARKNET)
            sides = {OURS: sides[OURS], DARKNET: side}
            listed.append(Case('darknet', f'{name} 416 x 416', sides, check, rounds=3, expected=45))
    return listed


def check(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that OpenCV detects the same, and darknet as much."""
    ours = results[OURS]
    for label, theirs in results.items():
        if label == DARKNET:
            assert abs(len(ours['boxes']) - theirs) <= 1, f'{len(ours["boxes"])} detections, and {theirs} of {label}'
        else:
            same = match_detections(ours, theirs, limit=10**6)
            assert same.ours == same.theirs == same.matched, f'{OURS} and {label} detect other things: {same}'
    return {'detections': len(ours['boxes'])}


def network(name: str) -> tuple[Mapping[str, Any], Any, bytes]:
    """Draws a network: the arguments of its detector, the shapes of its variables, and the content of its .weights file."""
    import jax

    from detzoo.detectors import make_detector
    from detzoo.parity.darknet import drawn_weights
    from detzoo.weights.darknet import PUBLISHED

    model = dict(PUBLISHED[name].model)
    template = jax.eval_shape(lambda rng: make_detector(**model).init(rng, CANVAS), jax.random.key(0))
    return model, template, drawn_weights(model, template)


def cfg_of(model: Mapping[str, Any], template: Any, score_threshold: float | None = None) -> str:
    """Writes the network's .cfg; to OpenCV, `thresh` of a [yolo] section is a limit on scores."""
    from detzoo.weights.darknet_layers import cfg_text

    text = re.sub(r'^thresh=.*\n', '', cfg_text(model, template, CANVAS), flags=re.MULTILINE)
    return text if score_threshold is None else text.replace('[yolo]\n', f'[yolo]\nthresh={score_threshold}\n')


def opencv(name: str, score_threshold: float) -> Program:
    """Prepares OpenCV."""
    import cv2

    from detzoo.weights.darknet_layers import arguments_of

    cv2.setNumThreads(cores())
    model, template, weights = network(name)
    image, iou = drawn_image(*CANVAS, seed=0), arguments_of(model)['iou_threshold']
    text = cfg_of(model, template, score_threshold).encode()
    net = cv2.dnn.readNetFromDarknet(np.frombuffer(text, np.uint8), np.frombuffer(weights, np.uint8))
    outputs = net.getUnconnectedOutLayersNames()

    def step() -> dict[str, np.ndarray]:
        net.setInput(cv2.dnn.blobFromImage(image, 1 / 255))
        rows = np.concatenate(net.forward(outputs))  # [A, 5 + K]
        places, labels = np.nonzero(rows[:, 5:] > score_threshold)
        scores, size = rows[places, 5 + labels], np.tile(np.float32(CANVAS[::-1]), 2)
        centers, sides = np.split(rows[places, :4] * size, 2, axis=1)
        boxes = np.concatenate([centers - sides / 2, sides], axis=1)
        kept = cv2.dnn.NMSBoxesBatched(boxes, scores, labels, score_threshold, iou)
        return {'boxes': boxes[kept], 'scores': scores[kept], 'labels': labels[kept]}

    def shown(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        left_top, sides = np.split(found['boxes'], 2, axis=1)
        corners = np.concatenate([left_top, left_top + sides], axis=1)
        return found | {'boxes': corners.clip(0, np.tile(CANVAS[::-1], 2)).astype(np.float32)}

    return Program(step, shown)


def detzoo(name: str) -> Program:
    """Prepares detzoo, and chooses the score threshold for the others."""
    import jax

    from detzoo.detectors import make_detector
    from detzoo.run.parallel import keep_compilations
    from detzoo.types import Inputs
    from detzoo.weights.darknet import parse_weights

    keep_compilations()
    model, template, weights = network(name)
    variables = jax.device_put(parse_weights(weights, model, template, source=name).variables)
    image, window = drawn_image(*CANVAS, seed=0)[None], np.float32([[0, 0, *CANVAS[::-1]]])

    def predict(score_threshold: float) -> Callable[[], dict[str, np.ndarray]]:
        run = jax.jit(make_detector(**{**model, 'score_threshold': score_threshold}).predict)

        def step() -> dict[str, np.ndarray]:
            found = jax.device_get(run(*variables, Inputs(image, window)))
            return {field: getattr(found, field)[0][found.valid[0]] for field in ('boxes', 'scores', 'labels')}

        return step

    threshold = float(predict(0.0)()['scores'][WANTED - 1 : WANTED + 1].mean())
    return Program(predict(threshold), given={'score_threshold': threshold})


class Image(ctypes.Structure):
    """darknet's image: planes of floats in 0..1."""

    _fields_ = [('w', ctypes.c_int), ('h', ctypes.c_int), ('c', ctypes.c_int), ('data', ctypes.c_void_p)]


class Detection(ctypes.Structure):
    """darknet's detection: the probability of each class, 0 where the NMS dropped it."""

    _fields_ = [
        ('box', ctypes.c_float * 4),
        ('classes', ctypes.c_int),
        ('prob', ctypes.POINTER(ctypes.c_float)),
        ('mask', ctypes.c_void_p),
        ('objectness', ctypes.c_float),
        ('sort_class', ctypes.c_int),
    ]


def darknet(name: str, library: str, score_threshold: float) -> Program:
    """Prepares darknet's own library."""
    from detzoo.weights.darknet_layers import arguments_of

    model, template, weights = network(name)
    iou = arguments_of(model)['iou_threshold']
    binding = ctypes.CDLL(library)
    binding.load_network.restype = ctypes.c_void_p
    binding.network_predict_image.argtypes = [ctypes.c_void_p, Image]
    binding.get_network_boxes.restype = ctypes.POINTER(Detection)
    with tempfile.TemporaryDirectory() as folder:
        cfg, file = pathlib.Path(folder) / 'net.cfg', pathlib.Path(folder) / 'net.weights'
        cfg.write_text(cfg_of(model, template))
        file.write_bytes(weights)
        net = ctypes.c_void_p(binding.load_network(str(cfg).encode(), str(file).encode(), 0))
    binding.set_batch_network(net, 1)
    planes = np.ascontiguousarray(drawn_image(*CANVAS, seed=0).transpose(2, 0, 1) / 255, np.float32)
    count, limit = ctypes.c_int(), ctypes.c_float(score_threshold)

    def step() -> int:
        binding.network_predict_image(net, Image(*CANVAS[::-1], 3, planes.ctypes.data))
        found = binding.get_network_boxes(
            net, *map(ctypes.c_int, CANVAS[::-1]), limit, limit, None, ctypes.c_int(1), ctypes.byref(count)
        )
        binding.do_nms_sort(found, count, ctypes.c_int(model['num_classes']), ctypes.c_float(iou))
        kept = sum(found[row].prob[k] > 0 for row in range(count.value) for k in range(model['num_classes']))
        binding.free_detections(found, count)
        return kept

    return Program(step)
