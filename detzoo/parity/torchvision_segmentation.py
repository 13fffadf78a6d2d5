"""Runs torchvision's segmenters and ours with the same weights.

    build -> `torchvision.draw_peer` -> run_peer -> tensors of torchvision's model
          -> mapping of PEERS        -> run_segmenter -> the same tensors of ours
    drawn_training -> peer_losses, segmenter_losses: the losses of both heads, in training, without dropout

What runs the peer needs torch and torchvision (the extra `parity`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from detzoo.core.matching import IGNORE
from detzoo.parity.compare import differences, drawn_image, drawn_objects, predict_with_intermediates
from detzoo.parity.torchvision import outputs_of, pixels_of
from detzoo.segmenters import make_segmenter
from detzoo.types import Batch, Inputs, ModelState, Params
from detzoo.weights.mapping import fill
from detzoo.weights.torchvision_segmentation import PEERS

TENSORS = ('C4', 'C5', 'logits', 'probabilities')  # what is compared, [1, h, w, C] each; classes in our order
_VOID = 255  # torchvision's label of pixels that do not count
_SIDE = 24  # of the objects that are trained on, pixels


def build(name: str) -> Any:
    """Builds torchvision's model, a key of PEERS, in evaluation mode. Needs torchvision."""
    from torchvision.models import segmentation

    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    return model.eval()


def fill_segmenter(name: str, entries: Mapping[str, np.ndarray]) -> tuple[Params, ModelState]:
    """Makes the variables of our segmenter from the entries of torchvision's."""
    segmenter = make_segmenter(**PEERS[name].model)
    template = jax.eval_shape(lambda rng: segmenter.init(rng, (64, 64)), jax.random.key(0))
    return fill(PEERS[name].mapping, entries, template).variables


def run_peer(name: str, model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """Runs torchvision's model on an image [h, w, 3] uint8 as it is: TENSORS by name. Needs torch."""
    import torch

    with outputs_of(model, ('backbone', 'classifier')) as outputs, torch.inference_mode():
        whole = model(torch.from_numpy(pixels_of(image)).permute(0, 3, 1, 2))['out']
    found = outputs['backbone']['aux'], outputs['backbone']['out'], outputs['classifier'], whole.softmax(dim=1)
    tensors = {key: x.permute(0, 2, 3, 1).numpy() for key, x in zip(TENSORS, found, strict=True)}
    return tensors | {key: np.roll(tensors[key], -1, axis=-1) for key in ('logits', 'probabilities')}


def run_segmenter(name: str, params: Params, model_state: ModelState, image: np.ndarray) -> dict[str, np.ndarray]:
    """Runs our segmenter on an image [h, w, 3] uint8 as it is: TENSORS by name."""
    segmenter = make_segmenter(**PEERS[name].model)
    inputs = Inputs(image[None], np.float32([[0, 0, image.shape[1], image.shape[0]]]))
    run = jax.jit(partial(predict_with_intermediates, segmenter))
    probabilities, outputs = run(params, model_state, inputs)
    found = *outputs['backbone'], outputs['head'], probabilities
    return {key: np.asarray(x) for key, x in zip(TENSORS, found, strict=True)}


def compare_entries(
    name: str, entries: Mapping[str, np.ndarray], params: Params, model_state: ModelState, image: np.ndarray
) -> dict[str, float]:
    """Compares torchvision's model with a file's entries and ours with the variables made from them. Needs torch.

    Args:
        name: a key of PEERS.
        entries: arrays by torchvision's names.
        params, model_state: our segmenter's variables.
        image: [h, w, 3] uint8 RGB.

    Returns:
        the largest difference of each of TENSORS, over the tensor's maximum.
    """
    import torch

    model = build(name)
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in entries.items()})
    return differences(run_segmenter(name, params, model_state, image), run_peer(name, model, image))


def drawn_training(height: int, width: int) -> tuple[Batch, np.ndarray]:
    """Draws three images with four, three and no objects, and paints their pixels on its own.

    Returns:
        the batch, and the labels [3, height, width] int32 in our order, with IGNORE where the window of an image ends.
    """
    counts, classes = (4, 3, 0), PEERS['fcn_resnet50'].model['num_classes']
    images = np.stack([drawn_image(height, width, seed) for seed in range(3)])
    gt = drawn_objects([(height, width)] * 3, counts, side=_SIDE, num_classes=classes, seed=0)
    labels = np.full((3, height, width), classes, np.int32)
    for image, count in enumerate(
        counts
    ):  # the largest first; the mean of a mask is its area, as all boxes have one size
        for row in sorted(range(count), key=lambda row: -gt.masks[image, row].mean()):  # noqa: B023
            x1, y1, x2, y2 = gt.boxes[image, row].astype(int)
            labels[image, y1:y2, x1:x2][gt.masks[image, row]] = gt.labels[image, row]
    window = np.tile(np.float32([0, 0, width, height]), (3, 1))
    window[1, 2] -= 9
    labels[1, :, -9:] = IGNORE
    images[1, :, -9:] = 0
    return Batch(Inputs(images, window), gt, np.arange(3, dtype=np.int32), np.ones(3, bool)), labels


def peer_losses(name: str, model: Any, batch: Batch, labels: np.ndarray) -> dict[str, float]:
    """Computes the losses of torchvision's model as its reference training does, without dropout. Needs torch.

    Args:
        name: a key of PEERS.
        model: a module of `build`.
        batch, labels: as `drawn_training` returns them.

    Returns:
        the losses by our names, with the weight of the auxiliary head's.
    """
    import torch

    classes = PEERS[name].model['num_classes']
    theirs = np.where(labels == IGNORE, _VOID, (labels + 1) % (classes + 1)).astype(np.int64)
    pixels = np.concatenate([pixels_of(image) for image in batch.inputs.images])
    for image, (_, _, width, _) in zip(pixels, batch.inputs.window.astype(int)):
        image[:, width:] = 0
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with torch.no_grad():
        out = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        loss = partial(torch.nn.functional.cross_entropy, target=torch.from_numpy(theirs), ignore_index=_VOID)
        found = {'cls_loss': loss(out['out']).item(), 'auxiliary_loss': 0.5 * loss(out['aux']).item()}
    model.eval()
    return found


def segmenter_losses(name: str, params: Params, model_state: ModelState, batch: Batch) -> dict[str, float]:
    """Computes the losses of our segmenter without dropout, as `peer_losses` does."""
    segmenter = make_segmenter(**PEERS[name].model | {'dropout': 0.0, 'auxiliary_dropout': 0.0})
    _, (_, metrics) = jax.jit(segmenter.loss)(params, model_state, batch, jax.random.key(0))
    return {key: float(metrics[key]) for key in ('cls_loss', 'auxiliary_loss')}
