"""Runs torchvision's models and our detectors with the same weights.

    drawn_entries -> load_state_dict -> run_peer     -> tensors, detections, and the image as torchvision resizes it
                  -> Peer.mapping    -> run_detector -> tensors and detections of our detector on that image
    drawn_training, with the same weights -> peer_losses, detector_losses -> the losses of both
    run_classifier, run_backbone -> the outputs of a classifier's layers

`torchvision_models` says how each model is built and where its tensors are. What runs the peer needs torch and torchvision (the
extra `parity`).
"""

import contextlib
import operator
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from detzoo.core.masks import paste_masks
from detzoo.detectors import make_detector
from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD
from detzoo.parity.compare import differences, drawn_objects, pair_boxes, predict_with_intermediates
from detzoo.parity.torchvision_models import CLASSIFIERS, VIEWS, View, build_peer
from detzoo.types import Batch, Detector, GroundTruth, Inputs, ModelState, Params
from detzoo.weights import mapping as weight_mapping
from detzoo.weights.files import read_entries
from detzoo.weights.torchvision import PEERS

# Standard deviation of a convolution's output for inputs that had deviation 1 before a ReLU; 1.7 where no part is named.
_GAINS = {
    'backbone.body.13.block.3.': 0.8,  # the two layers of a MobileNet that go into a pyramid
    'backbone.body.16.': 1.1,
    'rpn.head.bbox_pred': 0.1,
    'box_predictor.bbox_pred': 0.4,
    'cls_score': 1.5,
    'conv5_mask': 3.4,  # torch's IOHW: an output has a quarter of the inputs that its shape says
    'mask_fcn_logits': 3.0,
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
    'head.conv.': 1.7,
    '.conv.': 1.2,  # of MobileNetV2, likewise, whose activations end at 6
}

_OBJECT_SIDE = 56  # side of drawn objects, pixels


def drawn_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws weights for a network of torch's layout, each entry from a stream of its own, seeded by its name.

    Activations keep their size through bottleneck blocks, scores spread over 0..1, and boxes stay on the image.

    Args:
        shapes: the entries' shapes by their names; convolutions are OIHW.

    Returns:
        float32 arrays by the same names, without the counters `num_batches_tracked`.
    """
    return {name: _draw(name, shape) for name, shape in shapes.items() if not name.endswith('num_batches_tracked')}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws one entry; the streams of RandomState are frozen for good, those of default_rng are not."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) in (2, 4):
        kernel = random.standard_normal(shape)
        if not re.search(r'conv1\.weight$', name) and shape[1] not in (1, 3):
            # Inputs have been through a ReLU: without their common mean the outputs would hardly vary over the image.
            kernel -= kernel.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        gain = next((gain for part, gain in _GAINS.items() if part in name), 1.7)
        if name == 'backbone.features.0.weight':
            gain /= 150  # the pixels of an SSD of VGG are not divided by their deviation
        values = kernel * gain / np.sqrt(np.prod(shape[1:]))
    elif name.endswith('running_var'):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith('scale_weight'):
        values = random.uniform(15, 25, shape)
    elif name.endswith('.weight'):
        # The last norm of a bottleneck is small, so that sixteen residuals do not add up to an explosion. RetinaNet's norms
        # are all that makes its scores vary.
        values = random.uniform(0.8, 1.2, shape) * (0.25 if 'bn3' in name else 3.5 if '_head.conv.' in name else 1)
    else:
        values = random.standard_normal(shape) * 0.1 + _shift(name, shape)
    return values.astype(np.float32)


def _shift(name: str, shape: tuple[int, ...]) -> np.ndarray | float:
    """Chooses the mean of drawn biases: few scores are high, and proposals are larger than anchors, so on all levels."""
    if name.endswith('classification_head.cls_logits.bias'):
        return -9
    if name.endswith('cls_score.bias'):
        return np.eye(1, *shape)[0] * 8  # background
    if name.endswith('rpn.head.bbox_pred.bias'):
        return np.resize([0, 0, 1, 1], shape)
    return 0


def run_classifier(name: str, model: Any, image: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's classifier on an image [h, w, 3] uint8.

    Returns:
        the outputs of `Classifier.parts`, [1, h', w', C] each; and logits [1, 1000].
    """
    import torch

    with outputs_of(model, CLASSIFIERS[name].parts) as outputs, torch.inference_mode():
        logits = model(torch.from_numpy(pixels_of(image)).permute(0, 3, 1, 2)).numpy()
    return {part: outputs[part].permute(0, 2, 3, 1).numpy() for part in CLASSIFIERS[name].parts}, logits


