"""Image files in; pictures, images.json and detections.json out: all of them appear at the end, or nothing.

predict_files
  find_images    paths, folders and globs -> files; `split_patterns` takes a list of them apart
  check_output   an error before the work, if a result would replace a file that no prediction wrote
  read_image     a file -> an image -> Predictor -> a picture, results
  _move          everything to the output, at the end
"""

import glob
import json
import os
import pathlib
import stat
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from detzoo.data.readers.folders import IMAGE_SUFFIXES
from detzoo.data.records import MAX_PIXELS, decode_image
from detzoo.errors import DataError
from detzoo.files import incomplete_folder, on_disk, write_text
from detzoo.inference.predictor import Predictor, to_coco
from detzoo.visualize import draw_boxes, grid, write_image

OVERVIEW = 8  # pictures on overview.png, at most
_LISTS = pathlib.PurePath('images.json'), pathlib.PurePath('detections.json')  # written beside the pictures


def predict_files(
    predictor: Predictor,
    patterns: Sequence[str],
    output: str | os.PathLike,
    *,
    score_threshold: float = 0.5,
    on_bad_record: str = 'error',
    max_pixels: int = MAX_PIXELS,
    bit_depth: int | None = None,
) -> tuple[int, list[str]]:
    """Detects objects in image files: draws pictures, and lists images and detections. Everything appears at the end or nothing.

    overview.png shows the first pictures together. images.json lists the images in COCO's format, each with its 'picture', and
    all 'files' that were written. An entry of detections.json is one of COCO's results, with bbox in pixels of the image, and
    with 'image', the path relative to the files' common folder, and 'category', the name. image_id counts the files.

    Args:
        predictor: see `load`.
        patterns: paths, folders or globs.
        output: folder for the results, made if missing. The files of an earlier prediction are replaced, others are left alone.
        score_threshold: detections with lower scores are left out.
        on_bad_record: 'error', or 'skip' to go on where a file cannot be read.
        max_pixels: largest size of an image; larger ones count as bad files.
        bit_depth: bits of the pixels in files of 16 bits, see `decode_image`.

    Returns:
        the number of images written, and the messages about skipped files.

    Raises:
        DataError: no image is found, one cannot be read, or a file that no prediction wrote is in the way of a result.
        OSError: the output cannot be written.
    """
    paths, output = find_images(patterns), on_disk(output)
    common = os.path.commonpath([path.parent for path in paths])
    names = [path.relative_to(common) for path in paths]
    sheet, *pictures = picture_names([pathlib.PurePath('overview.png'), *names])
    earlier = check_output(output, [*pictures, *_LISTS, *([sheet] if len(paths) > 1 else [])], paths)
    images, results, skipped, overview = [], [], [], []
    with incomplete_folder(output if output.is_dir() else output.parent) as scratch:
        rows = [*zip(paths, names, pictures)]
        for image_id, (path, name, picture) in enumerate(tqdm(rows, desc='predict', unit='image')):
            try:
                image = read_image(path, max_pixels, bit_depth)
            except DataError as error:
                if on_bad_record == 'error':
                    raise
                skipped.append(str(error))
                continue
            found = predictor(image).at_least(score_threshold)
            results += [
                {**entry, 'image': str(name), 'category': category}
                for entry, category in zip(to_coco(found, image_id), found.class_names)
            ]
            height, width = image.shape[:2]
            images.append(dict(id=image_id, file_name=str(name), height=height, width=width, picture=str(picture)))
            class_names = predictor.classes.class_names
            drawn = draw_boxes(image, found.boxes, found.labels, found.scores, class_names, masks=found.masks)
            (scratch / picture).parent.mkdir(parents=True, exist_ok=True)
            write_image(scratch / picture, drawn)
            if len(overview) < OVERVIEW:
                overview.append(drawn)
        if len(overview) > 1:
            write_image(scratch / sheet, grid(overview, columns=4))
        write_text(scratch / 'detections.json', json.dumps(results, indent=1) + '\n')
        written = [path.relative_to(scratch) for path in sorted(scratch.rglob('*')) if path.is_file()]
        categories = [dict(id=i, name=name) for name, i in zip(*predictor.classes)]
        listed = dict(images=images, annotations=[], categories=categories, files=[str(name) for name in written])
        write_text(scratch / 'images.json', json.dumps(listed, indent=1) + '\n')
        _move([pathlib.PurePath('images.json'), *written], scratch, output, earlier)
    return len(images), skipped


def split_patterns(text: str) -> list[str]:
    """Splits patterns at commas, but not at those in names of what exists: 'a.jpg,b, c/*.jpg' may be two patterns."""
    parts, patterns = text.split(','), []
    if _matches(text):
        return [os.path.expanduser(text)]
    while parts:
        lengths = (n for n in range(1, len(parts) + 1) if _matches(','.join(parts[:n])))
        length = next(lengths, 1)
        patterns.append(os.path.expanduser(','.join(parts[:length])))
        del parts[:length]
    return patterns


