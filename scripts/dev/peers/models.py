"""Whole models, detzoo's and torchvision's, with the same weights, image and threads.

Predict, on both sides: from a photograph in memory, [h, w, 3] uint8, to numpy arrays of boxes, scores, labels and, for Mask
R-CNN, masks of the photograph's size. So resizing, NMS and pasting are timed. Torchvision runs `model([photograph / 255])` in
inference mode; detzoo runs `Predictor(photograph)` with `evaluation.exact`, which resizes to torchvision's canvas. The score
threshold is raised on both sides until `WANTED` detections are left: drawn weights would find as many as there is room for. The
detections are checked to be the same ones.

Train, on both sides: one image of the resized size with `len(BOXES)` objects, forward and backward, and SGD with momentum and
weight decay on the same parameters (of the ResNet all but the stem and the first stage, as torchvision's recipes; of VGG all).
The image is on its canvas already: loading belongs to neither. Torchvision runs `zero_grad`, `model(images, targets)`, `backward`
and `step`; detzoo runs the step that `detzoo train` runs, with its 100 padded rows of ground truth, metrics and all. The rate is
tiny, so that each step sees the same network. The first losses are checked to be the same, and to be close for R-CNNs, which draw
their samples at random.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from detzoo.parity.compare import drawn_image, match_detections
from peers.machine import cores
from peers.turns import OURS, Case, Program, Side

MODELS = ('ssd300_vgg16', 'retinanet_resnet50_fpn', 'fasterrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn')
DEFAULT_SIDE = 800  # torchvision's shorter side
WANTED = 25  # detections
BOXES = (  # of the image, as shares of its width and height
    (0.05, 0.05, 0.60, 0.75),
    (0.50, 0.30, 0.95, 0.90),
    (0.10, 0.60, 0.35, 0.95),
    (0.65, 0.05, 0.85, 0.30),
    (0.40, 0.10, 0.52, 0.24),
    (0.30, 0.45, 0.37, 0.56),
    (0.88, 0.62, 0.95, 0.70),
)
MASK_SIDE = 112
ROWS = 100  # of detzoo's ground truth
SGD = dict(learning_rate=1e-9, momentum=0.9, weight_decay=1e-4)
FROZEN = r'backbone/(stem|stage1)'
LIBRARIES = {
    OURS: ('jax', 'flax', 'optax', 'detzoo.inference.predictor', 'detzoo.training.loop', 'detzoo.weights.zoo'),
    'torchvision': ('torch', 'torchvision', 'detzoo.parity.torchvision'),
}


class Size(NamedTuple):
    """The sizes of a case.

    photo: height and width of the photograph to predict on.
    limits: of the resized image's sides, shorter and longer; None for an SSD.
    resized: height and width of the photograph as resized: what is trained on.
    """

    photo: tuple[int, int]
    limits: tuple[int, int] | None
    resized: tuple[int, int]


def size_of(name: str, side: int) -> Size:
    """Chooses the sizes: an SSD has its own, and the default side means torchvision's defaults for a photograph of 480 x 640."""
    if name.startswith('ssd'):
        return Size((480, 640), None, (300, 300))
    if side == DEFAULT_SIDE:
        return Size((480, 640), (800, 1333), (800, 1066))
    return Size((side, side), (side, side), (side, side))


def cases(sides: list[int]) -> list[Case]:
    """Lists the cases of the sections predict and train."""
    listed = []
    for section, seconds in (('predict', 45), ('train', 90)):
        for side in sides:
            for name in MODELS:
                if name.startswith('ssd') and side != sides[0]:
                    continue
                height, width = size_of(name, side).resized
                listed.append(
                    Case(
                        section,
                        f'{name} {height} x {width}',
                        both(section, dict(name=name, side=side)),
                        check_detections if section == 'predict' else partial(check_losses, of_rcnn='rcnn' in name),
                        expected=seconds * (2 if side >= DEFAULT_SIDE else 1),
                    )
                )
    return listed


def both(section: str, arguments: Mapping[str, Any], module: str = 'models') -> dict[str, Side]:
    """Makes the sides of a case: torchvision in two memory layouts, and detzoo."""
    theirs = {
        label: Side(f'peers.{module}:torchvision_{section}', {**arguments, 'layout': layout}, LIBRARIES[kind], kind)
        for kind in ('torchvision',)
        for label, layout in (('torchvision', 'NCHW'), ('torchvision, channels_last', 'channels_last'))
    }
    return theirs | {OURS: Side(f'peers.{module}:detzoo_{section}', arguments, LIBRARIES[OURS], OURS)}


