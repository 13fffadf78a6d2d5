"""The means to show that torchvision's weights compute here what they compute at home; see `weights.parity`.

    drawn_entries -> load_state_dict  -> run_peer     -> tensors, detections, and the image as torchvision resizes it
                  -> Peer.mapping     -> run_detector -> the same of our detector, on that image

`build_peer` and `run_peer` need torch and torchvision (the extra `parity`).
"""

import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from detzoo.types import Batch, Detector, GroundTruth, Inputs, ModelState, Params
from detzoo.weights.parity import predict_with_intermediates

# The deviation of a convolution's output, for inputs that had deviation 1 before a ReLU; 1.7 where none is named.
_GAINS = {
    'extra_blocks': 1.2,
    'fpn.': 0.6,
    'bbox_reg': 0.15,
    'cls_logits': 0.8,
    'classification_head.module_list': 1.5,
    'regression_head.module_list': 0.8,
    '.fc1.': 2.0,  # of squeeze-and-excitation
    '.fc2.': 2.0,
    '.block.': 1.3,  # of MobileNet: not all of its convolutions have an activation behind them
    'features.1.': 1.3,
}



def drawn_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws weights for a network of torch's layout, each entry from a stream of its own that its name seeds.

    They keep activations of like size through bottleneck blocks, let scores spread over 0..1, and leave boxes on the
    image.

    Args:
        shapes: of the entries by their names; convolutions are OIHW.

    Returns:
        float32 arrays by the same names, without the counters `num_batches_tracked`.
    """
    return {name: _draw(name, shape) for name, shape in shapes.items() if not name.endswith('num_batches_tracked')}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws one entry; the streams of RandomState are frozen for good, those of default_rng are not."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) == 4:
        kernel = random.standard_normal(shape)
        if not re.search(r'conv1\.weight$', name) and shape[1] not in (1, 3):
            # Inputs have been through a ReLU: without their common mean the outputs would hardly vary over the image.
            kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
        gain = next((gain for part, gain in _GAINS.items() if part in name), 1.7)
        if name == 'backbone.features.0.weight':
            gain /= 150  # the pixels of an SSD of VGG are not divided by their deviation
        values = kernel * gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('running_var'):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith('scale_weight'):
        values = random.uniform(15, 25, shape)
    elif name.endswith('.weight'):
        # The last norm of a bottleneck is small, so that sixteen residuals do not add up to an explosion.
        values = random.uniform(0.8, 1.2, shape) * (0.25 if 'bn3' in name else 1)
    else:
        values = random.standard_normal(shape) * 0.1 - (9 if name.endswith('cls_logits.bias') else 0)
    return values.astype(np.float32)


class View(NamedTuple):
    """How a model of torchvision is built, and where the tensors on its way and on ours are found.

    build: torchvision's model, by keyword arguments.
    tensors: names of the feature maps.
    theirs: the modules that put them out, in order.
    ours: from the outputs of our network's parts to these feature maps.
    divisor: of the sides of the canvas, which is padded.
    background: whether torchvision's first class is background, which is our last one.
    """

    build: Callable[..., Any]
    tensors: tuple[str, ...]
    theirs: tuple[str, ...]
    ours: Callable[[Mapping[str, Any]], list[jax.Array]]
    divisor: int
    background: bool


def _build_retinanet(*, min_size: int = 800, max_size: int = 1333) -> Any:
    """Builds retinanet_resnet50_fpn as its published weights run: frozen batch norm with epsilon 0.

    Torchvision's own function does that only when it loads the published file; else it makes a trainable batch norm.
    """
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    backbone = resnet_fpn_backbone(
        backbone_name='resnet50',
        weights=None,
        norm_layer=partial(FrozenBatchNorm2d, eps=0.0),
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(backbone, 91, min_size=min_size, max_size=max_size)


def _build(name: str) -> Any:
    """Builds a model by the function of torchvision that bears its name."""
    from torchvision.models import detection

    return getattr(detection, name)(weights=None, weights_backbone=None, num_classes=91)


_SSD = View(
    build=partial(_build, 'ssd300_vgg16'),
    tensors=('level1', 'level2', 'level3', 'level4', 'level5', 'level6'),
    theirs=('backbone',),
    ours=lambda outputs: [outputs.get('l2_norm', outputs['backbone'][0]), outputs['backbone'][1], *outputs['extra_layers']],
    divisor=1,
    background=True,
)
VIEWS = {
    'retinanet_resnet50_fpn': View(
        build=_build_retinanet,
        tensors=('C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7'),
        theirs=('backbone.body', 'backbone'),
        ours=lambda outputs: [*outputs['backbone'][1:], *outputs['fpn']],
        divisor=32,
        background=False,
    ),
    'ssd300_vgg16': _SSD,
    'ssdlite320_mobilenet_v3_large': _SSD._replace(build=partial(_build, 'ssdlite320_mobilenet_v3_large')),
}


def build_peer(name: str, **changes: Any) -> Any:
    """Builds torchvision's model. Needs torchvision.

    Args:
        name: a key of PEERS.
        **changes: of a RetinaNet min_size and max_size, limits of the resized image's sides.

    Returns:
        the torch module, evaluating.
    """
    return VIEWS[name].build(**changes).eval()


def draw_peer(model: Any) -> dict[str, np.ndarray]:
    """Fills torchvision's model with drawn weights. Needs torch.

    Args:
        model: of `build_peer`.

    Returns:
        its entries.
    """
    import torch

    entries = drawn_entries({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.from_numpy(value) for name, value in entries.items()}, strict=False)  # no counters
    return entries


def run_peer(name: str, model: Any, image: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's model on one image and keeps the tensors on the way. Needs torch.

    Args:
        name: a key of PEERS.
        model: of `build_peer`.
        image: [h, w, 3] uint8 RGB.

    Returns:
        tensors: feature maps [1, h, w, C], cls_logits [1, A, classes], box_deltas [1, A, 4], anchors [A, 4].
        detections: boxes [n, 4] xyxy pixels of the image, scores [n], labels [n]; as to classes, in our order.
        resized: [h', w', 3] float32 in 0..255, the image as the model resizes it.
    """
    import torch

    view = VIEWS[name]
    outputs = {}

    def keep(part):
        part.register_forward_hook(lambda module, args, output: outputs.__setitem__(module, output))
        return part

    parts = [keep(model.get_submodule(part)) for part in view.theirs]
    head, anchors = keep(model.head), keep(model.anchor_generator)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (detections,) = model([pixels])
        resized, _ = model.transform.resize(pixels)
    levels = [x for part in parts for x in outputs[part].values()]
    tensors = {name: x.permute(0, 2, 3, 1) for name, x in zip(view.tensors, levels, strict=True)}
    tensors |= {'cls_logits': outputs[head]['cls_logits'], 'box_deltas': outputs[head]['bbox_regression']}
    tensors |= {'anchors': outputs[anchors][0]}
    if view.background:
        tensors['cls_logits'] = tensors['cls_logits'].roll(-1, dims=-1)
        detections = {**detections, 'labels': detections['labels'] - 1}
    to_numpy = partial(jax.tree.map, lambda x: x.numpy())
    return to_numpy(tensors), to_numpy(detections), 255 * resized.permute(1, 2, 0).numpy()


