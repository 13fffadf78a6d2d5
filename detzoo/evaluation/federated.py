"""Ground truths in which each image is annotated for some of the classes only, as LVIS is (arXiv:1908.03195, section 3).

Such a COCO dict has for every image `neg_category_ids`, the classes that are known to be absent, and
`not_exhaustive_category_ids`, those of which only some objects are annotated; its categories have a `frequency`: 'r' for rare (in
at most 10 training images), 'c' for common (at most 100), or 'f' for frequent. Detections are judged as LVIS does:

- Those of a class that the image is not annotated for, neither with objects nor as absent, do not count.
- Of a class that is not annotated exhaustively, those that find no object do not count.
- An image has at most 300 detections, of all classes together.
"""

from typing import Any

FREQUENCIES = {'r': 'rare', 'c': 'common', 'f': 'frequent'}
LISTS = 'neg_category_ids', 'not_exhaustive_category_ids'
MAX_DETECTIONS = 300  # per image


def is_federated(ground_truth: dict[str, Any]) -> bool:
    """Tells whether each image is annotated for some of the classes only.

    Raises:
      ValueError: some images have the lists and others lack one, or a category has no frequency.
    """
    images = ground_truth['images']
    if not any(key in image for image in images for key in LISTS):
        return False
    for image in images:
        for key in LISTS:
            if key not in image:
                raise ValueError(f'image {image["id"]}: other images have {key}, this one has none')
    for category in ground_truth['categories']:
        if category.get('frequency') not in FREQUENCIES:
            raise ValueError(f'category {category["id"]}: its frequency must be one of {", ".join(FREQUENCIES)}')
    return True


def without_lists(ground_truth: dict[str, Any]) -> dict[str, Any]:
    """Makes a ground truth one in which every image counts as annotated for all classes."""
    images = [{key: value for key, value in image.items() if key not in LISTS} for image in ground_truth['images']]
    return {**ground_truth, 'images': images}


def is_judged(image: dict[str, Any], present: set[int], category_id: int) -> bool:
    """Tells whether a detection that finds no object is wrong, for the image is annotated exhaustively for its class.

    Args:
      image: an entry of `images` of any ground truth.
      present: ids of the categories of the image's objects.
      category_id: id of the detection's category.
    """
    absent, inexhaustive = (image.get(key) for key in LISTS)
    if absent is None:
        return True
    return (category_id in absent or category_id in present) and category_id not in inexhaustive
