"""Detects the objects in images of any size.

    python scripts/predict.py --workdir=runs/shapes --images='photos/*.jpg' --output=predictions

Writes for each image a PNG with the boxes drawn, the first of them together as overview.png, and two lists: images.json,
COCO's images with the picture of each, and detections.json, COCO's results format with the category's name and the image's
path added. All of it appears at the end, or nothing. The files of an earlier prediction in the same folder are replaced, what
else lies there is left alone.

--exact puts each image on a canvas of its own, unrounded, as the publishers of imported weights do; it compiles once for each
size. Without it images of all sizes share the few canvases of the config.
"""

import glob
import os
import sys

from absl import app, flags, logging

from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run.', required=True)
IMAGES = flags.DEFINE_multi_string(
    'images',
    None,
    'Paths, folders or globs, separated by commas; may be given several times, say for a name with commas.',
    required=True,
)
OUTPUT = define_path('output', None, 'A folder for the results.', required=True)
SCORE_THRESHOLD = flags.DEFINE_float('score_threshold', 0.5, 'Lower scores are left out.', 0, 1)
CHECKPOINT = flags.DEFINE_integer('checkpoint', None, 'The step of the checkpoint; the newest by default.')
ON_BAD_RECORD = flags.DEFINE_enum('on_bad_record', 'error', ['error', 'skip'], 'What an unreadable image leads to.')
EXACT = flags.DEFINE_bool('exact', None, "Each image on a canvas of its own, see above; the config's by default.")
MAX_PIXELS = flags.DEFINE_integer('max_pixels', 2**27, 'Larger images are refused before they are decoded.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'what is {argv[1]!r}? Flags begin with --; quote globs, or separate paths by commas')
    logging.set_verbosity(logging.WARNING)
    from detzoo.errors import ConfigError, DataError
    from detzoo.inference.photos import predict_files
    from detzoo.inference.predictor import load
    from detzoo.run.parallel import keep_compilations

    keep_compilations()
    try:
        count, skipped = predict_files(
            load(WORKDIR.value, CHECKPOINT.value, exact=EXACT.value),
            [pattern for value in IMAGES.value for pattern in patterns_of(value)],
            OUTPUT.value,
            score_threshold=SCORE_THRESHOLD.value,
            on_bad_record=ON_BAD_RECORD.value,
            max_pixels=MAX_PIXELS.value,
        )
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f'error: {error}')
    for message in skipped:
        print(f'skipped: {message}', file=sys.stderr)
    print(f'{count} images -> {OUTPUT.value}' + (f' ({len(skipped)} skipped)' if skipped else ''))


def patterns_of(value: str) -> list[str]:
    """Splits a flag at its commas, unless all of it is the name of something."""
    whole = os.path.expanduser(value)
    return [whole] if os.path.lexists(whole) or glob.glob(whole, recursive=True) else value.split(',')


if __name__ == '__main__':
    app.run(main)
