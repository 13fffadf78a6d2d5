"""Prepares your own annotated images as a data set with a name.

    detzoo prepare --format=coco --name=birds \\
        --train_annotations=train.json --train_images=images/train \\
        --validation_annotations=val.json --validation_images=images/val
    detzoo prepare --format=voc --name=cells --train_images=photos --validation_share=0.2
    detzoo prepare --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test
    detzoo prepare --format=yolo --name=birds --data_yaml=birds/data.yaml
    detzoo prepare --format=openimages --name=birds \\
        --train_annotations=train-annotations-bbox.csv --train_images=train \\
        --validation_annotations=validation-annotations-bbox.csv --validation_images=validation \\
        --class_descriptions=class-descriptions-boxable.csv

Checks every record and every image first, and writes nothing until all are well. A problem is one line that names the file and
the record. With --on_bad_record=skip bad records are left out and listed. With --validation_share=0.2 a fifth of the training
images, drawn at random, validate. Then train on the data with --config.data.name=birds.
"""

import sys
from typing import Any, NamedTuple

from absl import flags, logging

from detzoo.cli.paths import define_path

LISTED = 20  # skipped records of a split, on the terminal

NAME = flags.DEFINE_string(
    'name', None, 'The name of the data set: lower-case letters, digits and underscores.', required=True
)
FORMAT = flags.DEFINE_enum(
    'format', 'coco', ['coco', 'voc', 'yolo', 'lvis', 'openimages'], 'The format of the annotations.'
)
TRAIN_ANNOTATIONS = define_path(
    'train_annotations',
    None,
    'The training annotations: a JSON file (coco, lvis), a CSV file (openimages), or a folder, if they do not lie where the format '
    'has them (voc, yolo).',
)
TRAIN_IMAGES = define_path('train_images', None, 'The folder of the training images.')
VALIDATION_ANNOTATIONS = define_path('validation_annotations', None, 'The validation annotations.')
VALIDATION_IMAGES = define_path('validation_images', None, 'The folder of the validation images.')
VOC_ROOT = define_path(
    'voc_root', None, 'voc: the unpacked folder VOCdevkit, or one with Annotations, JPEGImages and ImageSets in it.'
)
TRAIN_SPLITS = flags.DEFINE_list(
    'train_splits', None, 'voc: lists of training images in ImageSets/Main: train, or for VOCdevkit 2007_trainval.'
)
VALIDATION_SPLITS = flags.DEFINE_list('validation_splits', None, 'voc: lists of validation images: val, or 2007_test.')
COORDINATES = flags.DEFINE_enum(
    'coordinates',
    None,
    ['pixels', 'edges'],
    'voc: whether boxes are pixels counted from 1, with those of both corners inside, as VOC has them (the default), or edges '
    'in continuous coordinates, as labelImg and CVAT write them.',
)
DATA_YAML = define_path('data_yaml', None, 'yolo: data.yaml, with train, val and names.')
CLASSES = flags.DEFINE_list(
    'classes', None, 'voc, yolo: the names of the classes, in the order of their numbers: cat,dog.'
)
CLASS_DESCRIPTIONS = define_path(
    'class_descriptions', None, 'openimages: CSV file of the names of the classes: class-descriptions-boxable.csv.'
)
VALIDATION_SHARE = flags.DEFINE_float(
    'validation_share',
    None,
    'The share of the images that validate, drawn at random, where only training data are named: 0.2.',
)
SPLIT_SEED = flags.DEFINE_integer('split_seed', None, 'Seed of the draw of --validation_share; 0 by default.')
DATA_DIR = define_path('data_dir', None, 'The folder of the data sets; ~/tensorflow_datasets by default.')
ON_BAD_RECORD = flags.DEFINE_enum(
    'on_bad_record', 'error', ['error', 'skip'], 'Whether a bad record is an error, or is left out and listed.'
)
MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', None, 'Images with more pixels are bad; 2**27 by default.', lower_bound=1
)
BIT_DEPTH = flags.DEFINE_integer(
    'bit_depth',
    None,
    'Bits of the pixels in image files of 16 bits, stored in 8: 12, or 16 for dark pictures.',
    lower_bound=8,
    upper_bound=16,
)
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set of the same name.')


class Sources(NamedTuple):
    """The flags that say where the data of a format are; each is an argument of the format's function."""

    needed: tuple[flags.FlagHolder, ...] = ()
    either: tuple[flags.FlagHolder, ...] = ()  # one of them is needed
    optional: tuple[flags.FlagHolder, ...] = ()


