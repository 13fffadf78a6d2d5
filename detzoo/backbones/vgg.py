"""VGG-16 (arXiv 1409.1556) as SSD uses it (1512.02325, section 3): images [B, H, W, 3] to features of stride 8 and 16.

    conv1_1, conv1_2 -> pool -> conv2_1, conv2_2 -> pool -> conv3_1..3 -> pool -> conv4_1..3 (out) -> pool -> conv5_1..3
      -> pool5 of stride 1 -> fc6: 3x3, dilated -> fc7: 1x1 (out)

fc6 and fc7 stand for VGG's fully connected layers. Padding is torchvision's: the third pooling rounds sizes up, so that
300 pixels become 38 cells, as in the paper; the others round down.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from detzoo.backbones.conv import ConvNorm
from detzoo.backbones.norms import make_norm

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # features and number of the convolutions between poolings
FC_FEATURES = 1024  # of the 4096, every fourth is kept


class VGG16(nn.Module):
    """The convolutions of VGG-16, and two in the place of its fully connected layers.

    width: factor on all channels.
    norm: behind each convolution, a name of `norms.NORMS`, or None as in the paper; norm_epsilon: added to variances.
    fc6_dilation: of the 3x3 convolution fc6. With the paper's 6 it sees 13 cells across, more than a small canvas has.
    axis_name: the axis over which batch statistics are synchronised.
    dtype: of the computation.
    """

    width: float = 1.0
    norm: str | None = None
    norm_epsilon: float = 1e-5
    fc6_dilation: int = 6
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> Sequence[jax.Array]:
        """Maps [B, H, W, 3] to conv4_3 and fc7, each [B, H / stride, W / stride, C] with stride 8 and 16."""
        norm = self.norm and make_norm(
            self.norm, train=train, axis_name=self.axis_name, dtype=self.dtype, epsilon=self.norm_epsilon
        )
        conv = partial(ConvNorm, norm=norm, dtype=self.dtype)
        outputs = []
        x = x.astype(self.dtype)
        for stage, (features, count) in enumerate(STAGES, 1):
            for index in range(count):
                x = conv(round(features * self.width), 3, name=f'conv{stage}_{index + 1}')(x)
            if stage == 4:
                outputs.append(x)
            if stage == 5:
                x = nn.max_pool(x, (3, 3), (1, 1), padding='SAME')
            else:
                x = nn.max_pool(x, (2, 2), (2, 2), padding='SAME' if stage == 3 else 'VALID')  # rounds up, or down
        x = conv(round(FC_FEATURES * self.width), 3, dilation=self.fc6_dilation, name='fc6')(x)
        outputs.append(conv(round(FC_FEATURES * self.width), 1, name='fc7')(x))
        return tuple(outputs)
