"""Darknet's tree files, and the names of their classes."""

import pytest

from detzoo.weights.darknet_tree import MAX_BYTES, distinct_names, read_tree, tree_text


def test_read_tree_is_the_inverse_of_tree_text(tmp_path):
    parents = (-1, -1, 0, 0, 3)
    path = tmp_path / 'a.tree'
    path.write_text(tree_text(('a', 'b', 'hot dog', 'd', 'e'), parents))
    assert read_tree(path) == (('a', 'b', 'hot_dog', 'd', 'e'), parents)


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'at least one node'),
        ('a', "line 1: 'a' is not a word and the line of its parent"),
        ('a -1\nb 0 1', "line 2: 'b 0 1' is not"),
        ('a -1\nb x', "line 2: 'b x' is not"),
        ('a -1\nb --1', "line 2: 'b --1' is not"),
        ('a -1\nb 9999999999', 'line 2: .* is not'),
        ('a -1\nb 5', 'node 1 has parent 5'),
        ('a -1\nb 0\nc -1', 'side by side'),
        ('\x00\xff', 'line 1'),
    ],
)
def test_read_tree_names_the_line(tmp_path, text, message):
    path = tmp_path / 'a.tree'
    path.write_text(text)
    with pytest.raises(ValueError, match=rf'a\.tree.*{message}'):
        read_tree(path)


def test_read_tree_bounds_the_file(tmp_path):
    path = tmp_path / 'a.tree'
    path.write_bytes(b'a -1\n' * (MAX_BYTES // 5 + 1))
    with pytest.raises(ValueError, match='too large'):
        read_tree(path)


def test_distinct_names_tells_classes_apart():
    names = ('tool', 'game', 'stick', 'club', 'stick', 'stick', 'tool')
    parents = (-1, -1, 0, 0, 1, 1, 2)
    assert distinct_names(names, parents) == (
        'tool', 'game', 'stick (tool)', 'club', 'stick (game), line 5', 'stick (game), line 6', 'tool (stick)',
    )  # fmt: skip
