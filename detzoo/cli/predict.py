"""Detects the objects in images of any size.

    detzoo predict --workdir=runs/shapes --images='photos/*.jpg' --output=predictions

Writes a PNG with the boxes for each image, the first of them together as overview.png, and two lists: images.json
(COCO's images, with the name of each picture) and detections.json (COCO's results format, with the name of the
category, and the image's path in the folder that all images share). All files appear at the end, or none. The files of
an earlier prediction in the same folder are replaced; other files are left alone.

--exact puts each image on a canvas of its own, unrounded, as the publishers of imported weights do, and compiles once for each
size. Without it images of all sizes share the few canvases of the config.
"""

import sys

from absl import flags, logging

from detzoo.cli.checkpoint_flag import define_checkpoint
from detzoo.cli.paths import define_path

WORKDIR = define_path('workdir', None, 'The workdir of a run.', required=True)
IMAGES = flags.DEFINE_multi_string(
    'images',
    None,
    'Paths, folders or globs, separated by commas; names that exist may have commas',  # absl adds: repeat this option
    required=True,
)
OUTPUT = define_path('output', None, 'A folder for the results.', required=True)
SCORE_THRESHOLD = flags.DEFINE_float('score_threshold', 0.5, 'Detections with a lower score are left out.', 0, 1)
CHECKPOINT = define_checkpoint()
ON_BAD_RECORD = flags.DEFINE_enum(
    'on_bad_record', 'error', ['error', 'skip'], 'Whether an unreadable image is an error, or is left out and listed.'
)
EXACT = flags.DEFINE_bool(
    'exact', None, "Each image on a canvas of its own, see above; the config's choice by default."
)
MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', None, 'Images with more pixels are bad; 2**27 by default.', lower_bound=1
)
BIT_DEPTH = flags.DEFINE_integer(
    'bit_depth',
    None,
    'Bits of the pixels in files of 16 bits: 12, or 16 for dark pictures.',
    lower_bound=8,
    upper_bound=16,
)


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    from detzoo.data.records import MAX_PIXELS as DEFAULT_MAX_PIXELS
    from detzoo.inference.photos import predict_files, split_patterns
    from detzoo.inference.predictor import load
    from detzoo.run.parallel import keep_compilations

    keep_compilations()
    count, skipped = predict_files(
        load(WORKDIR.value, CHECKPOINT.value, exact=EXACT.value),
        [pattern for value in IMAGES.value for pattern in split_patterns(value)],
        OUTPUT.value,
        score_threshold=SCORE_THRESHOLD.value,
        on_bad_record=ON_BAD_RECORD.value,
        max_pixels=MAX_PIXELS.value or DEFAULT_MAX_PIXELS,
        bit_depth=BIT_DEPTH.value,
    )
    for message in skipped:
        print(f'skipped: {message}', file=sys.stderr)
    print(f'{count} images -> {OUTPUT.value}' + (f' ({len(skipped)} skipped)' if skipped else ''))
