"""Any trained detector, fine-tuned on `histology`: it keeps its weights, except those that depend on the classes.

    detzoo import --source=retinanet_resnet50_fpn_coco-eeacb38b.pth --model=retinanet_resnet50_fpn \\
        --workdir=runs/retinanet_coco
    detzoo train --config=finetune_histology:runs/retinanet_coco --workdir=runs/finetuned

The argument is the workdir of imported weights or of a run. Its model section and its resizing of images are taken over
unchanged; layers whose shape depends on the number of classes start from random weights, and are listed when the run begins.
`--config.optimizer.frozen='backbone/(stem|stage1)'` keeps the early layers of a ResNet as they are (it is a regular expression on
parameter paths). In detectors with batch norm (torchvision's v2 models, SSDLite, YOLO) the statistics go on changing;
`--config.model.backbone.norm=frozen_batch_norm` keeps those of the workdir.

There are only 24 training tiles, so augmentation matters most, as in the other configs for `histology`. This config was run with
weights trained here, not with published ones.
"""

import pathlib

import ml_collections

from detzoo.config import complete, read_config
from detzoo.errors import ConfigError


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Makes the config that starts from the weights of a workdir."""
    path = pathlib.Path(arg or '', 'config.json').expanduser()
    if not arg or not path.exists():
        raise ConfigError(f'configs/finetune_histology.py:WORKDIR needs a workdir, but {arg!r} is not one')
    source = read_config(path)
    c = ml_collections.ConfigDict()
    c.initialize_from = arg
    c.model = source.model

    masks = source.data.mask_size or (112 if source.model.name == 'mask_rcnn' else 0)
    c.data = dict(name='histology', canvases=source.data.canvases, max_boxes=100, mask_size=masks)
    rule = {key: source.data.recipe[key] for key in ('resize', 'interpolation')}
    c.data.recipe = dict(rule, flip=0.5, rotate90=True, scale_range=(1.0, 1.33), color_jitter=0.2)
    c.evaluation = dict(batch_size=4, mask_paste=source.evaluation.mask_paste)
    if rule['resize'] == 'fit':  # a step sees crops of tiles of 250 pixels, enlarged to twice their size
        c.data.canvases = ((256, 256),)
        c.data.recipe.scale_range = (1.5, 2.66)
        c.evaluation.canvases = ((512, 512),)

    c.training = dict(steps=600, batch_size=8, checkpoint_every=200, evaluate_every=200)
    c.optimizer = dict(name='adamw', learning_rate=1e-3, warmup_steps=50, weight_decay=1e-2, ema_decay=0.99)
    return complete(c)
