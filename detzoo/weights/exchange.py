"""Workdirs from weight files, and weight files from workdirs.

    import_weights: a file, and which model it is of -> a workdir as training leaves it, and a report, layer by layer
    export_weights: a workdir -> a folder with weights.safetensors, config.json and classes.json; its weights come back bit by bit
    export_darknet: the workdir of a YOLO -> .weights, .cfg and .names, which darknet and OpenCV run

A workdir appears whole or not at all.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from detzoo.config import complete, read_config, to_json
from detzoo.config import flatten as flatten_config
from detzoo.detectors import make_detector
from detzoo.files import check_new_folder, new_folder, write_text
from detzoo.inference.predictor import evaluation_canvases, load
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import Classes, read_classes
from detzoo.run.workdir import environment
from detzoo.types import ModelState, Params
from detzoo.weights import darknet
from detzoo.weights.files import read_entries, read_metadata, write_entries
from detzoo.weights.mapping import Mapping, Row, Template, check_values, fill, flatten, report
from detzoo.weights.zoo import COCO, MODELS, VOC, Model

_COCOS_NAMES = {  # of what darknet's coco.names calls otherwise
    'aeroplane': 'airplane',
    'diningtable': 'dining table',
    'motorbike': 'motorcycle',
    'pottedplant': 'potted plant',
    'sofa': 'couch',
    'tvmonitor': 'tv',
}
MASK_SIDE = 112  # of ground-truth masks, should the detector be trained further
_OURS = Mapping(name_of=lambda path: path, left=(), transpose=False)
_FILES = ('weights.safetensors', 'config.json', 'classes.json')


class Imported(NamedTuple):
    """What a file holds, in our terms.

    config, classes, params, model_state: of a detector.
    rows: where each variable is from, and what is left of the file.
    """

    config: ml_collections.ConfigDict
    classes: Classes
    params: Params
    model_state: ModelState
    rows: list[Row]


def import_weights(
    source: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    model: str | None = None,
    cfg: str | os.PathLike | None = None,
    names: str | os.PathLike | None = None,
) -> Imported:
    """Makes a workdir of published weights: `predictor.load`, evaluation and `initialize_from` take it as a trained one.

    Args:
        source: a file of the model's publisher; or, without a model, a folder of `export_weights`.
        workdir: to be made.
        model: a key of `zoo.MODELS`.
        cfg, names: in place of the model, the description of a darknet network and the names of its classes, one a line;
            their category ids are COCO's or VOC's where these are its classes, else 1 to K.

    Returns:
        what was imported.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds something else, or is of another model; or the workdir exists. Nothing is
            left behind.
    """
    source, workdir = pathlib.Path(source), pathlib.Path(workdir)
    check_new_folder(workdir)
    if not source.exists():
        raise FileNotFoundError(f'{source}: there is no such file or folder')
    if (cfg is None) != (names is None) or (cfg is not None and model is not None):
        raise ValueError('give either a model, or both a .cfg and a .names file of a darknet network')
    file = source if source.is_file() else source / _FILES[0]
    digest = _sha256(file) if file.is_file() else ''
    if cfg is not None:
        imported = read_darknet(source, *_described(cfg, names))
    elif model is None:
        imported = read_exported(source)
    elif model not in MODELS:
        raise ValueError(f'no model is called {model!r}: {", ".join(MODELS)} are known')
    elif (named := model_by_checksum(source, digest)) not in (None, model):
        raise ValueError(f"{source}: this is torchvision's file of {named}: give that as the model")
    elif MODELS[model].mapping is None:
        imported = read_darknet(source, config_of(MODELS[model]), MODELS[model].classes)
    else:
        imported = read_published(source, MODELS[model])
    check_values(flatten((imported.params, imported.model_state)), source)
    origin = dict(source=source.name, model=model, sha256=digest)
    if file != source:
        origin = read_metadata(file) | origin
    write_workdir(workdir, imported, imported_from=origin)
    return imported


def model_by_checksum(path: pathlib.Path, digest: str) -> str | None:
    """Names the model of torchvision whose file this is, by the SHA-256, with whose beginning the names of its files end.

    Raises:
        ValueError: it is named as one of them, but its bytes are others.
    """
    for name, model in MODELS.items():
        if model.source == 'torchvision':
            file = model.published.file
            if digest.startswith(file.removesuffix('.pth').rpartition('-')[2]):
                return name
            if path.name == file:
                raise ValueError(
                    f'{path}: damaged: the name says how its SHA-256 begins, which is {digest[:8]}: fetch it again'
                )
    return None


def read_published(path: pathlib.Path, model: Model) -> Imported:
    """Reads a file whose entries have names."""
    entries = read_entries(path)
    config = config_of(model)
    template = shapes_of(config, len(model.classes.class_names))
    params, model_state = fill(model.mapping, entries, template, source=str(path))
    return Imported(
        config, model.classes, params, model_state, report(model.mapping, entries, template, source=str(path))
    )


def read_darknet(path: pathlib.Path, config: ml_collections.ConfigDict, classes: Classes) -> Imported:
    """Reads a .weights file."""
    template = shapes_of(config, len(classes.class_names))
    arguments = {**config.model.to_dict(), 'num_classes': len(classes.class_names)}
    variables = darknet.read_weights(path, arguments, template)
    return Imported(config, classes, *variables, darknet.report(path, arguments, template))


def read_exported(folder: pathlib.Path) -> Imported:
    """Reads what `export_weights` wrote."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f'{folder} is not a folder of export_weights: it has no {", ".join(missing)}. Give that folder, or '
            f'with a file of other weights its model: {", ".join(MODELS)}'
        )
    weights, config, classes = (folder / name for name in _FILES)
    classes, config = read_classes(classes), read_config(config)
    entries, template = read_entries(weights), shapes_of(config, len(classes.class_names))
    params, model_state = fill(_OURS, entries, template, source=str(weights))
    return Imported(config, classes, params, model_state, report(_OURS, entries, template, source=str(weights)))


