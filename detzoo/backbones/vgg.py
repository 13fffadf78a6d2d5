"""VGG-16 (arXiv 1409.1556): images [B, H, W, 3] to features with strides 1 to 32.

    conv1_1, conv1_2 (stride 1) -> pool -> conv2_1, conv2_2 (2) -> pool -> conv3_1..3 (4) -> pool -> conv4_1..3 (8) -> pool
      -> conv5_1..3 (16) -> pool5 -> fc6: 3x3, dilated -> fc7: 1x1 (32)

fc6 and fc7 replace VGG's fully connected layers. If stride 16 is the last one, pool5 has stride 1, as in SSD (1512.02325,
section 3), and fc7 is returned instead of conv5_3. Padding is torchvision's: the third pooling rounds sizes up, so that 300
pixels become 38 cells, as in SSD's paper; the others round down.
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

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # features and number of the convolutions between poolings
STRIDES = (1, 2, 4, 8, 16)  # strides of the stages, pixels
FC_STRIDES = (16, 32)  # possible strides of fc7
FC_FEATURES = 1024  # every fourth of VGG's 4096


class VGG16(nn.Module):
    """The convolutions of VGG-16, and two that replace its fully connected layers.

    width: factor on all channels.
    norm: normalisation after each convolution, a name of `norms.NORMS`, or None as in the paper; norm_epsilon: number added to
        variances.
    fc6_dilation: dilation of the 3x3 convolution fc6 at stride 16; it is halved at stride 32. With SSD's 6, fc6 sees 13 cells
        across, which is more than a small canvas has.
    strides: strides of the features to return, pixels; the network ends with the last of them.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: dtype of the computation.
    """

    width: float = 1.0
    norm: str | None = None
    norm_epsilon: float = 1e-5
    fc6_dilation: int = 6
    strides: Sequence[int] = (8, 16)
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to one [B, H / stride, W / stride, C] for each stride."""
        norm = make_norm(self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon)
        conv = partial(ConvNorm, norm=norm, dtype=self.dtype)
        found, last = {}, max(self.strides)
        x = x.astype(self.dtype)
        for stage, (stride, (features, count)) in enumerate(zip(STRIDES, STAGES), 1):
            if stride > last:
                break
            if stage > 1:
                x = max_pool(x, 2, 2, 'SAME' if stage == 4 else 'VALID')  # rounds up, or down
            for index in range(count):
                x = conv(round(features * self.width), 3, name=f'conv{stage}_{index + 1}')(x)
            found[stride] = x
        if last in FC_STRIDES:
            whole = last == 32
            x = max_pool(x, 2, 2, 'VALID') if whole else max_pool(x, 3, 1, 'SAME')
            dilation = max(1, self.fc6_dilation // 2) if whole else self.fc6_dilation
            x = conv(round(FC_FEATURES * self.width), 3, dilation=dilation, name='fc6')(x)
            found[last] = conv(round(FC_FEATURES * self.width), 1, name='fc7')(x)
        return tuple(found[stride] for stride in self.strides)
