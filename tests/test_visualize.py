"""Pictures: what is drawn lies where it should, and nothing else changes."""

import math

import numpy as np
import pytest
from PIL import Image

from detzoo.visualize import class_color, draw_boxes, draw_labels, grid, plot_pr_curves, write_image

NAMES = ('cell', 'nucleus', 'debris')
GRAY = np.full((600, 600, 3), 128, np.uint8)  # large enough not to be enlarged; its lines are 3 pixels wide


def draw(image, boxes, labels=None, scores=None, **options):
    labels = np.zeros(len(boxes), int) if labels is None else labels
    return draw_boxes(image, np.reshape(boxes, (-1, 4)), labels, scores, NAMES, **options)


def is_color(picture, label):
    """[h, w] bool, where the picture has the colour of a label."""
    return (picture == class_color(label)).all(-1)


def test_class_color_of_neighbours_differ_and_repeat_after_twelve():
    colors = [class_color(label) for label in range(12)]
    assert len(set(colors)) == 12
    assert class_color(14) == class_color(2)


def test_draw_boxes_line_lies_inside_the_box_and_nothing_else_changes():
    picture = draw(GRAY, [[100, 200, 300, 400]], [1])
    expected = np.zeros(GRAY.shape[:2], bool)
    expected[200:400, 100:300] = True
    expected[203:397, 103:297] = False  # 3 pixels of line
    changed = (picture != GRAY).any(-1)
    changed[170:200] = False  # where the name is: above the box
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(is_color(picture, 1)[200:400, 100:300], expected[200:400, 100:300])


def test_draw_boxes_name_lies_on_its_color_above_the_box():
    picture = draw(GRAY, [[100, 200, 300, 400]], [1])
    name = (picture != GRAY).any(-1)[:200]
    rows, columns = np.nonzero(name)
    assert name[rows.min() : 200, 100 : columns.max() + 1].all()  # one filled rectangle that touches the box
    assert columns.min() == 100
    assert 10 < 200 - rows.min() < 30
    assert is_color(picture, 1)[:200][name].mean() > 0.5
    assert not is_color(picture, 1)[:200][name].all()  # the rest is text


def test_draw_boxes_score_is_part_of_the_name():
    def picture_width(scores):
        return np.count_nonzero((draw(GRAY, [[9, 200, 12, 400]], scores=scores) != GRAY).any((0, 2)))

    assert picture_width(None) + 20 < picture_width([0.5])
    assert (draw(GRAY, [[9, 200, 12, 400]], scores=[0.5]) != draw(GRAY, [[9, 200, 12, 400]], scores=[0.6])).any()


def test_draw_boxes_enlarges_small_images_and_scales_boxes():
    image = np.full((100, 150, 3), 90, np.uint8)
    picture = draw(image, [[10, 20, 50, 80]])
    assert picture.shape == (500, 750, 3)  # the least whole number that gives 480: 5
    assert is_color(picture, 0)[100, 50] and is_color(picture, 0)[399, 249]
    assert (picture[410:, :] == 90).all() and (picture[:, 260:] == 90).all()
    assert draw(image, [[10, 20, 50, 80]], scale=2.5).shape == (250, 375, 3)


def test_draw_boxes_enlarges_strips_less():
    for height, width, high, wide in ((1, 300, 8, 2400), (300, 1, 2400, 8), (1, 5000, 1, 5000)):
        picture = draw(np.zeros((height, width, 3), np.uint8), [[0, 0, width, height]])
        assert picture.shape[1] == wide and high <= picture.shape[0] < high + 200  # with a legend


def test_draw_boxes_leaves_its_image_alone():
    image = GRAY.copy()
    draw(image, [[100, 200, 300, 400]])
    np.testing.assert_array_equal(image, GRAY)


def test_draw_boxes_without_boxes_is_the_image():
    np.testing.assert_array_equal(draw(GRAY, np.zeros((0, 4))), GRAY)
    np.testing.assert_array_equal(draw(GRAY, np.zeros((0, 4)), scores=np.zeros(0)), GRAY)