def classify(model: Any, features: np.ndarray) -> np.ndarray:
    """Runs the last layers of torchvision's classifier on features [1, h, w, C]; returns logits [1, 1000]."""
    import torch

    layers = model.fc if hasattr(model, 'fc') else model.classifier
    with torch.inference_mode():
        return layers(torch.from_numpy(features.mean(axis=(1, 2)))).numpy()


def run_backbone(name: str, entries: Mapping[str, np.ndarray], image: np.ndarray) -> dict[str, np.ndarray]:
    """Runs our backbone with a classifier's entries; returns the outputs of `Classifier.parts`, as `run_classifier`."""
    backbone, mapping, parts = CLASSIFIERS[name]
    pixels = pixels_of(image)
    variables = jax.eval_shape(partial(backbone.init, train=False), jax.random.key(0), pixels)
    params, model_state = weight_mapping.fill(mapping, entries, (variables.pop('params'), variables)).variables
    outputs = jax.jit(partial(backbone.apply, train=False))({'params': params, **model_state}, pixels)
    return dict(zip(parts, jax.device_get(outputs), strict=True))


def pixels_of(image: np.ndarray) -> np.ndarray:
    """Normalises an image as classifiers see it: [1, h, w, 3] float32."""
    return ((image[None] - np.array(IMAGENET_MEAN)) / IMAGENET_STD).astype(np.float32)


def class_names(name: str) -> list[str]:
    """Lists the names of ImageNet's classes. Needs torchvision."""
    from torchvision import models

    return models.get_model_weights(name).DEFAULT.meta['categories']


def fill_peer(model: Any, path: str) -> dict[str, np.ndarray]:
    """Fills torchvision's model with the entries of a file, and returns them. Needs torch."""
    import torch

    entries = read_entries(path)
    model.load_state_dict({name: torch.tensor(value) for name, value in entries.items()})
    return entries


def draw_peer(model: Any) -> dict[str, np.ndarray]:
    """Fills torchvision's model with drawn weights. Needs torch.

    Args:
        model: a module of `build_peer` or `build_classifier`.

    Returns:
        the entries.
    """
    import torch

    entries = drawn_entries({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(value) for name, value in entries.items()}, strict=False)  # no counters
    return entries


