"""Makes a workdir of published or exported weights.

    detzoo import --source=retinanet_resnet50_fpn_coco-eeacb38b.pth --model=retinanet_resnet50_fpn \\
        --workdir=runs/retinanet_coco
    detzoo import --source=fcn_resnet50_coco-1167a1af.pth --model=fcn_resnet50 --workdir=runs/fcn_coco
    detzoo import --source=yolov3.weights --model=yolov3 --workdir=runs/yolov3
    detzoo import --source=mine.weights --cfg=mine.cfg --names=mine.names --workdir=runs/mine
    detzoo import --source=EXPORTED_FOLDER --workdir=runs/back

Evaluate, predict and fine-tune from the workdir as from that of a training. docs/zoo.md lists the models. Neither torch nor
another program of the publishers is needed, and code inside a file is never run. The workdir has the model's config (how its
images are resized, its means, its order of channels), its class names and the data's own category ids.

--report=FILE.md writes a table of all layers: the name in the file, our name, the shape, what was done, a checksum of the
result; and which entries of the file were left out, with the reason. A missing entry, or one that is left over without a
reason, is an error. Where the publisher's program is installed (`pip install 'detzoo[parity]'` for torchvision; OpenCV, for
YOLO v2 and v3, always is), it runs too, on a drawn image, and the largest difference of each tensor on the way is printed,
divided by the tensor's maximum.
"""

import importlib.util
import pathlib
import sys
from typing import Any

from absl import flags, logging

from detzoo.cli.paths import define_path

SOURCE = define_path('source', None, 'A weight file, or a folder that detzoo export wrote.', required=True)
MODEL = flags.DEFINE_string('model', None, "The model's name in docs/zoo.md.")
CFG = define_path('cfg', None, 'In place of --model, the .cfg file of a darknet network.')
NAMES = define_path('names', None, 'With --cfg, the file with the names of its classes, one a line.')
WORKDIR = define_path('workdir', None, 'The workdir to make.', required=True)
REPORT = define_path('report', None, 'A Markdown file for the report.')
ERRORS = (ValueError,)  # a file that does not fit the model


def main(settings: list[str]) -> None:
    del settings
    logging.set_verbosity(logging.WARNING)
    import jax

    from detzoo.files import check_writable, write_text
    from detzoo.weights.exchange import format_report, import_weights

    if REPORT.value and not pathlib.Path(REPORT.value).absolute().parent.is_dir():
        sys.exit(f'error: {REPORT.value}: there is no folder for the report: make it')
    if REPORT.value and pathlib.Path(REPORT.value).is_dir():
        sys.exit(f'error: {REPORT.value} is a folder: give the report the name of a file in it')
    if REPORT.value:
        check_writable(pathlib.Path(REPORT.value).absolute().parent, 'give another file for the report')
    imported = import_weights(SOURCE.value, WORKDIR.value, model=MODEL.value, cfg=CFG.value, names=NAMES.value)
    if REPORT.value:
        write_text(pathlib.Path(REPORT.value), format_report(imported.rows))
    parameters = sum(x.size for x in jax.tree.leaves(imported.params))
    taken, left = ([row for row in imported.rows if bool(row.ours) == ours] for ours in (True, False))
    print(
        f'{SOURCE.value} -> {WORKDIR.value}: {imported.config.model.name}, {parameters:,} parameters, '
        f'{len(imported.classes.class_names)} classes, {len(taken)} variables filled, {len(left)} entries left'
    )
    if REPORT.value:
        try:
            found = differences_to_peer(imported)
        except Exception as error:  # whatever the publisher's program says
            found = {}
            print(f"the publisher's program could not be run: {type(error).__name__}: {error}")
        if found:
            print("largest differences to the publisher's program on a drawn image, over each tensor's maximum:")
        for name, difference in found.items():
            print(f'  {name:19} {difference:.1e}')


def differences_to_peer(imported: Any) -> dict[str, float]:
    """The largest differences to what the publisher's program computes with the file, where it can be run."""
    from detzoo.parity import compare
    from detzoo.parity import darknet as darknet_parity
    from detzoo.parity import torchvision as torchvision_parity
    from detzoo.parity import torchvision_segmentation as segmentation_parity
    from detzoo.weights import darknet, torchvision, torchvision_segmentation

    name = imported.config.model.name
    for peers, parity in (
        (torchvision.PEERS, torchvision_parity),
        (torchvision_segmentation.PEERS, segmentation_parity),
    ):
        if MODEL.value in peers and importlib.util.find_spec('torchvision'):
            image, variables = compare.drawn_image(480, 640, seed=0), (imported.params, imported.model_state)
            return parity.compare_entries(MODEL.value, imported.entries, *variables, image)
    if name in ('yolo_v2', 'yolo_v3') and (CFG.value or MODEL.value in darknet.PUBLISHED):
        image = compare.drawn_image(*imported.config.evaluation.canvases[0], seed=0)
        model = {**imported.config.model.to_dict(), 'num_classes': len(imported.classes.class_names)}
        variables = imported.params, imported.model_state
        ours, _ = darknet_parity.run_detector(model, *variables, image)
        return compare.differences(ours, darknet_parity.run_opencv(model, variables, imported.content, image))
    return {}
