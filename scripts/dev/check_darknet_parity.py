"""Checks that a YOLO computes what darknet's own network computes with the same weights, at its full size.

  python scripts/dev/check_darknet_parity.py --model=yolov3-tiny
  python scripts/dev/check_darknet_parity.py --model=yolov1 --darknet=darknet
  python scripts/dev/check_darknet_parity.py --model=all --darknet=darknet --photos=darknet/data --cfg_dir=darknet/cfg
  python scripts/dev/check_darknet_parity.py --model=yolov3-tiny --weights=yolov3-tiny.weights --photos=darknet/data

OpenCV runs YOLO v2 and v3. Only darknet itself runs YOLO v1, through a binding that gcc compiles:

  git clone https://github.com/pjreddie/darknet && make -C darknet

(Debian's package `darknet` has the same files in /usr/lib/darknet and /usr/share/darknet.) --weights names the file of weights;
without it, random weights of some hundred megabytes are written to a temporary folder. Reading the file into our variables and
writing them again must give the same bytes. The script prints the largest difference of each tensor, divided by the tensor's
maximum, and for v2 and v3 how well the kept detections agree.

With --photos, both sides also detect in photographs: darknet itself, from its letterbox (YOLO v1 stretches) to its NMS, and
our detector with the same recipe. Each photo's score threshold is chosen so that about 100 detections exceed it; with trained
weights it is low.

With --cfg_dir, the authors' .cfg files in this folder must give the models of `darknet.PUBLISHED`, except for the anchors of
yolov3-tiny, which the authors corrected after training the weights.

Exits with 1 if a tensor differs by more than 3e-4, or if the detections differ. They agree if there are as many, and each has a
partner with the same label, IoU > 0.999 (or corners within a hundredth of a pixel), and a score within 1e-3 or a tenth of the
photo's threshold.
"""

import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags

from detzoo.cli.paths import define_path
from detzoo.data.geometry import ResizeRule, place
from detzoo.data.records import decode_image
from detzoo.detectors import make_detector
from detzoo.inference.photos import find_images
from detzoo.parity.compare import differences, drawn_image, match_detections
from detzoo.parity.darknet import Darknet, drawn_weights, run_detector, run_opencv, select_detections
from detzoo.types import Inputs
from detzoo.weights.darknet import PUBLISHED, model_of_cfg, read_weights, resizing, write_weights
from detzoo.weights.darknet_layers import arguments_of, cfg_text
from detzoo.weights.mapping import Template
from detzoo.weights.zoo import MODELS

_MODEL = flags.DEFINE_enum('model', 'yolov3-tiny', [*PUBLISHED, 'all'], "A network, by the name of darknet's file.")
_WEIGHTS = define_path('weights', None, 'A .weights file of that network; drawn weights by default.')
_DARKNET = define_path('darknet', '/usr/lib/darknet', 'A folder with libdarknet.so and include/darknet.h.')
_PHOTOS = define_path('photos', None, 'A folder of photographs to detect in, one photograph, or a glob.')
_CFG_DIR = define_path('cfg_dir', None, 'A folder with the .cfg files of the networks.')

TOLERANCE = 3e-4
_HEADER = 20  # bytes of a header that we write
_CORRECTED = {'yolov3-tiny': ['anchor_sizes']}
_DETECTION = ('boxes', 'labels', 'scores')


def is_published(path: str, name: str) -> bool:
    """Tells by the checksum whether this is a network's published file; raises ValueError if only the name is the same."""
    published, digest = MODELS[name].published, hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    if pathlib.Path(path).name == published.file and published.sha256 not in (None, digest):
        raise ValueError(
            f'{path}: not the published file of that name: its SHA-256 begins with {digest[:16]}, not '
            f'{published.sha256[:16]}. Fetch it again, or give weights of your own another name'
        )
    return digest == published.sha256


def read_file(path: str, name: str, template: Template) -> tuple[Template, bool]:
    """Reads the weights of a network, and tells whether writing them gives the file's bytes again, except for its header."""
    model, size = PUBLISHED[name].model, pathlib.Path(path).stat().st_size
    published, variables = is_published(path, name), read_weights(path, model, template).variables
    with tempfile.NamedTemporaryFile() as again:
        write_weights(again.name, model, *variables)
        same = pathlib.Path(path).read_bytes().endswith(pathlib.Path(again.name).read_bytes()[_HEADER:])
    print(
        f'  {pathlib.Path(path).name}    {size:,} bytes{", as published" if published else ""}, written again '
        f'{"the same" if same else "otherwise"}'
    )
    return variables, same


def check_tensors(model: Mapping[str, Any], canvas: tuple[int, int], variables: Template, weights: str) -> bool:
    """Compares tensors, for YOLO v2 and v3 also detections, of a drawn image as large as a canvas."""
    image = drawn_image(*canvas, seed=0)
    ours, detections = run_detector(model, *variables, image)
    of_v1 = model['name'] == 'yolo_v1'
    if of_v1:
        pixels, text = image.transpose(2, 0, 1) / 255, cfg_text(model, variables, canvas)
        theirs = {'output': Darknet(_DARKNET.value).run(text, pixels, ours['output'].size, weights=weights)[0]}
    else:
        theirs = run_opencv(model, variables, pathlib.Path(weights).read_bytes(), image)
    agree = True
    for name, difference in differences(ours, theirs).items():
        agree &= difference <= TOLERANCE  # NaN is no agreement
        print(f'  {name:12}{difference:.1e}   of {abs(theirs[name]).max():.3g}')
    if not of_v1:
        kept = [
            {name: getattr(x, name)[x.valid] for name in _DETECTION}
            for x in (detections, select_detections(model, theirs, canvas))
        ]
        agree &= compare('detections', *kept)
    return agree


