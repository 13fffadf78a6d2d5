"""The means to show that foreign weights compute here what they compute at home.

Parity is shown with weights that are drawn, not downloaded: `drawn_entries` makes the same arrays anywhere from nothing
but the names and shapes of a file's entries; the peer and our detector run them on the same canvas, and
`predict_with_intermediates` and `match_detections` compare the tensors on the way and what comes out.
`build_peer` and `run_peer` need torch and torchvision (the extra `parity`).
"""

import re
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from detzoo.core import boxes as box_ops
from detzoo.types import Batch, Detections, Detector, GroundTruth, Inputs, ModelState, Params
from detzoo.weights.torchvision import PEERS

# The deviation of a convolution's output, for inputs that had deviation 1 before a ReLU; 1.7 where none is named.
_GAINS = {'extra_blocks': 1.2, 'fpn.': 0.6, 'bbox_reg': 0.15, 'cls_logits': 0.8}


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
        if not re.search(r'conv1\.weight$', name):
            # Inputs have been through a ReLU: without their common mean the outputs would hardly vary over the image.
            kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
        gain = next((gain for part, gain in _GAINS.items() if part in name), 1.7)
        values = kernel * gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('running_var'):
        values = random.uniform(0.5, 1.5, shape)
    elif re.search(r'(bn\d|downsample\.1)\.weight$', name):
        # The last norm of a bottleneck is small, so that sixteen residuals do not add up to an explosion.
        values = random.uniform(0.8, 1.2, shape) * (0.25 if 'bn3' in name else 1)
    else:
        values = random.standard_normal(shape) * 0.1 - (9 if name.endswith('cls_logits.bias') else 0)
    return values.astype(np.float32)


def drawn_image(height: int, width: int, seed: int) -> np.ndarray:
    """Draws a picture of waves of many lengths, directions and colours: something to see at every scale.

    Args:
        height, width: pixels.
        seed: of the waves.

    Returns:
        [height, width, 3] uint8.
    """
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 128.0)
    for wavelength in np.geomspace(6, max(height, width), 24):
        angle, phase = random.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
        image += 40 * wave[..., None] * random.uniform(-1, 1, 3)
    return image.clip(0, 255).astype(np.uint8)


def predict_with_intermediates(
    detector: Detector, params: Any, model_state: Any, inputs: Inputs
) -> tuple[Detections, dict[str, Any]]:
    """Predicts, and returns what the parts of the network put out on the way; works under `jit`.

    Args:
        detector: any.
        params, model_state: of the detector.
        inputs: B images.

    Returns:
        the detections, and the outputs of the network's direct submodules by their names ('backbone', 'cls_head', ...).
    """
    outputs = {}

    def keep_output(method, args, kwargs, context):
        output = method(*args, **kwargs)
        if context.method_name == '__call__' and len(context.module.path) == 1:
            outputs[context.module.path[0]] = output
        return output

    with nn.intercept_methods(keep_output):
        detections = detector.predict(params, model_state, inputs)
    return detections, outputs


class Agreement(NamedTuple):
    """How far two lists of detections are the same one.

    ours, theirs: their lengths; matched: how many of theirs have a partner of their own in ours.
    empty: how many of theirs had no area and were left out.
    min_iou, max_score_difference: over the partners.
    """

    ours: int
    theirs: int
    matched: int
    empty: int
    min_iou: float
    max_score_difference: float

    def holds(self, *, iou: float = 0.999, score: float = 1e-3) -> bool:
        """Tells whether the lists are the same one to one, within tolerances."""
        complete = self.ours == self.theirs == self.matched
        return complete and self.min_iou > iou and self.max_score_difference <= score