def test_draw_boxes_at_and_beyond_the_edges_stay_visible():
    picture = draw(GRAY, [[0, 0, 600, 600]])
    border = is_color(picture, 0)
    assert border[-1].all() and border[:, -1].all() and border[40:, 0].all()
    np.testing.assert_array_equal(picture, draw(GRAY, [[-50, -9, 1000, 700]]))
    assert is_color(draw(GRAY, [[700, 700, 800, 800]]), 0)[599, 599]


@pytest.mark.parametrize('width, height', [(0.1, 0.1), (2, 200), (200, 1)])
def test_draw_boxes_narrower_than_lines_stay_inside(width, height):
    others = [[10, 10, 250, 250], [350, 10, 590, 250]]  # the lines are 3 pixels wide because of these
    picture = draw(GRAY, [[300, 300, 300 + width, 300 + height], *others])
    changed = (picture != GRAY).any(-1)[300:]  # without the names
    expected = np.zeros_like(changed)
    expected[: math.ceil(height), 300 : 300 + math.ceil(width)] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize('box', [[100, 0, 300, 300], [590, 300, 600, 500], [0, 0, 600, 600], [-50, 580, 9, 700]])
def test_draw_boxes_name_stays_whole_at_the_edges(box):
    def letter_pixels(box):
        return np.count_nonzero((draw(GRAY, [box]) < 50).all(-1))

    assert letter_pixels(box) == letter_pixels([200, 200, 400, 400]) > 20


def test_draw_boxes_best_score_is_on_top():
    boxes = [[100, 100, 400, 400], [100, 100, 400, 400]]
    assert is_color(draw(GRAY, boxes, [0, 1], [0.9, 0.3]), 0)[399, 300]
    assert is_color(draw(GRAY, boxes, [0, 1], [0.3, 0.9]), 1)[399, 300]


def test_draw_boxes_names_do_not_cover_one_another():
    boxes = [[100, 100, 400, 400]] * 3  # the names go above, inside and below
    picture = draw(GRAY, boxes, [0, 1, 2])
    filled = [(is_color(picture, label)).sum() for label in range(3)]
    alone = [(is_color(draw(GRAY, boxes[:1], [label]), label)).sum() for label in range(3)]
    line = 4 * 300 * 3 - 4 * 9
    assert filled[1] == alone[1] - line and filled[2] == alone[2] - line


def test_draw_boxes_crowd_is_dashed():
    edge = is_color(draw(GRAY, [[100, 200, 300, 400]], crowd=[True]), 0)[399, 100:300]
    assert 0.4 < edge.mean() < 0.6
    assert is_color(draw(GRAY, [[100, 200, 300, 400]], crowd=[False]), 0)[399, 100:300].all()


