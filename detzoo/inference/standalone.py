"""Finds objects in photographs with an exported detector. It needs jax, numpy and opencv-python-headless, but not detzoo.

    python run.py photo.jpg

model.json and the programs lie in the folder of this file. `detect` is the function to call from your own code.
"""

import functools
import json
import math
import pathlib
import sys

import cv2
import jax
import jax.export
import numpy as np

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def model():
    """Reads model.json."""
    return json.loads((FOLDER / 'model.json').read_text('utf-8'))


@functools.cache
def program(file):
    """Reads the program of a canvas. It is compiled when it is first called, and for each batch size."""
    return jax.jit(jax.export.deserialize(bytearray((FOLDER / file).read_bytes())).call)


def detect(image):
    """Finds the objects in an image [h, w, 3], uint8 RGB.

    Returns:
        boxes [N, 4] xyxy in pixels of the image, scores [N], labels [N] and, if the detector finds them, masks [N, m, m]:
        probabilities in the frames of the boxes. Of a segmenter: labels and scores of each pixel, [h, w].
    """
    height, width = image.shape[:2]
    canvas = choose_canvas(height, width)
    pixels, window = place(image, canvas)
    found = program(canvas['file'])(pixels[None], window[None])
    found = {name: np.asarray(x)[0] for name, x in found.items()}
    left, top, right, bottom = window.astype(float)
    scale = np.array([right - left, bottom - top]) / (width, height)
    if 'boxes' not in found:
        x = np.floor(left + (np.arange(width) + 0.5) * scale[0]).clip(left, right - 1).astype(int)
        y = np.floor(top + (np.arange(height) + 0.5) * scale[1]).clip(top, bottom - 1).astype(int)
        return {name: values[y[:, None], x] for name, values in found.items()}
    found = {name: x[found['valid']] for name, x in found.items() if name != 'valid'}
    found['boxes'] = (found['boxes'] - np.array([left, top, left, top])) / np.tile(scale, 2)
    return found


def choose_canvas(height, width):
    """Chooses the canvas on which an image is largest, the smallest of equals."""
    return min(model()['canvases'], key=lambda c: (-scale_on(c, height, width), c['height'] * c['width']))


def scale_on(canvas, height, width):
    """Computes canvas pixels per image pixel of an image that keeps its aspect ratio; without a canvas only the limits count."""
    rule = model()['resize']
    scales = [] if canvas is None else [canvas['height'] / height, canvas['width'] / width]
    if rule['shorter_side'] is not None:
        scales.append(rule['shorter_side'] / min(height, width))
    if rule['longer_side'] is not None:
        scales.append(rule['longer_side'] / max(height, width))
    return min(scales)


def resized_sides(canvas, height, width):
    """Computes the width and height that an image has on a canvas."""
    rule = model()['resize']
    if rule['resize'] == 'stretch':
        return canvas['width'], canvas['height']

    def rounded(scale):
        if rule['interpolation'] == 'area':
            return max(1, round(width * scale)), max(1, round(height * scale))
        shift = {'bilinear': 0, 'pil': 0.5, 'darknet': 1e-9}[rule['interpolation']]
        return max(1, math.floor(width * scale + shift)), max(1, math.floor(height * scale + shift))

    if rule['shorter_side'] is not None or rule['longer_side'] is not None:
        sides = rounded(scale_on(None, height, width))
        if sides[0] <= canvas['width'] and sides[1] <= canvas['height']:
            return sides
    return rounded(scale_on(canvas, height, width))


def place(image, canvas):
    """Puts an image on a canvas: uint8 [H, W, 3], and the window [4] in which it lies, xyxy in pixels of the canvas."""
    width, height = resized_sides(canvas, *image.shape[:2])
    left = top = 0
    if model()['resize']['resize'] == 'letterbox':
        left, top = (canvas['width'] - width) // 2, (canvas['height'] - height) // 2
    pixels = np.zeros((canvas['height'], canvas['width'], 3), np.uint8)
    pixels[top : top + height, left : left + width] = resize(image, (width, height))
    return pixels, np.float32([left, top, left + width, top + height])


def resize(image, size):
    """Resizes an image to (width, height)."""
    interpolation = model()['resize']['interpolation']
    if interpolation == 'pil':
        import PIL.Image

        return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR))
    if interpolation == 'darknet':
        image = image.astype(np.float32)
        for axis, count in ((1, size[0]), (0, size[1])):
            last = image.shape[axis] - 1
            at = (np.arange(count, dtype=np.float32) * np.float32(last / max(1, count - 1))).clip(0, last)
            first = at.astype(int)
            part = (at - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
            second = np.minimum(first + 1, last)
            image = (1 - part) * image.take(first, axis) + part * image.take(second, axis)
        return np.rint(image).astype(np.uint8)
    if interpolation == 'bilinear':
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    height, width = image.shape[:2]
    smaller = min(size[0], width), min(size[1], height)
    if smaller not in (size, (width, height)):  # one side shrinks and one grows: OpenCV averages only if none grows
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    shrinks = size[0] < image.shape[1] or size[1] < image.shape[0] - 1
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def main():
    """Prints what is found in photographs: boxes with a score of at least 0.5, or the pixels of each class."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    names = [*model()['class_names'], 'background']
    for path in sys.argv[1:]:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            sys.exit(f'error: {path} is not an image that OpenCV reads')
        found = detect(np.ascontiguousarray(image[..., ::-1]))
        if 'boxes' not in found:
            for label, count in zip(*np.unique(found['labels'], return_counts=True)):
                print(path, names[label], count, 'pixels')
            continue
        for box, score, label in zip(found['boxes'], found['scores'], found['labels']):
            if score >= 0.5:
                print(path, names[label], f'{score:.3f}', *(f'{x:.1f}' for x in box))


if __name__ == '__main__':
    main()