def check_detections(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that all sides detect the same."""
    ours = results[OURS]
    for label, theirs in results.items():
        same = match_detections(ours, theirs, limit=1000)
        assert same.ours == same.theirs == same.matched, f'{OURS} and {label} detect other things: {same}'
    return {'detections': len(ours['boxes']), 'least_iou': same.min_iou, 'least_mask_iou': same.min_mask_iou}


def check_losses(results: Mapping[str, Any], *, of_rcnn: bool) -> dict[str, Any]:
    """Checks that the losses are the same; those of R-CNNs, whose samples are drawn, are close."""
    tolerance = 0.3 if of_rcnn else 1e-3
    for label, loss in results.items():
        assert abs(loss / results[OURS] - 1) < tolerance, f'the loss is {results[OURS]}, that of {label} {loss}'
    return {f'loss of {label}': float(loss) for label, loss in results.items()}


def torchvision_model(name: str, side: int, layout: str) -> Any:
    """Builds torchvision's model with drawn weights."""
    import torch

    from detzoo.parity.torchvision import draw_peer
    from detzoo.parity.torchvision_models import build_peer

    torch.set_num_threads(cores())
    limits = size_of(name, side).limits
    model = build_peer(name, **({} if limits is None else dict(min_size=limits[0], max_size=limits[1])))
    draw_peer(model)
    return model.to(memory_format=torch.channels_last) if layout == 'channels_last' else model


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Lists the shapes of a torch module's entries, from which detzoo draws the same weights."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def limit_detections(name: str, model: Any, photo: np.ndarray) -> tuple[float, dict[str, int]]:
    """Raises the score threshold of torchvision's model until `WANTED` detections are left.

    Returns:
        the threshold, and facts: the number of detections before, and of the RPN's proposals.
    """
    facts, hooks = {}, []
    if hasattr(model, 'rpn'):
        count = lambda module, arguments, output: facts.update(proposals=len(output[0][0]))
        hooks.append(model.rpn.register_forward_hook(count))
    scores = np.sort(detect(model, photo)['scores'].numpy())[::-1]
    for hook in hooks:
        hook.remove()
    part = model.roi_heads if hasattr(model, 'roi_heads') else model
    threshold = part.score_thresh if len(scores) <= WANTED else float(scores[WANTED - 1 : WANTED + 1].mean())
    part.score_thresh = threshold
    return threshold, facts | {'detections over 0.05' if 'rcnn' in name else 'detections': len(scores)}


def detect(model: Any, photo: np.ndarray) -> dict[str, Any]:
    """Runs torchvision's model on a photograph."""
    import torch

    with torch.inference_mode():
        (found,) = model([torch.from_numpy(photo).permute(2, 0, 1) / 255])
        if 'masks' in found:
            found['masks'] = found['masks'][:, 0] > 0.5
    return found


def torchvision_predict(
    name: str, side: int, layout: str, score_threshold: float | None = None, shapes: Any = None
) -> Program:
    """Prepares torchvision's prediction."""
    from detzoo.parity.torchvision_models import VIEWS

    model, photo = torchvision_model(name, side, layout), drawn_image(*size_of(name, side).photo, seed=0)
    threshold, facts = limit_detections(name, model, photo)
    if score_threshold is not None:
        (model.roi_heads if hasattr(model, 'roi_heads') else model).score_thresh = score_threshold

    def step() -> dict[str, np.ndarray]:
        found = {key: x.numpy() for key, x in detect(model, photo).items()}
        return found | {'labels': found['labels'] - VIEWS[name].background}

    given = {'score_threshold': threshold, 'shapes': shapes or shapes_of(model)}
    return Program(step, given=given, facts={**facts, 'score_threshold': threshold})


def our_config(name: str, side: int) -> Any:
    """Makes the config of detzoo's counterpart, on torchvision's canvas."""
    from detzoo.weights.exchange import config_of
    from detzoo.weights.zoo import MODELS as ZOO

    config = config_of(ZOO[name])
    config.evaluation.exact = True
    _, limits, _ = size_of(name, side)
    if limits is not None:
        config.data.recipe.shorter_side, config.data.recipe.longer_side = limits
    return config


def our_variables(name: str, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Draws torchvision's weights, and turns them into (params, model_state)."""
    from detzoo.parity.torchvision import drawn_entries
    from detzoo.weights.exchange import shapes_of as our_shapes
    from detzoo.weights.mapping import fill
    from detzoo.weights.torchvision import PEERS

    template = our_shapes(config, PEERS[name].model['num_classes'])
    return fill(PEERS[name].mapping, drawn_entries(shapes), template).variables


def detzoo_predict(name: str, side: int, score_threshold: float, shapes: Mapping[str, tuple[int, ...]]) -> Program:
    """Prepares detzoo's prediction."""
    import jax

    from detzoo.inference.predictor import Predictor
    from detzoo.run.parallel import keep_compilations
    from detzoo.weights.zoo import MODELS as ZOO

    keep_compilations()
    config, photo = our_config(name, side), drawn_image(*size_of(name, side).photo, seed=0)
    group = config.model.head if 'head' in config.model else config.model
    group.score_threshold = score_threshold
    variables = jax.device_put(our_variables(name, config, shapes))
    predictor = Predictor(config, ZOO[name].classes, 0, *variables)

    def step() -> dict[str, np.ndarray]:
        found = predictor(photo)
        fields = ('boxes', 'scores', 'labels') + (() if found.masks is None else ('masks',))
        return {field: getattr(found, field) for field in fields}

    return Program(step)


def drawn_objects(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes the objects that are trained on: boxes [n, 4] xyxy pixels, labels [n], and one mask [S, S] bool, an ellipse."""
    boxes = np.float32(BOXES) * np.tile(size[::-1], 2).astype(np.float32)
    y, x = (np.mgrid[:MASK_SIDE, :MASK_SIDE] + 0.5) / MASK_SIDE - 0.5
    return boxes, np.arange(len(boxes)) * 3 + 1, np.hypot(x, y) < 0.5


def torchvision_train(name: str, side: int, layout: str, shapes: Any = None) -> Program:
    """Prepares torchvision's training step."""
    import torch

    from detzoo.core.masks import paste_masks
    from detzoo.parity.torchvision_models import VIEWS

    model, (height, width) = torchvision_model(name, side, layout).train(), size_of(name, side).resized
    boxes, labels, ellipse = drawn_objects((height, width))
    masks = paste_masks(np.repeat(ellipse[None], len(boxes), axis=0), boxes, (height, width))
    target = {
        'boxes': torch.tensor(boxes),
        'labels': torch.tensor(labels + VIEWS[name].background),
        'masks': torch.tensor(masks, dtype=torch.uint8),
    }
    pixels = torch.tensor(drawn_image(height, width, seed=0)).permute(2, 0, 1) / 255
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, momentum, decay = SGD.values()
    optimizer = torch.optim.SGD(trained, lr=rate, momentum=momentum, weight_decay=decay)

    def step() -> float:
        optimizer.zero_grad()
        loss = sum(model([pixels], [target]).values())
        loss.backward()
        optimizer.step()
        return loss.item()

    facts = {'trained': sum(parameter.numel() for parameter in trained)}
    if hasattr(model, 'roi_heads'):
        count_positives(model, facts)
    return Program(step, given={'shapes': shapes or shapes_of(model)}, facts=facts)


def count_positives(model: Any, facts: dict[str, Any]) -> None:
    """Lets torchvision's R-CNN note how many RoIs were positive when it drew them last."""
    sample = model.roi_heads.select_training_samples

    def noted(*arguments: Any) -> Any:
        samples = sample(*arguments)
        facts['positives'] = int((samples[2][0] > 0).sum())
        return samples

    model.roi_heads.select_training_samples = noted


def detzoo_train(name: str, side: int, shapes: Mapping[str, tuple[int, ...]]) -> Program:
    """Prepares detzoo's training step."""
    import jax

    from detzoo.inference.predictor import detector_of
    from detzoo.run import parallel
    from detzoo.training.finetune import initial_state
    from detzoo.training.loop import make_train_step
    from detzoo.weights.mapping import flatten
    from detzoo.weights.torchvision import PEERS

    parallel.keep_compilations()
    size = size_of(name, side).resized
    divisor = 1 if size_of(name, side).limits is None else 32
    canvas = tuple(-(-x // divisor) * divisor for x in size)
    config = our_config(name, side)
    config.data.canvases, config.training.batch_size = (canvas,), 1
    config.optimizer.update(
        name='sgd', schedule='constant', warmup_steps=0, frozen='' if name.startswith('ssd') else FROZEN, **SGD
    )
    detector = detector_of(config, PEERS[name].model['num_classes'], parallel.AXIS)
    state = initial_state(config, detector, flatten(our_variables(name, config, shapes)))
    train_step = make_train_step(config, detector, state)
    state, batch = parallel.replicate(state), parallel.put(our_batch(size, canvas))
    facts = {}

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, batch))
        facts['positives'] = float(metrics['positives'][0])
        return float(metrics['loss'][0])

    return Program(step, facts=facts)


def our_batch(size: tuple[int, int], canvas: tuple[int, int]) -> Any:
    """Makes detzoo's batch of one image for one device: the image that torchvision is trained on, on its canvas."""
    from detzoo.types import Batch, GroundTruth, Inputs

    boxes, labels, ellipse = drawn_objects(size)
    image = np.zeros((1, 1, *canvas, 3), np.uint8)
    image[:, :, : size[0], : size[1]] = drawn_image(*size, seed=0)
    none, no = np.zeros((1, 1), np.int32), np.zeros((1, 1, ROWS), bool)
    gt = GroundTruth(
        boxes=np.zeros((1, 1, ROWS, 4), np.float32),
        labels=np.zeros((1, 1, ROWS), np.int32),
        valid=np.arange(ROWS)[None, None] < len(boxes),
        crowd=no,
        dropped=none,
        cropped=none,
        masks=np.zeros((1, 1, ROWS, MASK_SIDE, MASK_SIDE), bool),
    )
    gt.boxes[0, 0, : len(boxes)], gt.labels[0, 0, : len(boxes)] = boxes, labels
    gt.masks[0, 0, : len(boxes)] = ellipse
    window = np.float32([0, 0, size[1], size[0]]).reshape(1, 1, 4)
    return Batch(Inputs(image, window), gt, none, np.ones((1, 1), bool))