def match_detections(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, limit: int) -> Agreement:
    """Pairs detections of two implementations: each of theirs, in order, with our free one of its label and most IoU.

    Boxes that clipping left without area, which torchvision's RetinaNet keeps and we never do, are left out. Where the
    limit was reached they took the places of as many others, the last of ours, which are left out with them.

    Args:
        ours: 'boxes' [n, 4] xyxy, 'labels' [n], 'scores' [n], best first, without padding.
        theirs: likewise.
        limit: how many detections the two keep of an image.

    Returns:
        the Agreement; a pair has an IoU above 0.5.
    """
    solid = np.asarray(box_ops.area(theirs['boxes'])) > 0
    end = solid.sum() if len(solid) == limit else len(ours['boxes'])
    ours = {name: ours[name][:end] for name in ('boxes', 'labels', 'scores')}
    theirs = {name: theirs[name][solid] for name in ('boxes', 'labels', 'scores')}
    iou = np.where(theirs['labels'][:, None] == ours['labels'], box_ops.pairwise_iou(theirs['boxes'], ours['boxes']), 0)
    pairs = []
    for row in range(len(iou)):
        best = iou[row].argmax() if iou.size else 0
        if iou.size and iou[row, best] > 0.5:
            pairs.append((iou[row, best], abs(theirs['scores'][row] - ours['scores'][best])))
            iou[:, best] = 0
    ious, differences = zip(*pairs) if pairs else ((1.0,), (0.0,))
    empty = int((~solid).sum())
    return Agreement(len(ours['boxes']), len(iou), len(pairs), empty, float(min(ious)), float(max(differences)))


def build_peer(name: str, *, min_size: int = 800, max_size: int = 1333) -> Any:
    """Builds torchvision's model as its published weights run: frozen batch norm with epsilon 0. Needs torchvision.

    Its own constructor does that only when it loads the published file: without one it makes a trainable batch norm.

    Args:
        name: a key of PEERS.
        min_size, max_size: of the resized image's sides.

    Returns:
        the torch module, evaluating.
    """
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    peer = PEERS[name]
    backbone = resnet_fpn_backbone(
        backbone_name=peer.backbone,
        weights=None,
        norm_layer=partial(FrozenBatchNorm2d, eps=peer.model['norm_epsilon']),
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(backbone, peer.model['num_classes'], min_size=min_size, max_size=max_size).eval()


def run_peer(model: Any, image: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's model on one image and keeps the tensors on the way. Needs torch.

    Args:
        model: of `build_peer`.
        image: [h, w, 3] uint8 RGB.

    Returns:
        tensors: C3..C5 and P3..P7 [1, h, w, C], cls_logits [1, A, K], box_deltas [1, A, 4], anchors [A, 4].
        detections: boxes [n, 4] xyxy pixels of the image, scores [n], labels [n].
        resized: [h', w', 3] float32 in 0..255, the image as the model resizes it.
    """
    import torch

    outputs = {}

    def keep(part):
        part.register_forward_hook(lambda module, args, output: outputs.__setitem__(module, output))
        return part

    body, neck = keep(model.backbone.body), keep(model.backbone)
    head, anchors = keep(model.head), keep(model.anchor_generator)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (detections,) = model([pixels])
        resized, _ = model.transform.resize(pixels)
    levels = [*outputs[body].values(), *outputs[neck].values()]
    tensors = {name: x.permute(0, 2, 3, 1) for name, x in zip(('C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7'), levels)}
    tensors |= {'cls_logits': outputs[head]['cls_logits'], 'box_deltas': outputs[head]['bbox_regression']}
    tensors |= {'anchors': outputs[anchors][0]}
    to_numpy = partial(jax.tree.map, lambda x: x.numpy())
    return to_numpy(tensors), to_numpy(detections), 255 * resized.permute(1, 2, 0).numpy()


def run_detector(
    detector: Detector, params: Params, model_state: ModelState, resized: np.ndarray, size: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs our detector on the peer's canvas: the resized image, padded to a multiple of 32.

    Args:
        detector, params, model_state: the counterpart of the peer.
        resized: [h', w', 3] float32 in 0..255, as the peer resizes the image.
        size: (h, w) of the image before, to whose pixels boxes are mapped as the peer does.

    Returns:
        tensors and detections, as `run_peer` returns them.
    """
    height, width = resized.shape[:2]
    canvas = np.pad(resized, ((0, -height % 32), (0, -width % 32), (0, 0)))
    inputs = Inputs(canvas[None], np.float32([[0, 0, width, height]]))
    found, outputs = jax.jit(partial(predict_with_intermediates, detector))(params, model_state, inputs)
    levels = [*outputs['backbone'][1:], *outputs['fpn']]
    tensors = dict(zip(('C3', 'C4', 'C5', 'P3', 'P4', 'P5', 'P6', 'P7'), levels))
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
