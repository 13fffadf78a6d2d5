"""The family on one axis: how many of the objects does each network find, and how long does an image take it?

    detzoo proposals --data=shapes --output=proposals --method=selective_search --width=128
    detzoo sweep --experiment=family --workdir=runs/family --costs
    detzoo report --workdir=runs/family

No paper compares them all. Held fixed: the data (`shapes`), the canvas, the machine. Each network is trained as its own laptop
config says: backbones, steps and images a step differ, and none was tuned for this comparison. So the figures describe these
networks, and do not rank the methods. One seed.

All are on the axis of average recall: of the best 100 boxes of an image, whatever their class (object AR100), since DeepMask and
SharpMask know no classes. The other axis of accuracy is AP: theirs takes all objects as one class. Segmenters take connected
components as objects. Times of R-CNN, SPP-net and Fast R-CNN are without selective search, which takes 0.07 s of a core for an
image of `shapes`. The files of proposals lie in the current folder.
"""

from typing import Any

from detzoo.sweeps.sweep import Axes, Run, Sweep

SELECTIVE_SEARCH = {
    f'data.{split}_proposals': f'proposals/shapes_selective_search_{split}.json.gz' for split in ('train', 'validation')
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    'rcnn': ('configs/rcnn_shapes.py', SELECTIVE_SEARCH),
    'spp': ('configs/fast_rcnn_shapes.py:spp', SELECTIVE_SEARCH),
    'fast_rcnn': ('configs/fast_rcnn_shapes.py', SELECTIVE_SEARCH),
    'faster_rcnn': ('configs/faster_rcnn_shapes.py', {}),
    'mask_rcnn': ('configs/mask_rcnn_shapes.py', {}),
    'mnc': ('configs/mnc_shapes.py', {}),
    'yolo_v1': ('configs/yolo_shapes.py:v1', {}),
    'yolo_v2': ('configs/yolo_shapes.py:v2', {}),
    'yolo_v3': ('configs/yolo_shapes.py:v3', {}),
    'ssd': ('configs/ssd_shapes.py', {}),
    'retinanet': ('configs/retinanet_shapes.py', {}),
    'unet': ('configs/unet_shapes.py', {}),
    'fcn': ('configs/fcn_shapes.py', {}),
    'deeplab': ('configs/deeplab_shapes.py', {}),
    'deepmask': ('configs/deepmask_shapes.py', {}),
}
SHARPMASK = Run('sharpmask', 'configs/sharpmask_shapes.py', {'initialize_from': None}, initialized='deepmask')


def get_sweep(arg: str | None = None) -> Sweep:
    """Makes the runs; there are no variants."""
    if arg:
        raise ValueError(f'experiments/family.py has no variant {arg!r}')
    runs = [Run(name, config, changes) for name, (config, changes) in ROWS.items()]
    figures = Axes('seconds', 'object_AR100', log=True, pareto=True), Axes('seconds', 'AP', log=True, pareto=True)
    return Sweep([*runs, SHARPMASK], ('object_AR100', 'AP', 'AP50', 'AP75'), figures)
