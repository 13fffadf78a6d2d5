"""One record for every data set.

    a builder (made.shapes, made.histology, or readers.prepare's for all readers; `dataset_info`, `features` and `mask_object`
    are what builders share)
      -> `write_dataset`                 ->  a TFDS data set on disk, all of it or nothing
      -> `catalog.open_dataset`          ->  Dataset: class names, category ids, and records with random access
    dataset.records[i]                   ->  a dict of numpy, the image still encoded
    `with_objects(dataset, counts)`      ->  the Dataset without the images that have no objects
    `decode_image(record['image'])`      ->  [h, w, 3] uint8 RGB
    `ground_truth(dataset)`              ->  the COCO dict against which the evaluation scores

Boxes stay as in COCO's JSON: xywh, absolute pixels of the decoded image, float64; so an AP measured here equals the AP
against the original file to the last bit. The pipeline turns them into xyxy.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import pycocotools.mask
import tensorflow_datasets as tfds
from tqdm.auto import tqdm

from detzoo.data.truth import FEDERATED, Stored, file_name, read_rows, rows_of, write_rows
from detzoo.errors import DataError
from detzoo.files import AnyPath, incomplete_folder, move_folder

DESCRIPTION = 'dataset_info.json'  # TFDS's file, which every data set has
MAX_PIXELS = 2**27  # 134 megapixels, 400 MB when decoded: larger images are refused unless the caller allows them
_PILLOWS_LIMIT = threading.Lock()  # held by a thread that has set Pillow's limit aside


def dataset_info(
    builder: tfds.core.DatasetBuilder,
    *,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    description: str,
    frequencies: Sequence[str] | None = None,
    **kwargs: Any,
) -> tfds.core.DatasetInfo:
    """Makes the TFDS description that all data sets share: features, classes and order.

    Args:
        builder: the builder it describes.
        class_names: [K] names, in the order of the labels.
        category_ids: [K] the data's own ids of the classes.
        description: a sentence about the data.
        frequencies: [K] how frequent the classes are, 'r', 'c' or 'f', of data whose images are annotated for some of the classes
            only; their records have the lists of FEDERATED. None for all other data.
        **kwargs: `homepage`, `citation` or `license`.

    Returns:
        the info, with `category_ids`, and any `frequencies`, in its metadata. Records keep the order in which they are generated.
    """
    metadata = tfds.core.MetadataDict(category_ids=list(category_ids))
    if frequencies is not None:
        metadata['frequencies'] = list(frequencies)
    return tfds.core.DatasetInfo(
        builder=builder,
        description=description,
        features=features(class_names, federated=frequencies is not None),
        metadata=metadata,
        disable_shuffling=True,
        **kwargs,
    )


def features(class_names: Sequence[str], *, federated: bool = False) -> tfds.features.FeaturesDict:
    """Makes the TFDS features of a record.

    Floats are stored as raw bytes, since TFDS would round float64 to float32.

    Args:
        class_names: [K] names, in the order of the labels.
        federated: whether images have the lists of FEDERATED.
    """
    lists = {key: tfds.features.Sequence(np.int64) for key in FEDERATED} if federated else {}
    return tfds.features.FeaturesDict(
        lists
        | {
            'image': tfds.features.Image(),  # the bytes of the source file
            'image_id': np.int64,
            'file_name': tfds.features.Text(),
            'height': np.int32,
            'width': np.int32,
            'objects': tfds.features.Sequence(
                {
                    'id': np.int64,
                    'bbox': tfds.features.Tensor(shape=(4,), dtype=np.float64, encoding='bytes'),
                    'area': tfds.features.Tensor(shape=(), dtype=np.float64, encoding='bytes'),
                    'label': tfds.features.ClassLabel(names=class_names),
                    'is_crowd': np.bool_,
                    'segmentation': tfds.features.Text(),  # counts of COCO's compressed RLE of the whole image, or ''
                }
            ),
        }
    )


def mask_object(object_id: int, label: int, mask: np.ndarray, is_crowd: bool) -> dict[str, Any]:
    """Describes a mask [h, w] bool of the whole image as an object of `features`, its box tight around it."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    return {
        'id': object_id,
        'bbox': pycocotools.mask.toBbox(rle),
        'area': pycocotools.mask.area(rle),
        'label': label,
        'is_crowd': is_crowd,
        'segmentation': rle['counts'],
    }


