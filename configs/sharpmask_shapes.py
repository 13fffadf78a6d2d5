"""SharpMask on `shapes`, for a laptop: the second stage of training, which refines the masks of a trained DeepMask.

    detzoo train --config=deepmask_shapes --workdir=runs/deepmask
    detzoo train --config=sharpmask_shapes:runs/deepmask --workdir=runs/sharpmask
    detzoo evaluate --workdir=runs/sharpmask

Measured, seed 0, after 300 steps on the DeepMask of 600: average recall of the best 10 and 100 boxes of an image 0.590 and 0.772,
of their masks 0.468 and 0.583; that DeepMask has 0.561, 0.735, 0.400 and 0.509. The time was not measured: other programs had most
of the machine.
"""

import pathlib

import ml_collections

from detzoo.config import complete, load_config, read_config
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config that starts from a DeepMask: from that of a workdir, or from that of deepmask_shapes in runs/deepmask."""
    path = pathlib.Path(arg or '', 'config.json').expanduser()
    if arg and not path.exists():
        raise ConfigError(
            f'configs/sharpmask_shapes.py:WORKDIR takes the workdir of a DeepMask, and {arg!r} is not one'
        )
    coarse = read_config(path) if arg else load_config('deepmask_shapes')
    c = ml_collections.ConfigDict()
    c.initialize_from = arg or 'runs/deepmask'
    c.data = coarse.data
    c.model = coarse.model
    del c.model['mask_size']
    c.model.update(name='sharpmask', refine_strides=(4,), refine_features=16, hidden_features=(16, 16))
    c.training = dict(steps=300, batch_size=8, checkpoint_every=150, evaluate_every=300)
    frozen = '^(backbone|reduce|code|score_hidden|score)/'
    c.optimizer = dict(coarse.optimizer, frozen=frozen)
    return complete(c)