def run_peer(
    name: str, model: Any, image: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Runs torchvision's model on one image and keeps the tensors on the way. Needs torch.

    Args:
        name: a key of PEERS.
        model: a module of `build_peer`.
        image: [h, w, 3] uint8 RGB.

    Returns:
        tensors: those of `View.tensors`, by name; classes in our order.
        detections: boxes [n, 4] xyxy pixels of the image, scores [n], labels [n], with a Mask R-CNN masks [n, h, w] bool;
            classes in our order.
        resized: [h', w', 3] float32 in 0..255, the image as the model resizes it.
    """
    import torch

    view = VIEWS[name]
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    with outputs_of(model, view.parts) as outputs, torch.inference_mode():
        (detections,) = model([pixels])
        resized, _ = model.transform.resize(pixels)
        tensors = dict(zip(view.tensors, view.theirs(outputs), strict=True))
    if view.background:
        tensors['cls_logits'] = tensors['cls_logits'].roll(-1, dims=-1)
        detections['labels'] = detections['labels'] - 1
    if 'masks' in detections:
        detections['masks'] = detections['masks'][:, 0] > 0.5
    tensors, detections = ({key: x.numpy() for key, x in found.items()} for found in (tensors, detections))
    return tensors, detections, 255 * resized.permute(1, 2, 0).numpy()


@contextlib.contextmanager
def outputs_of(model: Any, parts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Keeps the outputs of parts of a torch module while the block runs."""
    outputs = {}

    def keep(part: str) -> Any:
        return model.get_submodule(part).register_forward_hook(
            lambda module, args, output: outputs.update({part: output})
        )

    hooks = [keep(part) for part in parts]
    yield outputs
    for hook in hooks:
        hook.remove()


def run_detector(
    name: str, detector: Detector, params: Params, model_state: ModelState, resized: np.ndarray, size: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs our detector on the peer's canvas: the resized image, padded to a multiple of the peer's divisor.

    Args:
        name: a key of PEERS.
        detector, params, model_state: the counterpart of the peer.
        resized: [h', w', 3] float32 in 0..255, as the peer resizes the image.
        size: (h, w) of the image before resizing; boxes are mapped to its pixels as the peer does.

    Returns:
        tensors and detections, as `run_peer` returns them.
    """
    view = VIEWS[name]
    height, width = resized.shape[:2]
    canvas = np.pad(resized, ((0, -height % view.divisor), (0, -width % view.divisor), (0, 0)))
    inputs = Inputs(canvas[None], np.float32([[0, 0, width, height]]))
    found, outputs = jax.jit(partial(predict_with_intermediates, detector))(params, model_state, inputs)
    outputs['anchors'] = _anchors(detector, params, model_state, inputs)
    tensors = {key: np.asarray(x) for key, x in zip(view.tensors, view.ours(outputs), strict=True)}
    valid = np.asarray(found.valid[0])
    detections = {
        key: np.asarray(x[0])[valid]
        for key, x in found._replace(candidates_dropped=None)._asdict().items()
        if x is not None
    }
    detections['boxes'] *= np.tile(np.float32([size[1] / width, size[0] / height]), 2)
    if 'masks' in detections:
        detections['masks'] = paste_masks(detections['masks'], detections['boxes'], size, convention='torchvision')
    return tensors, detections


def in_order_of(proposals: np.ndarray, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Puts the tensors of RoIs in the order of a peer's proposals, which near ties of scores may change.

    Args:
        proposals: [P, 4], the peer's.
        tensors: the tensors of `run_detector` for an R-CNN.

    Returns:
        the tensors; proposals, cls_logits and box_deltas have a row for each of the peer's proposals, NaN if it is not among
        ours.
    """
    rows, _ = pair_boxes(tensors['proposals'], proposals, min_iou=0.99)

    def ordered(tensor: np.ndarray) -> np.ndarray:
        found = (rows >= 0).reshape(-1, *[1] * (tensor.ndim - 1))
        return np.where(found, tensor[rows], np.nan)

    return {**tensors, **{name: ordered(tensors[name]) for name in ('proposals', 'cls_logits', 'box_deltas')}}


def compare_entries(
    name: str, entries: Mapping[str, np.ndarray], params: Params, model_state: ModelState, image: np.ndarray
) -> dict[str, float]:
    """Compares torchvision's model with a file's entries and ours with the variables made from them. Needs torch.

    Args:
        name: a key of PEERS.
        entries: arrays by torchvision's names, old or new.
        params, model_state: our detector's variables.
        image: [h, w, 3] uint8 RGB.

    Returns:
        the largest difference of each tensor of `View.tensors`, over the tensor's maximum.
    """
    import torch

    model = build_peer(name)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in entries.items()}, strict=False)
    theirs, _, resized = run_peer(name, model, image)
    ours, _ = run_detector(name, make_detector(**PEERS[name].model), params, model_state, resized, image.shape[:2])
    return differences(in_order_of(theirs['proposals'], ours) if 'proposals' in theirs else ours, theirs)