def _matches(pattern: str) -> bool:
    pattern = os.path.expanduser(pattern)
    return os.path.lexists(pattern) or any(glob.iglob(pattern, recursive=True))


def find_images(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Lists the files that the patterns name, each once, in order.

    Args:
        patterns: paths of files; folders, for the images in them; or globs.

    Returns:
        absolute paths; links are not followed, so that the user knows the names.

    Raises:
        DataError: a pattern matches nothing, or a folder cannot be read.
    """
    paths: dict[pathlib.Path, None] = {}
    for pattern in map(os.path.expanduser, patterns):
        names = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [pathlib.Path(name) for name in names if not os.path.isdir(name)]
        for folder in filter(os.path.isdir, names):
            found += _images_in(pathlib.Path(folder))
        if not found:
            raise DataError(f'no image matches {pattern!r}: give files, folders with images, or globs in quotes')
        for path in map(pathlib.Path.absolute, found):
            paths[pathlib.Path(os.path.realpath(path.parent), path.name) if '..' in path.parts else path] = None
    if not paths:
        raise DataError('no images are given: give files, folders with images, or globs')
    return list(paths)


def _images_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the images of a folder by their suffixes, without hidden files (macOS leaves ._NAME.jpg behind)."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f'cannot list the folder {folder}: {error.strerror}') from error
    visible = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')]
    return [path for path in visible if not os.path.isdir(path)]


def read_image(path: pathlib.Path, max_pixels: int, bit_depth: int | None = None) -> np.ndarray:
    """Reads an image file: [h, w, 3] uint8 RGB.

    Raises:
        DataError: the file cannot be read, or is not a whole image.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe might never end
            raise DataError(f'{path}: not a file; remove it from the images')
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f'{path}: cannot read the file: {error.strerror}; repair it or remove it from the images'
        ) from error
    return decode_image(data, name=str(path), max_pixels=max_pixels, strict=True, bit_depth=bit_depth)


def picture_names(names: Sequence[pathlib.PurePath]) -> list[pathlib.PurePath]:
    """Chooses the names of the pictures, all different: a.png for a.jpg, or a.jpg.png where a.png is taken.

    Names that differ in capitals alone count as the same, as they do on some systems; a folder's name is taken too.
    """
    taken = {str(folder).casefold() for name in names for folder in name.parents}
    pictures = []
    for name in names:
        picture, longer = name.with_suffix('.png'), name.name
        while str(picture).casefold() in taken:
            longer += '.png'
            picture = name.with_name(longer)
        taken.add(str(picture).casefold())
        pictures.append(picture)
    return pictures


def check_output(
    output: pathlib.Path, files: Sequence[pathlib.PurePath], images: Sequence[pathlib.Path]
) -> set[pathlib.PurePath]:
    """Checks, before anything is predicted, that results replace only those of an earlier prediction.

    Args:
        output: folder for the results; it may be missing.
        files: files to write, relative to the output.
        images: images to read.

    Returns:
        the files that an earlier prediction wrote there, relative to the output.

    Raises:
        DataError: the output is not a folder, or a file that no prediction wrote, or one of the images, is in the way.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise DataError(f'{output} is not a folder: choose another output')
    earlier, inputs = _earlier_files(output), {os.path.realpath(path) for path in images}
    for name in sorted(earlier.union(files)):
        target = output / name
        folders = [output / folder for folder in name.parents]
        in_the_way = [folder for folder in folders if os.path.lexists(folder) and not folder.is_dir()]
        if os.path.lexists(target) and (name not in earlier or target.is_dir()):
            in_the_way.append(target)
        if in_the_way:
            raise DataError(
                f'{in_the_way[0]} is in the way, and not from an earlier prediction: choose another output, or remove it'
            )
        if os.path.realpath(target) in inputs:
            raise DataError(f'{target} is one of the images, and would be replaced: choose another output')
    return earlier


def _move(
    files: Sequence[pathlib.PurePath], scratch: pathlib.Path, output: pathlib.Path, earlier: set[pathlib.PurePath]
) -> None:
    """Moves files to the output, in their order, and removes the other files of an earlier prediction.

    images.json comes first, so that it lists all files even if this is killed.
    """
    output.mkdir(exist_ok=True)
    for name in earlier.difference(files):
        (output / name).unlink(missing_ok=True)
    for name in files:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / name, output / name)


def _earlier_files(output: pathlib.Path) -> set[pathlib.PurePath]:
    """Lists the files that an earlier prediction wrote into a folder; none if there is no images.json of `predict_files`."""
    try:
        names = {*map(pathlib.PurePath, json.loads((output / 'images.json').read_text('utf-8'))['files']), *_LISTS}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return set()
    return {name for name in names if not name.is_absolute() and '..' not in name.parts}
