"""Trees of classes: values by hand, loops over random trees as an oracle, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detzoo.core import hierarchy

# 0 animal (2 cat, 3 dog (4 hound, 5 poodle)), 1 vehicle (6 car alone)
PARENTS = (-1, -1, 0, 0, 3, 3, 1)


def random_tree(seed):
    """The parents of a random tree whose groups have 1 to 4 members."""
    rng, parents, queue = np.random.RandomState(seed), [-1] * 2, [0, 1]
    while queue and len(parents) < 30:
        node = queue.pop(rng.randint(len(queue)))
        children = list(range(len(parents), len(parents) + rng.randint(1, 5)))
        parents += [node] * len(children)
        queue += [child for child in children if rng.uniform() < 0.6]
    return tuple(parents)


def log_probabilities_by_loops(logits, parents):
    """Each node's softmax among its siblings, times those of its ancestors, in float64."""
    parents, result = np.array(parents), []
    for node, logit in enumerate(np.float64(logits)):
        siblings = np.float64(logits)[parents == parents[node]]
        conditional = logit - np.log(np.exp(siblings).sum())
        result.append(conditional + (0 if parents[node] < 0 else result[parents[node]]))
    return np.array(result)


def descent_by_loops(log_p, parents, threshold, rule):
    """The walk from the root, as tree.c of darknet and the paper describe it."""
    parents, p = np.array(parents), np.exp(log_p)
    node, product = -1, 1.0
    while (parents == node).any():
        child = int(np.argmax(np.where(parents == node, p, -1)))
        reached = p[child] if rule == 'paper' else product * p[child]
        if not reached > threshold:
            return child if node < 0 else node
        node, product = child, product * p[child]
    return node


@functools.cache
def functions(parents):
    tree = hierarchy.make_tree(parents)
    return tree, jax.jit(
        lambda logits: (
            hierarchy.log_probabilities(logits, tree),
            jax.vmap(lambda label: hierarchy.path_cross_entropy(logits, label, tree))(jnp.arange(len(parents))),
        )
    )


def test_make_tree_by_hand():
    tree = hierarchy.make_tree(PARENTS)
    np.testing.assert_array_equal(tree.groups, [0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(tree.children, [1, 3, -1, 2, -1, -1, -1])
    np.testing.assert_array_equal(
        tree.paths, [[0, 7, 7], [1, 7, 7], [2, 0, 7], [3, 0, 7], [4, 3, 0], [5, 3, 0], [6, 1, 7]]
    )


@pytest.mark.parametrize(
    'parents, message',
    [
        ((), 'at least one node'),
        ((-1, 2, 0), 'node 1 has parent 2'),
        ((0,), 'node 0 has parent 0'),
        ((-1, -2), 'node 1 has parent -2'),
        ((-1, 0, 1, 0), 'children of node 0'),
        ((-1, 0, -1), 'children of node -1'),
    ],
)
def test_make_tree_refuses(parents, message):
    with pytest.raises(ValueError, match=message):
        hierarchy.make_tree(parents)


def test_log_probabilities_by_hand():
    logits = np.log(np.float32([3, 1, 1, 4, 1, 1, 9]))
    _, of_logits = functions(PARENTS)
    expected = [3 / 4, 1 / 4, 3 / 4 / 5, 3 / 5, 3 / 10, 3 / 10, 1 / 4]  # an only child is certain
    np.testing.assert_allclose(np.exp(of_logits(logits)[0]), expected, rtol=1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_log_probabilities_and_loss_equal_loops(seed):
    parents = random_tree(seed)
    logits = np.float32(np.random.RandomState(seed).normal(0, 5, len(parents)))
    log_p, loss = functions(parents)[1](logits)
    expected = log_probabilities_by_loops(logits, parents)
    np.testing.assert_allclose(log_p, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(loss, -expected, rtol=2e-6, atol=2e-6)
    leaves = ~np.isin(np.arange(len(parents)), parents)
    np.testing.assert_allclose(np.exp(expected[leaves]).sum(), 1)


def test_log_probabilities_of_a_flat_tree_are_a_softmax():
    logits = np.float32(np.random.RandomState(0).normal(0, 50, 6))
    np.testing.assert_allclose(functions((-1,) * 6)[1](logits)[0], jax.nn.log_softmax(logits), rtol=1e-6)


def test_path_cross_entropy_pushes_the_groups_on_the_path_alone():
    logits = np.float32([1, -1, 0.5, 2, 3, -3, 100])
    tree = hierarchy.make_tree(PARENTS)
    gradient = jax.jit(jax.grad(functools.partial(hierarchy.path_cross_entropy, label=3, tree=tree)))(logits)
    roots, pets = np.exp(logits[:2]), np.exp(logits[2:4])
    expected = [
        *(roots / roots.sum() - [1, 0]),
        *(pets / pets.sum() - [0, 1]),
        0,
        0,
        0,
    ]  # softmax - onehot; dog's children: 0
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_functions_are_finite_for_any_logits():
    logits = np.float32([1e30, -1e30, 3e38, -3e38, 0, 88, 1])
    log_p, loss = functions(PARENTS)[1](logits)
    assert not np.isnan(log_p).any() and not np.isnan(loss).any()


def test_descend_stops_where_the_rule_says():
    # A chain whose every child has 0.9 among its siblings. The paper's rule goes on while .9^n > .5: to the sixth node of a path.
    # Darknet's goes on while .9 * .9^2 * ... is: .9 * .81 * .729 = .531, but .349 with the next, so that it ends at the third.
    parents = (-1, -1, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12)
    logits = np.log(np.float32([0.9, 0.1] * 8))
    tree = hierarchy.make_tree(parents)
    assert hierarchy.descend(logits, tree, threshold=0.5, rule='paper') == 10
    assert hierarchy.descend(logits, tree, threshold=0.5, rule='darknet') == 4
    with pytest.raises(ValueError, match='paper'):
        hierarchy.descend(logits, tree, threshold=0.5, rule='flat')


@pytest.mark.parametrize('rule', hierarchy.DESCENTS)
def test_descend_equals_loops(rule):
    parents = random_tree(1)
    tree = hierarchy.make_tree(parents)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def walk(logits, threshold):
        return hierarchy.descend(logits, tree, threshold=threshold, rule=rule)

    logits = np.float32(np.random.RandomState(0).normal(0, 3, (200, len(parents))))
    for threshold in (0.0, 0.3, 0.6, 1.0):
        log_p = [log_probabilities_by_loops(row, parents) for row in logits]
        expected = [descent_by_loops(row, parents, threshold, rule) for row in log_p]
        np.testing.assert_array_equal(walk(logits, threshold), expected)
        assert len(set(expected)) > (1 if threshold == 1.0 else 5)


def test_descend_takes_the_first_of_equals():
    tree = hierarchy.make_tree(PARENTS)
    logits = np.zeros(7, np.float32)
    assert hierarchy.descend(logits, tree, threshold=0.2) == 2  # animal .5 -> cat .25 (dog too)
    assert hierarchy.descend(logits, tree, threshold=0.9) == 0  # a root in any case