class Records(Sequence):
    """The records of a split: random access, safe in many threads, picklable; a source for `grain.MapDataset`.

    Record i is a dict:
        image: bytes of the encoded file.
        image_id: int, the data's own id.
        file_name: str.
        height, width: int, pixels of the decoded image.
        boxes: [N, 4] float64 xywh pixels.
        labels: [N] int64 in 0..K-1.
        is_crowd: [N] bool.
        areas: [N] float64 square pixels; the mask's area if there is one.
        annotation_ids: [N] int64, the data's own ids.
        segmentations: list of N str, the counts of COCO's compressed RLE; '' without a mask.
        neg_category_ids, not_exhaustive_category_ids: [n] int64, the data's own ids of classes that are known to be absent, and of
            those of which only some objects are annotated; missing in data that are annotated for all classes.
    """

    def __init__(self, source: Sequence, truth: tuple[AnyPath, Stored] | None = None):
        """Wraps a TFDS data source.

        Args:
            source: the source, whose images are served undecoded.
            truth: the file of the split's annotations, and what the data set says of it, see `truth`; None if there is none.
        """
        self._source, self.truth = source, truth

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        example = self._source[index]
        objects = example['objects']
        return {
            'image': example['image'],
            'image_id': int(example['image_id']),
            'file_name': example['file_name'].decode(),
            'height': int(example['height']),
            'width': int(example['width']),
            'boxes': np.asarray(objects['bbox'], np.float64).reshape(-1, 4),
            'labels': np.asarray(objects['label'], np.int64),
            'is_crowd': np.asarray(objects['is_crowd'], bool),
            'areas': np.asarray(objects['area'], np.float64),
            'annotation_ids': np.asarray(objects['id'], np.int64),
            'segmentations': [counts.decode() for counts in objects['segmentation']],
        } | {key: np.asarray(example[key], np.int64) for key in FEDERATED if key in example}


class SelectedRecords(Sequence):
    """Some of the records of a split, in their order; used like `Records`."""

    def __init__(self, records: Sequence, rows: np.ndarray):
        """Takes all records and the [n] indices of those to keep."""
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        return self._records[int(self._rows[index])]


class Dataset(NamedTuple):
    """One split of a data set.

    name: name of the data set.
    split: name of the split, or a slice in TFDS's notation: 'train[:10%]'.
    class_names: [K], in the order of the labels.
    category_ids: [K], the data's own id of each label.
    records: random access to the records.
    checksum: `checksum` of all splits of the data set; None if an older detzoo prepared it.
    labelled: how many of the records, the last ones, are images of which only a label is known (`classes.with_labelled`).
    frequencies: [K] see `dataset_info`; None for data that are annotated for all classes.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Records
    checksum: str | None = None
    labelled: int = 0
    frequencies: tuple[str, ...] | None = None


def data_source(builder: tfds.core.DatasetBuilder, split: str) -> Sequence:
    """Gives random access to the prepared examples of a split, their images undecoded."""
    return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


def write_dataset(
    make_builder: Callable[..., tfds.core.DatasetBuilder], data_dir: AnyPath, *, overwrite: bool = False
) -> AnyPath:
    """Prepares a data set in a hidden folder beside its place, then moves it there: all of it appears, or nothing.

    Args:
        make_builder: makes the builder, given `data_dir`.
        data_dir: the folder of all data sets; made if missing.
        overwrite: replace a data set in its place; that one stays if this fails.

    Returns:
        the data set's folder, `data_dir/name/version`.

    Raises:
        OSError: it exists already.
    """
    with incomplete_folder(data_dir) as scratch:
        builder = make_builder(data_dir=scratch)
        tfds.disable_progress_bar()  # builders show one bar of their own
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                file_format='array_record',
                download_dir=scratch / 'downloads',
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir(data_dir)),
            )
        splits = {split: Records(data_source(builder, split)) for split in builder.info.splits}
        builder.info.metadata['checksum'] = checksum(splits)
        builder.info.metadata['truth'] = {split: _write_truth(builder, split, own) for split, own in splits.items()}
        builder.info.write_to_directory(builder.data_path)
        folder = data_dir / builder.name / str(builder.version)
        folder.parent.mkdir(exist_ok=True)
        move_folder(pathlib.Path(builder.data_dir), folder, overwrite=overwrite, last=DESCRIPTION)
    return folder


def _write_truth(builder: tfds.core.DatasetBuilder, split: str, records: Records) -> Stored:
    """Writes the file of a split's annotations beside its records."""
    shown = tqdm(records, desc=f'annotations of {split}', unit='image', leave=False)
    rows = (rows_of(record, builder.info.metadata['category_ids']) for record in shown)
    return write_rows(builder.data_path / file_name(split), rows)


def checksum(splits: Mapping[str, Records]) -> str:
    """Computes a digest of a data set's records and their images' bytes, whatever folder and files hold them.

    Args:
        splits: the records of each split.

    Returns:
        the SHA-256, as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(json.dumps([split, len(splits[split])]).encode())
        for record in tqdm(splits[split], desc=f'checksum of {split}', unit='image', leave=False):
            image = record.pop('image')
            digest.update(hashlib.sha256(image).digest())
            digest.update(
                json.dumps({key: np.asarray(value).tolist() for key, value in record.items()}, sort_keys=True).encode()
            )
    return digest.hexdigest()


def manual_dir(data_dir: AnyPath) -> AnyPath:
    """Returns the folder in which builders look for files that the user has put there: TFDS's usual one."""
    return data_dir / 'downloads' / 'manual'


