"""Writes a run for other programs, or the images of a data set as files.

    detzoo export --workdir=runs/shapes --output=exported --format=stablehlo
    detzoo export --workdir=runs/shapes --output=exported
    detzoo export --workdir=runs/yolo --output=exported --format=darknet
    detzoo export --name=shapes --split='validation[:8]' --output=pictures

The first writes the detector as a program with its weights, in StableHLO, which runs where detzoo is not installed, on CPU,
GPU and TPU; model.json says what goes in and what comes out, and run.py calls it: python exported/run.py photo.jpg. The
second writes the weights alone: weights.safetensors, config.json and classes.json. A variable is named by its path, for
example 'backbone/stem_conv/kernel'. detzoo import makes a workdir of them again, with the same weights bit by bit. The third
writes the .weights, .cfg and .names that darknet and OpenCV run, and says what darknet does differently before and after the
network. The fourth writes the images of a data set as they are stored.
"""

import sys

from absl import flags, logging

from detzoo.cli.checkpoint_flag import define_checkpoint
from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run that is written.')
CHECKPOINT = define_checkpoint()
FORMAT = flags.DEFINE_enum(
    'format',
    'safetensors',
    ['safetensors', 'darknet', 'stablehlo'],
    'What is written of the run: its weights, or with stablehlo a program.',
)
NAME = flags.DEFINE_string(
    'name', None, "The data set whose images are written: 'shapes', 'histology', or a name given to detzoo prepare."
)
SPLIT = flags.DEFINE_string('split', 'validation', "'train', 'validation', or a slice of them: 'validation[:8]'.")
DATA_DIR = define_path('data_dir', None, 'The folder of the data sets; ~/tensorflow_datasets by default.')
OUTPUT = define_path('output', None, 'The folder for the files; a run needs a new one.', required=True)
ERRORS = (ValueError,)  # weights that the format cannot hold


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    if bool(WORKDIR.value) == bool(NAME.value):
        sys.exit('error: give either --workdir, to export a run, or --name, to export the images of a data set')
    if WORKDIR.value and FORMAT.value == 'stablehlo':
        export_program()
    elif WORKDIR.value:
        export_weights()
    else:
        export_images()


def export_program() -> None:
    """Writes a run as programs, and prints their canvases."""
    from detzoo.inference import export

    canvases = export.export_program(WORKDIR.value, OUTPUT.value, step=CHECKPOINT.value)
    listed = ', '.join(f'{height} x {width}' for height, width in canvases)
    print(f'{WORKDIR.value} -> {OUTPUT.value}, for canvases of {listed} pixels')


def export_weights() -> None:
    """Writes the weights of a run, and prints in which keys darknet differs from its config."""
    from detzoo.weights import exchange

    export = {'safetensors': exchange.export_weights, 'darknet': exchange.export_darknet}[FORMAT.value]
    different = export(WORKDIR.value, OUTPUT.value, step=CHECKPOINT.value)
    print(f'{WORKDIR.value} -> {OUTPUT.value}')
    for key, (ours, darknets) in (different or {}).items():
        print(f"{key} is {ours!r}; darknet's own detector uses {darknets!r}, so it finds other boxes in some images")


def export_images() -> None:
    """Writes the image files of a split."""
    from tqdm import tqdm

    from detzoo.data.catalog import open_dataset
    from detzoo.files import on_disk

    folder = on_disk(OUTPUT.value)
    dataset = open_dataset(NAME.value, SPLIT.value, DATA_DIR.value)
    for record in tqdm(dataset.records, desc='export', unit='image'):
        path = folder / record['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record['image'])
    print(f'{len(dataset.records)} images -> {OUTPUT.value}')
