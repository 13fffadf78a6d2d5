"""Writes the pictures of a data set as image files, as they are stored.

python scripts/export_images.py --name=shapes --split='validation[:8]' --output=pictures
"""

import pathlib
import sys

from absl import app, flags, logging
from tqdm import tqdm

from detzoo.cli.paths import define_path

NAME = flags.DEFINE_string(
    'name', None, "A data set: 'shapes', 'histology', or one of scripts/prepare_data.py.", required=True
)
SPLIT = flags.DEFINE_string('split', 'validation', "'train', 'validation', or a slice of them: 'validation[:8]'.")
OUTPUT = define_path('output', None, 'A folder for the files.', required=True)
DATA_DIR = define_path('data_dir', None, 'Where data sets lie; default: ~/tensorflow_datasets.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(logging.WARNING)
    from detzoo.data.catalog import open_dataset
    from detzoo.errors import DataError

    try:
        dataset = open_dataset(NAME.value, SPLIT.value, DATA_DIR.value)
        for record in tqdm(dataset.records, desc='export', unit='image'):
            path = pathlib.Path(OUTPUT.value, record['file_name'])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record['image'])
    except (DataError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(dataset.records)} images -> {OUTPUT.value}')


if __name__ == '__main__':
    app.run(main)
