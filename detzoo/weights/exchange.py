"""Workdirs from weight files, and weight files from workdirs.

    import_weights: a file, and its model -> a workdir as training leaves it, and a report, layer by layer
      the file is read once: its bytes -> its checksum, and its entries -> variables and report (`weights.mapping`)
    export_weights: a workdir -> a folder with weights.safetensors, config.json and classes.json; importing it is the inverse
    export_darknet: the workdir of a YOLO -> .weights, .cfg and .names, which darknet and OpenCV run

A workdir appears whole or not at all.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from detzoo.config import complete, read_config, to_json
from detzoo.config import flatten as flatten_config
from detzoo.errors import nearest
from detzoo.files import AnyPath, as_path, check_new_folder, new_folder, write_text
from detzoo.inference.predictor import detector_of, evaluation_canvases, load
from detzoo.run.checkpoint import Checkpoints
from detzoo.run.classes import Classes, read_classes
from detzoo.run.workdir import environment
from detzoo.types import ModelState, Params
from detzoo.weights import darknet
from detzoo.weights.darknet_layers import TREE, cfg_text
from detzoo.weights.darknet_tree import distinct_names, repeated, tree_text
from detzoo.weights.files import parse_entries, parse_metadata, read_bytes, write_entries
from detzoo.weights.mapping import Entries, Mapping, Row, Template, check_values, fill, flatten
from detzoo.weights.zoo import COCO, MODELS, VOC, Model

_COCOS_NAMES = {  # by the names that darknet's coco.names has instead
    'aeroplane': 'airplane',
    'diningtable': 'dining table',
    'motorbike': 'motorcycle',
    'pottedplant': 'potted plant',
    'sofa': 'couch',
    'tvmonitor': 'tv',
}
MASK_SIDE = 112  # cells along a side of ground-truth masks, should the detector be trained further
_OURS = Mapping(name_of=lambda path: path, left=(), transpose=False)
_WEIGHTS, _CONFIG, _CLASSES = 'weights.safetensors', 'config.json', 'classes.json'  # of an exported folder


class Imported(NamedTuple):
    """What a weight file holds, in our terms.

    config, classes: the detector's.
    params, model_state: the detector's variables.
    rows: the report: where each variable comes from, and what of the file is left.
    content: the file's bytes.
    entries: the file's arrays by their names there; none in darknet's files, which have no names.
    """

    config: ml_collections.ConfigDict
    classes: Classes
    params: Params
    model_state: ModelState
    rows: list[Row]
    content: bytes = b''
    entries: Entries = MappingProxyType({})


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
        source: a file from the model's publisher; or, without a model, a folder of `export_weights`.
        workdir: the folder to make.
        model: a key of `zoo.MODELS`.
        cfg, names: in place of the model, files with the description of a darknet network and the names of its classes, one a
            line. Category ids are COCO's or VOC's if these are its classes, else 1 to K.

    Returns:
        what was imported.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds something else, or belongs to another model; or the workdir exists. Nothing
            is left behind.
    """
    source, workdir = pathlib.Path(source), as_path(workdir)
    check_new_folder(workdir)
    if not source.exists():
        raise FileNotFoundError(f'{source}: there is no such file or folder')
    if (cfg is None) != (names is None) or (cfg is not None and model is not None):
        raise ValueError('give either a model, or both a .cfg and a .names file of a darknet network')
    if model is not None and model not in MODELS:
        raise ValueError(
            f'no model is called {model!r}: the nearest is {nearest(model, MODELS)!r} (all: {", ".join(MODELS)})'
        )
    exported = model is None and cfg is None
    if exported:
        check_exported(source)
    content = read_bytes(source / _WEIGHTS if exported else source)
    digest = hashlib.sha256(content).hexdigest()
    if exported:
        imported = read_exported(content, source)
    elif cfg is not None:
        imported = read_darknet(content, source, *_described(cfg, names))
    elif (named := model_by_checksum(source, digest)) not in (None, model):
        raise ValueError(f"{source}: this is torchvision's file of {named}: give that as the model")
    elif MODELS[model].mapping is None:
        imported = read_darknet(content, source, config_of(MODELS[model]), MODELS[model].classes)
    else:
        imported = read_named(content, source, config_of(MODELS[model]), MODELS[model].classes, MODELS[model].mapping)
    check_values(flatten((imported.params, imported.model_state)), source)
    origin = dict(source=source.name, model=model, sha256=digest)
    if exported:
        origin = parse_metadata(content, source / _WEIGHTS) | origin
    write_workdir(workdir, imported, imported_from=origin)
    return imported