def run_detector(
    name: str, detector: Detector, params: Params, model_state: ModelState, resized: np.ndarray, size: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs our detector on the peer's canvas: the resized image, padded to a multiple of the peer's divisor.

    Args:
        name: a key of PEERS.
        detector, params, model_state: the counterpart of the peer.
        resized: [h', w', 3] float32 in 0..255, as the peer resizes the image.
        size: (h, w) of the image before, to whose pixels boxes are mapped as the peer does.

    Returns:
        tensors and detections, as `run_peer` returns them.
    """
    view = VIEWS[name]
    height, width = resized.shape[:2]
    canvas = np.pad(resized, ((0, -height % view.divisor), (0, -width % view.divisor), (0, 0)))
    inputs = Inputs(canvas[None], np.float32([[0, 0, width, height]]))
    found, outputs = jax.jit(partial(predict_with_intermediates, detector))(params, model_state, inputs)
    tensors = dict(zip(view.tensors, view.ours(outputs), strict=True))
    tensors |= {'cls_logits': outputs['cls_head'], 'box_deltas': outputs['box_head']}
    tensors |= {'anchors': _anchors(detector, params, model_state, inputs)}
    valid = np.asarray(found.valid[0])
    scale = np.tile(np.float32([size[1] / width, size[0] / height]), 2)
    detections = {name: getattr(found, name)[0][valid] for name in ('boxes', 'scores', 'labels')}
    detections['boxes'] *= scale
    return jax.tree.map(np.asarray, (tensors, detections))


def _anchors(detector: Detector, params: Params, model_state: ModelState, inputs: Inputs) -> jax.Array:
    """The anchors of a canvas, [A, 4]: what `assign` matches. The compiler drops the network: they need it not."""
    row = np.zeros((1, 1), bool)
    counts = np.zeros(1, np.int32)
    gt = GroundTruth(np.zeros((1, 1, 4), np.float32), row.astype(np.int32), row, row, counts, counts)
    batch = Batch(inputs, gt, counts, np.ones(1, bool))
    assign = jax.jit(lambda *arguments: detector.assign(*arguments, jax.random.key(0))['anchors'].boxes[0])
    return assign(params, model_state, batch)
