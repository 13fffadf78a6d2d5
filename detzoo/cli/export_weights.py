"""Writes what a run predicts with, for other programs.

    python scripts/export_weights.py --workdir=runs/shapes --output=exported
    python scripts/export_weights.py --workdir=runs/yolo --output=exported --format=darknet

The first gives weights.safetensors, in which variables are named by their paths ('backbone/stem_conv/kernel'), config.json
and classes.json; import_weights.py makes a workdir of them, with the same weights bit by bit. The second gives .weights, .cfg
and .names, which darknet and OpenCV run, and says what darknet does otherwise before and behind the network.
"""

import sys

from absl import app, flags, logging

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run.', required=True)
OUTPUT = define_path('output', None, 'The folder to make.', required=True)
CHECKPOINT = flags.DEFINE_integer('checkpoint', None, 'The step of the checkpoint; the newest by default.')
FORMAT = flags.DEFINE_enum('format', 'safetensors', ['safetensors', 'darknet'], 'Of the files.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --')
    logging.set_verbosity(logging.WARNING)
    from detzoo.weights.exchange import export_darknet, export_weights

    export = {'safetensors': export_weights, 'darknet': export_darknet}[FORMAT.value]
    try:
        otherwise = export(WORKDIR.value, OUTPUT.value, step=CHECKPOINT.value)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'{WORKDIR.value} -> {OUTPUT.value}')
    for key, (ours, darknets) in (otherwise or {}).items():
        print(
            f"{key} is {ours!r}; darknet's own detector does as with {darknets!r}, so finds other boxes in some images"
        )


if __name__ == '__main__':
    app.run(main)
