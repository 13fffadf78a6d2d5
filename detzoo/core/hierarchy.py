"""A tree of classes, with a softmax over the children of each node (YOLO9000, arXiv 1612.08242, section 4).

    parents -> make_tree -> Tree, numpy
    logits [N] -> log_conditionals: log P(node | parent)
               -> log_probabilities: log P(node), the sum along the path from its root
               -> path_cross_entropy: -log P(label), the loss: the cross-entropies of the groups on the path, and of no other
               -> descend: from a root to the most special node that is probable enough

A probability here is that of a class given that there is an object; the objectness stands for the object.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from detzoo.types import Array

DESCENTS = ('paper', 'darknet')


class Tree(NamedTuple):
    """A forest of N nodes in G groups of siblings; the roots are a group too.

    parents: [N] int32, the parent of each node; -1 for a root. Parents stand before their children.
    groups: [N] int32 in 0..G-1, ascending: the group of each node. Siblings stand side by side.
    children: [N] int32, the group of each node's children; -1 for a leaf.
    paths: [N, D] int32, each node and its ancestors, the node first; the rest is filled with N. D is the depth of the tree.
    """

    parents: np.ndarray
    groups: np.ndarray
    children: np.ndarray
    paths: np.ndarray


def make_tree(parents: Sequence[int]) -> Tree:
    """Makes a tree from the parent of each node.

    Args:
        parents: [N], the index of each node's parent, -1 for a root.

    Raises:
        ValueError: there is no node, a parent does not stand before its child, or siblings do not stand side by side.
    """
    parents = np.asarray(parents, np.int32)
    count = len(parents)
    if parents.ndim != 1 or not count:
        raise ValueError('a tree needs the parent of at least one node')
    wrong = np.flatnonzero((parents < -1) | (parents >= np.arange(count)))
    if len(wrong):
        raise ValueError(f'node {wrong[0]} has parent {parents[wrong[0]]}: parents must stand before their children')
    starts = np.append(True, parents[1:] != parents[:-1])
    groups = np.cumsum(starts, dtype=np.int32) - 1
    firsts = parents[starts]
    repeated = np.flatnonzero(np.bincount(firsts + 1) > 1)
    if len(repeated):
        raise ValueError(f'the children of node {repeated[0] - 1} must stand side by side')
    children = np.full(count, -1, np.int32)
    children[firsts[firsts >= 0]] = np.flatnonzero(firsts >= 0)

    columns, nodes = [], np.arange(count, dtype=np.int32)
    while (nodes < count).any():
        columns.append(nodes)
        nodes = np.append(np.where(parents < 0, count, parents), count)[nodes].astype(np.int32)
    return Tree(parents, groups, children, np.stack(columns, axis=1))


def log_conditionals(logits: Array, tree: Tree) -> Array:
    """Computes log P(node | parent): a log-softmax over each group of siblings.

    Args:
        logits: [N] float.
        tree: the tree.

    Returns:
        [N] float, <= 0.
    """
    chex.assert_shape(logits, tree.parents.shape)
    largest = jax.lax.stop_gradient(_of_groups(jax.ops.segment_max, logits, tree))[tree.groups]
    shifted = logits - largest
    return shifted - jnp.log(_of_groups(jax.ops.segment_sum, jnp.exp(shifted), tree))[tree.groups]


def log_probabilities(logits: Array, tree: Tree) -> Array:
    """Computes log P(node), the sum of `log_conditionals` from a node's root down to it: [N] float, <= 0, of logits [N]."""
    return jnp.append(log_conditionals(logits, tree), 0)[tree.paths].sum(axis=1)


def path_cross_entropy(logits: Array, label: Array, tree: Tree) -> Array:
    """Computes the loss of a label: the sum of the cross-entropies of the groups from its root down to it.

    Groups off the path have no part in it, and neither do the label's own children.

    Args:
        logits: [N] float.
        label: [] int, a node, inner ones too.
        tree: the tree.

    Returns:
        [] float, -log P(label).
    """
    return -jnp.append(log_conditionals(logits, tree), 0)[jnp.asarray(tree.paths)[label]].sum()


def descend(logits: Array, tree: Tree, *, threshold: float, rule: str = 'paper') -> Array:
    """Walks down from the root, each time to the most probable child, as long as that is probable enough.

    'paper': down to a child while P(child) is over the threshold. 'darknet': while the product of P over all nodes from the root
    to the child is, which stops earlier: its source (tree.c) multiplies probabilities that are products already. The root is
    the most probable one in any case.

    Args:
        logits: [N] float.
        tree: the tree.
        threshold: a probability.
        rule: one of DESCENTS.

    Returns:
        [] int32, a node.
    """
    if rule not in DESCENTS:
        raise ValueError(f'rule must be one of {DESCENTS}, not {rule!r}')
    count, depth = tree.paths.shape
    conditionals = log_conditionals(logits, tree)
    largest = _of_groups(jax.ops.segment_max, conditionals, tree)  # [G]
    positions = jnp.where(conditionals == largest[tree.groups], np.arange(count), count)
    best = _of_groups(jax.ops.segment_min, positions, tree)  # [G], the first of a group's largest
    children, limit = jnp.asarray(tree.children), jnp.log(threshold)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        node, log_p, log_product = state
        child = best[children[node]]
        log_p = log_p + conditionals[child]
        log_product = log_product + log_p
        goes_on = (children[node] >= 0) & ((log_p if rule == 'paper' else log_product) > limit)
        stay = jnp.inf  # no later child is over the threshold
        return jnp.where(goes_on, child, node), jnp.where(goes_on, log_p, -stay), jnp.where(goes_on, log_product, -stay)

    root = best[0]
    log_p = conditionals[root]
    return jax.lax.fori_loop(1, depth, step, (root, log_p, log_p))[0].astype(jnp.int32)


def _of_groups(reduce: Callable[..., Array], values: Array, tree: Tree) -> Array:
    """Reduces [N] values over groups: [G]."""
    groups = int(tree.groups[-1]) + 1
    return reduce(values, tree.groups, num_segments=groups, indices_are_sorted=True)