def drawn_training(image: np.ndarray, num_classes: int) -> tuple[list[np.ndarray], GroundTruth]:
    """Makes three images from one, with four, three and no objects.

    Args:
        image: [h, w, 3] uint8, with h < w.
        num_classes: K.

    Returns:
        the images, of which the second is narrower, and their ground truth; see `drawn_objects`.
    """
    images = [image, image[:, : image.shape[1] // 3 * 2][:, ::-1], image[::-1]]
    sizes = [x.shape[:2] for x in images]
    return images, drawn_objects(sizes, (4, 3, 0), side=_OBJECT_SIDE, num_classes=num_classes, seed=0)


def peer_losses(name: str, model: Any, images: Sequence[np.ndarray], gt: GroundTruth) -> dict[str, float]:
    """Computes the losses of torchvision's model. Needs torch.

    Args:
        name: a key of PEERS.
        model: a module of `build_peer` with `View.reduced`.
        images: [h, w, 3] uint8 RGB each.
        gt: ground truth of these images; masks have as many cells as their boxes have pixels.

    Returns:
        the losses of `View.losses` by our names.
    """
    import torch

    view = VIEWS[name]

    def target(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
        pasted = np.zeros((len(boxes), *image.shape[:2]), np.uint8)
        for canvas, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes.astype(int)):
            canvas[y1:y2, x1:x2] = mask
        labels = labels.astype(np.int64) + view.background
        return {'boxes': torch.tensor(boxes), 'labels': torch.tensor(labels), 'masks': torch.tensor(pasted)}

    rows = zip(gt.boxes, gt.labels, gt.masks, gt.valid)
    targets = [target(image, *(x[valid] for x in objects)) for image, (*objects, valid) in zip(images, rows)]
    pixels = [torch.tensor(image.copy()).permute(2, 0, 1) / 255 for image in images]
    model.train()
    with torch.no_grad():
        found = [model(pixels[batch], targets[batch]) for batch in _batches(view, len(images))]
    model.eval()
    return {name: sum(losses[key].item() for losses in found) / len(found) for key, name in view.losses.items()}


def detector_losses(
    name: str,
    detector: Detector,
    params: Params,
    model_state: ModelState,
    images: Sequence[np.ndarray],
    gt: GroundTruth,
) -> dict[str, float]:
    """Computes the losses of our detector on the peer's canvas.

    Args:
        name: a key of PEERS.
        detector, params, model_state: the counterpart of the peer, see `reduced_peer`.
        images, gt: as for `peer_losses`.

    Returns:
        as `peer_losses`.
    """
    view, loss = VIEWS[name], jax.jit(detector.loss)
    found = []
    for rows in _batches(view, len(images)):
        batch = _padded_batch(images[rows], jax.tree.map(operator.itemgetter(rows), gt), view.divisor)
        _, (_, metrics) = loss(params, model_state, batch, jax.random.key(0))
        found.append(metrics)
    return {name: sum(float(metrics[name]) for metrics in found) / len(found) for name in view.losses.values()}


def _batches(view: View, count: int) -> list[slice]:
    """Lists the rows of images that are trained on together."""
    return [slice(row, row + 1) for row in range(count)] if view.alone else [slice(count)]


def _padded_batch(images: Sequence[np.ndarray], gt: GroundTruth, divisor: int) -> Batch:
    """Puts images on canvases of one size, which holds each of them."""
    sizes = np.array([image.shape[:2] for image in images])
    canvas = np.zeros((len(images), *-(-sizes.max(axis=0) // divisor) * divisor, 3), np.float32)
    for place, image in zip(canvas, images):
        place[: image.shape[0], : image.shape[1]] = image
    window = np.concatenate([np.zeros_like(sizes), sizes[:, ::-1]], axis=1).astype(np.float32)
    return Batch(Inputs(canvas, window), gt, np.arange(len(images), dtype=np.int32), np.ones(len(images), bool))


def _anchors(detector: Detector, params: Params, model_state: ModelState, inputs: Inputs) -> jax.Array:
    """Finds the anchors of a canvas, [A, 4], which `assign` matches first; the compiler drops the unused network."""
    row = np.zeros((1, 1), bool)
    counts = np.zeros(1, np.int32)
    gt = GroundTruth(np.zeros((1, 1, 4), np.float32), row.astype(np.int32), row, row, counts, counts)
    batch = Batch(inputs, gt, counts, np.ones(1, bool))

    @jax.jit
    def assign(params: Params, model_state: ModelState, batch: Batch) -> jax.Array:
        stages = detector.assign(params, model_state, batch, jax.random.key(0))
        return stages['rpn' if 'rpn' in stages else 'anchors'].boxes[0]

    return assign(params, model_state, batch)
