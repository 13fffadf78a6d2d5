"""R-CNN's crops as their authors cut them (arXiv 1311.2524, and the code that came with it), counted from 1 as in Matlab."""

import math
from fractions import Fraction

import numpy as np


def rounded(x):
    """Half away from zero."""
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def resized(image, height, width):
    """Bilinear, nothing averaged, the border's pixels go on outside."""
    along = []
    for here, there in ((height, image.shape[0]), (width, image.shape[1])):
        weights = np.zeros((here, there))
        for i in range(here):
            point = (i + 0.5) * there / here - 0.5
            low = math.floor(point)
            for pixel in (low, low + 1):
                weights[i, min(max(pixel, 0), there - 1)] += 1 - abs(point - pixel)
        along.append(weights)
    return np.einsum('iy,yxc,jx->ijc', along[0], image, along[1], optimize=True)


def cropped(image, box, size, context):
    """One crop, as the authors cut it. `image` has no padding; box: xyxy in continuous pixels of it."""
    result = np.zeros((size, size, image.shape[2]))
    spans = []
    for low, high, side in ((box[1], box[3], image.shape[0]), (box[0], box[2], image.shape[1])):
        first, last = Fraction(float(low)) + 1, Fraction(float(high))  # the first and the last pixel, counted from 1
        scale = Fraction(size, size - 2 * context)
        half = (last - first + 1) / 2
        center = first + half
        if context:
            first, last = rounded(center - half * scale), rounded(center + half * scale)
        else:
            first, last = rounded(first), rounded(last)
        pixels = Fraction(size, last - first + 1)
        before, seen = max(0, 1 - first), (max(1, first), min(side, last))
        start, length = rounded(before * pixels), rounded((seen[1] - seen[0] + 1) * pixels)
        spans.append((start, min(length, size - start), seen[0] - 1, seen[1]))
    (top, height, y1, y2), (left, width, x1, x2) = spans
    if min(height, width) > 0:
        result[top : top + height, left : left + width] = resized(image[y1:y2, x1:x2], height, width)
    return result
