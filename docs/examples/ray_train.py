"""A training as workers of Ray Train: python docs/examples/ray_train.py (pip install -e '.[ray]').

Ray sets up JAX's distributed runtime in each worker. What is left is to call `train_and_evaluate`.
"""

import ray.train
from ray.train.v2.jax import JaxTrainer


def train(settings):
    """Trains in one of the workers."""
    from detzoo.config import load_config
    from detzoo.training.loop import train_and_evaluate

    config = load_config(settings['config'], settings['changes'])
    ray.train.report({'AP': train_and_evaluate(config, settings['workdir'])['boxes']['AP']})


if __name__ == '__main__':
    trainer = JaxTrainer(
        train,
        train_loop_config=dict(config='mask_rcnn_r50_fpn_coco', changes={}, workdir='/shared/runs/coco'),
        # On TPUs: use_tpu=True, topology='4x4', accelerator_type='TPU-V6E', one worker a host.
        scaling_config=ray.train.ScalingConfig(num_workers=2, use_gpu=True),
    )
    trainer.fit()
