"""Trains torchvision's Faster R-CNN as a run of a sweep trains ours, and evaluates it as ours is.

    python scripts/dev/train_torchvision.py --experiment=speed_accuracy:bccd --run=faster_rcnn_seed0 --output=FOLDER

Needs the extra `parity`. The same: the batches, hence pictures, augmentation and their order; steps; layers and their widths,
anchors, numbers of proposals and samples; AdamW, its schedule, and which parameters decay; the average of the parameters; the
canvases and the evaluation. Torchvision's own: the code of the detector and its losses, how parameters are drawn, and what is
sampled at random.

Writes FOLDER/evaluation.json, with the seconds that training took, and FOLDER/detections.json.gz.
"""

import argparse
import collections
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops import MultiScaleRoIAlign
from tqdm import tqdm

from detzoo.data.catalog import open_split
from detzoo.data.pipeline import train_batches
from detzoo.data.records import Dataset, ground_truth
from detzoo.evaluation import coco_metrics, format_table, write_detections
from detzoo.files import write_text
from detzoo.inference.dataset import predict_dataset
from detzoo.run import parallel
from detzoo.run.parallel import first_replica
from detzoo.sweeps.sweep import config_of, load_sweep
from detzoo.training.optimizer import make_schedule
from detzoo.types import Batch, Detections, Inputs


def resnet18(width: float) -> torch.nn.Sequential:
    """Makes a ResNet-18 with a share of its channels, without its classifier; weights are drawn as torchvision draws them."""
    channels = [int(width * 64 * 2**stage) for stage in range(4)]
    layers = collections.OrderedDict(
        conv1=torch.nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False),
        bn1=torch.nn.BatchNorm2d(channels[0]),
        relu=torch.nn.ReLU(inplace=True),
        maxpool=torch.nn.MaxPool2d(3, stride=2, padding=1),
    )
    before = channels[0]
    for stage, count in enumerate(channels, 1):
        stride = 1 if stage == 1 else 2
        shortcut = None
        if stride > 1:
            shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(before, count, 1, stride, bias=False), torch.nn.BatchNorm2d(count)
            )
        layers[f'layer{stage}'] = torch.nn.Sequential(
            BasicBlock(before, count, stride, shortcut), BasicBlock(count, count)
        )
        before = count
    trunk = torch.nn.Sequential(layers)
    for module in trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    return trunk


def make_model(config: ml_collections.ConfigDict, num_classes: int) -> FasterRCNN:
    """Makes torchvision's Faster R-CNN with the layers and the numbers of a config.

    Raises:
        ValueError: the config has a part that is not rendered here.
    """
    model, canvas = config.model, config.data.canvases[0]
    if model.name != 'faster_rcnn' or model.backbone.name != 'resnet18' or model.fpn_features is None:
        raise ValueError(f'only a Faster R-CNN of ResNet-18 and a pyramid is rendered here, not {model.name!r}')
    trunk = resnet18(model.backbone.width)
    stages = {f'layer{i}': str(i - 1) for i in range(1, 5)}
    channels = [int(model.backbone.width * 64 * 2**stage) for stage in range(4)]
    levels, features = len(model.rpn.anchor_sizes), model.fpn_features
    return FasterRCNN(
        BackboneWithFPN(trunk, stages, channels, features),
        min_size=min(canvas),
        max_size=max(canvas),  # pictures are on their canvases already, and keep their size
        rpn_anchor_generator=AnchorGenerator(model.rpn.anchor_sizes, (tuple(model.rpn.aspect_ratios),) * levels),
        rpn_pre_nms_top_n_train=model.rpn.train_pre_nms_topk,
        rpn_pre_nms_top_n_test=model.rpn.pre_nms_topk,
        rpn_post_nms_top_n_train=model.rpn.train_post_nms_topk,
        rpn_post_nms_top_n_test=model.rpn.post_nms_topk,
        rpn_batch_size_per_image=model.rpn.samples,
        box_roi_pool=MultiScaleRoIAlign(
            list(stages.values()), model.roi.output_size, 2, canonical_scale=model.roi.canonical_size
        ),
        box_head=TwoMLPHead(features * model.roi.output_size**2, model.trunk_features),
        box_predictor=FastRCNNPredictor(model.trunk_features, num_classes + 1),
        box_score_thresh=model.head.score_threshold,
        box_nms_thresh=model.head.iou_threshold,
        box_detections_per_img=model.head.max_detections,
        box_batch_size_per_image=model.head.samples,
        box_positive_fraction=model.head.positive_share,
    )


