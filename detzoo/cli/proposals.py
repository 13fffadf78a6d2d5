"""Writes boxes that may hold an object: the proposals of R-CNN, SPP-net and Fast R-CNN.

    detzoo proposals --data=shapes --output=proposals
    detzoo proposals --data=shapes --output=proposals --method=selective_search
    detzoo proposals --workdir=runs/faster_rcnn --output=proposals --method=rpn

Writes a file in COCO's results format for each split, such as shapes_sliding_window_train.json.gz, for data.train_proposals and
data.validation_proposals of a config. Prints how many of the split's objects the best 1, 10, 100 and 1000 boxes of an image find.

sliding_window lays windows over the image. Without --sizes they are as large as the objects of the training split are.
selective_search merges regions of like pixels. It needs OpenCV with its contributed modules, in an environment of its own:
pip uninstall opencv-python-headless; pip install 'opencv-contrib-python-headless<5'
rpn takes the proposals of the first stage of a trained detector, for the data that it was trained on.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from absl import flags, logging

from detzoo.cli.paths import define_path

OUTPUT = define_path('output', None, 'A folder for the files, made if missing.', required=True)
METHOD = flags.DEFINE_enum(
    'method', 'sliding_window', ['sliding_window', 'selective_search', 'rpn'], 'Where boxes come from, see above.'
)
DATA = flags.DEFINE_string('data', None, 'The name of the data set; for rpn that of the run.')
WORKDIR = define_path('workdir', None, 'rpn: the workdir of a run.')
DATA_DIR = define_path('data_dir', None, 'The folder of the data sets; ~/tensorflow_datasets by default.')
SPLITS = flags.DEFINE_list('splits', ['train', 'validation'], 'Splits, in the notation of TFDS.')
MAX_PROPOSALS = flags.DEFINE_integer(
    'max_proposals', 1000, 'Boxes of an image, at most; of an RPN as many as its config says.', lower_bound=1
)
SIZES = flags.DEFINE_list('sizes', None, 'sliding_window: square roots of areas, pixels, like 16,32,64.')
ASPECT_RATIOS = flags.DEFINE_list('aspect_ratios', ['1'], 'sliding_window: heights over widths, like 0.5,1,2.')
STRIDE = flags.DEFINE_float(
    'stride', 0.5, 'sliding_window: the step from a window to the next, as a share of its sides.', 0.01, 10
)
SEED = flags.DEFINE_integer('seed', 0, 'sliding_window: seed of the order of windows.', 0, 2**31)
WIDTH = flags.DEFINE_integer(
    'width', 500, 'selective_search: pixels to which the width of an image is changed first.', 20, 2000
)
ERRORS = (ImportError,)  # an OpenCV without selective search


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    by_rpn = METHOD.value == 'rpn'
    if by_rpn != (WORKDIR.value is not None) or by_rpn != (DATA.value is None):
        sys.exit('error: --method=rpn needs --workdir, whose data set it takes; the other methods need --data')
    from detzoo.data.proposals import file_name
    from detzoo.data.records import ground_truth
    from detzoo.evaluation import format_recall, object_recall, write_detections
    from detzoo.files import as_path
    from detzoo.inference.dataset import propose_workdir
    from detzoo.run.parallel import keep_compilations

    keep_compilations()
    folder = as_path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    propose = partial(propose_workdir, WORKDIR.value, data_dir=DATA_DIR.value) if by_rpn else _by_image()
    for split in SPLITS.value:
        dataset, results = propose(split)
        path = folder / file_name(dataset.name, METHOD.value, split)
        write_detections(path, results)
        print(f'{path}: {len(results)} proposals for {len(dataset.records)} images')
        print(format_recall(object_recall(ground_truth(dataset), results), 'proposals') + '\n')


def _by_image() -> Callable[[str], tuple[Any, list[dict[str, Any]]]]:
    """Makes a function of a split that opens it and proposes boxes image by image."""
    from detzoo.data import windows
    from detzoo.data.catalog import open_dataset
    from detzoo.data.statistics import read_annotations

    open_data = partial(open_dataset, DATA.value, data_dir=DATA_DIR.value)
    if METHOD.value == 'selective_search':
        windows.check_selective_search()
        propose = partial(windows.search_record, width=WIDTH.value)
    else:
        sizes = _numbers(SIZES) if SIZES.value else windows.window_sizes(read_annotations(open_data('train')))
        print(f'windows of {", ".join(f"{size:.0f}" for size in sizes)} pixels')
        shapes = dict(sizes=sizes, aspect_ratios=_numbers(ASPECT_RATIOS), stride=STRIDE.value, seed=SEED.value)
        propose = partial(windows.windows_of_record, **shapes)

    def of_split(split: str) -> tuple[Any, list[dict[str, Any]]]:
        dataset = open_data(split)
        return dataset, windows.propose_split(dataset, propose, MAX_PROPOSALS.value)

    return of_split


def _numbers(flag: flags.FlagHolder[Any]) -> tuple[float, ...]:
    """Reads a list of positive numbers; ends the program where it is none."""
    try:
        numbers = tuple(map(float, flag.value))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        sys.exit(f'error: --{flag.name}={",".join(flag.value)}: it must be positive numbers, separated by commas')
    return numbers
