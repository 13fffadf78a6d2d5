"""Prepares your own annotated images, or PASCAL VOC, for detzoo.

  python scripts/prepare_data.py --format=coco --name=birds \\
      --train_annotations=train.json --train_images=images/train \\
      --validation_annotations=val.json --validation_images=images/val
  python scripts/prepare_data.py --format=voc --name=voc --voc_root=VOCdevkit \\
      --train_splits=2007_trainval,2012_trainval --validation_splits=2007_test

Every record and every image is checked first; nothing is written until all is well. A problem is one line that names
the file and the record. With --on_bad_record=skip bad records are left out and listed. Afterwards train on the data
with --config.data.name=birds.
"""

import sys

from absl import app, flags

from detzoo.cli.paths import define_path
from detzoo.data import records
from detzoo.data.readers.coco import prepare_coco
from detzoo.data.readers.voc import prepare_voc
from detzoo.errors import DataError

_FORMAT = flags.DEFINE_enum('format', 'coco', ['coco', 'voc'], 'The format of the annotations.')
_NAME = flags.DEFINE_string(
    'name', None, 'How to call the data set: lower-case letters, digits and underscores.', required=True
)
_TRAIN_ANNOTATIONS = define_path('train_annotations', None, 'coco: JSON file of the training annotations.')
_TRAIN_IMAGES = define_path('train_images', None, 'coco: folder of the training images; file_name is relative to it.')
_VALIDATION_ANNOTATIONS = define_path('validation_annotations', None, 'coco: JSON file of the validation ones.')
_VALIDATION_IMAGES = define_path('validation_images', None, 'coco: folder of the validation images.')
_VOC_ROOT = define_path('voc_root', None, 'voc: the unpacked folder VOCdevkit, with VOC2007 or VOC2012 in it.')
_TRAIN_SPLITS = flags.DEFINE_list('train_splits', None, 'voc: lists of training images: 2007_trainval,2012_trainval.')
_VALIDATION_SPLITS = flags.DEFINE_list('validation_splits', None, 'voc: lists of validation images: 2007_test.')
_DATA_DIR = define_path('data_dir', None, 'Where data sets lie; by default ~/tensorflow_datasets.')
_ON_BAD_RECORD = flags.DEFINE_enum(
    'on_bad_record', 'error', ['error', 'skip'], 'Stop at the first bad record, or leave bad records out and list them.'
)
_MAX_PIXELS = flags.DEFINE_integer('max_pixels', records.MAX_PIXELS, 'Images with more pixels are bad records.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set of the same name.')

LISTED = 20  # skipped records of a split, on the terminal

# The function that prepares each format, and the flags that say where the data are: its arguments after the name.
FORMATS = {
    'coco': (prepare_coco, (_TRAIN_ANNOTATIONS, _TRAIN_IMAGES, _VALIDATION_ANNOTATIONS, _VALIDATION_IMAGES)),
    'voc': (prepare_voc, (_VOC_ROOT, _TRAIN_SPLITS, _VALIDATION_SPLITS)),
}


def main(argv: list[str]) -> None:
    del argv
    prepare, sources = FORMATS[_FORMAT.value]
    others = [flag for name, (_, others) in FORMATS.items() if name != _FORMAT.value for flag in others]
    missing = [f'--{flag.name}' for flag in sources if not flag.value]
    unused = [f'--{flag.name}' for flag in others if flag.value]
    if missing or unused:
        what = f'needs {", ".join(missing)}' if missing else f'does not take {", ".join(unused)}'
        sys.exit(f'error: --format={_FORMAT.value} {what}')
    try:
        prepared = prepare(
            _NAME.value,
            *(flag.value for flag in sources),
            data_dir=_DATA_DIR.value,
            on_bad_record=_ON_BAD_RECORD.value,
            max_pixels=_MAX_PIXELS.value,
            overwrite=_OVERWRITE.value,
        )
    except DataError as error:
        sys.exit(f'error: {error}')
    ignored = {'coco': 'crowds', 'voc': 'difficult'}[_FORMAT.value]
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
    data_dir = f' --config.data.data_dir={_DATA_DIR.value}' if _DATA_DIR.value else ''
    print(f'wrote {prepared.folder}; use it with --config.data.name={_NAME.value}{data_dir}')


if __name__ == '__main__':
    app.run(main)
