"""SharpMask: *Learning to Refine Object Segments* (arXiv 1603.08695): DeepMask, whose masks are refined from coarse to fine.

    images, codes and scores of windows: see `deepmask`
      -> the code of a window -> 1 fully connected layer -> n x n cells, k channels
      -> for each feature map of the backbone, the trunk's first, k halved each time:
           horizontal: the map, as a whole -> 3 convolutions of 3x3 -> its cells in the window
           vertical:   the mask so far     -> 2 convolutions of 3x3
           their sum -> ReLU -> twice the size
      -> 3x3 convolution -> mask_logits [B, R, m, m], m = 2 n stride / finest stride
    loss, predict: those of DeepMask

Training has two stages (section 4). A DeepMask is trained first. The backbone, the codes and the score head are then taken from it
(`initialize_from`) and stay as they are (`optimizer.frozen`); its mask head is dropped, and the refinement learns.

Differences from the paper:
- Those of `deepmask`, but for the resolution of the masks.
- The two branches are added and the result is enlarged by repetition, as in the authors' later code. In the paper they are
  concatenated, a convolution follows, and the result is enlarged bilinearly.
- The horizontal convolutions run over a map as a whole, and windows that overlap share them. At its border a window sees what lies
  beyond.
- The last map is the finest of `refine_strides`. Most backbones here have none of stride 2, where the paper ends.
- Nothing but `optimizer.frozen` separates the stages: without it all parts learn together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import Conv
from detzoo.detectors.deepmask import WindowNetwork, bind, make_parts
from detzoo.detectors.network import with_arguments_of
from detzoo.detectors.windows import Placed, cut_windows, pad_cells
from detzoo.types import Array, Detector


def repeat_border(x: Array) -> Array:
    """Puts a copy of the outermost cells around [N, h, w, C]."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='symmetric')


class Convolutions(nn.Module):
    """3x3 convolutions with the outermost cells repeated around them, and ReLUs in between.

    features: channels of each.
    """

    features: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, h, w, C] to [N, h, w, features[-1]]."""
        for i, features in enumerate(self.features):
            init = nn.initializers.he_normal()
            conv = Conv(features, (3, 3), padding='VALID', kernel_init=init, dtype=self.dtype, name=f'conv{i + 1}')
            x = conv(repeat_border(x if i == 0 else nn.relu(x)))
        return x


class SharpMask(nn.Module):
    """The network: codes and scores of windows, and the refinement.

    windows: constructor of the network of windows. strides: strides of the backbone's maps, finest first, the trunk's last.
    refine_features: k. hidden_features: channels of the first horizontal convolution of each step.
    """

    windows: Callable[[], WindowNetwork]
    strides: Sequence[int]
    refine_features: int
    hidden_features: Sequence[int]

    def setup(self) -> None:
        """Gives the parameters of the network of windows the names that they have in DeepMask."""
        self.base = self.windows()
        nn.share_scope(self, self.base)
        k, dtype = self.refine_features, self.base.dtype
        self.coarse = nn.Dense(k * self.base.rules.cells**2, dtype=dtype)
        sides = [(k // 2**i, k // 2 ** (i + 1)) for i in range(len(self.strides))]
        self.horizontal = [Convolutions((hidden, *side), dtype) for hidden, side in zip(self.hidden_features, sides)]
        self.vertical = [Convolutions(side, dtype) for side in sides]
        self.output = Conv(1, (3, 3), padding='VALID', dtype=dtype)

    def masks(self, codes: Array, stages: Sequence[Sequence[Array]], placed: Placed, chosen: Array) -> Array:
        """Maps the codes [B, R, rank] of windows, and the backbone's maps of each scale, to mask_logits [B, R, m, m] float32."""
        cells = self.base.rules.cells
        with jax.named_scope('heads'):
            mask = self.coarse(codes).reshape(-1, cells, cells, self.refine_features)
            for step, number in enumerate(reversed(range(len(self.strides)))):
                factor = self.strides[-1] // self.strides[number]
                maps = [pad_cells(self.horizontal[step](maps[number]), factor * cells // 2) for maps in stages]
                cut = cut_windows(maps, placed, chosen, cells=cells, factor=factor)
                mask = nn.relu(cut.reshape(-1, *cut.shape[2:]) + self.vertical[step](mask))
                mask = mask.repeat(2, axis=1).repeat(2, axis=2)
            mask = self.output(repeat_border(mask))
            return mask.reshape(*chosen.shape, *mask.shape[1:3]).astype(jnp.float32)

    def __call__(self, x: Array, *, train: bool) -> Any:
        """Runs all parts, the masks of one window an image, to draw their parameters."""
        reduced, stages = self.base.maps(x, train=train)
        codes, chosen = self.base.codes(reduced), jnp.zeros((len(x), 1), jnp.int32)
        placed = self.base.rules.place(x.shape[1:3])
        return self.base.scores(codes, None), self.masks(codes[:, :1], stages, placed, chosen)


def check_refinement(strides: Sequence[int], refine_features: int, hidden_features: Sequence[int]) -> None:
    """Refuses maps that do not double in size, and numbers of channels that do not fit their number."""
    if any(coarser != 2 * finer for finer, coarser in zip(strides, strides[1:])):
        raise ValueError(
            f'refine_strides and backbone_stride are {strides}: each must be twice the one before, as a step doubles the mask'
        )
    if len(hidden_features) != len(strides):
        raise ValueError(
            f'hidden_features is {tuple(hidden_features)}: it needs a number for each of the {len(strides)} steps'
        )
    if refine_features % 2 ** len(strides):
        raise ValueError(
            f'refine_features is {refine_features}: it must be a multiple of {2 ** len(strides)}, as each step halves it'
        )


@with_arguments_of(make_parts)
def make(
    *,
    refine_strides: Sequence[int] = (4, 8),
    refine_features: int = 32,
    hidden_features: Sequence[int] = (64, 64, 64),
    **arguments: Any,
) -> Detector:
    """Makes a SharpMask.

    Args:
        refine_strides: strides of the backbone's maps that are finer than the trunk's, pixels, finest first, each twice the one
            before.
        refine_features: k, channels of the mask before the first step; each step halves them.
        hidden_features: channels of the first horizontal convolution of each step, the coarsest step first.
        **arguments: those of `deepmask.make_parts`.

    Returns:
        A Detector like that of `deepmask.make`.
    """
    parts = make_parts(refine_strides, **arguments)
    strides = (*refine_strides, parts.windows.stride)
    check_refinement(strides, refine_features, hidden_features)
    network = SharpMask(parts.network, strides, refine_features, tuple(hidden_features))
    return bind(parts, network, extends='deepmask')
