"""Pictures of detections, and precision-recall curves, as uint8 arrays.

    draw_boxes        an image with boxes, masks, and names or a legend
    draw_assignment   the boxes that a stage is trained on: positive, negative and ignored
    plot_pr_curves    precision over recall
    grid              pictures side by side
    write_image       a picture -> a file

Pillow draws everything but the curves, with its own font, so that a picture is the same on every machine. The curves need
matplotlib.
"""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detzoo.core.matching import IGNORE, NEGATIVE
from detzoo.files import as_path, new_file

# Saturated colours, far apart for neighbouring labels, which stand out on photographs and on pink-violet tissue.
_PALETTE = (
    (0, 200, 83),
    (255, 145, 0),
    (0, 229, 255),
    (255, 23, 68),
    (255, 234, 0),
    (41, 121, 255),
    (213, 0, 249),
    (118, 255, 3),
    (255, 128, 171),
    (0, 137, 123),
    (141, 110, 99),
    (124, 77, 255),
)
_READABLE, _LONGEST = (
    480,
    2400,
)  # pixels; images with a smaller shorter side are enlarged, unless the longer one gets too long
_OPACITY = 0.45  # opacity of masks
_CROWDED = 0.15  # share of a picture; if names would cover more, a legend replaces them

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 pixels, the second corner exclusive


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a label, the same in every picture; there are twelve colours, and then they repeat."""
    return _PALETTE[label % len(_PALETTE)]


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    crowd: np.ndarray | None = None,
    masks: np.ndarray | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Draws boxes and masks on an enlarged copy of an image, in the colours of their classes, the best score on top.

    The line of a box lies inside the box, along its edge, and is thinner where boxes are small. Each box has its class name and
    score; if these would cover too much of the picture, a legend below counts the boxes of each class instead.

    Args:
      image: [h, w, 3] uint8, RGB.
      boxes: [N, 4] xyxy, pixels of the image; clipped to the image.
      labels: [N] int in 0..K-1.
      scores: [N] in 0..1, or None.
      class_names: [K].
      crowd: [N] bool, True for dashed boxes; or None.
      masks: [N, h, w] bool, True for tinted pixels; or None.
      scale: factor of enlargement; None for the smallest whole number that makes the shorter side at least 480 pixels, or
        for a smaller one that keeps the longer side within 2400.

    Returns:
      [round(h * scale) + legend, round(w * scale), 3] uint8.

    Raises:
      ValueError: image is not [h, w, 3] uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image must be [h, w, 3] uint8, not {list(image.shape)} {image.dtype}')
    if scale is None:
        scale = _enlargement(image)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    labels = [int(label) for label in labels]
    texts = [class_names[label] for label in labels]
    if scores is not None:
        texts = [f'{text} {score:.2f}' for text, score in zip(texts, scores, strict=True)]
    rectangles = [_to_pixels(box, scale, size) for box in boxes]
    dashed = [False] * len(labels) if crowd is None else crowd
    best_first = list(range(len(labels)) if scores is None else np.argsort(-np.asarray(scores), kind='stable'))
    font = ImageFont.load_default(max(14, min(size) // 50))
    crowded = sum(math.prod(_text_size(text, font)) for text in texts) > _CROWDED * math.prod(size)

    if masks is not None:
        for index in reversed(best_first):
            mask = Image.fromarray(np.uint8(255 * _OPACITY) * masks[index]).resize(size, Image.Resampling.BILINEAR)
            picture.paste(class_color(labels[index]), mask=mask)
    draw = ImageDraw.Draw(picture)
    width = _line_width(rectangles, size)
    for index in reversed(best_first):
        _draw_rectangle(draw, rectangles[index], class_color(labels[index]), width, dashed[index])
    if crowded:
        return np.vstack([picture, _legend(labels, class_names, size[0], font)])
    taken = []
    for index in best_first:
        taken.append(_place(rectangles[index], _text_size(texts[index], font), size, taken))
        _draw_text(draw, taken[-1], texts[index], class_color(labels[index]), font)
    return np.array(picture)


def draw_labels(image: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws the class of each pixel over an enlarged, pale copy of an image, and names the classes that are there below.

    Args:
      image: [h, w, 3] uint8, RGB.
      labels: [h, w] int; what is not in 0..K-1 is left as it is.
      class_names: [K].

    Returns:
      [h', w', 3] uint8.
    """
    scale = _enlargement(image)
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = Image.fromarray(image // 2 + 64).resize(size, Image.Resampling.BICUBIC)
    there = [label for label in np.unique(labels).tolist() if 0 <= label < len(class_names)]
    for label in there:
        mask = Image.fromarray(255 * (labels == label).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        picture.paste(class_color(label), mask=mask)
    font = ImageFont.load_default(18)
    names = [class_names[label] for label in there] or ['background alone']
    colors = [class_color(label) for label in there] or [(255, 255, 255)]
    return np.vstack([picture, _strip(names, colors, size[0], font)])


def _enlargement(image: np.ndarray) -> int:
    """Chooses the whole number by which a picture of an image is larger; a strip of one row would fill the memory at 480."""
    return max(1, min(math.ceil(_READABLE / min(image.shape[:2])), _LONGEST // max(image.shape[:2])))


def draw_assignment(
    image: np.ndarray, boxes: np.ndarray, matched: np.ndarray, gt_boxes: np.ndarray, *, crowd: np.ndarray | None = None
) -> np.ndarray:
    """Draws the boxes that a stage of a detector is trained on, and the objects that they are matched to.

    Each object has a thick line in its own colour; its positives have thin lines in the same colour. A dot marks the centre of
    each box: coloured for a positive, white for a negative, black for an ignored box. Of boxes with the same centre, positives
    are on top, then the rarer of the two other kinds. A line of text below counts the three kinds.

    Args:
      image: [h, w, 3] uint8, RGB.
      boxes: [A, 4] xyxy, pixels of the image: anchors, cells or RoIs.
      matched: [A] int: row of gt_boxes, NEGATIVE or IGNORE (see `types.Assignment`).
      gt_boxes: [M, 4] xyxy, pixels of the image, without padding.
      crowd: [M] bool, True for dashed objects; or None.

    Returns:
      [h', w', 3] uint8.
    """
    scale = _enlargement(image)
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = Image.fromarray(image // 2 + 64).resize(
        size, Image.Resampling.BICUBIC
    )  # pale, so that the boxes stand out
    draw = ImageDraw.Draw(picture)
    radius = max(1, scale // 2)
    middles = scale * (boxes[:, :2] + boxes[:, 2:]) / 2

    def dot(index: int, color: str | tuple[int, int, int]) -> None:
        x, y = middles[index]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

    positive, negative, ignored = (
        np.flatnonzero(which) for which in (matched >= 0, matched == NEGATIVE, matched == IGNORE)
    )
    for indices, color in sorted([(negative, 'white'), (ignored, 'black')], key=lambda pair: -len(pair[0])):
        for index in indices:
            dot(index, color)
    for index in positive:
        color = class_color(matched[index])
        _draw_rectangle(draw, _to_pixels(boxes[index], scale, size), color, 1, dashed=False)
        dot(index, color)
    for row, box in enumerate(gt_boxes):
        dashed = crowd is not None and bool(crowd[row])
        _draw_rectangle(draw, _to_pixels(box, scale, size), class_color(row), 4, dashed)
    text = f'positive {len(positive)}, negative {len(negative)}, ignored {len(ignored)}'
    return np.vstack([picture, _line(text, size[0], ImageFont.load_default(18))])


def grid(
    images: Sequence[np.ndarray], columns: int, titles: Sequence[str] | None = None, padding: int = 12
) -> np.ndarray:
    """Arranges pictures in rows on white, each below its title.

    Args:
      images: at least one [h, w, 3] uint8; sizes may differ, nothing is resized.
      columns: number of pictures in a row.
      titles: text for each picture; or None.
      padding: pixels between the pictures and around them.

    Returns:
      [h', w', 3] uint8.

    Raises:
      ValueError: there are no images, or the number of titles is not that of the images.
    """
    if len(images) == 0:
        raise ValueError('a grid needs at least one image')
    if titles is not None and len(titles) != len(images):
        raise ValueError(f'{len(images)} images and {len(titles)} titles: give each image a title')
    font = ImageFont.load_default(18)
    title_sizes = [(0, 0)] if titles is None else [_text_size(title, font) for title in titles]
    title_height = max(height for _, height in title_sizes)
    cell_width = padding + max([image.shape[1] for image in images] + [width for width, _ in title_sizes])
    cell_height = padding + title_height + max(image.shape[0] for image in images)
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new('RGB', (columns * cell_width + padding, rows * cell_height + padding), 'white')
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        x, y = column * cell_width + padding, row * cell_height + padding
        sheet.paste(Image.fromarray(image), (x, y + title_height))
        if titles is not None:
            draw.text((x, y + title_height / 2), titles[index], 'black', font, anchor='lm')
    return np.array(sheet)


def plot_pr_curves(curves: dict[str, dict[str, np.ndarray] | None]) -> np.ndarray:
    """Plots precision over recall of each class and their mean, at IoU 0.5 (solid) and 0.75 (dashed); needs matplotlib.

    With more than twelve classes, each class has a thin line without a name, at IoU 0.5 only, and the legend names the mean alone.

    Args:
      curves: curves of `detzoo.evaluation.pr_curves`, in the order of the labels, so that lines have the colours of the boxes.

    Returns:
      [600, 800, 3] uint8.
    """
    # Imported here, since nothing else needs matplotlib. Not pyplot, which would keep the figure and open a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=100, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)

    def plot(name: str, curve: dict[str, np.ndarray], **style: Any) -> None:
        at50, at75 = curve['precision@50'], curve['precision@75']
        axes.plot(curve['recall'], at50, label=f'{name}: {at50.mean():.3f}, {at75.mean():.3f}', **style)
        axes.plot(curve['recall'], at75, linestyle='--', **style)

    present = [curve for curve in curves.values() if curve is not None]
    for label, (name, curve) in enumerate(curves.items()):
        if curve is None:
            continue
        color = np.array(class_color(label)) / 255
        if len(present) <= len(_PALETTE):
            plot(name, curve, color=color)
        else:
            axes.plot(curve['recall'], curve['precision@50'], color=color, alpha=0.4, linewidth=0.8)
    if len(present) > 1:
        mean = {key: np.mean([curve[key] for curve in present], axis=0) for key in present[0]}
        plot(f'mean of {len(present)}', mean, color='black')
    if present:
        figure.legend(loc='outside upper center', title='AP at IoU 0.5 (solid), 0.75 (dashed)', frameon=False, ncols=3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes an [h, w, 3] uint8 RGB image to a .png or .jpg file, complete or not at all."""
    path = as_path(path)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, {'.png': 'PNG', '.jpg': 'JPEG'}[path.suffix.lower()], quality=85)
    with new_file(path) as scratch:
        scratch.write_bytes(encoded.getvalue())


def _to_pixels(box: np.ndarray, scale: float, size: tuple[int, int]) -> Rectangle:
    """Scales an xyxy box to whole pixels of a picture of (width, height), clipped, at least one pixel wide and high."""
    x1, y1, x2, y2 = (round(float(value) * scale) for value in box)
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return x1, y1, min(max(x2, x1 + 1), size[0]), min(max(y2, y1 + 1), size[1])


def _line_width(rectangles: list[Rectangle], size: tuple[int, int]) -> int:
    """Chooses the width of lines in pixels, by the picture's (width, height), and thinner where boxes are small."""
    if not rectangles:
        return 1
    shorter_sides = [min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in rectangles]
    return max(1, min(min(size) // 200, round(np.median(shorter_sides) / 16)))


def _draw_rectangle(
    draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: tuple[int, int, int], width: int, dashed: bool
) -> None:
    """Draws a line of at most `width` pixels along the inside of a rectangle (Pillow's outline would leave narrow ones)."""
    x1, y1, x2, y2 = rectangle
    width = min(width, x2 - x1, y2 - y1)
    dash = 5 * width if dashed else max(x2 - x1, y2 - y1)
    for x in range(x1, x2, 2 * dash):
        end = min(x + dash, x2) - 1
        draw.rectangle((x, y1, end, y1 + width - 1), fill=color)
        draw.rectangle((x, y2 - width, end, y2 - 1), fill=color)
    for y in range(y1, y2, 2 * dash):
        end = min(y + dash, y2) - 1
        draw.rectangle((x1, y, x1 + width - 1, end), fill=color)
        draw.rectangle((x2 - width, y, x2 - 1, end), fill=color)


def _place(box: Rectangle, text_size: tuple[int, int], size: tuple[int, int], taken: list[Rectangle]) -> Rectangle:
    """Finds the place for a box's name, inside the picture, that overlaps least with the names already placed."""
    x1, y1, x2, y2 = box
    width, height = text_size
    corners = [
        (x1, y1 - height),  # above
        (x1, y1),  # inside, at the top
        (x1, y2),  # below
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x1, y2 - height),  # inside, at the bottom
    ]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((x, y, x + width, y + height))
    return min(places, key=lambda place: sum(_shared(place, other) for other in taken))


def _shared(a: Rectangle, b: Rectangle) -> int:
    """Counts the pixels that two rectangles share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Returns the (width, height) of a line of text with its margins, in pixels."""
    return math.ceil(font.getlength(text) + 0.6 * font.size), round(1.35 * font.size)


def _draw_text(
    draw: ImageDraw.ImageDraw, place: Rectangle, text: str, color: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    """Writes a text in the middle of a filled rectangle, in black or white for contrast."""
    x1, y1, x2, y2 = place
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    draw.text(((x1 + x2) / 2, (y1 + y2) / 2), text, 'black' if luminance > 120 else 'white', font, anchor='mm')


def _line(text: str, width: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Writes a text on white: [h', width, 3] uint8."""
    height = _text_size(text, font)[1]
    strip = Image.new('RGB', (width, height), 'white')
    ImageDraw.Draw(strip).text((6, height / 2), text, 'black', font, anchor='lm')
    return np.asarray(strip)


def _legend(labels: list[int], class_names: Sequence[str], width: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Draws a legend: each class with its colour and number of boxes, in as many rows as it needs: [h', width, 3] uint8."""
    shown = sorted(set(labels))
    texts = [f'{class_names[label]}: {labels.count(label)}' for label in shown]
    return _strip(texts, [class_color(label) for label in shown], width, font)


def _strip(
    texts: Sequence[str], colors: Sequence[tuple[int, int, int]], width: int, font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Draws texts in their colours, in as many rows as they need: [h', width, 3] uint8; there is at least one."""
    places, x, y = [], 0, 0
    for text in texts:
        text_width, height = _text_size(text, font)
        if x and x + text_width > width:
            x, y = 0, y + height
        places.append((x, y, x + text_width, y + height))
        x += text_width
    strip = Image.new('RGB', (width, places[-1][3]), 'white')
    draw = ImageDraw.Draw(strip)
    for place, text, color in zip(places, texts, colors, strict=True):
        _draw_text(draw, place, text, color, font)
    return np.asarray(strip)