def model_by_checksum(path: pathlib.Path, digest: str) -> str | None:
    """Finds the model of torchvision whose file this is: the names of its files end with the first digits of their SHA-256.

    Args:
        path: the file; only its name counts.
        digest: the SHA-256 of its bytes.

    Returns:
        a key of `zoo.MODELS`; None if it is none of these files.

    Raises:
        ValueError: the name is that of a published file, but the bytes are not.
    """
    for name, model in MODELS.items():
        if model.source == 'torchvision':
            file = model.published.file
            if digest.startswith(file.removesuffix('.pth').rpartition('-')[2]):
                return name
            if path.name == file:
                raise ValueError(
                    f'{path}: damaged: its SHA-256 begins with {digest[:8]}, not as its name says: fetch it again'
                )
    return None


def read_named(
    content: bytes, source: pathlib.Path, config: ml_collections.ConfigDict, classes: Classes, mapping: Mapping
) -> Imported:
    """Reads the bytes of a file whose entries have names, into a detector."""
    entries = parse_entries(content, source)
    filled = fill(mapping, entries, shapes_of(config, len(classes.class_names)), source=source)
    return Imported(config, classes, *filled.variables, filled.rows, content, entries)


def read_darknet(content: bytes, source: pathlib.Path, config: ml_collections.ConfigDict, classes: Classes) -> Imported:
    """Reads the bytes of a .weights file."""
    template = shapes_of(config, len(classes.class_names))
    arguments = {**config.model.to_dict(), 'num_classes': len(classes.class_names)}
    filled = darknet.parse_weights(content, arguments, template, source=source)
    return Imported(config, classes, *filled.variables, filled.rows, content)


def check_exported(folder: pathlib.Path) -> None:
    """Refuses a folder that `export_weights` did not write, with a ValueError."""
    missing = [name for name in (_WEIGHTS, _CONFIG, _CLASSES) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f'{folder} is not a folder of export_weights: it has no {", ".join(missing)}. Give that folder, or '
            f'with a file of other weights its model: {", ".join(MODELS)}'
        )


def read_exported(content: bytes, folder: pathlib.Path) -> Imported:
    """Reads a folder of `export_weights`, whose weights are `content`."""
    classes, config = read_classes(folder / _CLASSES), read_config(folder / _CONFIG)
    return read_named(content, folder / _WEIGHTS, config, classes, _OURS)


def config_of(model: Model) -> ml_collections.ConfigDict:
    """Makes the complete config with which a published detector is evaluated on the data it was trained on."""
    config = ml_collections.ConfigDict()
    config.data = dict(name='voc' if len(model.classes.class_names) == 20 else 'coco', canvases=model.canvases)
    config.data.recipe = dict(model.recipe)
    config.data.max_boxes = 100
    config.evaluation = dict(batch_size=8, canvases=model.canvases, divisor=model.divisor)
    config.evaluation.mask_paste = 'torchvision' if model.source == 'torchvision' else 'centers'
    config.model = {key: value for key, value in model.model.items() if key != 'num_classes'}
    config = complete(config)
    finds_masks = detector_of(config, len(model.classes.class_names)).finds_masks
    config.data.mask_size = MASK_SIDE if finds_masks else 0
    return config


def shapes_of(config: ml_collections.ConfigDict, num_classes: int) -> Template:
    """Computes the shapes of a detector's (params, model_state)."""
    detector = detector_of(config, num_classes)
    return jax.eval_shape(lambda rng: detector.init(rng, evaluation_canvases(config)[0]), jax.random.key(0))


def write_workdir(workdir: AnyPath, imported: Imported, **details: Any) -> None:
    """Writes a workdir, whole or not at all; details go to environment.json."""
    with new_folder(workdir, last='config.json') as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.save_variables(imported.params, imported.model_state)
        checkpoints.close()
        write_text(folder / 'classes.json', imported.classes.to_json())
        write_text(folder / 'environment.json', json.dumps(environment() | details, indent=2) + '\n')
        write_text(folder / 'config.json', to_json(imported.config))


