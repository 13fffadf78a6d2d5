"""From trained parameters to detections in an image's own pixels and the data's own category ids.

    load(workdir) -> Predictor: any image in, detections out
    predict_files(predictor, paths): pictures, images.json and detections.json
    predict_dataset: a split through all devices, each image once -> COCO results
    evaluate_workdir: a checkpoint -> the COCO metrics

The one place that maps from the canvas back to images; prediction, evaluation and notebooks use it.
"""

import glob
import json
import operator
import os
import pathlib
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pycocotools.mask
from tqdm.auto import tqdm

from detzoo.config import ConfigError, read_config
from detzoo.core.masks import paste_masks
from detzoo.data.geometry import Placement, choose_canvas, own_canvas, place, placement, resize_rule
from detzoo.data.pipeline import evaluation_batches, shard
from detzoo.data.proposals import Proposals, load_proposals
from detzoo.data.records import MAX_PIXELS, DataError, Dataset, decode_image, ground_truth, open_dataset
from detzoo.detectors import make_detector
from detzoo.evaluation import coco_metrics, write_detections
from detzoo.files import check_writable, incomplete_folder, write_text
from detzoo.run import parallel
from detzoo.run.checkpoint import Checkpoints
from detzoo.types import Batch, Detections, Detector, Inputs
from detzoo.visualize import draw_boxes, grid, write_image

OVERVIEW = 8  # pictures at most on the sheet that `predict_files` adds
_LISTS = pathlib.PurePath('images.json'), pathlib.PurePath('detections.json')  # that it writes beside the pictures
IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.webp', '.avif', '.bmp', '.tif', '.tiff', '.jp2', '.ppm', '.pgm',
    '.heic', '.heif',  # which cannot be read: an error is better than silence
)  # fmt: skip


