"""Boxes that may hold an object of any class, for detectors that make none themselves: R-CNN, SPP-net, Fast R-CNN.

`sliding_windows`: windows of all sizes everywhere, in a random order
`selective_search` (Uijlings et al., IJCV 2013, as in R-CNN, 1311.2524): regions of like pixels, merged step by step
`propose_split`: either of them, image by image -> COCO results, which `data.proposals` reads
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from tqdm.auto import tqdm

from detzoo.core.anchors import base_anchors
from detzoo.data.records import Dataset, decode_image
from detzoo.data.statistics import Annotations
from detzoo.errors import DataError

MOST_WINDOWS = 10**6  # of an image
STEP = 1.5  # largest ratio of one size of windows to the next
SEARCH = dict(base_k=50, inc_k=50, sigma=0.8)  # R-CNN's: segments of two sizes, on an image of SEARCH_WIDTH
SEARCH_WIDTH = 500  # pixels
SEARCH_SIDE = 20  # pixels of the image of SEARCH_WIDTH, shortest side of a proposal


def window_sizes(annotations: Annotations) -> tuple[float, ...]:
    """Chooses sizes of windows that suit the objects of a split: from nearly the smallest to nearly the largest.

    Args:
        annotations: annotations of the split.

    Returns:
        square roots of areas, pixels.

    Raises:
        DataError: there is no object.
    """
    boxes = annotations.boxes[~annotations.crowd]
    if not len(boxes):
        raise DataError('the split has no objects whose sizes windows could have: give the sizes of windows')
    low, high = np.quantile(np.sqrt(boxes[:, 2] * boxes[:, 3]), (0.02, 0.98))
    count = 1 + int(np.ceil(np.log(high / low) / np.log(STEP)))
    return tuple(np.geomspace(low, high, count).tolist())


def sliding_windows(
    size: tuple[int, int],
    *,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    stride: float,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Lays windows over an image, from border to border.

    Args:
        size: height and width of the image, pixels.
        sizes: square roots of the windows' areas, pixels; what is larger than the image is cut to it.
        aspect_ratios: height / width.
        stride: largest step from a window to the next, as a share of its width or height.
        rng: draws the order. Nothing else tells one window from another, and whoever takes the first n gets them from everywhere.

    Returns:
        [n, 4] float64 xywh.

    Raises:
        DataError: there would be more than MOST_WINDOWS.
    """
    shapes = base_anchors(sizes, aspect_ratios).astype(np.float64)
    shapes = np.unique(np.minimum(shapes[:, 2:] - shapes[:, :2], size[::-1]), axis=0)  # [shapes, 2] width, height
    rest = size[::-1] - shapes
    steps = 1 + np.ceil(np.minimum(rest / (stride * shapes), MOST_WINDOWS)).astype(int)
    if steps.prod(axis=1).sum() > MOST_WINDOWS:
        raise DataError(
            f'an image of {size[1]} x {size[0]} pixels would have more than {MOST_WINDOWS:,} windows: give a larger stride, or '
            'larger or fewer sizes'
        )
    windows = []
    for shape, (columns, rows), (right, bottom) in zip(shapes, steps, rest):
        x, y = np.meshgrid(np.linspace(0, right, columns), np.linspace(0, bottom, rows))
        windows.append(np.column_stack([x.ravel(), y.ravel(), np.tile(shape, (x.size, 1))]))
    return rng.permutation(np.concatenate(windows))


def check_selective_search() -> None:
    """Checks that OpenCV has selective search.

    Raises:
        ImportError: it has not; the message says which package does.
    """
    if not hasattr(cv2, 'ximgproc'):
        raise ImportError(
            'this OpenCV has no selective search (cv2.ximgproc). In another environment, put the package that has it in place of '
            "this one: pip uninstall opencv-python-headless; pip install 'opencv-contrib-python-headless<5'. The files that it "
            'writes there can be used here'
        )


def selective_search(image: np.ndarray, width: int = SEARCH_WIDTH) -> np.ndarray:
    """Proposes boxes by selective search in its fast mode, with R-CNN's settings: two colour spaces, segments of two sizes.

    Args:
        image: [h, w, 3] uint8 RGB.
        width: pixels to which the width of the image is changed first. A quarter of the pixels takes a quarter of the time.

    Returns:
        [n, 4] float64 xywh pixels of the image, in the order of OpenCV: the last regions to be merged, which are the largest, are
        likely to come first. Sides of less than SEARCH_SIDE, at a width of SEARCH_WIDTH, are left out.
    """
    scale = width / image.shape[1]
    resized = cv2.resize(image, (width, max(1, round(scale * image.shape[0]))), interpolation=cv2.INTER_LINEAR)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(resized[..., ::-1]))  # BGR
    search.switchToSelectiveSearchFast(**SEARCH)
    boxes = np.asarray(search.process(), np.float64).reshape(-1, 4)
    boxes = boxes[(boxes[:, 2:] >= SEARCH_SIDE * width / SEARCH_WIDTH).all(axis=1)]
    return np.clip(boxes / scale, 0, np.tile(image.shape[1::-1], 2))


def propose_split(
    dataset: Dataset, propose: Callable[[int, dict[str, Any]], np.ndarray], max_proposals: int
) -> list[dict[str, Any]]:
    """Proposes boxes for each image of a split.

    Args:
        dataset: the split.
        propose: function of the index and the record of an image that returns boxes [n, 4] xywh, best first.
        max_proposals: largest number that is kept of an image, the first ones.

    Returns:
        COCO results. All have the first class, since none is meant; scores fall with the rank, from 1 on.
    """
    results = []
    for index, record in enumerate(tqdm(dataset.records, desc=f'proposals for {dataset.split}', unit='image')):
        boxes = propose(index, record)[:max_proposals]
        for rank, box in enumerate(boxes.round(2).tolist()):
            score = round(1 - rank / len(boxes), 6)
            results.append(
                dict(image_id=record['image_id'], category_id=dataset.category_ids[0], bbox=box, score=score)
            )
    return results


def windows_of_record(
    index: int,
    record: dict[str, Any],
    *,
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    stride: float,
    seed: int = 0,
) -> np.ndarray:
    """Lays windows over the image of a record, which is not decoded; the other arguments are those of `sliding_windows`."""
    rng = np.random.RandomState([seed, index])
    size = record['height'], record['width']
    return sliding_windows(size, sizes=sizes, aspect_ratios=aspect_ratios, stride=stride, rng=rng)


def search_record(index: int, record: dict[str, Any], *, width: int = SEARCH_WIDTH) -> np.ndarray:
    """Runs selective search on the image of a record, see `selective_search`."""
    del index  # the search draws nothing from it
    return selective_search(decode_image(record['image'], name=record['file_name']), width)