def export_weights(workdir: str | os.PathLike, output: str | os.PathLike, *, step: int | str | None = None) -> None:
    """Writes what a run predicts with (averaged parameters if it has them) as safetensors with its config.

    Args:
        workdir: the run's folder.
        output: the folder to make; its weights.safetensors names variables by their paths ('backbone/stem_conv/kernel').
        step: the checkpoint's step, or 'best'; the newest by default.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: the folder exists and is not empty.
    """
    predictor = load(workdir, step)
    config = predictor.config.copy_and_resolve_references()
    config.data.data_dir = None  # it lies on this machine only
    variables = flatten((predictor.params, predictor.model_state))
    entries = {path.partition('/')[2]: np.asarray(array) for path, array in variables.items()}
    with new_folder(output) as folder:
        write_entries(folder / _WEIGHTS, entries, {'format': 'detzoo', 'step': str(predictor.step)})
        write_text(folder / _CONFIG, to_json(config))
        write_text(folder / _CLASSES, predictor.classes.to_json())


def export_darknet(
    workdir: str | os.PathLike, output: str | os.PathLike, *, step: int | str | None = None
) -> dict[str, tuple[Any, Any]]:
    """Writes a YOLO for darknet and OpenCV: MODEL.weights, MODEL.cfg and MODEL.names, for its first evaluation canvas.

    Args:
        workdir: the folder of a YOLO's run.
        output: the folder to make.
        step: the checkpoint's step, or 'best'; the newest by default.

    Returns:
        {key of the config: (its value, the value for what darknet does)} for what darknet does differently outside of the
        network: how it puts an image on the canvas, and its NMS. OpenCV leaves both to its caller.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        ValueError: darknet has no such network, or would compute something else; or the folder exists and is not empty.
    """
    predictor = load(workdir, step)
    config, (names, _) = predictor.config, predictor.classes
    arguments = {**config.model.to_dict(), 'num_classes': len(names)}
    variables = predictor.params, predictor.model_state
    description = cfg_text(arguments, variables, evaluation_canvases(config)[0])
    with new_folder(output) as folder:
        darknet.write_weights(folder / f'{config.model.name}.weights', arguments, *variables)
        write_text(folder / f'{config.model.name}.cfg', description)
        write_text(folder / f'{config.model.name}.names', '\n'.join(names) + '\n')
        if arguments.get('tree') is not None:
            write_text(folder / TREE, tree_text(names, arguments['tree']))
    recipe = darknet.resizing(config.model.name)
    darknets = {f'model.{key}': value for key, value in darknet.PREDICTION.items()}
    darknets |= {f'data.recipe.{key}': value for key, value in recipe.items()}
    ours = dict(flatten_config(config))
    return {key: (ours[key], value) for key, value in darknets.items() if ours[key] != value}


def format_report(rows: Sequence[Row]) -> str:
    """Writes a report as a table in Markdown."""
    lines = ['| in the file | here | shape | transform | CRC-32 |', '|---|---|---|---|---|']
    for row in rows:
        shape = ' x '.join(map(str, row.shape))
        lines.append(f'| {row.foreign} | {row.ours} | {shape} | {row.transform} | {row.checksum} |')
    return '\n'.join(lines) + '\n'


def _described(cfg: str | os.PathLike, names: str | os.PathLike) -> tuple[ml_collections.ConfigDict, Classes]:
    """Makes a darknet network's config and classes from its .cfg and .names files."""
    network = darknet.model_of_cfg(cfg)
    try:
        lines = pathlib.Path(names).read_text('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{names}: not text in UTF-8 ({error}): save it in UTF-8') from error
    class_names = tuple(line.strip() for line in lines if line.strip())
    if 'tree' in network.model:
        class_names = distinct_names(class_names, network.model['tree'])
    twice = repeated(class_names)
    if twice:
        raise ValueError(f'{names} names twice: {", ".join(sorted(twice))}')
    if len(class_names) != network.model['num_classes']:
        raise ValueError(
            f'{names} names {len(class_names)} classes, {cfg} describes a network of '
            f'{network.model["num_classes"]}: give the two files of one network'
        )
    detector = network.model['name']
    if network.letter_box is None and detector != 'yolo_v1':
        logging.warning(
            "%s: [net] has no letter_box: images are letterboxed, as darknet's authors do. If the weights come from "
            "AlexeyAB's darknet, which stretches images, write letter_box=0 there and import again",
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