class ImageDetections(NamedTuple):
    """What was found in one image, best score first.

    boxes: [N, 4] float64 xyxy, pixels of the image.
    scores: [N] float64 in 0..1.
    labels: [N] int in 0..K-1.
    category_ids: [N] int, the data's own ids.
    class_names: N names.
    masks: [N, h, w] bool, pixels of the image; or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    category_ids: np.ndarray
    class_names: tuple[str, ...]
    masks: np.ndarray | None = None

    def at_least(self, score: float) -> 'ImageDetections':
        """Leaves out lower scores."""
        count = int((self.scores >= score).sum())  # they are sorted
        return ImageDetections(*(None if field is None else field[:count] for field in self))


class Classes(NamedTuple):
    """The classes a detector was trained on.

    class_names: [K], in the order of the labels.
    category_ids: [K], the data's own ids.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def read_classes(path: str | os.PathLike) -> Classes:
    """Reads a workdir's classes.json.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it holds something else.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text('utf-8'))
        names, ids = (tuple(content[field]) for field in Classes._fields)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(
            f'{path}: cannot read the classes of this run ({type(error).__name__}: {error}). Restore the file from a copy, or '
            'remove it and train on in this workdir on the same data, which writes it anew'
        ) from error
    if len(names) != len(ids):
        raise ConfigError(f'{path}: {len(names)} class_names but {len(ids)} category_ids: each class needs one of each')
    return Classes(names, ids)


class Predictor:
    """A detector with its parameters: call it with an image."""

    def __init__(self, config: ml_collections.ConfigDict, classes: Classes, step: int, params: Any, model_state: Any):
        """Binds parameters; `load` makes them from a workdir."""
        self.config, self.classes, self.step = config, classes, step
        self.params, self.model_state = params, model_state
        self.detector = detector_of(config, len(classes.class_names))
        self._predict = jax.jit(self.detector.predict)

    def __call__(self, image: np.ndarray, proposals: np.ndarray | None = None) -> ImageDetections:
        """Detects the objects of an image.

        The image goes onto a canvas of the config, see `canvas_for`; a program is compiled for each canvas once.

        Args:
            image: [h, w, 3] uint8, RGB, of any size.
            proposals: [n, 4] xyxy, pixels of the image, at most `data.max_proposals`; a detector of two stages looks there
                instead of where its RPN would, and needs them if it has none.

        Returns:
            ImageDetections.

        Raises:
            ValueError: they are not such arrays.
            DataError: the detector takes no proposals, or needs them.
        """
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not (is_array and image.ndim == 3 and image.shape[2] == 3 and image.size > 0):
            shape = f'{getattr(image, "dtype", type(image).__name__)}{list(np.shape(image))}'
            raise ValueError(f'an image is [h, w, 3] uint8 RGB of at least one pixel, not {shape}')
        check_proposals(self.config, proposals is not None, 'proposals, as in predictor(image, proposals)')
        canvas, rule = canvas_for(image.shape[:2], self.config), resize_rule(self.config.data.recipe)
        pixels, where = place(image, canvas, rule, rounded=not self.config.evaluation.exact)
        given = ()
        if proposals is not None:
            boxes, rows = np.asarray(proposals, np.float64), self.config.data.max_proposals
            if boxes.shape[1:] != (4,) or len(boxes) > rows:
                raise ValueError(f'proposals are [n, 4] xyxy, n at most data.max_proposals={rows}, not {list(boxes.shape)}')
            given = Proposals([boxes], rows).on_canvas(0, where.matrix_to_image[:2], where.window)
        inputs = jax.tree.map(lambda x: x[None], Inputs(pixels, where.window, *given))
        detections = self._predict(self.params, self.model_state, inputs)
        found = jax.tree.map(lambda x: np.asarray(x)[0], detections)
        return to_image(found, where, self.classes, self.config.evaluation.mask_paste)


def load(workdir: str | os.PathLike, step: int | None = None, *, exact: bool | None = None) -> Predictor:
    """Loads a trained detector, with the averaged parameters where the run has them.

    Args:
        workdir: of a run of `train_and_evaluate`, or of imported weights.
        step: of the checkpoint, the newest by default.
        exact: in place of the config's `evaluation.exact`, see `canvas_for`.

    Raises:
        FileNotFoundError: it is no workdir, or has no such checkpoint.
    """
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').exists():
        raise FileNotFoundError(f'{workdir} is not the workdir of a run: it has no config.json; train one with scripts/train.py')
    config = read_config(workdir / 'config.json')
    if exact is not None:
        config.evaluation.exact = exact
    classes = read_classes(workdir / 'classes.json')
    step, variables = Checkpoints(workdir).restore_variables(step)
    return Predictor(config, classes, step, variables.get('ema_params', variables['params']), variables['model_state'])


def detector_of(config: ml_collections.ConfigDict, num_classes: int, axis_name: str | None = None) -> Detector:
    """Makes the detector a config describes."""
    return make_detector(**config.model, num_classes=num_classes, axis_name=axis_name)


def check_proposals(config: ml_collections.ConfigDict, given: bool, what: str) -> None:
    """Refuses proposals for a detector that takes none, and none for one that has no RPN to make them.

    Args:
        config: of the detector.
        given: whether it gets proposals.
        what: to give or to leave out, for the message.

    Raises:
        DataError: it gets what it cannot use, or lacks what it needs.
    """
    if given and 'rpn' not in config.model:
        raise DataError(f'{config.model.name} takes no proposals: leave out {what}')
    if not given and config.model.get('rpn', True) is None:
        raise DataError(f'this {config.model.name} has no RPN (model.rpn is None) and detects nothing by itself: give {what}')


def evaluation_canvases(config: ml_collections.ConfigDict) -> Sequence[tuple[int, int]]:
    """The canvases on which images are put for prediction, unless each has its own."""
    return config.evaluation.canvases or config.data.canvases


def canvas_for(size: tuple[int, int], config: ml_collections.ConfigDict) -> tuple[int, int]:
    """Chooses the canvas on which an image of (height, width) is put for prediction.

    It is the one of `evaluation_canvases` on which the image is largest. With `evaluation.exact`, where the recipe limits
    the sides of images, it is one of its own, no larger than its sides rounded up to multiples of `evaluation.divisor`.
    """
    rule = resize_rule(config.data.recipe)
    if config.evaluation.exact and rule.is_limited and rule.resize == 'fit':
        return own_canvas(size, rule, config.evaluation.divisor)
    return choose_canvas(size, evaluation_canvases(config), rule)


def canvases_for(truth: Mapping[str, Any], config: ml_collections.ConfigDict) -> list[tuple[int, int]]:
    """Chooses the canvas of each image of a split's `records.ground_truth`, in their order."""
    return [canvas_for((image['height'], image['width']), config) for image in truth['images']]


