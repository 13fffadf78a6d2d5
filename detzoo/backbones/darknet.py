"""The networks of darknet: images [B, H, W, 3] to the features of up to six stages, with strides 1, 2, 4, 8, 16, 32.

    tiny         one 3x3 convolution a stage                    YOLO v1-tiny, v2-tiny, v3-tiny
    extraction   the 20 convolutions pre-trained on ImageNet    YOLO v1 (arXiv 1506.02640, figure 3)
    darknet19    18 convolutions, without the classifier's      YOLO v2 (1612.08242, table 6)
    darknet53    52 convolutions in residual blocks             YOLO v3 (1804.02767, table 1)

Each convolution is followed by a norm and a leaky ReLU. The first three networks pool by 2 between their stages; each stage
of darknet53 but the first begins with a convolution of stride 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.norms import make_norm
from detzoo.backbones.pool import max_pool

# For each stage: (kernel, features) of its convolutions.
TINY = tuple(((3, features),) for features in (16, 32, 64, 128, 256, 512))
EXTRACTION = (
    (),
    ((7, 64),),  # of stride 2
    ((3, 192),),
    ((1, 128), (3, 256), (1, 256), (3, 512)),
    (*((1, 256), (3, 512)) * 4, (1, 512), (3, 1024)),
    ((1, 512), (3, 1024)) * 2,
)
DARKNET19 = (
    ((3, 32),),
    ((3, 64),),
    ((3, 128), (1, 64), (3, 128)),
    ((3, 256), (1, 128), (3, 256)),
    ((3, 512), *((1, 256), (3, 512)) * 2),
    ((3, 1024), *((1, 512), (3, 1024)) * 2),
)
PLAIN = {'tiny': TINY, 'extraction': EXTRACTION, 'darknet19': DARKNET19}
DARKNET53_BLOCKS = (0, 1, 2, 8, 8, 4)  # residual blocks of each stage
STRIDES = (1, 2, 4, 8, 16, 32)  # strides of the stages, pixels; extraction's first stage is empty


ConvBlock = partial(ConvNorm, activation=partial(nn.leaky_relu, negative_slope=0.1))  # with a norm: no bias


class Darknet(nn.Module):
    """The stages of one of the networks.

    architecture: 'tiny', 'extraction', 'darknet19' or 'darknet53'.
    strides: strides of the stages to return, pixels; the network ends with the last of them.
    width: factor on all channels.
    norm: a name of `norms.NORMS`; norm_epsilon: number added to variances.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    architecture: str
    strides: Sequence[int] = STRIDES
    width: float = 1.0
    norm: str = 'batch_norm'
    norm_epsilon: float = 1e-6
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to one [B, ceil(H / stride), ceil(W / stride), C] for each stride."""
        if self.architecture not in (*PLAIN, 'darknet53'):
            raise ValueError(f'backbone is {self.architecture!r}: use one of {", ".join((*PLAIN, "darknet53"))}')
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)

        def conv(x: jax.Array, kernel: int, features: int, name: str, stride: int = 1) -> jax.Array:
            return ConvBlock(round(features * self.width), kernel, stride, norm=norm, dtype=self.dtype, name=name)(x)

        stages = {}
        x = x.astype(self.dtype)
        for stage, stride in enumerate(STRIDES):
            if stride > max(self.strides):
                break
            if self.architecture == 'darknet53':
                features = 32 * 2**stage
                x = conv(x, 3, features, f'stage{stage + 1}_conv', stride=1 if stage == 0 else 2)
                for block in range(DARKNET53_BLOCKS[stage]):
                    y = conv(x, 1, features // 2, f'stage{stage + 1}_block{block + 1}_conv1')
                    x += conv(y, 3, features, f'stage{stage + 1}_block{block + 1}_conv2')
            else:
                strided = self.architecture == 'extraction' and stage == 1
                if stage > 0 and not strided:
                    x = max_pool(x, 2, 2, 'SAME')  # the last window may be cut off: ceil(size / 2) cells remain
                for index, (kernel, features) in enumerate(PLAIN[self.architecture][stage]):
                    x = conv(x, kernel, features, f'stage{stage + 1}_conv{index + 1}', stride=2 if strided else 1)
            stages[stride] = x
        return tuple(stages[stride] for stride in self.strides)