def test_draw_boxes_crowded_picture_has_thin_lines_and_a_legend_instead_of_names():
    centers = np.stack(np.meshgrid(np.arange(20, 600, 40), np.arange(20, 600, 40)), -1).reshape(-1, 2)
    boxes = np.concatenate([centers - 8, centers + 8], 1)
    labels = np.arange(len(boxes)) % 2 * 2
    picture = draw(GRAY, boxes, labels)
    assert picture.shape[0] > 600 and picture.shape[1:] == (600, 3)
    expected = np.zeros((600, 600), bool)
    for x1, y1, x2, y2 in boxes:
        expected[y1:y2, x1:x2] = True
        expected[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = False  # 1 pixel of line
    np.testing.assert_array_equal((picture[:600] != GRAY).any(-1), expected)
    assert [bool(is_color(picture[600:], label).any()) for label in range(3)] == [True, False, True]


def test_draw_boxes_tints_masks():
    image = np.full((600, 500, 3), 100, np.uint8)
    masks = np.zeros((1, 600, 500), bool)
    masks[0, 200:300, 100:200] = True
    picture = draw_boxes(image, np.array([[50.0, 150, 300, 400]]), np.array([0]), None, ['one'], masks=masks)
    plain = draw_boxes(image, np.array([[50.0, 150, 300, 400]]), np.array([0]), None, ['one'])
    changed = (picture != plain).any(axis=2)
    np.testing.assert_array_equal(changed[205:295, 105:195], True)
    assert changed.sum() <= 104 * 104
    expected = 100 + 0.45 * (np.array(class_color(0)) - 100.0)
    np.testing.assert_allclose(picture[250, 150], expected, atol=2)


def test_draw_boxes_legend_wraps_where_the_picture_is_narrow():
    boxes = np.tile([2.0, 2.0, 8.0, 8.0], (300, 1))
    heights = [
        draw(np.zeros((100, side, 3), np.uint8), boxes, np.arange(300) % 3, scale=1).shape[0] for side in (400, 80)
    ]
    assert heights[1] - 100 == 3 * (heights[0] - 100)


@pytest.mark.parametrize('image', [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_draw_boxes_other_images_raise(image):
    with pytest.raises(ValueError, match='must be .* uint8'):
        draw(image, [])


def test_grid_places_pictures_row_by_row_on_white():
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20, 30)]
    images[2] = images[2][:5, :8]
    sheet = grid(images, 2, padding=4)
    expected = np.full((2 * 24 + 4, 2 * 34 + 4, 3), 255)
    expected[4:24, 4:34], expected[4:24, 38:68], expected[28:33, 4:12] = 10, 20, 30
    np.testing.assert_array_equal(sheet, expected)
    assert grid(images, 5, padding=4).shape == (28, 3 * 34 + 4, 3)  # no empty columns


def test_grid_titles_are_above_and_fit():
    image = np.full((20, 30, 3), 128, np.uint8)
    sheet = grid([image, image], 1, ['a title wider than its picture', 'b'], padding=4)
    top = np.nonzero((sheet == 128).all(-1))[0].min()
    assert (sheet[:top] < 100).any()
    assert sheet.shape[1] > 100 and (sheet[:, -4:] == 255).all()


def test_grid_wrong_counts_raise():
    with pytest.raises(ValueError, match='1 images and 2 titles'):
        grid([GRAY], 1, ['a', 'b'])
    with pytest.raises(ValueError, match='at least one image'):
        grid([], 1)


def test_plot_pr_curves_draws_present_classes_in_the_colors_of_their_labels():
    recall = np.linspace(0, 1, 101)
    curve = {'recall': recall, 'precision@50': 1 - recall**2, 'precision@75': 0.5 - 0.5 * recall}
    picture = plot_pr_curves({'absent': None, 'cell': curve})
    assert picture.shape == (600, 800, 3) and picture.dtype == np.uint8
    assert not is_color(picture, 0).any()
    assert is_color(picture, 1).sum() > 300
    assert plot_pr_curves({'absent': None}).shape == (600, 800, 3)


def test_plot_pr_curves_of_many_classes_names_their_mean_only():
    recall = np.linspace(0, 1, 101)
    curve = {'recall': recall, 'precision@50': 1 - recall, 'precision@75': 0 * recall}
    few, many = (plot_pr_curves({f'class {i}': curve for i in range(count)}) for count in (12, 13))
    assert sum(is_color(few, label).any() for label in range(12)) == 12  # the legend's samples
    assert sum(is_color(many, label).any() for label in range(12)) == 0


def test_write_image_round_trip_leaves_one_file(tmp_path):
    image = np.random.RandomState(0).randint(0, 256, (7, 9, 3), np.uint8)
    path = tmp_path / 'picture.png'
    write_image(path, GRAY)
    write_image(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert [file.name for file in tmp_path.iterdir()] == ['picture.png']


def test_draw_labels_colours_pixels_and_pales_the_others():
    image = np.full((100, 120, 3), 200, np.uint8)
    labels = np.full((100, 120), 3)
    labels[10:20, 30:50], labels[90:, 110:], labels[0, 0] = 1, 2, -2
    picture = draw_labels(image, labels, NAMES)
    scale = picture.shape[1] // 120
    assert scale == 5 and picture.shape[0] > 500  # names stand below
    enlarged = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    for label in (1, 2):
        np.testing.assert_array_equal(is_color(picture[:500], label), enlarged == label)
    assert (picture[:500][(enlarged == 3) | (enlarged == -2)] == 200 // 2 + 64).all()
    alone = draw_labels(image, np.full((100, 120), 3), NAMES)
    assert alone.shape[1] == 600 and (alone[:500] == 164).all()
