"""The trunk of the R-CNNs, ResNet-50 with its pyramid; and ONNX Runtime, with the trunk and with whole models.

Trunk, on both sides: a normalised image [1, H, W, 3] (torch: [1, 3, H, W]) -> levels P2 to P6. With gradient: forward, and the
gradient of half the sum of squares of all levels, by all parameters but those of the stem and the first stage.

ONNX Runtime runs what torch's own exporter (`torch.onnx.export`, by tracing) writes for the trunk, and for torchvision's models
with their resizing, NMS and pasting; then it is timed as `models` says of prediction.
"""

import pathlib
import re
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from detzoo.parity.compare import drawn_image
from peers import models
from peers.machine import cores
from peers.turns import OURS, Case, Program, Side

NAME = 'fasterrcnn_resnet50_fpn'
ONNX = 'ONNX Runtime'
LIBRARIES = ('torch', 'torchvision', 'onnxruntime', 'detzoo.parity.torchvision')
OPSET = 17


def cases(sides: list[int]) -> list[Case]:
    """Lists the cases of the sections trunk and onnx; the second has the first size only."""
    listed = []
    for side in sides:
        height, width = canvas(side)
        size = f'{height} x {width}'
        for gradient in (False, True):
            name = f'R50-FPN {size}, forward' + (' and gradient' if gradient else '')
            both = models.both('trunk', dict(side=side, gradient=gradient), module='trunk')
            if not gradient:
                both[ONNX] = Side('peers.trunk:onnx_trunk', dict(side=side), LIBRARIES, ONNX)
            listed.append(Case('trunk', name, both, check_levels, expected=40 * (2 if side >= 800 else 1)))
        for name in models.MODELS:
            if side == sides[0]:
                arguments = dict(name=name, side=side)
                both = {
                    ONNX: Side('peers.trunk:onnx_predict', arguments, LIBRARIES, ONNX),
                    OURS: Side('peers.models:detzoo_predict', arguments, models.LIBRARIES[OURS], OURS),
                }
                height, width = models.size_of(name, side).resized
                title = f'{name} {height} x {width}'
                listed.append(Case('onnx', title, both, models.check_detections, rounds=3, expected=50))
    return listed


