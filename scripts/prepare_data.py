"""Prepares your own annotated images for detzoo.

  python scripts/prepare_data.py --format=coco --name=birds \\
      --train_annotations=train.json --train_images=images/train \\
      --validation_annotations=val.json --validation_images=images/val

Every record and every image is checked first; nothing is written until all is well. A problem is one line that names
the file and the record. With --on_bad_record=skip bad records are left out and listed. Afterwards train on the data
with --config.data.name=birds.
"""

import sys

from absl import app, flags

from detzoo.data import records
from detzoo.data.coco import prepare_coco

flags.DEFINE_enum('format', 'coco', ['coco'], 'The format of the annotations; one so far.')
_NAME = flags.DEFINE_string('name', None, 'How to call the data set: lower-case letters, digits and underscores.')
_TRAIN_ANNOTATIONS = flags.DEFINE_string('train_annotations', None, 'JSON file of the training annotations.')
_TRAIN_IMAGES = flags.DEFINE_string('train_images', None, 'Folder of the training images; file_name is relative to it.')
_VALIDATION_ANNOTATIONS = flags.DEFINE_string('validation_annotations', None, 'JSON file of the validation ones.')
_VALIDATION_IMAGES = flags.DEFINE_string('validation_images', None, 'Folder of the validation images.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where data sets lie; by default ~/tensorflow_datasets.')
_ON_BAD_RECORD = flags.DEFINE_enum(
    'on_bad_record', 'error', ['error', 'skip'], 'Stop at the first bad record, or leave bad records out and list them.'
)
_MAX_PIXELS = flags.DEFINE_integer('max_pixels', records.MAX_PIXELS, 'Images with more pixels are bad records.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace a data set of the same name.')
flags.mark_flags_as_required(
    ['name', 'train_annotations', 'train_images', 'validation_annotations', 'validation_images']
)


def main(argv: list[str]) -> None:
    del argv
    try:
        prepared = prepare_coco(
            _NAME.value,
            _TRAIN_ANNOTATIONS.value,
            _TRAIN_IMAGES.value,
            _VALIDATION_ANNOTATIONS.value,
            _VALIDATION_IMAGES.value,
            data_dir=_DATA_DIR.value,
            on_bad_record=_ON_BAD_RECORD.value,
            max_pixels=_MAX_PIXELS.value,
            overwrite=_OVERWRITE.value,
        )
    except records.DataError as error:
        sys.exit(f'error: {error}')
    for name, split in prepared.splits.items():
        objects = [thing for example in split.examples for thing in example['objects']]
        crowds = sum(thing['is_crowd'] for thing in objects)
        empty = sum(not example['objects'] for example in split.examples)
        print(f'{name}: {len(split.examples)} images ({empty} empty), {len(objects)} boxes ({crowds} crowds)')
        for message in split.skipped:
            print(f'  skipped: {message}')
        if split.skipped:
            print(f'  skipped {len(split.skipped)} records; also listed in {prepared.folder}/skipped.json')
    print(f'{len(prepared.class_names)} classes: {", ".join(prepared.class_names)}')
    data_dir = f' --config.data.data_dir={_DATA_DIR.value}' if _DATA_DIR.value else ''
    print(f'wrote {prepared.folder}; use it with --config.data.name={_NAME.value}{data_dir}')


if __name__ == '__main__':
    app.run(main)