def decode_image(
    data: bytes, *, name: str, max_pixels: int = MAX_PIXELS, strict: bool = False, bit_depth: int | None = None
) -> np.ndarray:
    """Decodes an image of any kind to 8-bit RGB, turned as its EXIF orientation says; alpha is dropped.

    A file of 16 bits often holds a camera's 10, 12 or 14. Its own pixels cannot tell: a dark picture of 16 bits has no large
    values either. So a file whose pixels leave the highest two bits unused is refused unless the caller gives `bit_depth`.

    Args:
        data: the encoded file.
        name: name of the file in error messages.
        max_pixels: an image with more pixels is refused by its header, before memory is taken for it.
        strict: also refuse an image whose data end early. This takes a second decoding, by Pillow: OpenCV fills what a JPEG
            lacks with gray and says nothing.
        bit_depth: bits of the pixels in files of 16 bits, 8 to 16; the highest 8 of them are taken.

    Returns:
        [h, w, 3] uint8.

    Raises:
        DataError: it is not an image, is cut short (always noticed if strict), is larger than `max_pixels`, or has 16 bits and
            nobody knows which of them are used.
    """
    if bit_depth not in (None, *range(8, 17)):
        raise ValueError(f'bit_depth must be 8 to 16, not {bit_depth}')
    try:
        with open_image(data) as image:
            width, height = image.size
            if strict and width * height <= max_pixels:
                image.load()
    except Exception as error:  # Pillow does not document what its readers raise on broken bytes
        raise DataError(f'{name}: not a whole image ({error}); replace the file or remove it from the data') from error
    if width * height > max_pixels:
        raise DataError(f'{name}: {width} x {height} pixels are over max_pixels={max_pixels}; downscale it')
    pixels = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name)
    if pixels.dtype == np.uint16:
        _check_bit_depth(int(pixels.max()), bit_depth, name)
        if bit_depth not in (None, 16):
            pixels = (pixels >> (bit_depth - 8)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        pixels = _decode(data, cv2.IMREAD_COLOR, name)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def to_8_bits(data: bytes, *, name: str, bit_depth: int) -> bytes:
    """Writes a file of 16 bits as a PNG of 8 bits, as `decode_image` reads it; returns any other file as it is.

    Args:
        data: the encoded file, which `decode_image` has checked.
        name: name of the file in error messages.
        bit_depth: bits of the pixels, see `decode_image`.
    """
    if _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, name).dtype != np.uint16:
        return data
    image = decode_image(data, name=name, max_pixels=sys.maxsize, bit_depth=bit_depth)
    return cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def open_image(data: bytes) -> PIL.Image.Image:
    """Reads an image's header by Pillow, without Pillow's own limit of pixels, which is lower than some panoramas."""
    with _PILLOWS_LIMIT:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(io.BytesIO(data))
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _decode(data: bytes, flags: int, name: str) -> np.ndarray:
    """Decodes an image by OpenCV: [h, w, 3] BGR."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # a side of more than 2**20 pixels, or 2**30 pixels in all
        pixels = None
    if pixels is None:
        raise DataError(f'{name}: OpenCV cannot decode this image; convert it to PNG or JPEG, or downscale it')
    return pixels


def _check_bit_depth(brightest: int, bit_depth: int | None, name: str) -> None:
    """Refuses a file of 16 bits where it is not known how many of them are used, or where it uses more."""
    if bit_depth is None and 0 < brightest < 2**14:
        raise DataError(
            f'{name}: the brightest pixel of this 16-bit file is {brightest}: either the camera has fewer bits, or the picture '
            'is dark. Say which by bit_depth, when data are prepared and when photos are predicted: 10, 12 or 14 for such a '
            'camera, 16 for a dark picture'
        )
    if bit_depth is not None and brightest >= 2**bit_depth:
        raise DataError(f'{name}: its brightest pixel is {brightest}, more than bit_depth={bit_depth} allows')


def with_objects(dataset: Dataset, objects: np.ndarray) -> Dataset:
    """Leaves out the images without objects other than crowds, as Detectron and detectron2 do before training.

    (Torchvision's reference training leaves out images without annotations, but keeps those with crowds only, as empty ones.)

    Args:
        dataset: the split, of N images.
        objects: [N] int, number of objects in each image, see `statistics.Annotations`.

    Raises:
        DataError: no image is left.
    """
    rows = np.flatnonzero(objects)
    if not len(rows):
        raise DataError(
            f'split {dataset.split!r} of {dataset.name!r}: none of {len(objects)} images has an object that is not a crowd; '
            'to train on images without objects, set data.empty_images to True'
        )
    return dataset._replace(records=SelectedRecords(dataset.records, rows))


def ground_truth(dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Collects the annotations of a split in the form of COCO's JSON, or LVIS's, with the data's own ids; decodes no image.

    They come from the file that was written beside the records, or, of part of a split or under other classes, from the records.

    Raises:
        DataError: the file is damaged.
    """
    images, annotations, records = [], [], dataset.records
    stored = records.truth if isinstance(records, Records) else None
    rows = read_rows(*stored) if stored else (rows_of(record, dataset.category_ids) for record in records)
    for image, its_annotations in rows:
        images.append(image)
        annotations += its_annotations
    categories = [{'id': i, 'name': name} for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)]
    for category, frequency in zip(categories, dataset.frequencies or ()):
        category['frequency'] = frequency
    return {'images': images, 'annotations': annotations, 'categories': categories}