def check_photo(
    path: pathlib.Path, model: Mapping[str, Any], canvas: tuple[int, int], variables: Template, weights: str
) -> bool:
    """Compares detections in a photograph, in its own pixels."""
    photo = decode_image(path.read_bytes(), name=str(path))
    image, where = place(photo, canvas, ResizeRule(**resizing(model['name'])), rounded=False)
    height, last = where.size[1], np.float32(photo.shape[0] - 1)
    if np.float32(height - 1) * (last / np.float32(height - 1)) < last:
        image[where.offset[1] + height - 1] = 0  # darknet loses this row where rounding puts it beyond the photo's last
    # Darknet has no limits; with ours none of the best 300 detections is lost.
    limits = {'score_threshold': 0.0, 'max_detections': 300} | (
        {} if model['name'] == 'yolo_v1' else {'pre_nms_topk': 10_000}
    )
    predict = jax.jit(make_detector(**{**model, **limits}).predict)

    def detect(image: np.ndarray, window: np.ndarray) -> dict[str, np.ndarray]:
        found = jax.tree.map(
            lambda x: np.asarray(x)[0], predict(*variables, Inputs(image[None], np.float32(window)[None]))
        )
        boxes = where.to_image(found.boxes).clip(0, np.tile(photo.shape[1::-1], 2)).astype(np.float32)
        seen = found.valid & (boxes[:, :2] < boxes[:, 2:]).all(
            axis=1
        )  # `match_detections` leaves out what darknet sees outside
        return {'boxes': boxes[seen], 'labels': found.labels[seen], 'scores': found.scores[seen]}

    ours = detect(image, where.window)

    # The threshold lies in the widest gap between the 60th and 140th score, so that rounding moves none across it.
    scores = ours['scores'][60:140]
    gap = np.argmin(np.diff(scores))
    threshold = float(scores[gap : gap + 2].mean())
    ours = {key: x[ours['scores'] > threshold] for key, x in ours.items()}
    theirs = Darknet(_DARKNET.value).detect(
        cfg_text(model, variables, canvas),
        weights,
        photo,
        score_threshold=threshold,
        iou_threshold=arguments_of(model)['iou_threshold'],
    )
    # Darknet puts the image at whole pixels, but subtracts the exact margins again: half a pixel more where they are odd.
    margins = (np.array(canvas[::-1]) - where.size) / 2
    boxes = theirs['boxes'] + np.tile((margins - where.offset) / where.scale, 2)
    theirs['boxes'] = boxes.clip(0, np.tile(photo.shape[1::-1], 2)).astype(np.float32)
    return compare(f'{path.name} > {threshold:.2g}', ours, theirs, score=min(1e-3, threshold / 10))


def compare(
    name: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, score: float = 1e-3
) -> bool:
    """Prints how far two lists of detections are the same, and tells whether they are, with scores within a tolerance."""
    same = match_detections(ours, theirs, limit=sys.maxsize)
    print(
        f'  {name:18}  {same.matched}/{same.theirs} matched (ours: {same.ours}), IoU >= {same.min_iou:.6f}, '
        f'scores to {same.max_score_difference:.1e}'
    )
    return same.holds(score=score)


def check(name: str) -> bool:
    """Compares one network of PUBLISHED, and tells whether it computes the same."""
    model, canvas = PUBLISHED[name]
    print(f'{name}, {canvas[0]} x {canvas[1]}')
    agree = True
    if _CFG_DIR.value:
        described, described_canvas, _ = model_of_cfg(pathlib.Path(_CFG_DIR.value) / f'{name}.cfg')
        others = [key for key in {**model, **described} if described.get(key) != model.get(key)]
        agree &= described_canvas == canvas and others == _CORRECTED.get(name, [])
        print(f'  {name}.cfg    gives our model' + (f' but for {", ".join(others)}' if others else ''))
    detector = make_detector(**model)
    template = jax.eval_shape(lambda rng: detector.init(rng, canvas), jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        weights = _WEIGHTS.value or f'{folder}/drawn.weights'
        if not _WEIGHTS.value:
            pathlib.Path(weights).write_bytes(drawn_weights(model, template))
        try:
            variables, same = read_file(weights, name, template)
        except (ValueError, OSError) as error:
            sys.exit(f'error: {error}')
        agree &= same
        agree &= check_tensors(model, canvas, variables, weights)
        if _PHOTOS.value:
            for photo in find_images([_PHOTOS.value]):
                agree &= check_photo(photo, model, canvas, variables, weights)
    print('they agree' if agree else f'they do not agree to {TOLERANCE:g}')
    return agree


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unknown arguments: {" ".join(argv[1:])}')
    if _WEIGHTS.value and _MODEL.value == 'all':
        raise app.UsageError('--weights is the file of one network: name it with --model')
    names = PUBLISHED if _MODEL.value == 'all' else [_MODEL.value]
    sys.exit(not all([check(name) for name in names]))


if __name__ == '__main__':
    app.run(main)
