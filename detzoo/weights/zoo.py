"""Published detectors and segmenters: what it takes to make a run from their files.

    MODELS[name] -> the arguments of our detector or segmenter, how the file's entries become its variables,
                    how images are resized for it, its classes; and what its authors measured

The names are the publishers'. docs/zoo.md has what was measured here.
"""

from typing import Any, NamedTuple

from detzoo.data.readers import voc
from detzoo.run.classes import Classes
from detzoo.weights import darknet, detectron2, torchvision, torchvision_segmentation
from detzoo.weights.mapping import Mapping

_COCO = {
    1: 'person', 2: 'bicycle', 3: 'car', 4: 'motorcycle', 5: 'airplane', 6: 'bus', 7: 'train', 8: 'truck', 9: 'boat',
    10: 'traffic light', 11: 'fire hydrant', 13: 'stop sign', 14: 'parking meter', 15: 'bench', 16: 'bird', 17: 'cat',
    18: 'dog', 19: 'horse', 20: 'sheep', 21: 'cow', 22: 'elephant', 23: 'bear', 24: 'zebra', 25: 'giraffe', 27: 'backpack',
    28: 'umbrella', 31: 'handbag', 32: 'tie', 33: 'suitcase', 34: 'frisbee', 35: 'skis', 36: 'snowboard',
    37: 'sports ball', 38: 'kite', 39: 'baseball bat', 40: 'baseball glove', 41: 'skateboard', 42: 'surfboard',
    43: 'tennis racket', 44: 'bottle', 46: 'wine glass', 47: 'cup', 48: 'fork', 49: 'knife', 50: 'spoon', 51: 'bowl',
    52: 'banana', 53: 'apple', 54: 'sandwich', 55: 'orange', 56: 'broccoli', 57: 'carrot', 58: 'hot dog', 59: 'pizza',
    60: 'donut', 61: 'cake', 62: 'chair', 63: 'couch', 64: 'potted plant', 65: 'bed', 67: 'dining table', 70: 'toilet',
    72: 'tv', 73: 'laptop', 74: 'mouse', 75: 'remote', 76: 'keyboard', 77: 'cell phone', 78: 'microwave', 79: 'oven',
    80: 'toaster', 81: 'sink', 82: 'refrigerator', 84: 'book', 85: 'clock', 86: 'vase', 87: 'scissors', 88: 'teddy bear',
    89: 'hair drier', 90: 'toothbrush',
}  # fmt: skip
COCO = Classes(tuple(_COCO.values()), tuple(_COCO))
VOC = Classes(voc.CLASS_NAMES, tuple(range(1, 1 + len(voc.CLASS_NAMES))))


class Published(NamedTuple):
    """What the authors of a model say about it.

    file: the name of their file.
    parameters: number of parameters.
    gflops: billions of operations for an image, as the publisher counts: torchvision counts a multiplication with its addition
        as one operation, darknet as two.
    AP, mask_AP: on COCO's val2017, in percent.
    AP50: on COCO's test-dev or VOC 2007, in percent.
    sha256: the file's SHA-256, if a file was at hand.
    mean_iou: of pixels, on the images of COCO's val2017 that have VOC's classes, in percent.
    """

    file: str
    parameters: int | None = None
    gflops: float | None = None
    AP: float | None = None
    mask_AP: float | None = None
    AP50: float | None = None
    sha256: str | None = None
    mean_iou: float | None = None


class Model(NamedTuple):
    """A published detector or segmenter.

    source: 'torchvision', 'darknet' or 'detectron2'.
    model: the arguments of `make_detector` or `make_segmenter`, with 'name' and 'num_classes'.
    mapping: how the file's entries become variables; None for darknet's files, whose entries have no names.
    classes: the classes, in the order of our labels.
    recipe: how images are resized, keys of `config.data.recipe`.
    canvases: `evaluation.canvases`: any image fits one of them, as large as the recipe allows.
    divisor: the sides of canvases for single images are multiples of it.
    published: what its authors say.
    """

    source: str
    model: dict[str, Any]
    mapping: Mapping | None
    classes: Classes
    recipe: dict[str, Any]
    canvases: tuple[tuple[int, int], ...]
    divisor: int
    published: Published


