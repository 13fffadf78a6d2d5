"""Prepares your own annotated images, or PASCAL VOC, as a data set with a name.

    detzoo prepare --format=coco --name=birds \\
        --train_annotations=train.json --train_images=images/train \\
        --validation_annotations=val.json --validation_images=images/val
    detzoo prepare --format=voc --name=voc --voc_root=VOCdevkit \\
        --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test

Checks every record and every image first, and writes nothing until all are well. A problem is one line that names the file and
the record. With --on_bad_record=skip bad records are left out and listed. Then train on the data with
--config.data.name=birds.
"""

import sys
from typing import Any, NamedTuple

from absl import flags

from detzoo.cli.paths import define_path

LISTED = 20  # skipped records of a split, on the terminal

NAME = flags.DEFINE_string(
    'name', None, 'The name of the data set: lower-case letters, digits and underscores.', required=True
)
FORMAT = flags.DEFINE_enum('format', 'coco', ['coco', 'lvis', 'voc'], 'The format of the annotations.')
TRAIN_ANNOTATIONS = define_path('train_annotations', None, 'coco: JSON file of the training annotations.')
TRAIN_IMAGES = define_path('train_images', None, 'coco: folder of the training images; file_name is relative to it.')
VALIDATION_ANNOTATIONS = define_path('validation_annotations', None, 'coco: JSON file of the validation annotations.')
VALIDATION_IMAGES = define_path('validation_images', None, 'coco: folder of the validation images.')
VOC_ROOT = define_path('voc_root', None, 'voc: the unpacked folder VOCdevkit, with VOC2007 or VOC2012 in it.')
TRAIN_SPLITS = flags.DEFINE_list('train_splits', None, 'voc: lists of training images: 2007_trainval,2012_trainval.')
VALIDATION_SPLITS = flags.DEFINE_list('validation_splits', None, 'voc: lists of validation images: 2007_test.')
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
    'coco: bits of the pixels in image files of 16 bits, stored in 8: 12, or 16 for dark pictures.',
    lower_bound=8,
    upper_bound=16,
)
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set of the same name.')


class Sources(NamedTuple):
    """The flags that say where the data of a format are; each is an argument of the format's function."""

    needed: tuple[flags.FlagHolder, ...]
    optional: tuple[flags.FlagHolder, ...] = ()


SOURCES = {
    'coco': Sources(
        needed=(TRAIN_ANNOTATIONS, TRAIN_IMAGES),
        optional=(VALIDATION_ANNOTATIONS, VALIDATION_IMAGES, VALIDATION_SHARE, SPLIT_SEED, BIT_DEPTH),
    ),
    'lvis': Sources(needed=(TRAIN_ANNOTATIONS, TRAIN_IMAGES, VALIDATION_ANNOTATIONS, VALIDATION_IMAGES)),
    'voc': Sources(needed=(VOC_ROOT, TRAIN_SPLITS, VALIDATION_SPLITS)),
}


def main(settings: list[str]) -> None:
    del settings
    arguments = _sources_given()
    from detzoo.data.readers.coco import prepare_coco
    from detzoo.data.readers.lvis import prepare_lvis
    from detzoo.data.readers.voc import prepare_voc
    from detzoo.data.records import MAX_PIXELS as DEFAULT_MAX_PIXELS

    prepare = {'coco': prepare_coco, 'lvis': prepare_lvis, 'voc': prepare_voc}[FORMAT.value]
    prepared = prepare(
        NAME.value,
        **arguments,
        data_dir=DATA_DIR.value,
        on_bad_record=ON_BAD_RECORD.value,
        max_pixels=MAX_PIXELS.value or DEFAULT_MAX_PIXELS,
        overwrite=OVERWRITE.value,
    )
    ignored = {'coco': 'crowds', 'lvis': 'crowds', 'voc': 'difficult'}[FORMAT.value]
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
    own = {flag.name: flag.value for flag in sources.needed + sources.optional}
    every = {flag.name: flag.value for other in SOURCES.values() for flag in other.needed + other.optional}
    missing = [f'--{flag.name}' for flag in sources.needed if not flag.value]
    unused = [f'--{name}' for name, value in every.items() if name not in own and value is not None]
    if missing or unused:
        what = f'needs {", ".join(missing)}' if missing else f'does not take {", ".join(unused)}'
        sys.exit(f'error: --format={FORMAT.value} {what}')
    return {name: value for name, value in own.items() if value is not None}
