"""A run as programs that need no detzoo: StableHLO by `jax.export`, with the weights inside.

    export_program: a workdir -> a folder
      128x128.stablehlo   for each canvas: uint8 images [batch, H, W, 3] and windows -> detections; any batch size, CPU, GPU and TPU
      model.json          classes, and how an image comes onto a canvas
      run.py              `standalone`: photographs -> detections in their own pixels, with jax, numpy and OpenCV

What runs is `prediction_of` the detector, so that normalisation and NMS are inside. It is written for one image and mapped over
the batch: a detector makes choices by the number of images, which the program does not know before it is called.
"""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax import export

import detzoo
from detzoo.data.geometry import resize_rule
from detzoo.errors import DataError
from detzoo.files import as_path, check_new_folder, new_folder, write_text
from detzoo.inference import standalone
from detzoo.inference.predictor import Predictor, evaluation_canvases, load, prediction_of
from detzoo.types import Array, Inputs

PLATFORMS = ('cpu', 'cuda', 'tpu')
MODEL = 'model.json'
_NOT_OUTPUTS = ('candidates_dropped',)  # a figure about the detector, not about the image


def export_program(
    workdir: str | os.PathLike, output: str | os.PathLike, *, step: int | str | None = None
) -> list[tuple[int, int]]:
    """Writes what a run predicts with (averaged parameters if it has them) as StableHLO, one program for each canvas.

    Canvases are those that images share (`evaluation_canvases`). `evaluation.exact`, a canvas for each image, does not count.

    Args:
        workdir: the run's folder.
        output: the folder to make.
        step: the checkpoint's step, or 'best'; the newest by default.

    Returns:
        the canvases.

    Raises:
        FileNotFoundError: there is no such run or checkpoint.
        DataError: the detector needs proposals from outside.
        ValueError: the folder exists and is not empty.
    """
    check_new_folder(as_path(output))
    predictor = load(workdir, step, exact=False)
    if predictor.detector.needs_proposals:
        raise DataError(
            f'{workdir}: this {predictor.config.model.name} has no RPN (model.rpn is None), and an exported program has no input '
            'for proposals: export a run whose detector makes its own'
        )
    programs = {tuple(canvas): make_program(predictor, canvas) for canvas in evaluation_canvases(predictor.config)}
    with new_folder(output) as folder:
        for (height, width), program in programs.items():
            (folder / f'{height}x{width}.stablehlo').write_bytes(program.serialize())
        write_text(folder / MODEL, json.dumps(describe(predictor, programs), indent=2) + '\n')
        write_text(folder / 'run.py', pathlib.Path(standalone.__file__).read_text('utf-8'))
    return list(programs)


def make_program(predictor: Predictor, canvas: tuple[int, int]) -> export.Exported:
    """Traces prediction on a canvas for all PLATFORMS.

    Args:
        predictor: a detector or segmenter with its parameters.
        canvas: (H, W).

    Returns:
        a program that maps images [batch, H, W, 3] uint8 and windows [batch, 4] float32 to a dict of the fields of `Detections`,
        or of `PixelClasses`.
    """
    predict = prediction_of(predictor.detector)

    def predict_image(variables: Any, image: Array, window: Array) -> dict[str, Array]:
        found = predict(*variables, Inputs(image[None], window[None]))._asdict()
        return {name: x[0] for name, x in found.items() if x is not None and name not in _NOT_OUTPUTS}

    def one_by_one(variables: Any, *arrays: Array) -> dict[str, Array]:
        return jax.lax.map(lambda image: predict_image(variables, *image), arrays)

    def at_once(variables: Any, *arrays: Array) -> dict[str, Array]:
        return jax.vmap(predict_image, in_axes=(None, 0, 0))(variables, *arrays)

    @jax.jit
    def program(images: Array, window: Array) -> dict[str, Array]:
        # Behind the barrier the compiler does not see that weights are constants: it computes what `Predictor` does.
        variables = jax.lax.optimization_barrier((predictor.params, predictor.model_state))
        return jax.lax.platform_dependent(variables, images, window, cpu=one_by_one, default=at_once)

    (batch,) = export.symbolic_shape('batch')
    shapes = jax.ShapeDtypeStruct((batch, *canvas, 3), np.uint8), jax.ShapeDtypeStruct((batch, 4), np.float32)
    return export.export(program, platforms=PLATFORMS)(*shapes)


def describe(predictor: Predictor, programs: dict[tuple[int, int], export.Exported]) -> dict[str, Any]:
    """Makes the content of model.json: all that a caller of the programs has to know.

    Args:
        predictor: the detector or segmenter.
        programs: {canvas: program}.
    """
    config, (class_names, category_ids) = predictor.config, predictor.classes
    canvases = [
        dict(
            height=height,
            width=width,
            file=f'{height}x{width}.stablehlo',
            inputs=dict(zip(('images', 'window'), map(_array, program.in_avals))),
            outputs={name: _array(x) for name, x in program.out_tree.unflatten(program.out_avals).items()},
        )
        for (height, width), program in programs.items()
    ]
    return dict(
        model=config.model.name,
        step=predictor.step,
        class_names=class_names,
        category_ids=category_ids,
        resize=resize_rule(config.data.recipe)._asdict(),
        mask_paste=config.evaluation.mask_paste,
        canvases=canvases,
        platforms=PLATFORMS,
        made_with=dict(detzoo=detzoo.__version__, jax=jax.__version__),
    )


def _array(aval: Any) -> dict[str, Any]:
    """Describes an array: its dtype and its shape, in which a number that is free has a name."""
    return dict(dtype=str(aval.dtype), shape=[size if isinstance(size, int) else str(size) for size in aval.shape])