def _with_holes(first: int) -> Classes:
    """Makes the classes of torchvision's models: all of COCO's ids from the first one on, also those without a category."""
    return Classes(tuple(_COCO.get(number, 'N/A') for number in range(first, 91)), tuple(range(first, 91)))


def _limited(shorter: int, longer: int, interpolation: str) -> dict[str, Any]:
    """Makes the recipe that resizes images to limits of their sides, and the canvases that hold all such images."""
    side = -(-longer // 32) * 32
    recipe = dict(resize='fit', shorter_side=shorter, longer_side=longer, interpolation=interpolation)
    return dict(recipe=recipe, canvases=((shorter, side), (side, shorter)))


def _stretched(side: int) -> dict[str, Any]:
    return dict(recipe=dict(resize='stretch', interpolation='bilinear'), canvases=((side, side),))


_TORCHVISION = {
    'retinanet_resnet50_fpn': Published('retinanet_resnet50_fpn_coco-eeacb38b.pth', 34_014_999, 151.54, AP=36.4),
    'retinanet_resnet50_fpn_v2': Published('retinanet_resnet50_fpn_v2_coco-5905b1c5.pth', 38_198_935, 152.238, AP=41.5),
    'ssd300_vgg16': Published('ssd300_vgg16_coco-b556d3b4.pth', 35_641_826, 34.858, AP=25.1),
    'ssdlite320_mobilenet_v3_large': Published(
        'ssdlite320_mobilenet_v3_large_coco-a79551df.pth', 3_440_060, 0.583, AP=21.3
    ),
    'fasterrcnn_resnet50_fpn': Published('fasterrcnn_resnet50_fpn_coco-258fb6c6.pth', 41_755_286, 134.38, AP=37.0),
    'fasterrcnn_resnet50_fpn_v2': Published(
        'fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth', 43_712_278, 280.371, AP=46.7
    ),
    'fasterrcnn_mobilenet_v3_large_fpn': Published(
        'fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth', 19_386_354, 4.494, AP=32.8
    ),
    'fasterrcnn_mobilenet_v3_large_320_fpn': Published(
        'fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth', 19_386_354, 0.719, AP=22.8
    ),
    'maskrcnn_resnet50_fpn': Published(
        'maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth', 44_401_393, 134.38, AP=37.9, mask_AP=34.6
    ),
    'maskrcnn_resnet50_fpn_v2': Published(
        'maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth', 46_359_409, 333.577, AP=47.4, mask_AP=41.8
    ),
}
_SEGMENTERS = {
    'fcn_resnet50': Published('fcn_resnet50_coco-1167a1af.pth', 35_322_218, 152.717, mean_iou=60.5),
    'fcn_resnet101': Published('fcn_resnet101_coco-7ecb50ca.pth', 54_314_346, 232.738, mean_iou=63.7),
    'deeplabv3_resnet50': Published('deeplabv3_resnet50_coco-cd0a2569.pth', 42_004_074, 178.722, mean_iou=66.4),
    'deeplabv3_resnet101': Published('deeplabv3_resnet101_coco-586e9e4e.pth', 60_996_202, 258.743, mean_iou=67.4),
}
_SIZES = {
    'ssd300_vgg16': _stretched(300),
    'ssdlite320_mobilenet_v3_large': _stretched(320),
    'fasterrcnn_mobilenet_v3_large_320_fpn': _limited(320, 640, 'bilinear'),
}
_DARKNET = {
    'yolov1': Published('yolov1.weights', gflops=40.19, AP50=63.4),
    'yolov1-tiny': Published('tiny-yolov1.weights', AP50=52.7),
    'yolov2': Published('yolov2.weights', gflops=62.94, AP50=48.1),
    'yolov2-voc': Published('yolov2-voc.weights', AP50=76.8),
    'yolov2-tiny': Published('yolov2-tiny.weights', gflops=5.41, AP50=23.7),
    'yolov2-tiny-voc': Published('yolov2-tiny-voc.weights', gflops=6.97, AP50=57.1),
    'yolov3': Published('yolov3.weights', gflops=140.69, AP50=57.9),
    'yolov3-tiny': Published(
        'yolov3-tiny.weights',
        gflops=5.56,
        AP50=33.1,
        sha256='dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c',
    ),
}
_DETECTRON2 = {
    'faster_rcnn_R_50_C4_1x': Published('137257644/model_final_721ade.pkl', AP=35.7),
    'faster_rcnn_R_50_C4_3x': Published('137849393/model_final_f97cb7.pkl', AP=38.4),
    'faster_rcnn_R_50_FPN_1x': Published('137257794/model_final_b275ba.pkl', AP=37.9),
    'faster_rcnn_R_50_FPN_3x': Published('137849458/model_final_280758.pkl', AP=40.2),
    'retinanet_R_50_FPN_1x': Published('190397773/model_final_bfca0b.pkl', AP=37.4),
    'retinanet_R_50_FPN_3x': Published('190397829/model_final_5bd44e.pkl', AP=38.7),
    'mask_rcnn_R_50_C4_1x': Published('137259246/model_final_9243eb.pkl', AP=36.8, mask_AP=32.2),
    'mask_rcnn_R_50_C4_3x': Published('137849525/model_final_4ce675.pkl', AP=39.8, mask_AP=34.4),
    'mask_rcnn_R_50_FPN_1x': Published('137260431/model_final_a54504.pkl', AP=38.6, mask_AP=35.2),
    'mask_rcnn_R_50_FPN_3x': Published('137849600/model_final_f10217.pkl', AP=41.0, mask_AP=37.2),
}


def _torchvision(name: str, peer: torchvision.Peer) -> Model:
    size = _SIZES.get(name) or _limited(800, 1333, 'bilinear')
    classes = _with_holes(91 - peer.model['num_classes'])
    return Model('torchvision', peer.model, peer.mapping, classes, **size, divisor=32, published=_TORCHVISION[name])


def _segmenter(name: str, peer: torchvision.Peer) -> Model:
    recipe = dict(resize='fit', shorter_side=520, interpolation='bilinear')  # the longer side has no limit
    canvases = (520, 928), (928, 520)  # images up to 16 : 9; without rounding each has a canvas of its own
    published = _SEGMENTERS[name]
    return Model('torchvision', peer.model, peer.mapping, VOC, recipe, canvases, divisor=1, published=published)


def _darknet(name: str, network: darknet.Published) -> Model:
    classes = VOC if network.model['num_classes'] == len(VOC.class_names) else COCO
    model, recipe = network.model, darknet.resizing(network.model['name'])
    # How its programs evaluate, which no .cfg file says: VOC's metric has no limit of detections, and these are plenty.
    if classes is VOC:
        model = {**model, 'max_detections': 300}
    if model['name'] == 'yolo_v1':
        model = {**model, 'score_threshold': 0.001, 'iou_threshold': 0.5}
    return Model('darknet', model, None, classes, recipe, (network.canvas,), 32, _DARKNET[name])


def _detectron2(name: str, peer: detectron2.Peer) -> Model:
    size = _limited(800, 1333, 'pil')
    return Model(
        'detectron2', peer.model, peer.mapping, COCO, **size, divisor=peer.divisor, published=_DETECTRON2[name]
    )


MODELS = (
    {name: _torchvision(name, peer) for name, peer in torchvision.PEERS.items()}
    | {name: _segmenter(name, peer) for name, peer in torchvision_segmentation.PEERS.items()}
    | {name: _darknet(name, network) for name, network in darknet.PUBLISHED.items()}
    | {name: _detectron2(name, peer) for name, peer in detectron2.PEERS.items()}
)
