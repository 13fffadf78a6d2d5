"""What the readers of folders share: files found by name, sizes read from headers, boxes put into their images, class names.

find_files, index_images  ->  the files below a folder; its images by name
image_size                ->  height and width of a file, before it is decoded
read_bytes, read_text     ->  a file of annotations that is not too large
fit_box                   ->  a box inside its image
check_class_names         ->  names that a data set can have
"""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image

from detzoo.data import records
from detzoo.data.readers import prepare
from detzoo.errors import DataError

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.webp', '.avif', '.bmp', '.tif', '.tiff', '.jp2', '.ppm', '.pgm',
    '.heic', '.heif',  # which cannot be read: an error is better than silence
)  # fmt: skip
LARGEST = 2**24  # bytes of the annotations of one image, or of a list of files
ORIENTATION = 0x0112  # EXIF's tag


class ImageFolder(NamedTuple):
    """The images below a folder.

    path: the folder.
    names: their paths relative to the folder, sorted.
    by_stem: the names by their relative path without suffix.
    by_base: the names by their file's name without suffix.
    """

    path: pathlib.Path
    names: list[str]
    by_stem: dict[str, list[str]]
    by_base: dict[str, list[str]]


def find_files(folder: pathlib.Path, suffixes: Sequence[str]) -> list[str]:
    """Lists the files below a folder by their suffixes, in lower or upper case.

    Hidden files and folders are left out (`._1.jpg` is macOS's). Links are followed; a folder to which several lead counts once.

    Returns:
        paths relative to the folder, with '/', sorted.

    Raises:
        DataError: a folder is missing or cannot be read, or a name is not Unicode.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f'cannot list the folder {error.filename}: {error.strerror}; check the path') from error

    found, seen = [], set()
    for path, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        inner = pathlib.Path(path).relative_to(folder)
        found += [
            (inner / name).as_posix() for name in files if not name.startswith('.') and name.lower().endswith(suffixes)
        ]
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f'{folder}: the file name {name!r} is not Unicode; rename the file') from error
    return sorted(found)


def index_images(folder: pathlib.Path) -> ImageFolder:
    """Lists the images below a folder, by name."""
    images = ImageFolder(folder, find_files(folder, IMAGE_SUFFIXES), {}, {})
    for name in images.names:
        stem = stem_of(name)
        images.by_stem.setdefault(stem, []).append(name)
        images.by_base.setdefault(stem.rpartition('/')[2], []).append(name)
    return images


def stem_of(name: str) -> str:
    """Removes the suffix of an image from a path; 'a.b' keeps its dot."""
    stem, dot, suffix = name.rpartition('.')
    return stem if dot and f'.{suffix}'.lower() in IMAGE_SUFFIXES else name


def image_size(file: pathlib.Path, where: str, max_pixels: int, bit_depth: int | None = None) -> tuple[int, int]:
    """Reads the size of an image from its header; if EXIF turns the image, it is decoded.

    Args:
        file: the image.
        where: name of the image in messages.
        max_pixels: images with more pixels are refused.
        bit_depth: see `records.decode_image`.

    Returns:
        height and width of the image as `records.decode_image` gives it.
    """
    try:
        data = file.read_bytes()
        with records.open_image(data) as image:
            width, height = image.size
            upright = _is_upright(image)
    except Exception as error:  # Pillow does not document what its readers raise on broken bytes
        raise DataError(f'{where}: {file} is not a whole image ({error}); replace it or remove it') from error
    prepare.check_size(height, width, where, max_pixels)
    if upright:
        return height, width
    return records.decode_image(data, name=where, max_pixels=max_pixels, bit_depth=bit_depth).shape[:2]


def read_bytes(path: pathlib.Path, limit: int = LARGEST) -> bytes:
    """Reads a file of annotations of at most `limit` bytes.

    Raises:
        DataError: it cannot be read, or is larger.
    """
    parts, size = [], 0
    try:
        with open(path, 'rb') as file:
            while size <= limit and (part := file.read(2**20)):  # read(limit) would take memory for the limit
                parts.append(part)
                size += len(part)
    except OSError as error:
        raise DataError(f'{path}: cannot read the annotations: {error.strerror}; check the path') from error
    if size > limit:
        raise DataError(f'{path}: more than {limit} bytes; this is not a file of annotations, or it must be split')
    return b''.join(parts)


def read_text(path: pathlib.Path, limit: int = LARGEST) -> str:
    """Reads a text file in UTF-8, with or without a mark of the byte order, of at most `limit` bytes.

    Raises:
        DataError: it cannot be read, is larger, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: not text in UTF-8 ({error}); save it as UTF-8') from error


def fit_box(box: Sequence[float], where: str, height: int, width: int) -> list[float]:
    """Puts a box (x, y, width, height) that leaves its image by a rounding error into the image.

    Raises:
        DataError: it has no area in the image, or leaves it by more than `prepare.TOLERANCE` pixels.
    """
    prepare.check_box(box, where, height, width)
    x, y, w, h = box
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if (left, top, right, bottom) == (x, y, x + w, y + h):
        return [x, y, w, h]
    fitted = [left, top, right - left, bottom - top]
    prepare.check_box(fitted, where, height, width)
    return fitted


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Refuses names of classes that are not distinct lines of text.

    Args:
        names: [K].
        where: where they come from, for messages.
    """
    for name, count in collections.Counter(names).items():
        if not name or not name.isprintable() or name != name.strip():
            raise DataError(f'{where}: the class {name!r} must be one line of text with no blanks around it; rename it')
        if count > 1:
            raise DataError(f'{where}: the class {name!r} appears twice; name each class once')
    if not names:
        raise DataError(f'{where}: there are no classes; name at least one')
    return tuple(names)


def _is_upright(image: PIL.Image.Image) -> bool:
    """Tells whether no EXIF orientation turns an image; False where the EXIF data cannot be read."""
    try:
        return image.getexif().get(ORIENTATION, 1) == 1
    except Exception:  # as above
        return False