def canvas(side: int) -> tuple[int, int]:
    """Rounds the size of the resized image up to multiples of 32."""
    return tuple(-(-x // 32) * 32 for x in models.size_of(NAME, side).resized)


def image_of(side: int) -> np.ndarray:
    """Draws a normalised image: [1, H, W, 3] float32."""
    from detzoo.detectors.network import IMAGENET_MEAN, IMAGENET_STD

    return ((drawn_image(*canvas(side), seed=0)[None] - np.array(IMAGENET_MEAN)) / IMAGENET_STD).astype(np.float32)


def check_levels(results: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that the levels, and the length of the gradient, are the same to 1e-3 of the largest number."""
    differences = [
        float(abs(ours - theirs).max() / abs(theirs).max())
        for result in results.values()
        for ours, theirs in zip(results[OURS], result, strict=True)
    ]
    assert max(differences) < 1e-3, f'levels differ by {max(differences):g} of the largest number'
    return {'difference': max(differences)}


def torchvision_trunk(side: int, gradient: bool, layout: str, shapes: Any = None) -> Program:
    """Prepares torchvision's trunk."""
    import torch

    model = models.torchvision_model(NAME, side, layout)
    order = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    x = torch.tensor(image_of(side).transpose(0, 3, 1, 2).copy()).contiguous(memory_format=order)
    trained = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]

    def step() -> Any:
        if not gradient:
            with torch.inference_mode():
                return list(model.backbone(x).values()), []
        levels = list(model.backbone(x).values())
        return levels, torch.autograd.grad(sum((level**2).sum() for level in levels) / 2, trained)

    def shown(found: Any) -> list[np.ndarray]:
        levels, gradients = found
        length = np.sqrt(sum(float((x**2).sum()) for x in gradients))
        return [*(x.detach().permute(0, 2, 3, 1).numpy() for x in levels), *([length] if gradients else [])]

    return Program(step, shown, given={'shapes': shapes or models.shapes_of(model)})


def detzoo_trunk(side: int, gradient: bool, shapes: Mapping[str, tuple[int, ...]]) -> Program:
    """Prepares detzoo's trunk."""
    import flax.traverse_util
    import jax

    from detzoo.detectors.faster_rcnn import FasterRCNN, make_parts
    from detzoo.run.parallel import keep_compilations
    from detzoo.weights.torchvision import PEERS

    keep_compilations()
    params, model_state = jax.device_put(models.our_variables(NAME, models.our_config(NAME, side), shapes))
    flat = flax.traverse_util.flatten_dict(params, sep='/')
    frozen = {path: x for path, x in flat.items() if re.search(models.FROZEN, path)}
    trained = {path: x for path, x in flat.items() if path.startswith(('backbone', 'fpn')) and path not in frozen}
    arguments = {key: value for key, value in PEERS[NAME].model.items() if key != 'name'}
    network = make_parts(**arguments).network

    def run(trained: Any, frozen: Any, model_state: Any, x: Any) -> Any:
        params = flax.traverse_util.unflatten_dict({**trained, **frozen}, sep='/')
        return network.apply({'params': params, **model_state}, x, train=False, method=FasterRCNN.levels)

    def loss(*arguments: Any) -> Any:
        levels = run(*arguments)
        return sum((level**2).sum() for level in levels) / 2, levels

    def both(*arguments: Any) -> Any:
        gradients, levels = jax.grad(loss, has_aux=True)(*arguments)
        return levels, gradients

    compiled = jax.jit(both if gradient else lambda *arguments: (run(*arguments), {}))
    arrays = jax.device_put((trained, frozen, model_state, image_of(side)))

    def shown(found: Any) -> list[np.ndarray]:
        levels, gradients = found
        length = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(gradients)))
        return [*map(np.asarray, levels), *([length] if gradients else [])]

    return Program(lambda: jax.block_until_ready(compiled(*arrays)), shown)


def onnx_session(model: Any, inputs: tuple[Any, ...]) -> Any:
    """Exports a torch module and opens it in ONNX Runtime."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores(), 3
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # hundreds, about numbers that become constants: the image has one size
        file = str(pathlib.Path(folder) / 'model.onnx')
        torch.onnx.export(model, inputs, file, dynamo=False, opset_version=OPSET)
        return onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])


def onnx_trunk(side: int, shapes: Any) -> Program:
    """Prepares the trunk in ONNX Runtime."""
    import torch

    x = np.ascontiguousarray(image_of(side).transpose(0, 3, 1, 2))
    session = onnx_session(models.torchvision_model(NAME, side, 'NCHW').backbone, (torch.tensor(x),))
    step = partial(session.run, None, {session.get_inputs()[0].name: x})
    return Program(step, lambda levels: [level.transpose(0, 2, 3, 1) for level in levels])


def onnx_predict(name: str, side: int) -> Program:
    """Prepares a whole model in ONNX Runtime."""
    import torch

    from detzoo.parity.torchvision_models import VIEWS

    model, photo = models.torchvision_model(name, side, 'NCHW'), drawn_image(*models.size_of(name, side).photo, seed=0)
    threshold, facts = models.limit_detections(name, model, photo)
    shapes = models.shapes_of(model)
    session = onnx_session(model, ([torch.from_numpy(photo).permute(2, 0, 1) / 255],))
    (given,), fields = session.get_inputs(), ('boxes', 'labels', 'scores', 'masks')

    def step() -> dict[str, np.ndarray]:
        pixels = np.ascontiguousarray(photo.transpose(2, 0, 1), np.float32) / 255
        found = {}
        for x in session.run(None, {given.name: pixels}):
            kind = 'masks' if x.ndim == 4 else 'boxes' if x.ndim == 2 else 'labels' if x.dtype == np.int64 else 'scores'
            found[kind] = x[:, 0] > 0.5 if kind == 'masks' else x
        found['labels'] = found['labels'] - VIEWS[name].background
        return {field: found[field] for field in fields if field in found}

    return Program(step, given={'score_threshold': threshold, 'shapes': shapes}, facts=facts)