BESIDE_TRAIN_IMAGES = TRAIN_ANNOTATIONS, VALIDATION_IMAGES, VALIDATION_ANNOTATIONS
ANY = VALIDATION_SHARE, SPLIT_SEED, BIT_DEPTH  # of any format
SOURCES = {
    'coco': Sources(
        needed=(TRAIN_ANNOTATIONS, TRAIN_IMAGES), optional=(VALIDATION_ANNOTATIONS, VALIDATION_IMAGES, *ANY)
    ),
    'voc': Sources(
        either=(VOC_ROOT, TRAIN_IMAGES),
        optional=(TRAIN_SPLITS, VALIDATION_SPLITS, *BESIDE_TRAIN_IMAGES, CLASSES, COORDINATES, *ANY),
    ),
    'yolo': Sources(either=(DATA_YAML, TRAIN_IMAGES), optional=(*BESIDE_TRAIN_IMAGES, CLASSES, *ANY)),
    'lvis': Sources(needed=(TRAIN_ANNOTATIONS, TRAIN_IMAGES, VALIDATION_ANNOTATIONS, VALIDATION_IMAGES)),
    'openimages': Sources(
        needed=(TRAIN_ANNOTATIONS, TRAIN_IMAGES),
        optional=(VALIDATION_ANNOTATIONS, VALIDATION_IMAGES, CLASS_DESCRIPTIONS, *ANY),
    ),
}


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)  # TFDS tells of each file that it writes
    arguments = _sources_given()
    from detzoo.data.readers.coco import prepare_coco
    from detzoo.data.readers.lvis import prepare_lvis
    from detzoo.data.readers.openimages import prepare_openimages
    from detzoo.data.readers.voc import prepare_voc
    from detzoo.data.readers.yolo import prepare_yolo
    from detzoo.data.records import MAX_PIXELS as DEFAULT_MAX_PIXELS

    prepare = {
        'coco': prepare_coco,
        'voc': prepare_voc,
        'yolo': prepare_yolo,
        'lvis': prepare_lvis,
        'openimages': prepare_openimages,
    }[FORMAT.value]
    prepared = prepare(
        NAME.value,
        **arguments,
        data_dir=DATA_DIR.value,
        on_bad_record=ON_BAD_RECORD.value,
        max_pixels=MAX_PIXELS.value or DEFAULT_MAX_PIXELS,
        overwrite=OVERWRITE.value,
    )
    ignored = {'voc': 'difficult', 'openimages': 'groups'}.get(FORMAT.value, 'crowds')
    for name, split in prepared.splits.items():
        objects = [thing for example in split.examples for thing in example['objects']]
        crowds = sum(thing['is_crowd'] for thing in objects)
        empty = sum(not example['objects'] for example in split.examples)
        print(f'{name}: {len(split.examples)} images ({empty} empty), {len(objects)} boxes ({crowds} {ignored})')
        for kind, count in split.left_out.items():
            print(f'  left out: {count} {kind}')
        if split.notes:
            print(f'  the records that lost them are listed in {prepared.folder}/left_out.json')
        for message in split.skipped[:LISTED]:
            print(f'  skipped: {message}')
        if split.skipped:
            print(f'  skipped {len(split.skipped)} records; all are listed in {prepared.folder}/skipped.json')
        if objects and crowds == len(objects):
            print(
                f'  warning: all objects of {name} are {ignored}, which are neither learnt nor evaluated. If the tool that '
                'wrote the annotations marks every object so (COCO: iscrowd), clear the marks and prepare the data again'
            )
    print(f'{len(prepared.class_names)} classes: {", ".join(prepared.class_names)}')
    data_dir = f' --config.data.data_dir={DATA_DIR.value}' if DATA_DIR.value else ''
    print(f'wrote {prepared.folder}; use it with --config.data.name={NAME.value}{data_dir}')


def _sources_given() -> dict[str, Any]:
    """Returns the values of the format's flags that were given; ends the program where one is missing or of no use."""
    sources = SOURCES[FORMAT.value]
    own = {flag.name: flag.value for flag in _all(sources)}
    every = {flag.name: flag.value for other in SOURCES.values() for flag in _all(other)}
    missing = [f'--{flag.name}' for flag in sources.needed if not flag.value]
    if sources.either and not any(flag.value for flag in sources.either):
        missing.append(' or '.join(f'--{flag.name}' for flag in sources.either))
    unused = [f'--{name}' for name, value in every.items() if name not in own and value is not None]
    if missing or unused:
        what = f'needs {", ".join(missing)}' if missing else f'does not take {", ".join(unused)}'
        sys.exit(f'error: --format={FORMAT.value} {what}')
    return {name: value for name, value in own.items() if value is not None}


def _all(sources: Sources) -> tuple[flags.FlagHolder, ...]:
    return sources.needed + sources.either + sources.optional
