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

from absl import flags

from detzoo.cli.paths import define_path

NAME = flags.DEFINE_string(
    'name', None, 'The name of the data set: lower-case letters, digits and underscores.', required=True
)
FORMAT = flags.DEFINE_enum('format', 'coco', ['coco', 'voc'], 'The format of the annotations.')
TRAIN_ANNOTATIONS = define_path('train_annotations', None, 'coco: JSON file of the training annotations.')
TRAIN_IMAGES = define_path('train_images', None, 'coco: folder of the training images; file_name is relative to it.')
VALIDATION_ANNOTATIONS = define_path('validation_annotations', None, 'coco: JSON file of the validation annotations.')
VALIDATION_IMAGES = define_path('validation_images', None, 'coco: folder of the validation images.')
VOC_ROOT = define_path('voc_root', None, 'voc: the unpacked folder VOCdevkit, with VOC2007 or VOC2012 in it.')
TRAIN_SPLITS = flags.DEFINE_list('train_splits', None, 'voc: lists of training images: 2007_trainval,2012_trainval.')
VALIDATION_SPLITS = flags.DEFINE_list('validation_splits', None, 'voc: lists of validation images: 2007_test.')
DATA_DIR = define_path('data_dir', None, 'The folder of the data sets; ~/tensorflow_datasets by default.')
ON_BAD_RECORD = flags.DEFINE_enum(
    'on_bad_record', 'error', ['error', 'skip'], 'Whether a bad record is an error, or is left out and listed.'
)
MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', None, 'Images with more pixels are bad; 2**27 by default.', lower_bound=1
)
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set of the same name.')

LISTED = 20  # skipped records of a split, on the terminal
# The flags that say where the data of each format are, in the order of the arguments of its function.
SOURCES = {
    'coco': (TRAIN_ANNOTATIONS, TRAIN_IMAGES, VALIDATION_ANNOTATIONS, VALIDATION_IMAGES),
    'voc': (VOC_ROOT, TRAIN_SPLITS, VALIDATION_SPLITS),
}


def main(settings: list[str]) -> None:
    del settings
    sources = SOURCES[FORMAT.value]
    others = [flag for name, flags_of_format in SOURCES.items() if name != FORMAT.value for flag in flags_of_format]
    missing = [f'--{flag.name}' for flag in sources if not flag.value]
    unused = [f'--{flag.name}' for flag in others if flag.value]
    if missing or unused:
        what = f'needs {", ".join(missing)}' if missing else f'does not take {", ".join(unused)}'
        sys.exit(f'error: --format={FORMAT.value} {what}')
    from detzoo.data.readers.coco import prepare_coco
    from detzoo.data.readers.voc import prepare_voc
    from detzoo.data.records import MAX_PIXELS as DEFAULT_MAX_PIXELS

    prepare = {'coco': prepare_coco, 'voc': prepare_voc}[FORMAT.value]
    prepared = prepare(
        NAME.value,
        *(flag.value for flag in sources),
        data_dir=DATA_DIR.value,
        on_bad_record=ON_BAD_RECORD.value,
        max_pixels=MAX_PIXELS.value or DEFAULT_MAX_PIXELS,
        overwrite=OVERWRITE.value,
    )
    ignored = {'coco': 'crowds', 'voc': 'difficult'}[FORMAT.value]
    for name, split in prepared.splits.items():
        objects = [thing for example in split.examples for thing in example['objects']]
        crowds = sum(thing['is_crowd'] for thing in objects)
        empty = sum(not example['objects'] for example in split.examples)
        print(f'{name}: {len(split.examples)} images ({empty} empty), {len(objects)} boxes ({crowds} {ignored})')
        for message in split.skipped[:LISTED]:
            print(f'  skipped: {message}')
        if split.skipped:
            print(f'  skipped {len(split.skipped)} records; all are listed in {prepared.folder}/skipped.json')
    print(f'{len(prepared.class_names)} classes: {", ".join(prepared.class_names)}')
    data_dir = f' --config.data.data_dir={DATA_DIR.value}' if DATA_DIR.value else ''
    print(f'wrote {prepared.folder}; use it with --config.data.name={NAME.value}{data_dir}')