def evaluated_kinds(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What of detections is evaluated: boxes, and masks where the data bring them."""
    return ('bbox', 'segm') if config.data.mask_size else ('bbox',)


def check_truth(truth: dict[str, Any], kinds: Sequence[str], dataset: Dataset) -> None:
    """Refuses a split on which detections could not be evaluated, before any are computed.

    Args:
        truth: the split's `records.ground_truth`.
        kinds: what is to be evaluated, see `evaluated_kinds`.
        dataset: the split.

    Raises:
        DataError: an object lacks a mask, or the like.
    """
    try:
        coco_metrics(truth, [], kinds)
    except ValueError as error:
        raise DataError(f'the split {dataset.split!r} of {dataset.name!r} cannot be evaluated: {error}') from error


def to_image(
    detections: Detections, where: Placement, classes: Classes, mask_paste: str = 'centers'
) -> ImageDetections:
    """Maps the detections of one image, as numpy, from its canvas to its own pixels.

    Args:
        detections: of one image.
        where: the image lies on its canvas.
        classes: of the detector.
        mask_paste: the convention of `core.masks.paste_masks`.
    """
    rows = np.flatnonzero(detections.valid)
    labels = detections.labels[rows]
    boxes = where.to_image(detections.boxes[rows].astype(np.float64))
    size = round(where.size[1] / where.scale[1]), round(where.size[0] / where.scale[0])
    masks = None if detections.masks is None else paste_masks(detections.masks[rows], boxes, size, convention=mask_paste)
    return ImageDetections(
        boxes=boxes,
        scores=detections.scores[rows].astype(np.float64),
        labels=labels,
        category_ids=np.asarray(classes.category_ids)[labels],
        class_names=tuple(classes.class_names[label] for label in labels),
        masks=masks,
    )


def to_coco(detections: ImageDetections, image_id: int) -> list[dict[str, Any]]:
    """Writes the detections of an image in COCO's results format: boxes are xywh, masks compressed RLE."""
    boxes = detections.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {'image_id': int(image_id), 'category_id': int(category), 'bbox': box.tolist(), 'score': float(score)}
        for category, box, score in zip(detections.category_ids, boxes, detections.scores)
    ]
    if detections.masks is not None:
        for result, rle in zip(results, pycocotools.mask.encode(np.asfortranarray(detections.masks.transpose(1, 2, 0)))):
            result['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
    return results


def make_predict_step(detector: Detector, canvases: Collection[Any], devices: Any = None) -> Callable[..., Any]:
    """Maps `predict` over devices: (params, model_state, batch) -> all devices' (detections, image ids, valid).

    Args:
        detector: any.
        canvases: those of all batches.
        devices: what to map over, all by default.
    """

    def predict_step(params: Any, model_state: Any, batch: Batch) -> tuple[Detections, jax.Array, jax.Array]:
        result = detector.predict(params, model_state, batch.inputs), batch.image_id, batch.valid
        return jax.tree.map(lambda x: jax.lax.all_gather(x, parallel.AXIS, tiled=True), result)

    return parallel.parallel(predict_step, name='the predict step', traces=len(set(canvases)), devices=devices)


def predict_dataset(
    predict_step: Callable[..., Any],
    params: Any,
    model_state: Any,
    dataset: Dataset,
    truth: dict[str, Any],
    config: ml_collections.ConfigDict,
    *,
    classes: Classes | None = None,
    proposals: Proposals | None = None,
    on_batch: Callable[[Batch], None] = lambda batch: None,
) -> list[dict[str, Any]]:
    """Detects the objects of a split on all devices, each image once.

    Args:
        predict_step: of `make_predict_step`.
        params, model_state: replicated over devices.
        dataset: the split.
        truth: its `records.ground_truth`.
        config: of the run.
        classes: of the detector; the data set's by default. What is found of classes that the data set lacks is left out.
        proposals: of the split, for a detector that is to look there; None: none.
        on_batch: is called with each sharded batch, for what else is to be computed from it.

    Returns:
        COCO results of the whole split, on every process.
    """
    canvases, rule = canvases_for(truth, config), resize_rule(config.data.recipe)
    classes = classes or Classes(dataset.class_names, dataset.category_ids)
    batches = evaluation_batches(
        dataset,
        canvases,
        max_boxes=config.data.max_boxes,
        recipe=config.data.recipe,
        batch_size=config.evaluation.batch_size,
        rounded=not config.evaluation.exact,
        mask_size=config.data.mask_size,
        proposals=proposals,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
    )
    known, results = set(dataset.category_ids), {}

    def collect(gathered: Any) -> None:
        detections, indices, valid = parallel.first_replica(gathered)
        for row in np.flatnonzero(valid):
            index = int(indices[row])
            image = truth['images'][index]
            where = placement((image['height'], image['width']), canvases[index], rule)
            of_image = jax.tree.map(operator.itemgetter(row), detections)
            found = to_image(of_image, where, classes, config.evaluation.mask_paste)
            results[index] = [result for result in to_coco(found, image['id']) if result['category_id'] in known]

    pending = None
    with tqdm(total=len(canvases), desc='evaluate', unit='image', disable=jax.process_index() > 0, leave=False) as bar:
        for batch in batches:
            sharded = parallel.put(shard(batch, jax.local_device_count()))
            gathered = predict_step(params, model_state, sharded)
            on_batch(sharded)
            if pending is not None:  # while the devices work on this batch
                collect(pending)
            pending = gathered
            bar.update(len(results) - bar.n)
        if pending is not None:
            collect(pending)
    return [result for index in sorted(results) for result in results[index]]


def evaluate_workdir(
    workdir: str | os.PathLike,
    step: int | None = None,
    data_dir: str | None = None,
    proposals: str | None = None,
    *,
    exact: bool | None = None,
    output: str | os.PathLike | None = None,
    on_results: Callable[[dict[str, Any], dict[str, Any], list[dict[str, Any]]], None] = lambda *results: None,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Evaluates a checkpoint on all devices; writes `evaluation.json` and `detections.json.gz` into a folder.

    With other proposals than the run's they are `evaluation_given_proposals.json` and
    `detections_given_proposals.json.gz`, so that the usual ones stay; 'proposals' among the metrics says which. With `exact` given
    they are likewise called `_exact` or `_static`.

    Args:
        workdir: of a run.
        step: of the checkpoint, the newest by default.
        data_dir: where data sets lie, as in training by default.
        proposals: of the validation split, as `load_proposals` takes them; those of the config by default.
        exact: in place of the config's `evaluation.exact`, see `canvas_for`.
        output: the folder for the files, made if missing; the workdir by default.
        on_results: is called with what is returned, even if the files cannot be written.

    Returns:
        the metrics with their 'step', the ground truth, and the detections as COCO results.

    Raises:
        DataError: the data set is not there, cannot be evaluated, or its classes are not those of the run; the proposals
            cannot be used.
        FileNotFoundError: there is no such run or checkpoint.
        OSError: the files cannot be written. If the folder does not allow it, this is known before anything is computed.
        FirstProcessError: the folder does not allow it, and this is not the first process, which writes them.
    """
    predictor = load(workdir, step, exact=exact)
    config = predictor.config
    source = proposals or config.data.validation_proposals
    check_proposals(config, source is not None, 'proposals')
    dataset = open_dataset(config.data.name, config.data.validation_split, data_dir or config.data.data_dir)
    if not {*zip(*predictor.classes)} >= {*zip(dataset.class_names, dataset.category_ids)}:
        raise DataError(
            f'data set {dataset.name!r} has the classes {dataset.class_names} now, the run in {workdir} was trained on '
            f'{predictor.classes.class_names}: evaluate with the data it was trained on'
        )
    devices = jax.local_device_count() * jax.process_count()
    config = config.copy_and_resolve_references()
    config.evaluation.batch_size = -(-config.evaluation.batch_size // devices) * devices  # any machine may evaluate
    given = load_proposals(source, dataset, config.data.max_proposals)
    truth, kinds = ground_truth(dataset), evaluated_kinds(config)
    check_truth(truth, kinds, dataset)
    folder = pathlib.Path(output or workdir)
    parallel.from_first_process(lambda: check_writable(folder, 'give another folder for the files as output'))
    predict_step = make_predict_step(predictor.detector, canvases_for(truth, config))
    variables = parallel.replicate((predictor.params, predictor.model_state))
    results = predict_dataset(
        predict_step, *variables, dataset, truth, config, classes=predictor.classes, proposals=given
    )
    metrics = {'step': predictor.step, **coco_metrics(truth, results, kinds)}
    suffix = ''
    if proposals is not None:
        metrics, suffix = {'proposals': proposals, **metrics}, '_given_proposals'
    if exact is not None:
        suffix += '_exact' if exact else '_static'
    try:
        if jax.process_index() == 0:
            write_detections(folder / f'detections{suffix}.json.gz', results)
            write_text(folder / f'evaluation{suffix}.json', json.dumps(metrics, indent=2) + '\n')
    finally:
        on_results(metrics, truth, results)
    return metrics, truth, results


def predict_files(
    predictor: Predictor,
    patterns: Sequence[str],
    output: str | os.PathLike,
    *,
    score_threshold: float = 0.5,
    on_bad_record: str = 'error',
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, list[str]]:
    """Draws the detections of image files, and lists them in `detections.json`; everything appears at the end or nothing.

    The first pictures also come together, as `overview.png`. `images.json` lists the images in COCO's format, each with its
    'picture', and all 'files' that were written.

    An entry of `detections.json` is COCO's (image_id, category_id, bbox xywh in the image's pixels, score) with 'image', the
    path relative to the files' common folder, and 'category', the name. image_id counts the files in their order.

    Args:
        predictor: see `load`.
        patterns: paths, folders or globs.
        output: a folder, made if missing. The files of an earlier prediction there are replaced, others are left alone.
        score_threshold: lower scores are left out.
        on_bad_record: 'error', or 'skip' files that cannot be read.
        max_pixels: larger images are bad.

    Returns:
        how many images were written, and the messages about those skipped.

    Raises:
        DataError: no image is found, one cannot be read, or a file of someone else is in the way of a result.
        OSError: nothing can be written to `output`.
    """
    paths, output = find_images(patterns), pathlib.Path(output)
    common = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(common) for path in paths]
    sheet, *pictures = picture_names([pathlib.PurePath('overview.png'), *names])
    earlier = check_output(output, [*pictures, *_LISTS, *([sheet] if len(paths) > 1 else [])], paths)
    images, results, skipped, overview = [], [], [], []
    with incomplete_folder(output if output.is_dir() else output.parent) as scratch:
        rows = [*zip(paths, names, pictures)]
        for image_id, (path, name, picture) in enumerate(tqdm(rows, desc='predict', unit='image')):
            try:
                image = read_image(path, max_pixels)
            except DataError as error:
                if on_bad_record == 'error':
                    raise
                skipped.append(str(error))
                continue
            found = predictor(image).at_least(score_threshold)
            results += [
                {**entry, 'image': str(name), 'category': category}
                for entry, category in zip(to_coco(found, image_id), found.class_names)
            ]
            height, width = image.shape[:2]
            images.append(dict(id=image_id, file_name=str(name), height=height, width=width, picture=str(picture)))
            class_names = predictor.classes.class_names
            drawn = draw_boxes(image, found.boxes, found.labels, found.scores, class_names, masks=found.masks)
            (scratch / picture).parent.mkdir(parents=True, exist_ok=True)
            write_image(scratch / picture, drawn)
            if len(overview) < OVERVIEW:
                overview.append(drawn)
        if len(overview) > 1:
            write_image(scratch / sheet, grid(overview, columns=4))
        write_text(scratch / 'detections.json', json.dumps(results, indent=1) + '\n')
        written = [path.relative_to(scratch) for path in sorted(scratch.rglob('*')) if path.is_file()]
        categories = [dict(id=i, name=name) for name, i in zip(*predictor.classes)]
        listed = dict(images=images, annotations=[], categories=categories, files=[str(name) for name in written])
        write_text(scratch / 'images.json', json.dumps(listed, indent=1) + '\n')
        _move([pathlib.PurePath('images.json'), *written], scratch, output, earlier)
    return len(images), skipped


def find_images(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Lists the files that paths, folders (their images) and globs name, each once, in order.

    Returns:
        absolute paths with the names that the user sees: links are not followed.

    Raises:
        DataError: a pattern names nothing, or a folder cannot be read.
    """
    paths: dict[pathlib.Path, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        names = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [pathlib.Path(name) for name in names if not os.path.isdir(name)]
        for folder in filter(os.path.isdir, names):
            found += _images_in(pathlib.Path(folder))
        if not found:
            raise DataError(f'no image matches {pattern!r}: give files, folders with images, or globs in quotes')
        for path in map(pathlib.Path.absolute, found):
            paths[pathlib.Path(os.path.realpath(path.parent), path.name) if '..' in path.parts else path] = None
    if not paths:
        raise DataError('no images are given: give files, folders with images, or globs')
    return list(paths)


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the images of a folder by their suffixes, as globs do without hidden files (macOS leaves ._NAME.jpg behind)."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f'cannot list the folder {folder}: {error.strerror}') from error
    visible = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')]
    return [path for path in visible if not os.path.isdir(path)]


def read_image(path: pathlib.Path, max_pixels: int) -> np.ndarray:
    """Reads an image file: [h, w, 3] uint8 RGB.

    Raises:
        DataError: whatever is wrong with it.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be waited for without end
            raise DataError(f'{path}: not a file; remove it from the images')
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot read the file: {error.strerror}; mend it or remove it from the images') from error
    return decode_image(data, name=str(path), max_pixels=max_pixels, strict=True)


def picture_names(names: Sequence[pathlib.PurePath]) -> list[pathlib.PurePath]:
    """Names a picture for each image, all different: a.jpg's is a.png, or if there is one before, a.jpg.png.

    Some systems do not tell capitals from small letters, and a file cannot be called as a folder of images is.
    """
    taken = {str(folder).casefold() for name in names for folder in name.parents}
    pictures = []
    for name in names:
        picture, longer = name.with_suffix('.png'), name.name
        while str(picture).casefold() in taken:
            longer += '.png'
            picture = name.with_name(longer)
        taken.add(str(picture).casefold())
        pictures.append(picture)
    return pictures


def check_output(
    output: pathlib.Path, files: Sequence[pathlib.PurePath], images: Sequence[pathlib.Path]
) -> set[pathlib.PurePath]:
    """Refuses, before anything is predicted, a folder where results would take the place of other files.

    Args:
        output: the folder, which may be missing.
        files: that will be written, relative to it.
        images: that will be read.

    Returns:
        the files that an earlier prediction wrote there, relative to it.

    Raises:
        DataError: it is no folder, or something that no prediction wrote, or one of the images, is in the way.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise DataError(f'{output} is no folder: choose another output')
    earlier, inputs = _earlier_files(output), {os.path.realpath(path) for path in images}
    for name in sorted(earlier.union(files)):
        target = output / name
        folders = [output / folder for folder in name.parents]
        in_the_way = [folder for folder in folders if os.path.lexists(folder) and not folder.is_dir()]
        if os.path.lexists(target) and (name not in earlier or target.is_dir()):
            in_the_way.append(target)
        if in_the_way:
            raise DataError(
                f'{in_the_way[0]} is in the way, and not from an earlier prediction: choose another output, or remove it'
            )
        if os.path.realpath(target) in inputs:
            raise DataError(f'{target} is one of the images, and would be replaced: choose another output')
    return earlier


def _move(
    files: Sequence[pathlib.PurePath], scratch: pathlib.Path, output: pathlib.Path, earlier: set[pathlib.PurePath]
) -> None:
    """Moves files to the output, in their order; those of an earlier prediction go.

    images.json comes first: wherever this is killed, it lists all that is there.
    """
    output.mkdir(exist_ok=True)
    for name in earlier.difference(files):
        (output / name).unlink(missing_ok=True)
    for name in files:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, output / name)


def _earlier_files(output: pathlib.Path) -> set[pathlib.PurePath]:
    """Reads which files of a folder a prediction wrote; none if its images.json is missing, or not of `predict_files`."""
    try:
        names = {*map(pathlib.PurePath, json.loads((output / 'images.json').read_text('utf-8'))['files']), *_LISTS}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return set()
    return {name for name in names if not name.is_absolute() and '..' not in name.parts}
