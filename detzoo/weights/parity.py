"""The means to show that foreign weights compute here what they compute at home.

Parity is shown with weights that are drawn, not downloaded: `weights.torchvision_parity` and `weights.darknet_parity` draw
them from nothing but the names or places and shapes of a file's entries, and run a peer and our detector on the same
canvas. Here is what both need: `drawn_image`, and `predict_with_intermediates` and `match_detections`, with which the
tensors on the way and what comes out are compared.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from detzoo.core import boxes as box_ops
from detzoo.types import Detections, Detector, Inputs


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