def config_of(model: Model) -> ml_collections.ConfigDict:
    """Makes the whole config of a published detector: to evaluate it on the data it was trained on."""
    config = ml_collections.ConfigDict()
    config.data = dict(name='voc' if len(model.classes.class_names) == 20 else 'coco', canvases=model.canvases)
    config.data.recipe = dict(model.recipe)
    config.data.mask_size = MASK_SIDE if make_detector(**model.model).finds_masks else 0
    config.data.max_boxes = 100
    config.evaluation = dict(batch_size=8, canvases=model.canvases, divisor=model.divisor)
    config.evaluation.mask_paste = 'torchvision' if model.source == 'torchvision' else 'centers'
    config.model = {key: value for key, value in model.model.items() if key != 'num_classes'}
    return complete(config)


def shapes_of(config: ml_collections.ConfigDict, num_classes: int) -> Template:
    """The shapes of a detector's (params, model_state)."""
    detector = make_detector(**config.model, num_classes=num_classes)
    return jax.eval_shape(lambda rng: detector.init(rng, evaluation_canvases(config)[0]), jax.random.key(0))


def write_workdir(workdir: pathlib.Path, imported: Imported, **details: Any) -> None:
    """Writes a workdir, whole or not at all; details go to environment.json."""
    with new_folder(workdir) as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.save_variables(imported.params, imported.model_state)
        checkpoints.close()
        write_text(folder / 'classes.json', imported.classes.to_json())
        write_text(folder / 'environment.json', json.dumps(environment() | details, indent=2) + '\n')
        write_text(folder / 'config.json', to_json(imported.config))


def export_weights(workdir: str | os.PathLike, output: str | os.PathLike, *, step: int | None = None) -> None:
    """Writes what a run predicts with, averaged parameters where it has them, as safetensors with its config.

    Args:
        workdir: of a run.
        output: a folder, made; its weights.safetensors names variables by their paths ('backbone/stem_conv/kernel').
        step: of the checkpoint, the newest by default.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: the folder exists and is not empty.
    """
    predictor = load(workdir, step)
    config = predictor.config.copy_and_resolve_references()
    config.data.data_dir = None  # of another machine
    variables = flatten((predictor.params, predictor.model_state))
    entries = {path.partition('/')[2]: np.asarray(array) for path, array in variables.items()}
    with new_folder(output) as folder:
        write_entries(folder / _FILES[0], entries, {'format': 'detzoo', 'step': str(predictor.step)})
        write_text(folder / _FILES[1], to_json(config))
        write_text(folder / _FILES[2], predictor.classes.to_json())