def as_tensors(inputs: Inputs, mean: list[float]) -> list[torch.Tensor]:
    """Makes pictures of a batch, in 0..1; what lies outside of the window has the mean's colour, which is normalised to 0."""
    height, width = inputs.images.shape[1:3]
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    left, top, right, bottom = np.asarray(inputs.window).T[..., None]
    inside = ((y >= top) & (y <= bottom))[..., None] & ((x >= left) & (x <= right))[:, None]
    images = np.where(inside[..., None], np.asarray(inputs.images, np.float32) / 255, np.float32(mean))
    return list(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def targets_of(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """Makes torchvision's targets; its class 0 is background."""
    return [
        {
            'boxes': torch.from_numpy(np.ascontiguousarray(boxes[valid])),
            'labels': torch.from_numpy(labels[valid].astype(np.int64) + 1),
        }
        for boxes, labels, valid in zip(batch.gt.boxes, batch.gt.labels, batch.gt.valid & ~batch.gt.crowd)
    ]


def train(model: FasterRCNN, config: ml_collections.ConfigDict, batches: Iterator[Batch]) -> None:
    """Trains a model, and leaves the average of its parameters in it."""
    schedule = make_schedule(config.optimizer, config.training.steps)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {'params': [x for x in parameters if x.ndim > 1], 'weight_decay': config.optimizer.weight_decay},
            {'params': [x for x in parameters if x.ndim <= 1], 'weight_decay': 0.0},
        ],
        eps=config.optimizer.epsilon,
    )
    average = [x.detach().clone() for x in parameters]
    model.train()
    steps = tqdm(range(config.training.steps), desc='train', unit='step')
    for step in steps:
        batch = next(batches)
        for group in optimizer.param_groups:
            group['lr'] = float(schedule(step))
        optimizer.zero_grad()
        loss = sum(model(as_tensors(batch.inputs, model.transform.image_mean), targets_of(batch)).values())
        loss.backward()
        optimizer.step()
        decay = min(config.optimizer.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, x in zip(average, parameters):
                mean.lerp_(x, 1 - decay)
        if step % 50 == 0:
            steps.set_postfix(loss=f'{loss.item():.3f}')
    with torch.no_grad():
        for mean, x in zip(average, parameters):
            x.copy_(mean)


def make_step(model: FasterRCNN, rows: int) -> Any:
    """Makes a step that predicts as one of `make_predict_step`, on one device.

    Args:
        model: the model.
        rows: D, number of rows of the detections.
    """
    model.eval()

    def padded(found: dict[str, torch.Tensor]) -> Detections:
        count = len(found['scores'])

        def rows_of(values: torch.Tensor, kind: Any) -> np.ndarray:
            array = np.zeros((rows, *values.shape[1:]), kind)
            array[:count] = values.numpy()
            return array

        labels = rows_of(found['labels'] - 1, np.int32)
        boxes, scores = rows_of(found['boxes'], np.float32), rows_of(found['scores'], np.float32)
        return Detections(boxes, scores, labels, np.arange(rows) < count)

    def predict_step(params: None, model_state: None, batch: Batch) -> Any:
        batch = first_replica(batch)
        with torch.inference_mode():
            found = model(as_tensors(batch.inputs, model.transform.image_mean))
        detections = jax.tree.map(lambda *images: np.stack(images), *map(padded, found))
        return parallel.put(jax.tree.map(lambda x: x[None], (detections, batch.image_id, batch.valid)))

    return predict_step


def batches_of(config: ml_collections.ConfigDict, data: Dataset) -> Iterator[Batch]:
    """Iterates over the batches of a config, those that `detzoo train` reads."""
    return train_batches(
        data,
        canvases=config.data.canvases,
        max_boxes=config.data.max_boxes,
        recipe=config.data.recipe,
        batch_size=config.training.batch_size,
        seed=config.seed,
        canvas_steps=config.data.canvas_steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--experiment', required=True, help='experiment with its variant, as for `detzoo sweep`')
    parser.add_argument('--run', required=True, help='name of its run of a Faster R-CNN')
    parser.add_argument('--output', required=True, type=pathlib.Path, help='folder for the results')
    parser.add_argument('--threads', type=int, help="torch's threads")
    parser.add_argument('settings', nargs='*', help='further changes of the config, as training.steps=20')
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runs = {run.name: run for run in load_sweep(arguments.experiment)[0].runs}
    if arguments.run not in runs:
        parser.error(f'{arguments.experiment} has the runs {", ".join(runs)}, not {arguments.run!r}')
    config = config_of(runs[arguments.run], arguments.settings)
    data, validation = open_split(config.data, 'train'), open_split(config.data, 'validation')

    torch.manual_seed(config.seed)
    model = make_model(config, len(data.class_names))
    start = time.monotonic()
    train(model, config, batches_of(config, data))
    seconds = time.monotonic() - start

    truth = ground_truth(validation)
    step = make_step(model, config.model.head.max_detections)
    results = predict_dataset(step, None, None, validation, truth, config)
    metrics = coco_metrics(truth, results, ('bbox',))
    print(format_table(metrics))
    arguments.output.mkdir(parents=True, exist_ok=True)
    count = sum(x.numel() for x in model.parameters())
    measured = {'step': config.training.steps, **metrics, 'seconds': seconds, 'parameters': count}
    write_text(arguments.output / 'evaluation.json', json.dumps(measured, indent=2) + '\n')
    write_detections(arguments.output / 'detections.json.gz', results)


if __name__ == '__main__':
    main()