def export_darknet(
    workdir: str | os.PathLike, output: str | os.PathLike, *, step: int | None = None
) -> dict[str, tuple[Any, Any]]:
    """Writes a YOLO for darknet and OpenCV: MODEL.weights, MODEL.cfg and MODEL.names, of its first evaluation canvas.

    Args:
        workdir: of a run of a YOLO.
        output: a folder, made.
        step: of the checkpoint, the newest by default.

    Returns:
        {key of the config: (its value, that of what darknet itself does)} of all that is not part of the network, but of how
        darknet puts an image on its canvas, and of its NMS. OpenCV leaves both to its caller.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: darknet has no such network, or it would compute something else; or the folder exists and is not empty.
    """
    predictor = load(workdir, step)
    config, (names, _) = predictor.config, predictor.classes
    arguments = {**config.model.to_dict(), 'num_classes': len(names)}
    variables = predictor.params, predictor.model_state
    description = darknet.cfg_text(arguments, variables, evaluation_canvases(config)[0])
    with new_folder(output) as folder:
        darknet.write_weights(folder / f'{config.model.name}.weights', arguments, *variables)
        write_text(folder / f'{config.model.name}.cfg', description)
        write_text(folder / f'{config.model.name}.names', '\n'.join(names) + '\n')
    recipe = darknet.resizing(config.model.name)
    darknets = {f'model.{key}': value for key, value in darknet.PREDICTION.items()}
    darknets |= {f'data.recipe.{key}': value for key, value in recipe.items()}
    ours = dict(flatten_config(config))
    return {key: (ours[key], value) for key, value in darknets.items() if ours[key] != value}


def format_report(rows: Sequence[Row]) -> str:
    """Writes a report as a table in Markdown: the variables, those that start anew, what is left of the file."""
    lines = ['| in the file | here | shape | transform | CRC-32 |', '|---|---|---|---|---|']
    return (
        '\n'.join(
            lines
            + [
                f'| {row.foreign} | {row.ours} | {" x ".join(map(str, row.shape))} | {row.transform} | {row.checksum} |'
                for row in rows
            ]
        )
        + '\n'
    )


def _described(cfg: str | os.PathLike, names: str | os.PathLike) -> tuple[ml_collections.ConfigDict, Classes]:
    """Makes config and classes of a darknet network from its two files."""
    network = darknet.model_of_cfg(cfg)
    try:
        lines = pathlib.Path(names).read_text('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{names}: no text in UTF-8 ({error}): save it as such') from error
    class_names = tuple(line.strip() for line in lines if line.strip())
    if twice := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise ValueError(f'{names} names twice: {", ".join(twice)}')
    if len(class_names) != network.model['num_classes']:
        raise ValueError(
            f'{names} names {len(class_names)} classes, {cfg} describes a network of '
            f'{network.model["num_classes"]}: give the two files of one network'
        )
    detector = network.model['name']
    if network.letter_box is None and detector != 'yolo_v1':
        logging.warning(
            "%s: [net] has no letter_box: images are letterboxed, as darknet's authors do. If the weights are of "
            "AlexeyAB's darknet, which stretches images, write letter_box=0 there, and import again",
            cfg,
        )
    recipe = darknet.resizing(detector, network.letter_box)
    config = config_of(MODELS['yolov3']._replace(model=network.model, recipe=recipe, canvases=(network.canvas,)))
    for name, known in (('coco', COCO), ('voc', VOC)):
        if tuple(_COCOS_NAMES.get(each, each) if known is COCO else each for each in class_names) == known.class_names:
            config.data.name = name
            return config, known
    config.data.name = pathlib.Path(names).stem
    return config, Classes(class_names, tuple(range(1, 1 + len(class_names))))


def _sha256(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
